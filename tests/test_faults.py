"""The script of faults: it finds nothing lost where nothing is lost, and it finds what a careless save loses."""

import json
import os
import re
import subprocess
import sys

import pytest
from safetensors.torch import save_file

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked processes")
PARTS = ["kills_of_model_saves", "loads_during_saves", "pairs_of_savers"]


@pytest.fixture
def faults():
    from . import faults  # Windows lacks what it imports

    return faults


def test_a_small_run_loses_nothing(faults):
    run = subprocess.run(
        [sys.executable, "-m", "tests.faults", "--scale", "0.01", "--minutes", "1", "--seed", "0"],
        capture_output=True,
        text=True,
        cwd=os.path.dirname(os.path.dirname(__file__)),
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.startswith("seed 0\n")
    for part in faults.PARTS:
        (tried,) = re.findall(rf"^{part.__name__}, (\d+) of \d+ tried, lost: nothing$", run.stdout, re.MULTILINE)
        assert int(tried) > 0 or "only root" in run.stdout


@pytest.mark.parametrize("part", PARTS)
def test_a_careless_save_is_found(faults, tmp_path, monkeypatch, part):
    def careless(folder, config, tensors):
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_text(json.dumps(config))
        save_file(dict(tensors), folder / "model.safetensors")

    world = faults.World(tmp_path, seed=0)
    monkeypatch.setattr("minibert.pretrained.write_checkpoint", careless)
    found, loss = faults.tried(getattr(faults, part), world, 300, 20)
    assert re.search("mixture|Error", loss), found


def test_an_unfinished_download_is_found(faults, tmp_path):
    world = faults.World(tmp_path, seed=0)
    snapshot = tmp_path / "cache" / "models--someone--tiny" / "snapshots" / "0"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_bytes(world.files["old"]["config.json"])
    faults.check_cache(world, tmp_path / "cache", {"0": "old"})
    for commits, content in (({"0": "new"}, world.files["old"]["config.json"]), ({"0": "old"}, b"{")):
        (snapshot / "config.json").write_bytes(content)
        with pytest.raises(faults.LostError, match="not that of its commit"):
            faults.check_cache(world, tmp_path / "cache", commits)


def test_a_loss_is_printed_and_is_the_exit_status(faults, monkeypatch, capsys):
    def unlucky(world):
        """A part that loses something at the third attempt."""
        yield from ["old", "new"]
        raise faults.LostError("half a page")

    def lucky(world):
        """A part that loses nothing."""
        yield from ["old"] * 5

    monkeypatch.setattr(faults, "PARTS", {unlucky: 5, lucky: 5})
    assert faults.main(["--seed", "0", "lucky"]) == 0
    assert faults.main(["--seed", "0"]) == 1
    out = capsys.readouterr().out
    assert "unlucky, 2 of 5 tried, lost: LostError: half a page" in out
    assert "lucky: A part that loses nothing." in out
    with pytest.raises(SystemExit, match="2"):
        faults.main(["no_such_part"])
    assert "no part no_such_part" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        faults.main(["--minutes", "0"])
    assert "give numbers above 0" in capsys.readouterr().err

"""scripts/compare_trainer.py on few reviews: finetune.py and Trainer learn the same, and both are timed."""

import importlib
import re
import sys
from pathlib import Path

import pytest

from .small_data import reviews

pytest.importorskip("transformers")


@pytest.fixture
def compare(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "scripts")
    return importlib.import_module("compare_trainer")


def test_both_learn_and_each_step_is_timed(compare, tmp_path, monkeypatch, capsys):
    for label, name in enumerate(("neg", "pos")):
        texts = [row["text"] for row in reviews(800) if row["label"] == label]
        (tmp_path / f"rt-polarity.{name}").write_text("\n".join(texts))
    monkeypatch.setattr(compare, "TIMED", {"small": (8, 4, compare.DEMO_SIZES)})
    monkeypatch.setattr(compare, "SETTINGS", compare.SETTINGS | {"batch-rows": 16})
    monkeypatch.setattr(sys, "argv", ["compare_trainer.py", str(tmp_path), "--seeds", "2"])
    compare.main()
    printed = capsys.readouterr().out
    assert re.search(r"Trainer +\d+ ms, Trainer / this 1\.00\n  finetune\.py, padded +\d+ ms", printed)
    assert re.search(r"finetune\.py, packed +\d+ ms, Trainer / this \d+\.\d\d\n", printed)
    means = dict(re.findall(r"(\S+): mean ([\d.]+)%", printed))
    assert means.keys() == {"finetune.py", "Trainer"}
    assert all(float(mean) > 90 for mean in means.values())


def test_a_folder_without_the_reviews_is_refused(compare, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["compare_trainer.py", str(tmp_path)])
    with pytest.raises(SystemExit, match="2"):
        compare.main()
    assert re.search(r"error: .*No such file.*rt-polarity\.neg'$", capsys.readouterr().err.strip())

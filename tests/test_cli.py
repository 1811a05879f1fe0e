"""The command line as a user sees it: the walk, labels for texts, and bad inputs reported on one line."""

import io
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest
import torch

import minibert
from minibert.cli import study
from minibert.study.walk import SENTENCES, walk

from .command_line import OFFICIAL, load, run


def test_the_walk_follows_the_note(checkpoint):
    model, tokenizer = load(checkpoint)
    result = walk(model, tokenizer)
    inputs = tokenizer(list(SENTENCES), padding=True, return_tensors="pt")
    with torch.no_grad():
        assert torch.equal(result.logits["alone"], model(inputs.input_ids[:1, :8]).logits)
        assert torch.equal(result.logits["padded"], model(inputs.input_ids).logits)
        assert torch.equal(result.logits["padded, mask"], model(**inputs).logits)
    assert result.subject == 0
    assert result.tokens[0] == "[CLS] today is a nice day ! [SEP] [PAD] [PAD] [PAD]".split()
    assert torch.equal(result.logits["alone"], result.logits["alone, mask"])
    assert (result.logits["padded"][0] - result.logits["alone"][0]).abs().max() > 0.01
    assert (result.logits["padded, mask"][0] - result.logits["alone"][0]).abs().max() < 1e-5
    keys = result.keys
    assert torch.equal(keys["scores"] + keys["mask"], keys["masked_scores"])
    assert torch.equal(keys["masked_scores"].softmax(-1), keys["probs"])
    assert (keys["probs"][8:] == 0).all()
    # Layer 0 has the same scores in both runs: the mask only gives what [PAD] took to the others, in proportion.
    real = keys["probs_without_mask"][:8]
    assert torch.allclose(keys["probs"][:8], real / real.sum(), atol=1e-6)
    assert result.pad_mass["padded"].shape == (2,)
    assert (result.pad_mass["padded"] > 0).all()
    assert (result.pad_mass["padded, mask"] == 0).all()


def test_the_walk_looks_at_the_head_where_padding_takes_most(checkpoint):
    model, tokenizer = load(checkpoint)
    result = walk(model, tokenizer)
    ids = tokenizer(list(SENTENCES), padding=True, return_tensors="pt").input_ids
    with torch.no_grad():
        probs = model(ids, output_attentions=True).attentions[0][0, :, 0]  # (H, S) of [CLS] in the first sentence
    assert result.head == probs[:, 8:].sum(-1).argmax()
    assert torch.equal(result.keys["probs_without_mask"], probs[result.head])


def test_the_walk_prints_the_lesson(checkpoint, capsys):
    _, out, err = run(capsys, "--model", checkpoint)
    assert err == ""
    for line in (
        "1  One sentence, without a mask",
        "   ids     2     5     6  7 8    9   17 3     0     0     0",
        "   mask    1     1     1  1 1    1   1  1     0     0     0",
        "<- the same bits as in 1",
        "<- as in 1, to rounding (",
        "+ -3.4e+38",
    ):
        assert line in out
    moved = [line for line in out.splitlines() if "<- moved by up to" in line]
    assert len(moved) == 1


def test_sentences_of_one_length_are_padded_and_the_shortest_is_followed(checkpoint, capsys):
    status, out, _ = run(capsys, "walk", "today is nice", "--model", checkpoint, "--json")
    result = json.loads(out)
    assert status == 0
    assert result["tokens"] == ["[CLS] today is nice [SEP] [PAD] [PAD] [PAD] [PAD]".split()]
    _, out, _ = run(capsys, "walk", "a nice day but not today", "a day", "a nice day", "--model", checkpoint, "--json")
    assert json.loads(out)["subject"] == 1


def test_the_walk_takes_sentences_from_standard_input(checkpoint, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a nice day but not today\na day\n")))
    from_input = run(capsys, "walk", "-", "--model", checkpoint)
    assert from_input == run(capsys, "walk", "a nice day but not today", "a day", "--model", checkpoint)
    assert from_input[0] == 0


@pytest.mark.parametrize("texts", ["a nice day", []])
def test_the_walk_takes_a_list_of_sentences(checkpoint, texts):
    with pytest.raises(ValueError, match="takes a list of at least one sentence"):
        walk(*load(checkpoint), texts)


def test_long_rows_of_tokens_are_folded(checkpoint, capsys):
    _, out, _ = run(capsys, "walk", "tomorrow " * 14, "a", "--model", checkpoint)
    assert max(map(len, out.splitlines())) <= 110
    assert out.count("   tokens  tomorrow") == 2  # the second half of the long row, in each of two runs


def test_the_official_checkpoint_is_compared_with_the_published_logits(checkpoint, capsys, monkeypatch):
    status, out, _ = run(capsys, "--model", checkpoint)  # only its name is official
    assert status == 1
    assert "They do NOT agree to 4 decimals." in out
    own = walk(*load(checkpoint)).logits
    published = {run: [[round(x, 4) for x in row] for row in logits.tolist()] for run, logits in own.items()}
    monkeypatch.setitem(study.PUBLISHED, OFFICIAL, published)
    status, out, _ = run(capsys, "--model", checkpoint)
    assert status == 0
    assert out.endswith("They agree to 4 decimals.\n")
    published["padded"][1][0] += 0.0002
    status, out, _ = run(capsys, "--model", checkpoint, "--json")
    assert status == 1
    assert json.loads(out)["agree"] is False
    status, out, _ = run(capsys, "walk", "a nice day", "not sure", "--model", checkpoint)  # other sentences
    assert status == 0
    assert "published" not in out


def test_each_text_gets_a_label_and_its_score(checkpoint, capsys):
    model, tokenizer = load(checkpoint)
    texts = ["today is a nice day", "not sure", "what about tomorrow?"]
    with torch.no_grad():
        expected = model(**tokenizer(texts, padding=True, return_tensors="pt")).logits.softmax(-1).max(-1)
    status, out, _ = run(capsys, "classify", "--model", checkpoint, *texts)
    assert status == 0
    labels = [model.config.id2label[i] for i in expected.indices.tolist()]
    lines = zip(labels, expected.values.tolist(), texts, strict=True)
    assert out == "".join(f"{label}\t{score:.4f}\t{text}\n" for label, score, text in lines)
    _, out, _ = run(capsys, "classify", "--model", checkpoint, "--json", texts[0])
    assert json.loads(out) == {
        "text": texts[0],
        "label": labels[0],
        "score": pytest.approx(expected.values[0].item(), abs=1e-6),
    }


def test_each_line_of_a_file_or_of_standard_input_is_a_text(checkpoint, capsys, monkeypatch, tmp_path):
    lines = [f"{'nice ' * (i % 7 + 1)}day" for i in range(100)]
    file = tmp_path / "texts.txt"
    file.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())  # as some editors write it
    status, out, err = run(capsys, "classify", "--model", checkpoint, "--file", file)
    assert (status, err) == (0, "")
    assert [line.split("\t")[2] for line in out.splitlines()] == lines
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("\n".join(lines).encode())))
    assert run(capsys, "classify", "--model", checkpoint, "-")[1] == out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["classify"], "give texts, or --file FILE, or - for standard input"),
        (["classify", "a", "--file", "x"], "give texts, or --file FILE"),
        (["classify", " "], "text 1 is empty"),
        (["classify", "\u200b"], "text 1: it has no tokens"),
        (["--json", "classify", "a"], "the command comes first"),
        (["compare", "a", "--model", "b"], "two checkpoints, a and --model b"),
        (["walk", ""], "text 1 is empty"),
        (["classify", "nice " * 20], "16"),
        (["classify", "--file", "no/such/file"], "no/such/file"),
        (["classify", "a", "--model", "./nowhere"], "./nowhere: no such folder"),
    ],
)
def test_a_bad_input_is_reported_on_one_line(checkpoint, capsys, arguments, says):
    if "--model" not in arguments:
        arguments = [*arguments, "--model", checkpoint]
    status, out, err = run(capsys, *arguments)
    assert (status, out) == (2, "")
    assert err.startswith("minibert: error: ")
    assert says in err
    assert err.count("\n") == 1


def test_a_line_that_is_empty_or_not_utf8_is_named(checkpoint, capsys, tmp_path):
    file = tmp_path / "texts.txt"
    for content, says in ((b"a\nnice \xff day\n", "line 2, is not UTF-8"), (b"a\n\nb\n", "line 2, is empty")):
        file.write_bytes(content)
        status, _, err = run(capsys, "classify", "--model", checkpoint, "--file", file)
        assert status == 2
        assert says in err


def test_a_long_text_can_be_cut(checkpoint, capsys):
    status, out, _ = run(capsys, "classify", "--model", checkpoint, "--truncate", "nice " * 20)
    assert status == 0
    assert len(out.splitlines()) == 1


def test_a_checkpoint_of_another_architecture_is_refused_and_named(capsys, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "roberta"}')
    status, _, err = run(capsys, "classify", "--model", tmp_path, "a")
    assert status == 2
    assert "'roberta'" in err


def test_an_unknown_command_is_refused_and_no_command_means_walk(checkpoint, capsys):
    status, _, err = run(capsys, "clasify", "a")
    assert status == 2
    assert "invalid choice: 'clasify'" in err
    assert run(capsys, "--model", checkpoint) == run(capsys, "walk", "--model", checkpoint)
    assert run(capsys, "--version") == (0, f"minibert {minibert.__version__}\n", "")


def test_a_closed_pipe_is_not_an_error(checkpoint):
    # As in `minibert classify … | head -1`: head exits while there is more to write.
    command = (
        f"yes 'nice day' | head -n 20000 | {sys.executable} -m minibert classify --model {checkpoint} - | head -n 1"
    )
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, timeout=60)
    assert len(done.stdout.splitlines()) == 1
    assert "Traceback" not in done.stderr
    assert "error" not in done.stderr


def test_an_interrupt_ends_quietly(checkpoint, capsys, monkeypatch):
    def interrupt(options):
        raise KeyboardInterrupt

    monkeypatch.setattr(study, "run_walk", interrupt)
    assert run(capsys, "walk", "--model", checkpoint) == (130, "", "")


def test_the_demo_runs_without_network_or_cache(capsys, monkeypatch, tmp_path):
    environment = {**os.environ, "HOME": str(tmp_path), "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "minibert"], capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "<- moved by up to" in done.stdout
    assert "<- as in 1, to rounding" in done.stdout
    assert os.listdir(tmp_path) == []


@pytest.fixture
def checkout(tmp_path):
    """A copy of the repository under another version, which is not installed anywhere."""
    root = Path(__file__).parent.parent
    shutil.copytree(Path(minibert.__file__).parent, tmp_path / "minibert", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(root / "scripts", tmp_path / "scripts", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(root / "pyproject.toml", tmp_path)
    source = tmp_path / "minibert" / "__init__.py"
    source.write_text(re.sub('(?<=__version__ = ").*(?=")', "9.8.7", source.read_text("utf-8")), "utf-8")
    return tmp_path


def test_python_m_minibert_works_in_a_checkout_and_imports_only_what_the_command_runs(checkout):
    command = [sys.executable, "-X", "importtime", "-m", "minibert", "classify", "a nice day"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=checkout, timeout=60)
    assert re.fullmatch(r"POSITIVE\t0\.99\d\d\ta nice day\n", done.stdout)
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "minibert.pipeline" in imported
    assert not [name for name in imported if name.startswith(("minibert.study", "minibert.cli.study", "transformers"))]


def test_scripts_demo_passes_its_arguments_on_and_the_version_is_that_of_the_source(checkout):
    venv.create(checkout / ".venv")
    site_packages = Path(sysconfig.get_path("purelib", "venv", {"base": str(checkout / ".venv")}))
    packages = [path for path in sys.path if path.endswith("-packages")]
    (site_packages / "checkout.pth").write_text("\n".join([str(checkout), *packages]))  # as `pip install -e` does
    script = checkout / ".venv" / "bin" / "minibert"
    script.write_text(f"#!{script.parent}/python\nimport sys\nfrom minibert.cli import main\nsys.exit(main())\n")
    script.chmod(0o755)
    content = b"".join((checkout / name).read_bytes() for name in ("pyproject.toml", "scripts/constraints.txt"))
    content += (checkout / "scripts" / "bootstrap").read_bytes()
    checksum = subprocess.run(["cksum"], input=content, capture_output=True, check=True).stdout
    (checkout / ".venv" / "bootstrapped").write_bytes(checksum)  # so that bootstrap has nothing to do
    command = [checkout / "scripts" / "demo", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=checkout.parent, timeout=60)
    assert (done.stdout, done.stderr) == ("minibert 9.8.7\n", "")

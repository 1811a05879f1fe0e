"""What the commands print and write: nothing that controls a terminal, nothing lost, nothing half-written."""

import io
import json
import os
import resource
import sys
import threading
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from minibert import DistilBertForSequenceClassification, DistilBertTokenizer, cli
from minibert.cli import arguments
from minibert.cli.output import write_file
from minibert.study.report import table
from minibert.terminal import CONTROL, visible
from minibert.tokenizer import AddedToken

from .command_line import WORDS, run, save_classifier
from .models import model

HOSTILE = "good\nNEGATIVE\t1.0000\tforged \x1b[31mred\x9b0m \u202egnp\u2066"
SHOWN = r"good\nNEGATIVE\t1.0000\tforged \x1b[31mred\x9b0m \u202egnp\u2066"


@contextmanager
def standard_output(monkeypatch, file):
    """Let standard output be another file, buffered as Python does it."""
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", file)
        yield


@contextmanager
def disk_with(n_bytes):
    """Let every file end after so many bytes: what a full disk does to a program."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def controls(text):
    """The control characters of printed lines, the newlines between them aside."""
    return CONTROL.findall(text.replace("\n", ""))


def test_control_characters_are_escaped_and_all_others_stay():
    assert visible(HOSTILE) == SHOWN
    assert visible("\x00\x7f\u2028\u2029\udcff\r") == r"\x00\x7f\u2028\u2029\udcff\r"
    others = "é 東京　नमस्ते \xa0 👩‍🚀 שלום \\n"
    assert visible(others) == others


def test_a_newline_in_a_text_does_not_forge_a_result(checkpoint, capsys):
    status, out, _ = run(capsys, "classify", "--model", checkpoint, HOSTILE)
    (line,) = out.splitlines()
    assert status == 0
    assert line.split("\t")[2:] == [SHOWN]
    _, out, _ = run(capsys, "classify", "--model", checkpoint, "--json", HOSTILE)
    assert json.loads(out)["text"] == HOSTILE  # JSON escapes it and loses nothing


@pytest.mark.parametrize(
    ("command", "head", "n_lines"),
    [
        ("classify", "DistilBertForSequenceClassification", 1),
        ("tag", "DistilBertForTokenClassification", 1 + 1),
        ("fill", "DistilBertForMaskedLM", 1 + len(WORDS) + 1),
    ],
)
def test_labels_and_tokens_do_not_control_the_terminal(capsys, tmp_path, command, head, n_lines):
    labels = {} if command == "fill" else {"id2label": {0: "A\x1b[2J\nB\tC", 1: "D\x1b[2J\nE\tF"}}
    model(head, vocab_size=len(WORDS) + 1, **labels).save_pretrained(tmp_path)
    vocab = {word: i for i, word in enumerate([*WORDS, "\x1b[2J"])}
    DistilBertTokenizer(vocab, model_max_length=16).save_pretrained(tmp_path)
    text, options = ("[MASK]\x1b", ["--top-k", len(vocab)]) if command == "fill" else ("nice\x1b", [])
    status, out, _ = run(capsys, command, "--model", tmp_path, text, *options)
    assert (status, len(out.splitlines())) == (0, n_lines)
    assert r"\x1b[2J" in out
    assert not controls(out.replace("\t", ""))


@pytest.mark.parametrize("command", ["walk", "trace", "padding"])
def test_labels_and_tokens_do_not_forge_a_line_of_a_study(capsys, tmp_path, command):
    hostile = "\x1b[2J\nforged"
    folder = tmp_path / f"model{hostile}"
    labels = {0: f"A{hostile}", 1: f"B{hostile}"}
    model("DistilBertForSequenceClassification", vocab_size=len(WORDS) + 1, id2label=labels).save_pretrained(folder)
    tokens = {len(WORDS): AddedToken(f"token{hostile}")}
    vocab = {word: i for i, word in enumerate(WORDS)}
    DistilBertTokenizer(vocab, added_tokens=tokens, model_max_length=16).save_pretrained(folder)
    text = f"token{hostile} nice"
    query = ["--query", "1"] if command == "trace" else []
    status, out, _ = run(capsys, command, "--model", folder, text, "today is a nice day", *query)
    assert status == 0
    assert command == "padding" or r"token\x1b[2J\nforged" in out
    assert command != "walk" or all(rf"{name}\x1b[2J\nforged" in out for name in ("model", "A", "B"))
    assert not [line for line in out.splitlines() if line.lstrip().startswith("forged")]
    assert not controls(out)


def test_a_report_printed_by_python_does_not_control_the_terminal():
    printed = table(["label\x1b[2J"], [["a\nb\r\u2028"], [1.5]])
    assert printed.splitlines() == [r"label\x1b[2J", r"a\nb\r\u2028", "1.5"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["classify", "--file", "no\x1b[31m"],
        ["classify", "a", "--model", "no\x1b[31m"],
        ["classify", "--no\x1b[31m"],
        ["no\x1b[31m"],
        ["embed", "a", "--out", "no\x1b[31m.npy/a.npy"],
        ["classify", "a", "--model", "x" * 100_000],
        ["classify", "a", "--" + "x" * 100_000],
        ["x" * 100_000],
        ["fill", "a [MASK]", "--top-k", "9" * 100_000],
    ],
)
def test_an_error_is_short_and_does_not_control_the_terminal(capsys, arguments):
    status, out, err = run(capsys, *arguments)
    assert (status, out) == (2, "")
    assert not controls(err)
    assert "no\\x1b[31m" in err or "..." in err
    assert len(err) < 1000


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_terminal_without_unicode_gets_escapes(checkpoint, monkeypatch, encoding):
    printed = io.BytesIO()
    with standard_output(monkeypatch, io.TextIOWrapper(printed, encoding=encoding)):
        assert cli.main(["classify", "--model", str(checkpoint), "é 東"]) == 0
        assert cli.main(["trace", "--model", str(checkpoint), "é 東"]) == 0
        out = printed.getvalue()
    assert (b"\t\xe9 " if encoding == "latin-1" else rb"\xe9 ") in out
    assert rb" \u6771" in out
    assert rb"\u221aE" in out  # q kᵀ / √E


@pytest.mark.parametrize("command", ["classify", "embed"])
def test_json_has_null_for_nan(capsys, tmp_path, command):
    save_classifier(tmp_path)
    broken = DistilBertForSequenceClassification.from_pretrained(tmp_path)
    with torch.no_grad():
        broken.classifier.bias.fill_(torch.nan)
        broken.distilbert.transformer.layer[-1].output_layer_norm.bias[3] = torch.inf
    broken.save_pretrained(tmp_path)
    status, out, _ = run(capsys, command, "--model", tmp_path, "--json", "a nice day")
    record = json.loads(out, parse_constant=lambda constant: pytest.fail(f"{constant} is not JSON"))
    assert status == 0
    assert record["score"] is None if command == "classify" else record["embedding"][3] is None


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
@pytest.mark.parametrize("arguments", [["classify", "a nice day"], ["masks"], ["--help"]])
def test_a_full_device_is_an_error_even_for_a_short_output(checkpoint, capsys, monkeypatch, arguments):
    if arguments[0] == "classify":
        arguments = [*arguments, "--model", str(checkpoint)]
    with standard_output(monkeypatch, open("/dev/full", "w")):
        assert cli.main(arguments) == 2
        sys.stdout.close()  # as Python does at exit
    assert capsys.readouterr().err == "minibert: error: [Errno 28] No space left on device\n"


def test_a_short_output_into_a_closed_pipe_is_not_an_error(checkpoint, capsys, monkeypatch):
    read_end, write_end = os.pipe()
    os.close(read_end)
    with standard_output(monkeypatch, open(write_end, "w")):
        assert cli.main(["classify", "--model", str(checkpoint), "a nice day"]) == 0
        sys.stdout.close()
    assert capsys.readouterr().err == ""


def test_a_closed_standard_output_is_an_error(checkpoint, capsys, monkeypatch, tmp_path):
    out = tmp_path / "vectors.npy"
    for command in (["classify", "a nice day"], ["embed", "a", "--out", str(out)]):
        with standard_output(monkeypatch, None):  # what Python makes of `>&-`
            assert cli.main([*command, "--model", str(checkpoint)]) == 2
        assert "standard output is closed" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize("command", [["classify", "-"], ["walk", "-"], ["answer", "who?", "-"]])
def test_a_closed_standard_input_is_an_error(checkpoint, capsys, monkeypatch, command):
    monkeypatch.setattr(sys, "stdin", None)  # what Python makes of `<&-`
    status, out, err = run(capsys, *command, "--model", checkpoint)
    assert (status, out, err) == (2, "", "minibert: error: standard input is closed\n")


def test_a_closed_standard_error_does_not_matter(checkpoint, capsys, monkeypatch, tmp_path):
    file = tmp_path / "texts.txt"
    file.write_text("a nice day\n")
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", None)
        assert cli.main(["classify", "--model", str(checkpoint), "--file", str(file)]) == 0
        assert capsys.readouterr().out.endswith("\ta nice day\n")
        assert cli.main(["classify", "--model", str(checkpoint), ""]) == 2
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("command", [["classify"], ["answer", "who?"]])
def test_an_endless_line_is_refused(checkpoint, capsys, monkeypatch, tmp_path, command):
    if os.path.exists("/dev/zero"):
        status, out, err = run(capsys, *command, "--model", checkpoint, "--file", "/dev/zero")
        assert (status, out) == (2, "")
        assert "/dev/zero" in err
        assert "has more than 4 MiB: split it" in err
    file = tmp_path / "text.txt"
    file.write_text("a nice day")
    monkeypatch.setattr(arguments, "LONGEST", 9)
    assert "has more than" in run(capsys, *command, "--model", checkpoint, "--file", file)[2]
    monkeypatch.setattr(arguments, "LONGEST", 10)
    assert "has more than" not in run(capsys, *command, "--model", checkpoint, "--file", file)[2]


@pytest.mark.parametrize("command", [["view", "-o"], ["lab", "-o"], ["embed", "--out"]])
def test_a_file_is_written_whole_or_not_at_all(checkpoint, capsys, tmp_path, command):
    target = tmp_path / "file.npy"
    arguments = [*command, target, "--model", checkpoint, "today is a nice day", "nice"]
    for old in (None, b"old"):
        if old is not None:
            target.write_bytes(old)
        with disk_with(100):
            status, out, err = run(capsys, *arguments)
        assert (status, out, err) == (2, "", f"minibert: error: {target}: cannot be written (File too large)\n")
        assert [path.read_bytes() for path in tmp_path.iterdir()] == [old] * (old is not None)
    assert run(capsys, *arguments)[0] == 0
    assert target.stat().st_size > 100
    assert list(tmp_path.iterdir()) == [target]


def test_limits_are_checked_before_the_work(checkpoint, capsys):
    for length in (50_000_000, 10**30, 17):
        status, out, err = run(capsys, "view", "--model", checkpoint, "--length", length)
        assert (status, out) == (2, "")
        assert err == f"minibert: error: length must be at most 16, the number of the model's positions, got {length}\n"


@pytest.mark.parametrize("command", ["walk", "trace", "padding", "view", "lab"])
def test_a_sentence_that_is_too_long_is_named(checkpoint, capsys, tmp_path, command):
    options = ["-o", tmp_path / "page.html"] if command in ("view", "lab") else []
    arguments = [command, "--model", checkpoint, "a nice day", "nice " * 20, *options]
    error = "minibert: error: sentence 2 has 22 tokens, but the model takes 16: shorten it\n"
    assert run(capsys, *arguments) == (2, "", error)
    assert command != "view" or run(capsys, *arguments, "--length", 16)[0] == 0


def test_what_names_nothing_is_an_error(checkpoint, capsys, monkeypatch):
    for command in ("walk", "trace", "padding", "view"):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))
        status, out, err = run(capsys, command, "--model", checkpoint, "-")
        assert (status, out) == (2, "")
        assert err == "minibert: error: standard input is empty: give at least one sentence\n"
    for command in (["compare", ""], ["classify", "a", "--model", ""]):
        status, out, err = run(capsys, *command)
        assert (status, out) == (2, "")
        assert err.startswith("minibert: error: '': no such folder")


@pytest.mark.parametrize("command", [["view", "-o"], ["lab", "-o"], ["embed", "--out"]])
def test_where_a_file_goes_is_checked_before_the_work(capsys, tmp_path, command):
    (tmp_path / "folder.npy").mkdir()
    for target in (tmp_path / "folder.npy", tmp_path / "none" / "file.npy"):
        status, _, err = run(capsys, *command, target, "a", "--model", "no/such/model")
        assert status == 2
        assert f"{target}: give the name of a file, in a folder that exists" in err


def test_a_link_stays_a_link_permissions_stay_and_a_pipe_is_written_into(tmp_path):
    target, link, pipe = tmp_path / "target", tmp_path / "link", tmp_path / "pipe"
    target.write_bytes(b"old")
    target.chmod(0o600)
    link.symlink_to(target)
    write_file(link, b"new")
    assert link.is_symlink()
    assert (target.read_bytes(), target.stat().st_mode & 0o777) == (b"new", 0o600)
    os.mkfifo(pipe)
    writer = threading.Thread(target=write_file, args=(pipe, b"data"))
    writer.start()
    assert pipe.read_bytes() == b"data"
    writer.join()
    assert pipe.is_fifo()


def test_numbers_of_thirty_digits_are_large_numbers(capsys, tmp_path):
    save_classifier(tmp_path)
    for head, command, option in (
        ("DistilBertForMaskedLM", ["fill", "a [MASK]"], "--top-k"),
        ("DistilBertForQuestionAnswering", ["answer", "a", "today is a nice day"], "--top-k"),
        ("DistilBertForQuestionAnswering", ["answer", "a", "today is a nice day"], "--max-answer-length"),
    ):
        model(head, vocab_size=len(WORDS)).save_pretrained(tmp_path)
        large, huge = ([*command, "--model", tmp_path, option, number] for number in ("1000", "9" * 30))
        assert run(capsys, *huge) == run(capsys, *large)
        assert run(capsys, *huge)[0] == 0


def test_an_array_of_vectors_is_what_numpy_reads(checkpoint, capsys, tmp_path):
    assert run(capsys, "embed", "--model", checkpoint, "--out", tmp_path / "a.npy", "a nice day") == (0, "", "")
    assert np.load(tmp_path / "a.npy").shape == (1, 32)

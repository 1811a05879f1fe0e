"""`minibert tag`, `fill`, `answer` and `embed`: what they print, and bad inputs reported on one line."""

import io
import json
import sys

import numpy as np
import pytest

from minibert import cli
from minibert.pipeline import Embedder, MaskFiller, QuestionAnswerer, TokenClassifier

from .pipelines import saved

HEADS = {
    "tag": "DistilBertForTokenClassification",
    "fill": "DistilBertForMaskedLM",
    "answer": "DistilBertForQuestionAnswering",
    "embed": "DistilBertForSequenceClassification",  # any head will do
    "classify": "DistilBertForSequenceClassification",
}
TEXTS = ["Ada Lovelace was born in London, 1815.", "the capital of France is Paris"]
MASKED = ["[MASK] was born in [MASK].", "the capital of [MASK]"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A checkpoint for each command."""
    id2label = {0: "O", 1: "B-PER", 2: "I-LOC"}
    return {
        command: saved(tmp_path_factory.mktemp(head), head, **({"id2label": id2label} if command == "tag" else {}))
        for command, head in HEADS.items()
    }


@pytest.fixture
def run(folders, capsys):
    """Run a command with its checkpoint; exit status, standard output, standard error."""

    def run(command, *arguments):
        status = cli.main([command, "--model", str(folders[command]), *map(str, arguments)])
        return status, *capsys.readouterr()

    return run


def feed(monkeypatch, text):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))


def test_tag_prints_each_text_and_its_entities(folders, run):
    expected = list(TokenClassifier(folders["tag"])(TEXTS))
    assert all(expected)
    status, out, err = run("tag", *TEXTS)
    lines = [
        line
        for text, entities in zip(TEXTS, expected, strict=True)
        for line in (text, *(f"  {entity.label}\t{entity.score:.4f}\t{entity.text}" for entity in entities))
    ]
    assert (status, out.splitlines(), err) == (0, lines, "")
    _, out, _ = run("tag", "--json", *TEXTS)
    for line, text, entities in zip(out.splitlines(), TEXTS, expected, strict=True):
        assert json.loads(line) == {"text": text, "entities": [vars(entity) for entity in entities]}


def test_a_long_text_is_tagged_to_its_end(run):
    status, out, _ = run("tag", "--json", "Ada was born in London " * 20)
    assert status == 0
    assert json.loads(out)["entities"][-1]["end"] > 400


def test_fill_prints_the_likeliest_tokens_of_each_mask(folders, run):
    expected = list(MaskFiller(folders["fill"], top_k=2)(MASKED))
    status, out, err = run("fill", "--top-k", 2, *MASKED)
    lines = [
        line
        for text, masks in zip(MASKED, expected, strict=True)
        for line in (text, *(f"  {i}\t{c.score:.4f}\t{c.token}" for i, ranked in enumerate(masks, 1) for c in ranked))
    ]
    assert (status, out.splitlines(), err) == (0, lines, "")
    assert len(lines) == 2 + 2 * 2 + 2
    _, out, _ = run("fill", "--json", "--top-k", 2, *MASKED)
    for line, text, masks in zip(out.splitlines(), MASKED, expected, strict=True):
        assert json.loads(line) == {"text": text, "masks": [[vars(c) for c in ranked] for ranked in masks]}


def test_answer_prints_the_best_spans(folders, run):
    context = TEXTS[0]
    (expected,) = QuestionAnswerer(folders["answer"], top_k=3, max_answer_length=2)([("who?", context)])
    options = ["--top-k", 3, "--max-answer-length", 2]
    status, out, err = run("answer", "who?", context, *options)
    assert (status, err) == (0, "")
    assert out.splitlines() == [f"{a.score:.4f}\t{a.text}\t{a.start}-{a.end}" for a in expected]
    _, out, _ = run("answer", "who?", context, *options, "--json")
    assert json.loads(out) == {"question": "who?", "answers": [vars(answer) for answer in expected]}
    _, out, _ = run("answer", "who?", context, "--top-k", 100, "--no-answer")
    assert out.count("\t(no answer)\t0-0") == 1


def test_answer_takes_a_whole_file_or_all_of_standard_input_as_its_context(run, monkeypatch, tmp_path):
    context = "Ada Lovelace was born in London.\nthe capital of France is Paris.\n\n" * 10
    file = tmp_path / "context.txt"
    file.write_text(context)
    status, out, err = run("answer", "where?", "--file", file, "--json", "--top-k", 9)
    assert (status, err) == (0, "")
    for answer in json.loads(out)["answers"]:
        assert answer["text"] == context[answer["start"] : answer["end"]]
    feed(monkeypatch, context)
    assert run("answer", "where?", "-", "--json", "--top-k", 9) == (0, out, "")


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_embed_prints_vectors_or_writes_one_array(folders, run, tmp_path, pooling):
    expected = [vector.tolist() for vector in Embedder(folders["embed"], pooling=pooling)(TEXTS)]
    _, out, _ = run("embed", "--json", "--pooling", pooling, *TEXTS)
    for line, text, vector in zip(out.splitlines(), TEXTS, expected, strict=True):
        assert json.loads(line) == {"text": text, "embedding": vector}
    _, out, _ = run("embed", "--pooling", pooling, *TEXTS)
    for line, vector in zip(out.splitlines(), expected, strict=True):
        assert [float(number) for number in line.split()] == pytest.approx(vector, rel=1e-5)
    assert run("embed", "--pooling", pooling, "--out", tmp_path / "vectors.npy", *TEXTS) == (0, "", "")
    array = np.load(tmp_path / "vectors.npy")
    assert (array.shape, array.dtype) == ((2, 32), np.float32)
    assert array.tolist() == expected


def test_an_empty_file_gives_no_results(run, tmp_path):
    empty = tmp_path / "empty.txt"
    empty.write_bytes(b"")
    assert run("tag", "--file", empty) == (0, "", "")
    assert run("embed", "--file", empty, "--out", tmp_path / "vectors.npy") == (0, "", "")
    assert np.load(tmp_path / "vectors.npy").shape == (0, 32)


def test_a_stream_gives_one_object_per_line_in_order(run, monkeypatch):
    texts = [f"the capital {'of France ' * (i % 7)}is [MASK]" for i in range(60)]
    feed(monkeypatch, "\r\n".join(texts))
    status, out, err = run("fill", "--json", "-")
    assert (status, err) == (0, "")
    assert [json.loads(line)["text"] for line in out.splitlines()] == texts


@pytest.mark.parametrize("command", ["fill", "embed", "classify"])
def test_a_long_text_is_refused_without_truncate(run, command):
    text = "[MASK] was born " * 20
    status, out, err = run(command, text)
    assert (status, out) == (2, "")
    assert err == "minibert: error: text 1: it has 62 tokens, more than 48: truncate or split it\n"
    status, out, err = run(command, "--truncate", text)
    assert (status, err) == (0, "")
    assert out


@pytest.mark.parametrize(("command", "example"), [("tag", "NER"), ("fill", "base-uncased"), ("answer", "squad")])
def test_a_command_that_the_demo_has_no_head_for_needs_a_model(capsys, command, example):
    texts = ["a [MASK]"] * (2 if command == "answer" else 1)
    assert cli.main([command, *texts]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("minibert: error: give --model, a folder or a name on the Hugging Face Hub, such as ")
    assert example in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["tag"], "give texts, or --file FILE, or - for standard input"),
        (["tag", ""], "text 1 is empty"),
        (["tag", "--file", "no/such/file"], "no/such/file"),
        (["tag", "--file", "."], "directory"),
        (["tag", "--model", "HEAD", "a"], "vocab_transform"),
        (["fill", "no mask here"], "text 1: it has no [MASK] to fill"),
        (["fill", "a [MASK]", "--top-k", "0"], "top_k must be at least 1, got 0"),
        (["answer", "who?"], "give a context, or --file FILE, or - for standard input"),
        (["answer", "who?", "a", "--file", "b"], "give a context, or --file FILE"),
        (["answer", " ", "a"], "the question is empty"),
        (["answer", "who?", ""], "the context is empty"),
        (["answer", "who?", "a", "--top-k", "-1"], "top_k must be at least 1, got -1"),
        (["answer", "who?", "a", "--max-answer-length", "0"], "max_answer_length must be at least 1, got 0"),
        (["answer", "who " * 50, "a"], "the question leaves no room"),
        (["answer", "who?", "--file", "no/such/file"], "no/such/file"),
        (["embed", "a", "--out", "vectors.txt"], "--out vectors.txt: give a file that ends in .npy"),
        (["embed", "a", "--out", "no/such/folder/vectors.npy"], "in a folder that exists"),
    ],
)
def test_a_bad_input_is_reported_on_one_line(run, folders, arguments, says):
    status, out, err = run(*(folders["fill"] if argument == "HEAD" else argument for argument in arguments))
    assert (status, out) == (2, "")
    assert err.startswith("minibert: error: ")
    assert says in err
    assert err.count("\n") == 1


def test_texts_before_a_bad_one_have_results(run):
    status, out, err = run("tag", "--json", "a", "b", "")
    assert [json.loads(line)["text"] for line in out.splitlines()] == ["a", "b"]
    assert (status, err) == (2, "minibert: error: text 3 is empty\n")

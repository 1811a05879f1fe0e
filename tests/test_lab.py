"""The laboratory's page, as far as it can be judged without a browser."""

import base64
import json
import webbrowser
from pathlib import Path

import numpy as np
import pytest
import torch

from minibert import DEMO, DistilBertConfig, DistilBertForSequenceClassification, DistilBertTokenizer
from minibert.study import attention_lab
from minibert.study.lab import ranges
from minibert.study.page import LIMIT
from minibert.tokenizer import unicode_tables as tables

from .command_line import load, run
from .models import model as random_model
from .test_page import full_tokenizer, page_data

COPY = Path(__file__).parents[1] / ".github" / "lab.html"


def classifier(**config):
    return random_model("DistilBertForSequenceClassification", **config)


def weights(data):
    """The weights that a page holds, in float64, by their names."""
    values = np.frombuffer(base64.b64decode(data["weights"]), np.dtype(data["dtype"]).newbyteorder("<"))
    sizes = np.cumsum([np.prod(shape) for _, shape in data["tensors"]])
    parts = np.split(values.astype(np.float64), sizes[:-1])
    return {name: part.reshape(shape) for (name, shape), part in zip(data["tensors"], parts, strict=True)}


@pytest.mark.parametrize(
    ("make", "dtype"),
    [
        (lambda: load(DEMO), "float16"),
        (lambda: (classifier(), full_tokenizer()), "float32"),
        (lambda: (classifier().double().apply(add_thirds), full_tokenizer()), "float64"),
        (lambda: (classifier().bfloat16(), full_tokenizer()), "float16"),
    ],
)
def test_page_holds_the_weights_exactly(make, dtype):
    model, tokenizer = make()
    page = attention_lab(model, tokenizer, "a nice day")
    data = page_data(page)
    assert data["dtype"] == dtype
    held = weights(data)
    assert list(held) == list(model.state_dict())
    for name, tensor in model.state_dict().items():
        assert np.array_equal(held[name], tensor.double().numpy()), name
    assert len(page.encode()) <= 3_000_000


@torch.no_grad()
def add_thirds(module):
    for parameter in module.parameters(recurse=False):
        parameter.add_(1 / 3)


def test_a_model_that_is_too_large_is_refused_with_the_way_out():
    with torch.device("meta"):  # no memory: it is refused before its weights are read
        large = DistilBertForSequenceClassification(DistilBertConfig(vocab_size=30522)).eval()
    with pytest.raises(ValueError, match=r"170 MiB, more than 32: this model has 66,955,010 .* `minibert view`"):
        attention_lab(large, full_tokenizer())
    assert LIMIT == 32 * 2**20


@pytest.mark.parametrize(("dtype", "bytes_", "holds"), [(torch.bfloat16, 2, "float16"), (torch.float32, 4, "float32")])
def test_a_model_may_be_as_large_as_the_limit(monkeypatch, dtype, bytes_, holds):
    model = classifier().to(dtype)
    numbers = sum(tensor.numel() for tensor in model.state_dict().values())
    size = numbers * bytes_ * 4 // 3  # base64 has four characters for three bytes
    monkeypatch.setattr("minibert.study.lab.LIMIT", size)
    assert page_data(attention_lab(model, full_tokenizer(), ["a"] * 4))["dtype"] == holds
    monkeypatch.setattr("minibert.study.lab.LIMIT", size - 1)
    with pytest.raises(ValueError, match=rf"this model has {numbers:,} weights in {holds}\."):
        attention_lab(model, full_tokenizer())


def test_values_that_need_float32_are_counted_so_where_float16_would_just_fit(monkeypatch):
    model = classifier()
    size = sum(tensor.numel() for tensor in model.state_dict().values()) * 2 * 4 // 3
    monkeypatch.setattr("minibert.study.lab.LIMIT", size)
    with pytest.raises(ValueError, match=r"weights in float32\."):
        attention_lab(model, full_tokenizer())


def test_the_page_holds_the_tokenizers_settings_and_unicode_tables():
    classes = {
        "DROPPED": tables.DROPPED.union(*tables.PRIVATE_USE),
        "WHITE_SPACE": tables.WHITE_SPACE,
        "CJK": {code_point for block in tables.CJK for code_point in block},
        "PUNCTUATION": tables.PUNCTUATION,
        "MARKS": tables.MARKS,
        "REORDERED": tables.REORDERED,
        "NEWER": tables.NEWER,
    }
    settings = page_data(attention_lab(classifier(), full_tokenizer(), "a"))["tokenizer"]
    assert settings["unicode"]["classes"].keys() == classes.keys()
    for name, ranges_ in settings["unicode"]["classes"].items():
        assert {code_point for first, last in ranges_ for code_point in range(first, last + 1)} == classes[name], name
    assert settings["unicode"]["newer_capitals"] == [[chr(a), chr(b)] for a, b in tables.NEWER_CAPITALS.items()]
    assert ranges({32, 9, 10, 13, 12}) == [(9, 10), (12, 13), (32, 32)]


@pytest.mark.parametrize(("own", "length"), [(None, 16), (9, 9), (20, 16)])
def test_texts_are_cut_at_the_tokenizers_or_the_models_length(own, length):
    tokenizer = DistilBertTokenizer(full_tokenizer()._wordpiece.vocab, model_max_length=own)
    assert page_data(attention_lab(classifier(), tokenizer, "a"))["tokenizer"]["max_length"] == length


@pytest.mark.parametrize(
    ("model", "texts", "message"),
    [
        (lambda: random_model(), "a", "runs a DistilBertForSequenceClassification, got a DistilBertModel"),
        (lambda: classifier().train(), "a", r"model\.eval\(\)"),
        (lambda: classifier(), [], "takes 1 to 4 texts, got 0"),
        (lambda: classifier(), ["a"] * 5, "takes 1 to 4 texts, got 5"),
        (lambda: classifier(vocab_size=20), "a", "the tokenizer has 50 tokens, the model 20: they do not match"),
    ],
)
def test_what_the_laboratory_cannot_show_is_refused(model, texts, message):
    with pytest.raises(ValueError, match=message):
        attention_lab(model(), full_tokenizer(), texts)


def test_a_tokenizer_that_cannot_pad_is_refused():
    tokenizer = DistilBertTokenizer({"[UNK]": 0, "[CLS]": 1, "[SEP]": 2, "a": 3})
    with pytest.raises(ValueError, match="no pad token"):
        attention_lab(classifier(), tokenizer, "a")


def test_texts_labels_and_title_cannot_become_markup():
    hostile = "</script><script>alert(1)</script><!--<script>{{data}}\u2028\u202e"
    model = classifier(id2label={0: hostile, 1: "<img src=x onerror=alert(1)>"})
    page = attention_lab(model, full_tokenizer(), [hostile], title=hostile)
    assert page.count("<script") == page.count("</script") == 2  # the data and the program
    assert page.count("<!--") == 1
    assert "<img" not in page
    assert page_data(page)["texts"] == [hostile]
    assert "default-src 'none'" in page


def test_lab_writes_the_page_and_prints_its_address(checkpoint, capsys, tmp_path, monkeypatch):
    opened = []
    monkeypatch.setattr(webbrowser, "open", opened.append)
    file = tmp_path / "a lab.html"
    status, out, _ = run(capsys, "lab", "a nice day", "-o", file, "--model", checkpoint)
    assert (status, out, opened) == (0, f"{file.as_uri()}\n", [])
    assert page_data(file.read_text(encoding="utf-8"))["texts"] == ["a nice day"]
    status, out, _ = run(capsys, "lab", "-o", file, "--model", checkpoint, "--json", "--open")
    assert json.loads(out) == {"file": str(file), "bytes": file.stat().st_size, "address": file.as_uri()}
    assert opened == [file.as_uri()]
    status, _, err = run(capsys, "lab", *["a"] * 5, "-o", file, "--model", checkpoint)
    assert (status, err) == (2, "minibert: error: the laboratory takes 1 to 4 texts, got 5\n")


@pytest.mark.skipif(not COPY.exists(), reason="the copy for readers is in the repository only")
def test_the_copy_for_readers_is_what_the_command_writes(capsys, tmp_path):
    status, _, _ = run(capsys, "lab", "-o", tmp_path / "lab.html")
    assert status == 0
    same = COPY.read_bytes() == (tmp_path / "lab.html").read_bytes()
    assert same, "run scripts/lab_copy"

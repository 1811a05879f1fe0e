"""The commands that look inside."""

import json
import subprocess
import sys

import pytest
import torch

import minibert
from minibert.study import capture
from minibert.study.walk import SENTENCES

from .checkpoints import rewrite
from .command_line import load, run
from .models import model

PROBS = "distilbert.transformer.layer.{}.attention.probs"


def test_trace_prints_every_step_and_one_query(checkpoint, capsys):
    model, tokenizer = load(checkpoint)
    inputs = tokenizer(list(SENTENCES), padding=True, return_tensors="pt")
    with capture(model, PROBS.format(1)) as steps, torch.no_grad():
        model(**inputs)
    status, out, _ = run(capsys, "trace", "--model", checkpoint, "--layer", 1, "--head", 2, "--row", 1, "--query", 3)
    assert status == 0
    assert "q kᵀ / √E" in out
    assert "Layer 1, head 2, row 1, query 3 (about): what it computes for each key" in out
    shown = [line.split()[-1] for line in out.splitlines()[-11:]]
    assert [float(x) for x in shown] == pytest.approx(steps[PROBS.format(1)][1, 2, 3].tolist(), abs=6e-5)
    _, out, _ = run(capsys, "trace", "a nice day", "--model", checkpoint, "--json")
    result = json.loads(out)
    assert result["tokens"] == "[CLS] a nice day [SEP]".split()
    assert len(result["steps"]) == 4 + 2 * 19 + 3  # embeddings, blocks, head
    status, _, err = run(capsys, "trace", "--model", checkpoint, "--head", 4)
    assert status == 2
    assert "head must be 0 to 3, got 4" in err


def test_padding_prints_what_it_takes_moves_and_costs(checkpoint, capsys):
    status, out, _ = run(capsys, "padding", "--model", checkpoint)
    assert status == 0
    for line in ("The same with the mask", "real positions bit-equal      yes", "+ position_ids", "packed"):
        assert line in out
    _, out, _ = run(capsys, "padding", "--model", checkpoint, "--json")
    result = json.loads(out)
    assert torch.tensor(result["The same with the mask"]["share"]).abs().max() == 0
    assert torch.tensor(result["Attention that real tokens give to padding"]["share"]).min() > 0
    status, _, err = run(capsys, "padding", "a nice day", "--model", checkpoint)
    assert status == 2
    assert "nothing is padded" in err


def test_layers_that_are_not_numbers_are_named(capsys):
    status, _, err = run(capsys, "view", "--layers", "x")
    assert (status, "'x' is not a list of numbers, such as 0,5" in err) == (2, True)


@pytest.mark.parametrize("head", ["DistilBertModel", "DistilBertForMaskedLM", "DistilBertForQuestionAnswering"])
def test_trace_and_padding_take_any_head(checkpoint, capsys, tmp_path, head):
    model(head, vocab_size=50).save_pretrained(tmp_path)
    load(checkpoint)[1].save_pretrained(tmp_path)
    status, out, err = run(capsys, "trace", "a nice day", "not", "--model", tmp_path)
    assert (status, err) == (0, "")
    assert "softmax over keys" in out
    assert run(capsys, "padding", "a nice day", "not", "--model", tmp_path)[0] == 0


def test_masks_needs_no_checkpoint(capsys):
    status, out, _ = run(capsys, "masks")
    assert status == 0
    assert out.splitlines()[0].split() == ["row", "real", "keys", "mask", "float64", "float32", "bfloat16", "float16"]
    status, out, _ = run(capsys, "masks", "--json")
    json.loads(out, parse_constant=lambda constant: pytest.fail(f"{constant} is no JSON"))


def test_compare_with_the_oracle_exits_0_where_all_agrees(checkpoint, capsys):
    status, out, _ = run(capsys, "compare", checkpoint, "--against", "oracle")
    assert status == 0
    assert out.count("equal to rounding") == 4
    status, out, _ = run(capsys, "compare", "--model", checkpoint, "--against", "oracle", "--json")
    assert status == 0
    assert len(json.loads(out)["comparisons"]) == 4


@pytest.mark.reference
def test_compare_with_transformers_finds_the_same_bits(checkpoint):
    pytest.importorskip("transformers")
    done = subprocess.run(
        [sys.executable, "-m", "minibert", "compare", checkpoint], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("equal bit for bit") == 4
    assert done.stderr == ""


def test_compare_exits_1_on_a_difference(checkpoint, capsys, monkeypatch):
    monkeypatch.setattr("minibert.model.LAYER_NORM_EPS", 1e-5)  # a wrong model
    status, out, _ = run(capsys, "compare", checkpoint, "--against", "oracle")
    assert status == 1
    assert "distilbert.embeddings.LayerNorm" in out


def test_compare_says_what_is_wrong_with_a_checkpoint(checkpoint, capsys, tmp_path):
    status, _, err = run(capsys, "compare", tmp_path)
    assert status == 2
    assert "config.json" in err
    minibert.DistilBertForSequenceClassification.from_pretrained(checkpoint).save_pretrained(tmp_path)
    rewrite(tmp_path, lambda name, tensor: None if name == "classifier.bias" else (name, tensor))
    status, _, err = run(capsys, "compare", tmp_path)
    assert status == 2
    assert "classifier.bias" in err

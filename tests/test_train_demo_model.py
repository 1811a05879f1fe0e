"""scripts/train_demo_model.py trains a model of the demo's sizes with finetune.py, and never writes over the demo."""

import random
import sys

import pytest
import torch

from minibert import DEMO, DistilBertForSequenceClassification, DistilBertTokenizer

from .finetuning import module, sentence

script = module("train_demo_model")


pytestmark = pytest.mark.usefixtures("torch_as_before")


@pytest.fixture
def reviews(tmp_path):
    """A folder with 30 texts of each kind."""
    generator = random.Random(0)
    for label, name in enumerate(("neg", "pos")):
        lines = [" ".join(sentence(generator, label)) for _ in range(30)]
        (tmp_path / f"rt-polarity.{name}").write_text("\n".join(lines) + "\n")
    return tmp_path


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["train_demo_model.py", *map(str, arguments)])
    script.main()


def test_the_same_seed_gives_the_same_bytes_of_a_model_like_the_demo(reviews, tmp_path, monkeypatch, capsys):
    for name in ("first", "second"):
        run(monkeypatch, reviews, "--out", tmp_path / name)
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("first", "second")]
    assert files[0] == files[1]
    assert "held-out tenth, 6 texts: accuracy" in capsys.readouterr().out
    ours, demo = map(DistilBertForSequenceClassification.from_pretrained, (tmp_path / "first", DEMO))
    assert ours.config.changed(problem_type=None) == demo.config
    tokenizers = map(DistilBertTokenizer.from_pretrained, (tmp_path / "first", DEMO))
    assert len({tuple(tokenizer.vocab.items()) for tokenizer in tokenizers}) == 1
    assert not torch.equal(ours.classifier.weight, demo.classifier.weight)


def test_the_held_out_texts_are_not_trained_on(reviews):
    held_out, train = script.read(reviews)
    assert (len(held_out), len(train)) == (6, 54)
    assert script.read(reviews) == (held_out, train)
    assert {label for _, label in train} == {"NEGATIVE", "POSITIVE"}


def test_the_demo_is_not_overwritten_by_default_and_is_measured_by_default(reviews, monkeypatch, capsys):
    with pytest.raises(SystemExit, match="2"):
        run(monkeypatch, reviews)
    assert "the demo checkpoint that ships must stay as it is" in capsys.readouterr().err
    run(monkeypatch, reviews, "--report")
    assert str(DEMO) in capsys.readouterr().out

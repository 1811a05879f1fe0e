"""A tiny model and files to fine-tune it on, for the tests of scripts/finetune.py."""

import importlib
import json
import random
import sys
from pathlib import Path

import torch

from minibert import DistilBertConfig, DistilBertForSequenceClassification, DistilBertTokenizer

from .command_line import WORDS

SCRIPTS = Path(__file__).parents[1] / "scripts"
NEUTRAL, GOOD, BAD = "today is a day what about tomorrow im".split(), ["nice", "sure"], ["not", "but"]
RESULTS = ("model.safetensors", "config.json", "checkpoint.safetensors", "metrics.jsonl")


SIZES = {"dim": 32, "n_layers": 1, "n_heads": 2, "hidden_dim": 32, "max_position_embeddings": 16}
LEARNS_FAST = ["--set", "dropout=0", "attention_dropout=0", "seq_classif_dropout=0", "--learning-rate", 1e-2]


def save_model(folder):
    """A classifier with random weights, whose labels are not those of the files below, and its tokenizer."""
    torch.manual_seed(0)
    config = DistilBertConfig(
        **SIZES, vocab_size=len(WORDS), initializer_range=0.1, id2label={0: "NEGATIVE", 1: "POSITIVE"}
    )
    DistilBertForSequenceClassification(config).save_pretrained(folder)
    DistilBertTokenizer({word: i for i, word in enumerate(WORDS)}).save_pretrained(folder)


def module(name="finetune"):
    """A module of scripts/, which import each other by name."""
    if str(SCRIPTS) not in sys.path:
        sys.path.insert(0, str(SCRIPTS))
    return importlib.import_module(name)


def sentence(generator, label):
    words = [
        *generator.choices(NEUTRAL, k=generator.choice([1, 2, 2, 9])),
        generator.choice(GOOD if label else BAD),
    ]
    generator.shuffle(words)
    return words


def write_reviews(path, rows=20, seed=0):
    """A .jsonl, .csv or .tsv file of texts with the label good or bad, which one word decides."""
    generator = random.Random(seed)
    pairs = [(sentence(generator, i % 2), ("bad", "good")[i % 2]) for i in range(rows)]
    if path.suffix == ".jsonl":
        lines = [json.dumps({"text": " ".join(words), "label": label}) for words, label in pairs]
    else:
        comma = "\t" if path.suffix == ".tsv" else ","
        lines = [comma.join(["text", "label"]), *(comma.join([" ".join(words), label]) for words, label in pairs)]
    path.write_text("\n".join(lines) + "\n")
    return path


def write_tags(path, rows=20, seed=0):
    """A .jsonl file of words, each with the label of its kind."""
    generator = random.Random(seed)
    kinds = dict.fromkeys(GOOD, "GOOD") | dict.fromkeys(BAD, "BAD")
    sentences = [sentence(generator, i % 2) for i in range(rows)]
    lines = [{"text": words, "label": [kinds.get(word, "O") for word in words]} for words in sentences]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def results(folder):
    """The content of each file that must be the same bytes however a training was interrupted."""
    return {name: (folder / name).read_bytes() for name in RESULTS}

"""A tiny model and files to fine-tune it on, for the tests of scripts/finetune.py."""

import importlib
import json
import random
import sys
from pathlib import Path

SCRIPTS = Path(__file__).parents[1] / "scripts"
NEUTRAL, GOOD, BAD = "today is a day what about tomorrow im".split(), ["nice", "sure"], ["not", "but"]
RESULTS = ("model.safetensors", "config.json", "checkpoint.safetensors", "metrics.jsonl")


def module(name="finetune"):
    """A module of scripts/, which import each other by name."""
    if str(SCRIPTS) not in sys.path:
        sys.path.insert(0, str(SCRIPTS))
    return importlib.import_module(name)


def sentence(generator, label):
    words = [*generator.choices(NEUTRAL, k=generator.randint(1, 9)), generator.choice(GOOD if label else BAD)]
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

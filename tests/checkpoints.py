"""Saved checkpoints, functions that damage them, and comparisons."""

import json

import torch
from safetensors.torch import load_file, save_file

from minibert import DistilBertForSequenceClassification

from .models import model

CLASSIFIER = "DistilBertForSequenceClassification"
WEIGHTS = "model.safetensors"
NAME = "someone/tiny"  # on the Hub on loopback


def saved(folder, head=CLASSIFIER, **config):
    """A model with random weights that is saved in a folder."""
    made = model(head, **config)
    made.save_pretrained(folder)
    return made


def write_tensors(tensors, path):
    """Write a new file; delete the old one first, because tensors may be mapped from it."""
    path.unlink(missing_ok=True)
    save_file(tensors, path)


def rewrite(folder, change):
    """Replace each name and tensor by what `change` returns: another pair, or None to leave the tensor out."""
    pairs = [change(name, tensor) for name, tensor in load_file(folder / WEIGHTS).items()]
    write_tensors(dict(pair for pair in pairs if pair is not None), folder / WEIGHTS)


def rewrite_config(folder, **fields):
    """Replace or add fields of config.json."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def assert_equal_parameters(a, b):
    """The same names and the same bits; tied parameters are compared once."""
    a, b = dict(a.named_parameters()), dict(b.named_parameters())
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


def load_tiny(name=NAME, **arguments):
    """Load the small classifier that a test has put on the Hub."""
    return DistilBertForSequenceClassification.from_pretrained(name, **arguments)


def cached(tmp_path):
    """The names of everything in the Hub's cache that is a file or a link to one."""
    return sorted(path.name for path in (tmp_path / "cache").rglob("snapshots/*/*"))

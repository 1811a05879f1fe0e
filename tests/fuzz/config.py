"""Any config.json, keywords and settings. Oracle: transformers reads the same values; a model can be built."""

import dataclasses
import json

import torch
import transformers

from minibert import DistilBertConfig, DistilBertForSequenceClassification
from minibert.config import ALIASES, CALL_ARGUMENTS, FILE_CHOICES, SIZES

from ..test_config import ALIASED, BASE_2019, BASE_2021
from .tools import accepted, edited, edited_bytes, folder_of, json_value

FIELDS = [field.name for field in dataclasses.fields(DistilBertConfig)]
SMALL = {"model_type": "distilbert", "vocab_size": 9, "max_position_embeddings": 5, "dim": 8, "n_layers": 2}
SMALL |= {"n_heads": 2, "hidden_dim": 8, "num_labels": 3}
BASES = [SMALL, BASE_2019, BASE_2021, ALIASED, {"model_type": "distilbert"}]
NAMES = [*FIELDS, *ALIASES, "label2id", "model_type", *CALL_ARGUMENTS, *FILE_CHOICES, "architectures", "torchscript"]
LIKELY = {  # values that a field may have
    "n_layers": [1, 2, 1000],
    "activation": ["gelu", "relu", "GELU"],
    "problem_type": ["regression", "single_label_classification", "multi_label_classification"],
    "id2label": [{"0": "a", "1": "b"}, {0: "a", 1: "b", 2: "c"}, {"0": "a", "1": "a"}, {"1": "a"}, {"0": None}],
    "label2id": [{"a": 0, "b": 1}, {"a": "0", "b": "1"}, {"a": 0, "b": 0}, {"a": [0]}],
    "pad_token_id": [None, 0, 8, 9],
    "sinusoidal_pos_embds": [True, False],
    "tie_word_embeddings": [True, False],
}
WAYS = ("from_dict", "file", "bytes", "keywords", "changed", "set")


def value_of(source, name):
    return source.choice(LIKELY[name]) if name in LIKELY and source.once_in(2) else json_value(source)


def make(source):
    way, content = source.choice(WAYS), dict(source.choice(BASES))
    given = content if way in ("from_dict", "file", "bytes") else {}
    for _ in range(source.integer(0, 4)):
        name = source.choice(NAMES)
        given[name] = value_of(source, name)
    if source.once_in(3):
        given = edited(source, given)
    if way == "bytes":
        given = json.dumps(given).encode()
        for _ in range(source.integer(1, 3)):
            given = edited_bytes(source, given)
    return way, given


def read(way, given):
    if way == "from_dict":
        return DistilBertConfig.from_dict(given)
    if way in ("file", "bytes"):
        with folder_of({"config.json": given}) as folder:
            return DistilBertConfig.from_pretrained(folder)
    if way == "keywords":
        return DistilBertConfig(**given)
    config = DistilBertConfig.from_dict(SMALL)
    if way == "changed":
        return config.changed(**given)
    for name, value in given.items():
        before = config.to_dict()
        try:
            setattr(config, name, value)
        except AttributeError:  # a size
            assert ALIASES.get(name, name) in SIZES
            return None
        except ValueError:
            assert config.to_dict() == before
            raise
    return config


def check(value):
    way, given = value
    config = accepted(lambda: read(way, given))
    if config is None:
        return False
    if config.num_labels > 1000:  # the rest takes seconds
        return True
    text = config.to_json_string()
    again = json.loads(text, parse_constant=lambda name: fail(f"{name} is not JSON"))
    assert DistilBertConfig.from_dict(again) == config
    theirs = transformers.DistilBertConfig.from_dict(again)
    for name in FIELDS:
        assert getattr(theirs, name) == getattr(config, name), f"{name}: {getattr(theirs, name)!r} in transformers"
    with folder_of({}) as folder:
        config.save_pretrained(folder)
        assert DistilBertConfig.from_pretrained(folder) == config
    if way == "from_dict":
        compare_with_transformers(config, given)
    if config.n_layers < 9 and max(config.vocab_size, config.hidden_dim) * config.dim < 100_000:
        model = DistilBertForSequenceClassification(config).eval()
        logits = model(torch.zeros(1, 1, dtype=torch.long)).logits
        assert logits.shape == (1, config.num_labels)
    return True


def compare_with_transformers(config, content):
    """Every field that both read must be equal; transformers does not check many of them, and refuses a few others."""
    try:
        theirs = transformers.DistilBertConfig.from_dict(content)
    except Exception:
        return
    for name in FIELDS:
        if name not in ("id2label", "num_labels"):
            assert getattr(theirs, name) == getattr(config, name), f"{name}: {getattr(theirs, name)!r} in transformers"


def fail(message):
    raise AssertionError(message)

"""Without the packages of the extra [ecosystem] nothing here is collected, so that the other tests do not need them."""

import os
from importlib.util import find_spec

os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "ACCELERATE_USE_CPU": "true"}

import pytest
import torch

from minibert import DistilBertForSequenceClassification, DistilBertTokenizer

from ..models import model
from .small_data import WORDS

PACKAGES = ("accelerate", "bertviz", "captum", "datasets", "onnxruntime", "onnxscript", "peft", "sentence_transformers")
collect_ignore_glob = ["test_*.py"] if any(find_spec(name) is None for name in PACKAGES) else []


def pytest_collection_modifyitems(items):
    for item in items:
        if "ecosystem" in item.path.parts:  # the warnings of other packages are not ours to mend
            item.add_marker(pytest.mark.filterwarnings("default"))


@pytest.fixture(scope="session")
def bare(tmp_path_factory):
    """A masked-LM checkpoint, such as people fine-tune, and its tokenizer; to be read only."""
    folder = tmp_path_factory.mktemp("bare")
    save(folder, "DistilBertForMaskedLM")
    return str(folder)


@pytest.fixture(scope="session")
def classifier(tmp_path_factory):
    """A classifier with three labels and its tokenizer; to be read only."""
    folder = tmp_path_factory.mktemp("classifier")
    save(folder, "DistilBertForSequenceClassification", id2label={0: "BAD", 1: "MIXED", 2: "GOOD"})
    return str(folder)


def save(folder, head, **config):
    torch.manual_seed(0)
    sizes = {"vocab_size": len(WORDS), "max_position_embeddings": 64, "initializer_range": 0.05}
    model(head, **sizes | config).save_pretrained(folder)
    DistilBertTokenizer({word: i for i, word in enumerate(WORDS)}, model_max_length=64).save_pretrained(folder)


@pytest.fixture
def ours(classifier):
    """The classifier and its tokenizer, from minibert."""
    return (
        DistilBertForSequenceClassification.from_pretrained(classifier),
        DistilBertTokenizer.from_pretrained(classifier),
    )


@pytest.fixture
def theirs(classifier):
    """The same from transformers."""
    import transformers

    name = "DistilBertForSequenceClassification"
    return (
        getattr(transformers, name).from_pretrained(classifier, attn_implementation="eager"),
        transformers.AutoTokenizer.from_pretrained(classifier),
    )

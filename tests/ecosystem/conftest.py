"""Without the packages of the extra [ecosystem] nothing here is collected, so that the other tests do not need them."""

import os
from importlib.util import find_spec

os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "ACCELERATE_USE_CPU": "true"}

import pytest

from minibert import DistilBertForSequenceClassification, DistilBertTokenizer

from .small_data import save_checkpoint

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
    save_checkpoint(folder, "DistilBertForMaskedLM")
    return str(folder)


@pytest.fixture(scope="session")
def classifier(tmp_path_factory):
    """A classifier of reviews and its tokenizer; to be read only."""
    folder = tmp_path_factory.mktemp("classifier")
    save_checkpoint(folder, "DistilBertForSequenceClassification", id2label={0: "BAD", 1: "GOOD"})
    return str(folder)


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

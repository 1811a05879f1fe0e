"""DistilBERT written out by hand in PyTorch: to read, to measure, to use.

Read in this order: `config.py`, `mask.py`, `model.py`, `heads.py`.
"""

from pathlib import Path

from .config import DistilBertConfig
from .heads import (
    DistilBertForMaskedLM,
    DistilBertForMultipleChoice,
    DistilBertForQuestionAnswering,
    DistilBertForSequenceClassification,
    DistilBertForTokenClassification,
)
from .mask import additive_mask
from .model import DistilBertModel
from .packed import pack
from .packed_training import PackedForTraining
from .tokenizer import DistilBertTokenizer

DistilBertTokenizerFast = DistilBertTokenizer  # transformers has both names

__version__ = "0.1.0"
DEMO = Path(__file__).with_name("demo")  # the folder of the small trained checkpoint that ships with the package

__all__ = [
    "DEMO",
    "DistilBertConfig",
    "DistilBertForMaskedLM",
    "DistilBertForMultipleChoice",
    "DistilBertForQuestionAnswering",
    "DistilBertForSequenceClassification",
    "DistilBertForTokenClassification",
    "DistilBertModel",
    "DistilBertTokenizer",
    "DistilBertTokenizerFast",
    "PackedForTraining",
    "additive_mask",
    "pack",
]

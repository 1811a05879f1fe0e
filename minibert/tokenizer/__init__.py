"""From text to ids. Read `wordpiece.py`, `rows.py`, `vocabulary.py` and `tokenizer.py`, in this order."""

from .encoding import BatchEncoding
from .tokenizer import DistilBertTokenizer
from .wordpiece import AddedToken

__all__ = ["AddedToken", "BatchEncoding", "DistilBertTokenizer"]

"""From text to ids: `wordpiece.py`, `encoding.py`, `tokenizer.py`, in this order."""

from .encoding import BatchEncoding
from .tokenizer import DistilBertTokenizer
from .wordpiece import AddedToken

__all__ = ["AddedToken", "BatchEncoding", "DistilBertTokenizer"]

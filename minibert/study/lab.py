"""The laboratory: a trained classifier in one HTML page, to change its attention mask and watch its logits.

The page holds the weights exactly, in the smallest of float16, float32 and float64 that holds all of their values, and
computes in float64. `templates/lab_model.js` is the model and the tokenizer once more, `templates/lab.js` what the
reader sees. The tokenizer's ids are those of `tokenizer/`; only the lowercase and the decomposition of single
characters come from the browser's own Unicode tables, so they may differ for characters newer than the browser.
"""

import base64
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..heads import DistilBertForSequenceClassification
from ..tokenizer import DistilBertTokenizer
from ..tokenizer import unicode_tables as tables
from .page import LIMIT, Page, fill
from .report import dtype_name
from .steps import check_eval
from .walk import SENTENCES

MOST_TEXTS = 4


def attention_lab(
    model: DistilBertForSequenceClassification,
    tokenizer: DistilBertTokenizer,
    texts: str | Sequence[str] = SENTENCES,
    *,
    title: str = "Attention laboratory",
) -> Page:
    """Put a sequence classifier into one HTML page that runs it, for any mask that the reader sets.

    Args:
        model: a sequence classifier, in eval mode. Its page may take 32 MiB: about 12 million weights in float16, or 6
            million in float32.
        tokenizer: the model's tokenizer.
        texts: one to four texts to begin with.
        title: the heading of the page.

    Returns:
        A str: write it to a file as UTF-8. A notebook shows it as a page.

    Raises:
        ValueError: another model, a model in training mode, a page that would be too large, a tokenizer
            that does not match or cannot pad, not one to four texts.
    """
    texts = [texts] if isinstance(texts, str) else list(texts)
    if not isinstance(model, DistilBertForSequenceClassification):
        raise ValueError(f"the laboratory runs a DistilBertForSequenceClassification, got a {type(model).__name__}")
    check_eval(model)
    if not 1 <= len(texts) <= MOST_TEXTS:
        raise ValueError(f"the laboratory takes 1 to {MOST_TEXTS} texts, got {len(texts)}")
    if len(tokenizer) > model.config.vocab_size:
        raise ValueError(
            f"the tokenizer has {len(tokenizer)} tokens, the model {model.config.vocab_size}: they do not match"
        )
    if tokenizer.pad_token_id is None:
        raise ValueError("the tokenizer has no pad token, so it cannot pad: choose one with pad_token=")
    weights = model.state_dict()
    numbers = sum(tensor.numel() for tensor in weights.values())
    fits = numbers * torch.float16.itemsize * 4 // 3 <= LIMIT  # before the values are read
    dtype = smallest_dtype(weights.values()) if fits else torch.float16
    size = numbers * dtype.itemsize * 4 // 3
    if size > LIMIT:
        raise ValueError(
            f"the page would take {size / 2**20:.0f} MiB, more than {LIMIT / 2**20:.0f}: this model has {numbers:,} "
            f"weights in {str(dtype).removeprefix('torch.')}. Give a smaller classifier, such as minibert.DEMO, or use "
            f"`minibert view` (attention_page), whose page holds attention and no weights"
        )
    config = model.config
    data = {
        "config": {name: getattr(config, name) for name in ("n_layers", "n_heads", "activation")},
        "labels": [config.id2label[i] for i in range(config.num_labels)],
        "dtype": dtype_name(dtype),
        "tensors": [[name, list(tensor.shape)] for name, tensor in weights.items()],
        "weights": base64.b64encode(b"".join(to_bytes(tensor, dtype) for tensor in weights.values())).decode(),
        "tokenizer": tokenizer_settings(tokenizer, config.max_position_embeddings),
        "texts": texts,
    }
    return Page(fill("lab.html", title, data))


def smallest_dtype(tensors: Iterable[Tensor]) -> torch.dtype:
    """Return the smallest of float16, float32 and float64 that holds every value exactly."""
    tensors = list(tensors)
    for dtype in (torch.float16, torch.float32):
        if all(torch.equal(tensor.to(dtype).double(), tensor.double()) for tensor in tensors):
            return dtype
    return torch.float64


def to_bytes(tensor: Tensor, dtype: torch.dtype) -> bytes:
    """Return the values as little-endian bytes, the last axis changing fastest."""
    array = tensor.detach().to("cpu", dtype).contiguous().numpy()
    return array.astype(array.dtype.newbyteorder("<")).tobytes()


def tokenizer_settings(tokenizer: DistilBertTokenizer, positions: int) -> dict[str, Any]:
    """Return what `DistilBertTokenizer` of lab_model.js is made from."""
    wordpiece = tokenizer._wordpiece
    return {
        "vocab": list(wordpiece.vocab.items()),
        "unk_id": tokenizer.unk_token_id,
        "cls_id": tokenizer.cls_token_id,
        "sep_id": tokenizer.sep_token_id,
        "pad_id": tokenizer.pad_token_id,
        "max_length": min(positions, tokenizer.model_max_length or positions),
        "truncation_side": tokenizer.truncation_side,
        "do_lower_case": wordpiece.do_lower_case,
        "strip_accents": wordpiece.strip_accents,
        "tokenize_chinese_chars": wordpiece.tokenize_chinese_chars,
        "added_tokens": [
            {"content": token.content, "id": i, "single_word": token.single_word, "normalized": token.normalized}
            for i, token in tokenizer.added_tokens.items()
        ],
        "unicode": {
            "classes": {
                "DROPPED": [*ranges(tables.DROPPED), *((area[0], area[-1]) for area in tables.PRIVATE_USE)],
                "WHITE_SPACE": ranges(tables.WHITE_SPACE),
                "CJK": [(block[0], block[-1]) for block in tables.CJK],
                "PUNCTUATION": ranges(tables.PUNCTUATION),
                "MARKS": ranges(tables.MARKS),
                "REORDERED": ranges(tables.REORDERED),
                "NEWER": ranges(tables.NEWER),
            },
            "newer_capitals": [(chr(capital), chr(small)) for capital, small in tables.NEWER_CAPITALS.items()],
        },
    }


def ranges(code_points: Iterable[int]) -> list[tuple[int, int]]:
    """Return ascending ranges, ends included: {9, 10, 32} is [(9, 10), (32, 32)]."""
    found: list[tuple[int, int]] = []
    for code_point in sorted(code_points):
        first = found.pop()[0] if found and found[-1][1] == code_point - 1 else code_point
        found.append((first, code_point))
    return found

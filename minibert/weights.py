"""From the tensors of a file to those of a model: names, the split into encoder and head, and the tied pair."""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from .config import DistilBertConfig

HEAD_PREFIXES = (
    "vocab_transform.",
    "vocab_layer_norm.",
    "vocab_projector.",
    "pre_classifier.",
    "classifier.",
    "qa_outputs.",
)
WORDS = "embeddings.word_embeddings.weight"
PROJECTOR = "vocab_projector.weight"  # of the masked-LM head; usually tied to WORDS, and then not in the file
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)  # that a model computes in


def split_encoder_and_head(tensors: Mapping[str, Tensor], where: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Split a file's tensors into the encoder's, without the prefix `distilbert.`, and the head's; update old names.

    Raises:
        ValueError: two tensors get the same name.
    """
    encoder: dict[str, Tensor] = {}
    head: dict[str, Tensor] = {}
    for stored_name, tensor in tensors.items():
        name = stored_name.removeprefix("module.")  # written by torch.nn.DataParallel
        if name.endswith("embeddings.position_ids"):  # a buffer of old files: 0, 1, 2, …
            continue
        for old, new in ((".gamma", ".weight"), (".beta", ".bias")):  # TensorFlow's names for a LayerNorm's parameters
            name = name.removesuffix(old) + new if name.endswith(old) else name
        part = head if name.startswith(HEAD_PREFIXES) else encoder
        name = name.removeprefix("distilbert.")  # written by every model with a head
        if name in part:
            raise ValueError(f"{where}: the file holds {name} twice, once as {stored_name}")
        part[name] = tensor
    return encoder, head


def compare_tensors(found: Mapping[str, Tensor], expected: Mapping[str, torch.Size]) -> list[str]:
    """Say which tensors are missing, unexpected, of another shape, or of no dtype in DTYPES; of many the first few."""
    problems = []
    if missing := sorted(expected.keys() - found.keys()):
        problems.append(f"missing {shorten(missing)}")
    if unexpected := sorted(found.keys() - expected.keys()):
        problems.append(f"unexpected {shorten(unexpected)}")
    for name in sorted(found.keys() & expected.keys()):
        tensor = found[name]
        if tensor.shape != expected[name]:
            problems.append(f"{name} is {tuple(tensor.shape)}, the config says {tuple(expected[name])}")
        elif tensor.dtype not in DTYPES:
            problems.append(f"{name} is {tensor.dtype}, not one of {', '.join(map(str, DTYPES))}")
    return problems if len(problems) <= 6 else [*problems[:6], f"and {len(problems) - 6} more"]


def shorten(names: list[str]) -> str:
    """Return the first names as a list in words, of at most 400 characters."""
    first = f"{names[:6]!s:.400}"
    return first if len(names) <= 6 else f"{first} and {len(names) - 6} more"


def resolve_tie(config: DistilBertConfig, encoder: dict[str, Tensor], head: dict[str, Tensor]) -> DistilBertConfig:
    """Decide whether a file's masked-LM projector is tied to the word-embedding table; return the config that says so.

    If they are tied, the file holds one of the two (usually the table), or both with equal values. If the values
    differ, they are not tied, even if config.json says that they are.
    """
    if not config.tie_word_embeddings or PROJECTOR not in head:
        return config
    words, projector = encoder.setdefault(WORDS, head[PROJECTOR]), head[PROJECTOR]
    if words.dtype != projector.dtype or not torch.equal(words, projector):
        return replace(config, tie_word_embeddings=False)
    del head[PROJECTOR]
    return config

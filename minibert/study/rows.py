"""What a row of a padded batch is, and how a model runs on it: with its mask and without, in the batch and alone.

Shapes: B rows, S tokens with padding, D dim, H heads, N layers, L labels. A row is one padded text. For multiple
choice each choice is a row, and its logit is a (B, 1).
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..heads import DistilBertForMultipleChoice
from ..mask import check_attention_mask
from ..model import DistilBertModel
from ..tokenizer import DistilBertTokenizer
from .models import Model, encoder_of
from .steps import check_eval

OF_KEYS = ("scores", "mask", "masked_scores", "probs", "dropout")  # attention steps whose last axis is that of the keys


class Rows(NamedTuple):
    """A padded batch as the encoder takes it."""

    input_ids: Tensor  # (B, S)
    attention_mask: Tensor  # (B, S), 1 = real token
    position_ids: Tensor  # (B, S)

    @property
    def real(self) -> Tensor:
        """(B, S) bool, True = real token."""
        return self.attention_mask.bool()

    @property
    def padded_queries(self) -> Tensor:
        """(B, S) bool, True = real token of a row that has padding."""
        return self.real & ~self.real.all(dim=1, keepdim=True)

    def inputs(self, mask: bool) -> dict[str, Tensor | None]:
        """Return the encoder's arguments, with or without the mask."""
        return self._asdict() | {"attention_mask": self.attention_mask if mask else None}

    def alone(self, row: int) -> "Rows":
        """One row without its padding: (1, n) each. Every token keeps the position that it has in the batch."""
        return Rows(*(tensor[row, self.real[row]][None] for tensor in self))


def read_batch(model: Model, batch: Mapping[str, Tensor]) -> Rows:
    """Check a batch and flatten its choices, where it has them, into rows.

    Args:
        model: in eval mode.
        batch: what a tokenizer returns: input_ids and attention_mask, (B, S) or for multiple choice also (B, C, S);
            position_ids of the same shape if they are not 0, 1, 2, …; anything else is ignored.

    Raises:
        ValueError: a model in training mode; a batch that lacks a tensor, does not fit the model or has no padding.
    """
    check_eval(model)
    for name in ("input_ids", "attention_mask"):
        if not isinstance(batch, Mapping) or not isinstance(batch.get(name), Tensor):
            raise ValueError(f"the batch needs a tensor {name}: tokenizer(texts, padding=True, return_tensors='pt')")
    ids = batch["input_ids"]
    if ids.ndim != 2 and not (ids.ndim == 3 and isinstance(model, DistilBertForMultipleChoice)):
        raise ValueError(f"input_ids of {type(model).__name__} cannot have shape {tuple(ids.shape)}")
    length = ids.shape[-1]
    tensors = {"position_ids": torch.arange(length, device=ids.device).expand_as(ids), **batch}
    for name in ("attention_mask", "position_ids"):
        if tensors[name].shape != ids.shape:
            raise ValueError(
                f"{name} must have the shape of input_ids, {tuple(ids.shape)}, got {tuple(tensors[name].shape)}"
            )
    rows = Rows(*(tensors[name].flatten(0, -2) for name in Rows._fields))
    check_attention_mask(rows.attention_mask, len(rows.real), length, model.config.n_heads)
    if rows.real.all():
        raise ValueError(f"nothing is padded: all rows have {length} tokens; give texts of different lengths")
    return rows


def tokenize(
    model: Model, tokenizer: DistilBertTokenizer, texts: Sequence[str], padding_side: str = "right"
) -> Mapping[str, Tensor]:
    """Texts -> a batch on the model's device."""
    return tokenizer(texts, padding=True, padding_side=padding_side, return_tensors="pt").to(model.device)


def run(model: Model, rows: Rows, mask: bool) -> dict[str, Tensor]:
    """Run a model with or without its mask.

    Returns:
        The hidden states, (B, S, D) each: "embeddings", "layer 0", …; then, from a model with a head, "logits".
    """
    output = encoder_of(model)(**rows.inputs(mask), output_hidden_states=True)
    names = ["embeddings", *(f"layer {i}" for i in range(model.config.n_layers))]
    stages = dict(zip(names, output.hidden_states, strict=True))
    if isinstance(model, DistilBertModel):
        return stages
    return stages | {"logits": model.head(output.last_hidden_state)}


def run_alone(model: Model, rows: Rows) -> list[dict[str, Tensor]]:
    """Run each row without its padding, and so without a mask: one of all ones gives the same bits."""
    return [run(model, rows.alone(i), mask=False) for i in range(len(rows.input_ids))]


def attentions(model: Model, rows: Rows, mask: bool) -> tuple[Tensor, ...]:
    """Return the attention probabilities of each layer, N of (B, H, S, S)."""
    return encoder_of(model)(**rows.inputs(mask), output_attentions=True).attentions


def real_part(name: str, value: Tensor, real: Tensor) -> Tensor:
    """Say which numbers of a value belong to real tokens, in attention to a real query and a real key.

    Args:
        name: of the step, or of what the model returns.
        value: of the step; a value that has pooled its text belongs to a real token as a whole.
        real: (B, S) bool.

    Returns:
        Bools that broadcast over the value.
    """
    if value.ndim == 4:
        queries, keys = real[:, None, :, None], real[:, None, None, :]
        if name.rpartition(".")[2] not in OF_KEYS:
            return queries  # (B, H, S, E)
        return keys if value.shape[2] == 1 else queries & keys  # (B, 1, 1, S), (B, H, S, S)
    if value.ndim == 3:
        return real[:, :, None]  # (B, S, D)
    return real if name in ("start_logits", "end_logits") else torch.ones_like(value, dtype=torch.bool)

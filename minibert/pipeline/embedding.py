"""A vector for each text."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from ..model import DistilBertModel
from ..tokenizer import BatchEncoding
from .base import OneRowPipeline


@dataclass(eq=False, kw_only=True)
class Embedder(OneRowPipeline[Tensor]):
    """A vector (D,) for each text, from the last hidden states of a checkpoint with any head.

    Args:
        pooling: "mean" over all tokens, [CLS] and [SEP] included, or "cls" for [CLS] alone.
    """

    pooling: Literal["mean", "cls"] = "mean"
    model_class = DistilBertModel

    def __post_init__(self) -> None:
        if self.pooling not in ("mean", "cls"):
            raise ValueError(f"pooling must be 'mean' or 'cls', got {self.pooling!r}")
        super().__post_init__()

    def forward(self, rows: list[list[int]]) -> Sequence[Tensor]:
        """Return the vector of each row."""
        states = [output.last_hidden_state for output in self.model.rows(rows)]
        return [state.mean(0) if self.pooling == "mean" else state[0].clone() for state in states]

    def read(self, text: str, encoding: BatchEncoding, outputs: Sequence[Tensor]) -> Tensor:
        """Return the vector of the one row."""
        return outputs[0]

    def to_columns(self, results: list[Tensor]) -> dict[str, list[Any]]:
        """Return the vectors, as arrays (D,)."""
        return {"embedding": [vector.numpy() for vector in results]}

"""Which tokens may replace each [MASK] of a text?"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from ..heads import DistilBertForMaskedLM
from ..tokenizer import BatchEncoding
from .base import OneRowPipeline, check_at_least


@dataclass(frozen=True)
class Candidate:
    """A token that may replace a [MASK].

    Args:
        token: as in the vocabulary; ## at its start means that it continues the word before.
        token_id: its id.
        score: its probability at this [MASK], whatever replaces the other ones.
    """

    token: str
    token_id: int
    score: float


@dataclass(eq=False, kw_only=True)
class MaskFiller(OneRowPipeline[list[list[Candidate]]]):
    """Which tokens may replace each [MASK] of a text? A list for each [MASK], the likeliest token first.

    Args:
        top_k: the number of tokens for each [MASK].
    """

    top_k: int = 5
    model_class = DistilBertForMaskedLM

    def __post_init__(self) -> None:
        check_at_least(1, "top_k", self.top_k)
        super().__post_init__()
        if self.tokenizer.mask_token_id is None:
            raise ValueError(f"{self.checkpoint}: the vocabulary has no {self.tokenizer.mask_token}")
        # The embedding may have more rows than the vocabulary has tokens, to make its size a multiple of 64.
        ids = [i for i in sorted(self.tokenizer.vocab.values()) if i < self.model.config.vocab_size]
        self.candidate_ids = torch.tensor(ids)

    def encode(self, text: str) -> BatchEncoding:
        """Turn a text into one row, and refuse a row without [MASK]."""
        encoding = super().encode(text)
        if self.tokenizer.mask_token_id not in encoding.input_ids[0]:
            raise ValueError(f"it has no {self.tokenizer.mask_token} to fill")
        return encoding

    def forward(self, rows: list[list[int]]) -> Sequence[Tensor]:
        """Return the probabilities (M, V) at the M [MASK]s of each row."""
        masks = [[i for i, token in enumerate(row) if token == self.tokenizer.mask_token_id] for row in rows]
        return [output.logits.softmax(-1) for output in self.model.rows(rows, at=masks)]

    def read(self, text: str, encoding: BatchEncoding, outputs: Sequence[Tensor]) -> list[list[Candidate]]:
        """Choose the likeliest tokens."""
        scores, columns = outputs[0][:, self.candidate_ids].topk(min(self.top_k, len(self.candidate_ids)))
        return [
            [Candidate(self.tokenizer.convert_ids_to_tokens(i), i, score) for i, score in zip(*ranked, strict=True)]
            for ranked in zip(self.candidate_ids[columns].tolist(), scores.tolist(), strict=True)
        ]

    def to_columns(self, results: list[list[list[Candidate]]]) -> dict[str, list[Any]]:
        """Return the candidates for each [MASK] of each text, as dicts."""
        return {"masks": [[[asdict(best) for best in ranked] for ranked in masks] for masks in results]}

"""The result of a tokenizer."""

from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch

from .rows import Row


class BatchEncoding(dict[str, Any]):
    """The result of a tokenizer: a dict, for `model(**inputs)`, whose values are attributes too.

    Args:
        data: `input_ids` and the other values.
        rows: the tokenized texts. Without them, as in the result of `DistilBertTokenizer.pad`, the methods that take a
            `batch_index` raise a ValueError.
    """

    def __init__(self, data: Mapping[str, Any], rows: Sequence[Row] = ()) -> None:
        super().__init__(data)
        self._rows = rows

    def __getattr__(self, name: str) -> Any:
        if name in self:
            return self[name]
        raise AttributeError(f"no {name!r} here, only {list(self)}")

    def word_ids(self, batch_index: int = 0) -> list[int | None]:
        """For each token of a row the index of its word in its text; None for special tokens and padding."""
        return self._row(batch_index).word_ids

    def sequence_ids(self, batch_index: int = 0) -> list[int | None]:
        """For each token of a row 0 in the first text, 1 in the second; None for special tokens and padding."""
        return self._row(batch_index).sequence_ids

    def tokens(self, batch_index: int = 0) -> list[str]:
        """The tokens of a row, special tokens and padding included."""
        tokens = self._row(batch_index).tokens
        ids = self["input_ids"]
        is_row = len(ids) == 0 or isinstance(ids[0], int)
        return [tokens[int(i)] for i in (ids if is_row else ids[batch_index])]

    def char_to_token(
        self, batch_or_char_index: int, char_index: int | None = None, sequence_index: int = 0
    ) -> int | None:
        """Find the token that holds a character of a text.

        Args:
            batch_or_char_index: index of the row; without `char_index` that of the character, in row 0.
            char_index: index of the character in its text.
            sequence_index: 0 for the first text of the row, 1 for the second.

        Returns:
            The index of the token in its row; None for white space and for a character that was cut off.
        """
        batch_index, char = (0, batch_or_char_index) if char_index is None else (batch_or_char_index, char_index)
        row = self._row(batch_index)
        spans = zip(row.sequence_ids, row.offsets, strict=True)
        return next((i for i, (text, (a, b)) in enumerate(spans) if text == sequence_index and a <= char < b), None)

    def token_to_chars(self, batch_or_token_index: int, token_index: int | None = None) -> tuple[int, int] | None:
        """Find the characters of a token: their start and end (exclusive) in its text, None for a special token.

        Args:
            batch_or_token_index: index of the row; without `token_index` that of the token, in row 0.
            token_index: index of the token in its row.
        """
        batch_index, i = (0, batch_or_token_index) if token_index is None else (batch_or_token_index, token_index)
        row = self._row(batch_index)
        return None if row.sequence_ids[i] is None else row.offsets[i]

    def _row(self, index: int) -> Row:
        if not self._rows:
            raise ValueError("this batch has no texts: use the batch that the tokenizer returned for them")
        return self._rows[index]

    def to(self, device: str | int | torch.device, *, non_blocking: bool = False) -> Self:
        """Move the tensors to a device, in place, and return self; other values stay as they are."""
        for name, value in self.items():
            if isinstance(value, torch.Tensor):
                self[name] = value.to(device, non_blocking=non_blocking)
        return self

"""The result of a tokenizer."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Self

import torch

from .rows import Row


class Span(NamedTuple):
    """From an index to another, exclusive."""

    start: int
    end: int


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

    # In the following methods the first argument may be left out in front of the second: it is then row 0. An index
    # of a word or character is one of its text; `sequence_index` is 0 for the first text of a row, 1 for the second.

    def token_to_sequence(self, batch_or_token_index: int, token_index: int | None = None) -> int | None:
        """Find the text of a token: 0 for the first of its row, 1 for the second, None for a special token."""
        row, token = self._find(batch_or_token_index, token_index)
        return row.sequence_ids[token]

    def token_to_word(self, batch_or_token_index: int, token_index: int | None = None) -> int | None:
        """Find the word of a token; None for a special token."""
        row, token = self._find(batch_or_token_index, token_index)
        return row.word_ids[token]

    def token_to_chars(self, batch_or_token_index: int, token_index: int | None = None) -> Span | None:
        """Find the characters of a token; None for a special token."""
        row, token = self._find(batch_or_token_index, token_index)
        return None if row.sequence_ids[token] is None else Span(*row.offsets[token])

    def char_to_token(
        self, batch_or_char_index: int, char_index: int | None = None, sequence_index: int = 0
    ) -> int | None:
        """Find the token of a character; None for white space, and for a character that was cut off."""
        row, char = self._find(batch_or_char_index, char_index)
        for token, (sequence_id, (start, end)) in enumerate(zip(row.sequence_ids, row.offsets, strict=True)):
            if sequence_id == sequence_index and start <= char < end:
                return token
        return None

    def char_to_word(
        self, batch_or_char_index: int, char_index: int | None = None, sequence_index: int = 0
    ) -> int | None:
        """Find the word of a character; None for white space, and for a character that was cut off."""
        row, _ = self._find(batch_or_char_index, char_index)
        token = self.char_to_token(batch_or_char_index, char_index, sequence_index)
        return None if token is None else row.word_ids[token]

    def word_to_tokens(
        self, batch_or_word_index: int, word_index: int | None = None, sequence_index: int = 0
    ) -> Span | None:
        """Find the tokens of a word; None for a word without tokens."""
        row, word = self._find(batch_or_word_index, word_index)
        columns = zip(row.sequence_ids, row.word_ids, strict=True)
        tokens = [token for token, ids in enumerate(columns) if ids == (sequence_index, word)]
        return Span(tokens[0], tokens[-1] + 1) if tokens else None

    def word_to_chars(
        self, batch_or_word_index: int, word_index: int | None = None, sequence_index: int = 0
    ) -> Span | None:
        """Find the characters of a word; None for a word without tokens."""
        row, _ = self._find(batch_or_word_index, word_index)
        tokens = self.word_to_tokens(batch_or_word_index, word_index, sequence_index)
        return Span(row.offsets[tokens.start][0], row.offsets[tokens.end - 1][1]) if tokens else None

    def _find(self, first: int, second: int | None) -> tuple[Row, int]:
        return (self._row(0), first) if second is None else (self._row(first), second)

    def _row(self, index: int) -> Row:
        if not self._rows:
            raise ValueError("this batch has no texts: use the batch that the tokenizer returned for them")
        return self._rows[index]

    def to(self, device: str | int | torch.device, *, non_blocking: bool = False) -> Self:
        """Move the tensors to a device, in place, and return self; other values stay as they are.

        Raises:
            TypeError: a dtype in place of a device: ids are integers.
        """
        if isinstance(device, torch.dtype):
            raise TypeError(f"expected a device, got {device}: ids are integers, and only a model changes its dtype")
        for name, value in self.items():
            if isinstance(value, torch.Tensor):
                self[name] = value.to(device, non_blocking=non_blocking)
        return self

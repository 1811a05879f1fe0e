"""From tokenized texts to a batch: truncation, windows, special tokens, padding."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, NamedTuple, Self

import torch


class Text(NamedTuple):
    """The tokens of a text, without [CLS] and [SEP]."""

    ids: list[int]
    word_ids: list[int]  # for each token the index of its word
    offsets: list[tuple[int, int]]  # for each token its start and end in the text; empty unless asked for

    def windows(self, size: int, stride: int | None, side: str) -> list[Self]:
        """Cut into windows of `size` tokens; the last may have fewer.

        Args:
            size: in tokens.
            stride: number of tokens that two neighbouring windows share; None for the first window only.
            side: "right": the first window holds the first tokens; "left": the last ones.

        Raises:
            ValueError: the stride is not smaller than the size.
        """
        length = len(self.ids)
        if length <= size:
            return [self]
        if stride is not None and stride >= size:
            raise ValueError(
                f"windows of {size} tokens of this text cannot share stride={stride} tokens: "
                f"pass a smaller stride or a larger max_length"
            )
        starts = range(1) if stride is None else range(0, length - stride, size - stride)
        windows = [(start, min(start + size, length)) for start in starts]
        if side == "left":
            windows = [(length - stop, length - start) for start, stop in windows]
        return [
            type(self)(self.ids[start:stop], self.word_ids[start:stop], self.offsets[start:stop])
            for start, stop in windows
        ]


@dataclass
class Row:
    """One row of a batch: [CLS] text [SEP] or [CLS] text [SEP] text [SEP], padded."""

    texts: Sequence[Text]
    has_special_tokens: bool
    left_padding: int = 0
    right_padding: int = 0

    def __len__(self) -> int:
        special = 1 + len(self.texts) if self.has_special_tokens else 0
        return self.left_padding + special + sum(len(text.ids) for text in self.texts) + self.right_padding

    def lay_out(self, texts: Sequence[list[Any]], *, cls: Any, sep: Any, pad: Any) -> list[Any]:
        """Arrange one value for each token in the order of the row.

        Args:
            texts: for each text the values of its tokens.
            cls: value for [CLS].
            sep: value for [SEP].
            pad: value for [PAD].
        """
        values = [pad] * self.left_padding
        if self.has_special_tokens:
            values.append(cls)
        for text in texts:
            values += text
            if self.has_special_tokens:
                values.append(sep)
        return values + [pad] * self.right_padding

    @property
    def word_ids(self) -> list[int | None]:
        """For each token the index of its word in its text, None for special tokens."""
        return self.lay_out([text.word_ids for text in self.texts], cls=None, sep=None, pad=None)

    @property
    def sequence_ids(self) -> list[int | None]:
        """For each token 0 in the first text, 1 in the second, None for special tokens."""
        return self.lay_out([[i] * len(text.ids) for i, text in enumerate(self.texts)], cls=None, sep=None, pad=None)

    @property
    def offsets(self) -> list[tuple[int, int]]:
        """For each token its start and end in its text, (0, 0) for special tokens."""
        return self.lay_out([text.offsets for text in self.texts], cls=(0, 0), sep=(0, 0), pad=(0, 0))

    @property
    def attention_mask(self) -> list[int]:
        """For each token 1, for padding 0."""
        return self.lay_out([[1] * len(text.ids) for text in self.texts], cls=1, sep=1, pad=0)


class BatchEncoding(dict[str, Any]):
    """The result of a tokenizer: a dict, for `model(**inputs)`, whose values are attributes too."""

    def __init__(self, data: Mapping[str, Any], rows: Sequence[Row] = ()) -> None:
        super().__init__(data)
        self._rows = rows

    def __getattr__(self, name: str) -> Any:
        if name in self:
            return self[name]
        raise AttributeError(f"no {name!r} here, only {list(self)}")

    def word_ids(self, batch_index: int = 0) -> list[int | None]:
        """For each token of a row the index of its word in its text; None for special tokens and padding."""
        return self._rows[batch_index].word_ids

    def sequence_ids(self, batch_index: int = 0) -> list[int | None]:
        """For each token of a row 0 in the first text, 1 in the second; None for special tokens and padding."""
        return self._rows[batch_index].sequence_ids

    def to(self, device: str | int | torch.device, *, non_blocking: bool = False) -> Self:
        """Move the tensors to a device, in place, and return self; other values stay as they are."""
        for name, value in self.items():
            if isinstance(value, torch.Tensor):
                self[name] = value.to(device, non_blocking=non_blocking)
        return self


def truncate(
    texts: Sequence[Text], room: int, *, strategy: str, side: str, stride: int | None
) -> list[tuple[Text, ...]]:
    """Cut one text or two so that together they have at most `room` tokens.

    Args:
        texts: one or two, the texts of a row.
        room: in tokens.
        strategy: "longest_first", "only_first" or "only_second".
        side: the side that loses tokens, "right" or "left".
        stride: None drops the tokens cut off. A number puts them into further windows, neighbours of which share this
            number of tokens; each window of the first text is combined with each window of the second.

    Raises:
        ValueError: this strategy or stride cannot make the texts fit.
    """
    sizes = kept_lengths(len(texts[0].ids), sum(len(text.ids) for text in texts[1:]), room, strategy)
    windows = [text.windows(size, stride, side) for text, size in zip(texts, sizes, strict=False)]
    rows = list(product(*windows))
    # The order of transformers: the further rows with the first window of the first text come last.
    seconds = len(windows[1]) if len(windows) == 2 else 1
    return rows[:1] + rows[seconds:] + rows[1:seconds]


def kept_lengths(first: int, second: int, room: int, strategy: str) -> tuple[int, int]:
    """Count the tokens kept of a first and a second text, which may be 0.

    "longest_first" shortens the longer text until both are equally long, and then both.

    Raises:
        ValueError: the only text that may be cut is too short.
    """
    excess = first + second - room
    if excess <= 0:
        return first, second
    if strategy == "longest_first":
        shorter = min(first, second)
        longer = max(shorter, room - shorter)
        if shorter + longer > room:
            shorter, longer = room // 2, room - room // 2
        return (shorter, longer) if first <= second else (longer, shorter)
    if excess >= (first if strategy == "only_first" else second):
        raise ValueError(
            f"truncation={strategy!r} cannot make texts of {first} and {second} tokens fit into {room}: "
            f"pass truncation=True or a larger max_length"
        )
    return (first - excess, second) if strategy == "only_first" else (first, second - excess)


def pad(rows: Sequence[Row], *, length: int | None, multiple_of: int | None, side: str) -> None:
    """Pad rows, in place, to a length; longer rows stay as they are.

    Args:
        rows: of any lengths.
        length: in tokens; None for the longest row.
        multiple_of: round the length up to a multiple of this.
        side: of the padding, "right" or "left".
    """
    if length is None:
        length = max(map(len, rows), default=0)
    if multiple_of is not None:
        length += -length % multiple_of
    for row in rows:
        padding = max(0, length - len(row))
        if side == "right":
            row.right_padding = padding
        else:
            row.left_padding = padding


def as_batch(text: Any, text_pair: Any, is_split_into_words: bool) -> tuple[list[tuple[Any, ...]], bool]:
    """Check the texts given to a tokenizer, and sort them by row.

    Returns:
        The texts of each row, one or two; and True for a batch, False for a single row.

    Raises:
        TypeError: a text is not a str, or with `is_split_into_words` not a list of str.
        ValueError: the numbers of first and second texts differ, or a text holds a lone surrogate.
    """
    is_batch = isinstance(text, (list, tuple))
    if is_split_into_words:
        is_batch = is_batch and len(text) > 0 and isinstance(text[0], (list, tuple))
    columns = {"text": text} if text_pair is None else {"text": text, "text_pair": text_pair}
    if not is_batch:
        columns = {name: [column] for name, column in columns.items()}
    for name, column in columns.items():
        if not isinstance(column, (list, tuple)) or len(column) != len(columns["text"]):
            raise ValueError(f"{name} must be a list of {len(columns['text'])} texts, one for each text")
        for i, one in enumerate(column):
            _check_text(one, f"{name}[{i}]" if is_batch else name, is_split_into_words)
    return list(zip(*columns.values(), strict=True)), is_batch


def _check_text(text: Any, where: str, is_split_into_words: bool) -> None:
    if is_split_into_words:
        if not isinstance(text, (list, tuple)):
            raise TypeError(f"{where} is {type(text).__name__}, not a list of words, with is_split_into_words=True")
        for i, word in enumerate(text):
            _check_text(word, f"{where}[{i}]", False)
    elif not isinstance(text, str):
        raise TypeError(f"{where} is {type(text).__name__}, not str")
    elif not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"{where} has a lone surrogate, {text[error.start]!a} at index {error.start}: "
                f"decode the original bytes with errors='replace'"
            ) from None

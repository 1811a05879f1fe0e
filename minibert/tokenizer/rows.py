"""From tokenized texts to the rows of a batch: truncation, windows, special tokens, padding."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Any, NamedTuple

from .wordpiece import WordPiece


@dataclass
class Text:
    """A tokenized text, without [CLS] and [SEP].

    Args:
        chunks: the text, or its words.
        ids: of its tokens.
        word_ids: for each token the index of its word.
        wordpiece: tokenized the text. It is not pickled, because it holds the vocabulary.
    """

    chunks: Sequence[str]
    ids: list[int]
    word_ids: list[int]
    wordpiece: WordPiece | None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "wordpiece": None}

    @cached_property
    def offsets(self) -> list[tuple[int, int]]:
        """For each token its start and end in its chunk; computed only when asked for, as this is slow."""
        wordpiece = self.known_wordpiece
        return [span for chunk in self.chunks for span in wordpiece.offsets(chunk)]

    @property
    def known_wordpiece(self) -> WordPiece:
        """`wordpiece`, or a ValueError without one."""
        if self.wordpiece is None:
            raise ValueError(
                "a copied or pickled batch has no tokenizer: for offsets, tokenize with return_offsets_mapping=True; "
                "for tokens, use tokenizer.convert_ids_to_tokens"
            )
        return self.wordpiece

    def windows(self, size: int, stride: int | None, side: str) -> list["Window"]:
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
            return [Window(self, 0, length)]
        if stride is not None and stride >= size:
            raise ValueError(
                f"windows of {size} tokens of this text cannot share stride={stride} tokens: "
                f"pass a smaller stride or a larger max_length"
            )
        starts = range(1) if stride is None else range(0, length - stride, size - stride)
        windows = [Window(self, start, min(start + size, length)) for start in starts]
        if side == "left":
            windows = [Window(self, length - window.stop, length - window.start) for window in windows]
        return windows


class Window(NamedTuple):
    """The tokens of a text from index `start` to `stop`, exclusive."""

    text: Text
    start: int
    stop: int

    @property
    def ids(self) -> list[int]:
        """Its part of the text's `ids`."""
        return self.text.ids[self.start : self.stop]

    @property
    def word_ids(self) -> list[int]:
        """Its part of the text's `word_ids`."""
        return self.text.word_ids[self.start : self.stop]

    @property
    def offsets(self) -> list[tuple[int, int]]:
        """Its part of the text's `offsets`."""
        return self.text.offsets[self.start : self.stop]


@dataclass
class Row:
    """One row of a batch: [CLS] text [SEP] or [CLS] text [SEP] text [SEP], padded.

    Args:
        windows: one or two, of the texts of the row.
        has_special_tokens: whether it has [CLS] and [SEP].
        length: in tokens, with padding; a row that is longer has no padding.
        padding_side: "right" or "left".
    """

    windows: Sequence[Window]
    has_special_tokens: bool
    length: int = 0
    padding_side: str = "right"

    def __len__(self) -> int:
        special = 1 + len(self.windows) if self.has_special_tokens else 0
        return max(special + sum(window.stop - window.start for window in self.windows), self.length)

    def lay_out(self, windows: Sequence[list[Any]], *, cls: Any, sep: Any, pad: Any) -> list[Any]:
        """Arrange one value for each token in the order of the row.

        Args:
            windows: for each window the values of its tokens.
            cls: value for [CLS].
            sep: value for [SEP].
            pad: value for [PAD].
        """
        values = [cls] if self.has_special_tokens else []
        for window in windows:
            values += window
            if self.has_special_tokens:
                values.append(sep)
        return fill(values, pad, self.length, self.padding_side)

    @property
    def word_ids(self) -> list[int | None]:
        """For each token the index of its word in its text, None for special tokens."""
        return self.lay_out([window.word_ids for window in self.windows], cls=None, sep=None, pad=None)

    @property
    def sequence_ids(self) -> list[int | None]:
        """For each token 0 in the first text, 1 in the second, None for special tokens."""
        numbers = [[i] * (window.stop - window.start) for i, window in enumerate(self.windows)]
        return self.lay_out(numbers, cls=None, sep=None, pad=None)

    @property
    def token_type_ids(self) -> list[int]:
        """For each token 0 in the first text, 1 in the second; a [SEP] belongs to the text before it."""
        first, *second = [window.stop - window.start + self.has_special_tokens for window in self.windows]
        types = [0] * (first + self.has_special_tokens) + [1] * sum(second)
        return fill(types, 0, self.length, self.padding_side)

    @property
    def offsets(self) -> list[tuple[int, int]]:
        """For each token its start and end in its text, (0, 0) for special tokens."""
        return self.lay_out([window.offsets for window in self.windows], cls=(0, 0), sep=(0, 0), pad=(0, 0))

    @property
    def attention_mask(self) -> list[int]:
        """For each token 1, for padding 0."""
        return self.lay_out([[1] * (window.stop - window.start) for window in self.windows], cls=1, sep=1, pad=0)

    @property
    def tokens(self) -> Mapping[int, str]:
        """The vocabulary, id to token."""
        return self.windows[0].text.known_wordpiece.tokens


def fill(values: list[Any], value: Any, length: int, side: str) -> list[Any]:
    """Add copies of `value` on a side, up to a length."""
    padding = [value] * (length - len(values))  # none, if the length is less
    return padding + values if side == "left" else values + padding


def truncate(
    texts: Sequence[Text], room: int, *, strategy: str, side: str, stride: int | None
) -> list[tuple[Window, ...]]:
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


def padded_length(lengths: Iterable[int], length: int | None, multiple_of: int | None) -> int:
    """Return the length to which rows are padded.

    Args:
        lengths: of the rows, in tokens.
        length: None for that of the longest row.
        multiple_of: round up to a multiple of this.
    """
    if length is None:
        length = max(lengths, default=0)
    return length + -length % (multiple_of or 1)


def as_batch(text: Any, text_pair: Any, is_split_into_words: bool) -> tuple[list[tuple[Any, ...]], bool]:
    """Check the texts given to a tokenizer, and sort them by row.

    Returns:
        The texts of each row, one or two; and True for a batch, False for a single row.

    Raises:
        TypeError: a text is not a str, or with `is_split_into_words` not a list of str.
        ValueError: the numbers of first and second texts differ, or a text has a lone surrogate.
    """
    is_batch = _is_list(text) and (not is_split_into_words or (len(text) > 0 and _is_list(text[0])))
    if not is_batch:
        rows = [{"text": text} if text_pair is None else {"text": text, "text_pair": text_pair}]
    elif text_pair is None:
        rows = [_text_or_pair(row, f"text[{i}]", is_split_into_words) for i, row in enumerate(text)]
    elif not _is_list(text_pair) or len(text_pair) != len(text):
        raise ValueError(f"text_pair must be a list of {len(text)} texts, one for each text")
    else:
        rows = [{f"text[{i}]": a, f"text_pair[{i}]": b} for i, (a, b) in enumerate(zip(text, text_pair, strict=True))]
    for row in rows:
        for where, one in row.items():
            _check_text(one, where, is_split_into_words)
    return [tuple(row.values()) for row in rows], is_batch


def _is_list(value: Any) -> bool:
    return isinstance(value, (list, tuple))


def _text_or_pair(row: Any, where: str, is_split_into_words: bool) -> dict[str, Any]:
    """Return the text or the two texts of a row, by the names that an error gives them."""
    if not _is_list(row) or (is_split_into_words and not (len(row) and _is_list(row[0]))):
        return {where: row}
    if len(row) != 2:
        raise TypeError(f"{where} is a list of {len(row)}, neither a text nor a pair of texts")
    return {f"{where}[0]": row[0], f"{where}[1]": row[1]}


def _check_text(text: Any, where: str, is_split_into_words: bool) -> None:
    if is_split_into_words:
        if not _is_list(text):
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

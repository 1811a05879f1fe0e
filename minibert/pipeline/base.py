"""What every pipeline does: it encodes texts, fills batches by a budget of tokens, runs the model and reads results."""

import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from itertools import chain, islice
from typing import Any, ClassVar, Generic, TypeVar, overload

import torch
from torch import Tensor

from ..checkpoint import CheckpointFiles
from ..packed import pack
from ..pretrained import PreTrainedModel
from ..tokenizer import BatchEncoding, DistilBertTokenizer

OVERLAP = 128  # tokens that two neighbouring rows of a long text share, or half of a row if that is less

logger = logging.getLogger("minibert")

Input = TypeVar("Input")
Result = TypeVar("Result")
Item = TypeVar("Item")


@dataclass(eq=False)
class Pipeline(ABC, Generic[Input, Result]):
    """A tokenizer and a model for one task.

    A subclass sets `model_class` and writes four steps: `encode` turns an input into rows of ids, `forward` runs a
    batch of rows and returns a tensor for each, `read` makes the result of an input from the tensors of its rows, and
    `to_columns` turns results into columns.

    Args:
        checkpoint: a folder, or a name on the Hugging Face Hub, with this task's head.
        revision: branch, tag or commit on the Hub.
        device: where the model runs; None is the CPU.
        max_length: the largest number of tokens in a row; the model's own limit holds too.
        batch_tokens: the largest number of tokens in a batch; a longer row is a batch of its own.
        text_column: where the texts are, in an input that is a mapping of columns.

    Raises:
        OSError: there is no such checkpoint.
        ValueError: the checkpoint has another head, or an argument is out of range.
    """

    checkpoint: str | os.PathLike[str]
    _: KW_ONLY
    revision: str | None = None
    device: torch.device | str | None = None
    max_length: int = 512
    batch_tokens: int = 1024
    text_column: str = "text"

    model_class: ClassVar[type[PreTrainedModel]]

    def __post_init__(self) -> None:
        check_at_least(1, "batch_tokens", self.batch_tokens)
        check_at_least(3, "max_length", self.max_length)  # [CLS], a token, [SEP]
        files = CheckpointFiles(self.checkpoint, revision=self.revision)  # both are of the same commit
        self.model = pack(self.model_class.from_files(files, device=self.device))
        self.tokenizer = DistilBertTokenizer.from_files(files)
        positions = self.model.config.max_position_embeddings
        self.max_length = min(self.max_length, positions, self.tokenizer.model_max_length or positions)

    @abstractmethod
    def encode(self, text: Input) -> BatchEncoding:
        """Turn an input into `input_ids`: one or several rows of at most `max_length` tokens."""

    @abstractmethod
    def forward(self, rows: list[list[int]]) -> Sequence[Tensor]:
        """Run the model on rows of ids, and return one tensor for each row."""

    @abstractmethod
    def read(self, text: Input, encoding: BatchEncoding, outputs: Sequence[Tensor]) -> Result:
        """Return the result of an input, made from its rows and the tensor of each."""

    def from_columns(self, columns: dict[str, Any]) -> Iterable[Input]:
        """Return the inputs that a batch of columns holds."""
        return get_column(columns, self.text_column)

    @abstractmethod
    def to_columns(self, results: list[Result]) -> dict[str, list[Any]]:
        """Turn results into columns of plain values, with a value for each result."""

    @overload
    def __call__(self, texts: Mapping[str, Any]) -> dict[str, Any]: ...  # type: ignore[overload-overlap]

    @overload
    def __call__(self, texts: Iterable[Input]) -> Iterator[Result]: ...

    def __call__(self, texts: Mapping[str, Any] | Iterable[Input]) -> dict[str, Any] | Iterator[Result]:
        """Yield the result of each text, in order; or take a mapping of columns, and return it with more columns.

        Args:
            texts: any iterable; it may be endless. For each batch, one text more than the batch holds is read. Or a
                mapping from names to columns of equal length, such as Ray Data and `datasets` pass, or a data frame.

        Returns:
            An iterator over the results. For a mapping: a dict of its columns and of those that `to_columns` adds.

        Raises:
            TypeError: `texts` is one str, or its column of texts is.
            ValueError: this task cannot take a text; the error names its number, counted from 1. It is raised after the
                results of all texts before. Or: the mapping has no column of texts; it has one of the results' names.
        """
        if isinstance(texts, str):
            raise TypeError("expected an iterable of texts, got one str: pass [text]")
        is_frame = hasattr(texts, "keys") and hasattr(texts, "columns")  # pandas; its Series of texts has keys alone
        if isinstance(texts, Mapping) or is_frame:
            return self._run_columns(dict(texts))  # type: ignore[arg-type]
        return self._run(texts)

    def _run_columns(self, columns: dict[str, Any]) -> dict[str, Any]:
        # It does not call self: Ray Data puts __call__ on a thread of its own, which would then wait for itself.
        inputs = list(self.from_columns(columns))
        try:
            results = self.to_columns(list(self._run(inputs)))
        except ValueError as error:
            raise ValueError(f"{error} (in the batch that begins with {inputs[0]!r:.80})") from None
        if taken := sorted(results.keys() & columns.keys()):
            raise ValueError(f"the results have a column {taken[0]!r}, and the input has one too: rename that one")
        return columns | results

    def _run(self, texts: Iterable[Input]) -> Iterator[Result]:
        batches = plan_batches(self._encode_all(texts), self.batch_tokens, count_tokens)
        return (result for batch in batches for result in self._run_texts(batch))

    def _encode_all(self, texts: Iterable[Input]) -> Iterator[tuple[Input, BatchEncoding]]:
        for number, text in enumerate(texts, 1):
            try:
                encoding = self.encode(text)
            except (TypeError, ValueError) as error:
                raise ValueError(f"text {number}: {error}") from None
            if max(map(len, encoding.input_ids)) <= 2:
                raise ValueError(f"text {number}: it has no tokens")
            yield text, encoding

    def _run_texts(self, encoded: list[tuple[Input, BatchEncoding]]) -> Iterator[Result]:
        rows = [ids for _, encoding in encoded for ids in encoding.input_ids]
        # One text with many rows can have more tokens than a batch.
        outputs = chain.from_iterable(map(self._run_rows, plan_batches(rows, self.batch_tokens)))
        for text, encoding in encoded:
            yield self.read(text, encoding, list(islice(outputs, len(encoding.input_ids))))

    @torch.no_grad()
    def _run_rows(self, rows: list[list[int]]) -> list[Tensor]:
        return [output.cpu() for output in self.forward(rows)]


@dataclass(eq=False, kw_only=True)
class OneRowPipeline(Pipeline[str, Result]):
    """A pipeline for a task that needs each text in one row.

    Args:
        truncation: cut texts that are too long.
    """

    truncation: bool = False

    def encode(self, text: str) -> BatchEncoding:
        """Turn a text into one row.

        Raises:
            TypeError: the text is not a str.
            ValueError: the text is too long, and `truncation` is False.
        """
        check_text(text)
        encoding = self.tokenizer([text])
        length = len(encoding.input_ids[0])
        if length <= self.max_length:
            return encoding
        if not self.truncation:
            raise ValueError(f"it has {length} tokens, more than {self.max_length}: truncate or split it")
        logger.warning("cut from %d to %d tokens: %.60r", length, self.max_length, text)
        return self.tokenizer([text], truncation=True, max_length=self.max_length)


def plan_batches(items: Iterable[Item], limit: int, size: Callable[[Any], int] = len) -> Iterator[list[Item]]:
    """Split items, in order, into batches of at most `limit` tokens; a larger item is a batch of its own.

    Args:
        items: any iterable. If it raises an error, the items before the error come first, as a last batch.
        limit: in tokens.
        size: returns the number of tokens of an item.
    """
    batch: list[Item] = []
    n_tokens = 0
    try:
        for item in items:
            if batch and n_tokens + size(item) > limit:
                yield batch
                batch, n_tokens = [], 0
            batch.append(item)
            n_tokens += size(item)
    except Exception:
        yield batch
        raise
    if batch:
        yield batch


def count_tokens(encoded: tuple[Any, BatchEncoding]) -> int:
    """Count the tokens in all rows of an encoded text."""
    return sum(map(len, encoded[1].input_ids))


def get_column(columns: dict[str, Any], name: str) -> Any:
    """Return a column of texts."""
    if name not in columns:
        raise ValueError(f"there is no column {name!r}, only {', '.join(map(repr, columns)):.300}")
    if isinstance(columns[name], str):
        raise TypeError(f"column {name!r} is one str: use map_batches, or map with batched=True")
    return columns[name]


def check_text(text: object) -> None:
    """Refuse what is not a str: a tokenizer would take a list of two texts as a pair."""
    if not isinstance(text, str):
        raise TypeError(f"expected a str, got {type(text).__name__}")


def check_at_least(least: int, name: str, value: int) -> None:
    """Refuse a value below `least`."""
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")

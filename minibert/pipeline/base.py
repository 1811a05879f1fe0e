"""What every pipeline does: it encodes texts, fills batches by a budget of tokens, runs the model and reads results."""

import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import KW_ONLY, dataclass
from itertools import chain, islice
from typing import Any, ClassVar, Generic, TypeVar

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

    A subclass sets `model_class` and writes three steps: `encode` turns an input into rows of ids, `forward` runs a
    batch of rows and returns a tensor for each, `read` makes the result of an input from the tensors of its rows.

    Args:
        checkpoint: a folder, or a name on the Hugging Face Hub, with this task's head.
        revision: branch, tag or commit on the Hub.
        device: where the model runs; None is the CPU.
        max_length: the largest number of tokens in a row; the model's own limit holds too.
        batch_tokens: the largest number of tokens in a batch; a longer row is a batch of its own.

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

    def __call__(self, texts: Iterable[Input]) -> Iterator[Result]:
        """Yield the result of each text, in order.

        Args:
            texts: any iterable; it may be endless. For each batch, one text more than the batch holds is read.

        Raises:
            TypeError: `texts` is one str.
            ValueError: this task cannot take a text; the error names its number, counted from 1. It is raised after the
                results of all texts before.
        """
        if isinstance(texts, str):
            raise TypeError("expected an iterable of texts, got one str: pass [text]")
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


def check_text(text: object) -> None:
    """Refuse what is not a str: a tokenizer would take a list of two texts as a pair."""
    if not isinstance(text, str):
        raise TypeError(f"expected a str, got {type(text).__name__}")


def check_at_least(least: int, name: str, value: int) -> None:
    """Refuse a value below `least`."""
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")

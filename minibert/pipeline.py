"""From texts to results: for each task a callable that takes any iterable of texts and yields a result for each.

    classifier = TextClassifier("distilbert-base-uncased-finetuned-sst-2-english")
    for result in classifier(["Today is a nice day!", "But what about tomorrow?"]):
        print(result.label, result.score)

Results come in the order of the texts, and lazily: a batch of texts is read when its first result is asked for. A
limit on tokens, not on texts, sets the size of a batch. The model is packed, so nothing is padded, and sorting texts by
length gains nothing. Where `model.batch_invariant` is True, a text's result has the same bits in every batch.
A pipeline can be pickled with its weights and sent to another process. For a progress bar, wrap the texts.

Every program that uses torch on several threads and then forks has this problem: the child process hangs when it uses
several threads too. Start processes with `multiprocessing.get_context("spawn")`, or let each child begin with
`torch.set_num_threads(1)`, as the workers of a DataLoader do.

Entities and answers of a long text are searched in several overlapping rows. The other tasks need the whole text in one
row: they refuse a long text, or cut it with `truncation=True`, and the logger "minibert" reports each text that is cut.
"""

import logging
import os
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import KW_ONLY, dataclass
from itertools import chain, groupby, islice
from typing import Any, ClassVar, Generic, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor

from .checkpoint import CheckpointFiles
from .config import DistilBertConfig
from .heads import (
    DistilBertForMaskedLM,
    DistilBertForQuestionAnswering,
    DistilBertForSequenceClassification,
    DistilBertForTokenClassification,
)
from .model import DistilBertModel
from .packed import pack
from .pretrained import PreTrainedModel
from .tokenizer import BatchEncoding, DistilBertTokenizer

OVERLAP = 128  # tokens that two neighbouring rows of a long text share, or half of a row if that is less

logger = logging.getLogger(__package__)

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


@dataclass(frozen=True)
class Classification:
    """The class of a text.

    Args:
        label: the label with the highest score.
        score: its score.
        scores: the score of every label, see `label_scores`.
    """

    label: str
    score: float
    scores: dict[str, float]


class TextClassifier(OneRowPipeline[Classification]):
    """Which class is each text?"""

    model_class = DistilBertForSequenceClassification

    def __post_init__(self) -> None:
        super().__post_init__()
        label, count = Counter(self.model.config.id2label.values()).most_common(1)[0]
        if count > 1:
            raise ValueError(f"{self.checkpoint}: {count} classes are named {label!r}: rename them in config.json")

    def forward(self, rows: list[list[int]]) -> Sequence[Tensor]:
        """Return the logits (L,) of each row."""
        return [output.logits for output in self.model.rows(rows)]

    def read(self, text: str, encoding: BatchEncoding, outputs: Sequence[Tensor]) -> Classification:
        """Score the classes and choose the best."""
        # For each text by itself: in a larger tensor the sigmoid of a number may depend on its place in it.
        scores = label_scores(self.model.config, outputs[0]).tolist()
        best = max(range(len(scores)), key=scores.__getitem__)
        labels = self.model.config.id2label
        return Classification(labels[best], scores[best], {labels[i]: score for i, score in enumerate(scores)})


def label_scores(config: DistilBertConfig, logits: Tensor) -> Tensor:
    """(…, L) logits -> (…, L) scores: probabilities, or for a regression the logits themselves."""
    if config.problem_type == "regression":
        return logits
    if config.problem_type == "multi_label_classification" or config.num_labels == 1:
        return logits.sigmoid()  # the labels do not exclude each other
    return logits.softmax(-1)


@dataclass(frozen=True)
class Entity:
    """A labelled span of a text.

    Args:
        label: entity type, without B- or I-.
        score: mean over the words of the span.
        text: the characters from start to end.
        start: start index, in characters.
        end: end index, exclusive.
    """

    label: str
    score: float
    text: str
    start: int
    end: int


class LabelledSpan(NamedTuple):
    """The characters of a token or of a word, with the label that the model gives it."""

    label: str
    score: float
    start: int
    end: int


class TokenClassifier(Pipeline[str, list[Entity]]):
    """Which words of each text are entities, such as names of people and places?

    A word has the label and the score of its first token. Neighbouring words of one entity type make one entity; a
    label that begins with B- starts a new entity. Words labelled O belong to none. transformers calls this
    `aggregation_strategy="first"`.

    A long text is run in windows that overlap. Each token takes its label from the window that shows more text around
    it: in the first half of an overlap that is the window before, in the second half the window after.
    """

    model_class = DistilBertForTokenClassification

    def __post_init__(self) -> None:
        super().__post_init__()
        self.overlap = min(OVERLAP, (self.max_length - 2) // 2)
        self.tokenizer.truncation_side = "right"  # so that windows come from left to right

    def encode(self, text: str) -> BatchEncoding:
        """Turn a text into one row, or a long text into windows.

        Raises:
            TypeError: the text is not a str.
        """
        check_text(text)
        return self.tokenizer(
            [text],
            truncation=True,
            max_length=self.max_length,
            stride=self.overlap,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )

    def forward(self, rows: list[list[int]]) -> Sequence[Tensor]:
        """Return the probabilities (S, L) of each row."""
        return [output.logits.softmax(-1) for output in self.model.rows(rows)]

    def read(self, text: str, encoding: BatchEncoding, outputs: Sequence[Tensor]) -> list[Entity]:
        """Join tokens into words, and words into entities."""
        windows = [self._label_tokens(encoding, i, probs) for i, probs in enumerate(outputs)]
        words = []
        for _, group in groupby(stitch(windows, self.overlap), key=lambda token: token[0]):
            tokens = [token for _, token in group]
            words.append(tokens[0]._replace(end=tokens[-1].end))
        return group_words(words, text)

    def _label_tokens(self, encoding: BatchEncoding, i: int, probs: Tensor) -> list[tuple[int | None, LabelledSpan]]:
        """Return the tokens of window i, each with the number of its word."""
        scores, labels = (column.tolist() for column in probs.max(-1))
        columns = zip(encoding.word_ids(i), encoding.offset_mapping[i], labels, scores, strict=True)
        names = self.model.config.id2label
        tokens = [(word_id, LabelledSpan(names[label], score, *offsets)) for word_id, offsets, label, score in columns]
        return tokens[1:-1]  # without [CLS] and [SEP]


def stitch(windows: Sequence[Sequence[Item]], overlap: int) -> list[Item]:
    """Join windows into one sequence; half of an overlap comes from the window before, half from the one after.

    >>> stitch(["abcd", "cdef", "efg"], 2)
    ['a', 'b', 'c', 'd', 'e', 'f', 'g']
    """
    last = len(windows) - 1
    joined: list[Item] = []
    for i, window in enumerate(windows):
        start = 0 if i == 0 else overlap // 2
        end = len(window) if i == last else len(window) - (overlap - overlap // 2)
        joined += window[start:end]
    return joined


def group_words(words: Sequence[LabelledSpan], text: str) -> list[Entity]:
    """Group neighbouring words of one entity type; a label that begins with B- starts a new group."""
    groups: list[list[LabelledSpan]] = []
    for word in words:
        goes_on = groups and entity_type(word.label) == entity_type(groups[-1][-1].label)
        if goes_on and not word.label.startswith("B-"):
            groups[-1].append(word)
        else:
            groups.append([word])
    entities = []
    for group in groups:
        score = sum(word.score for word in group) / len(group)
        start, end = group[0].start, group[-1].end
        entities.append(Entity(entity_type(group[0].label), score, text[start:end], start, end))
    return [entity for entity in entities if entity.label != "O"]


def entity_type(label: str) -> str:
    """Return a label without B- or I-."""
    return label[2:] if label.startswith(("B-", "I-")) else label


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


@dataclass(frozen=True)
class Answer:
    """A span of the context that may answer the question.

    Args:
        text: the characters from start to end; empty for "there is no answer".
        score: probability that the answer starts at start and ends at end.
        start: start index, in characters.
        end: end index, exclusive.
    """

    text: str
    score: float
    start: int
    end: int


@dataclass(eq=False, kw_only=True)
class QuestionAnswerer(Pipeline[tuple[str, str], list[Answer]]):
    """Where in its context is the answer to each question? The inputs are pairs (question, context).

    The score of a span of tokens is P(starts at its first token) · P(ends at its last token); each P is a softmax over
    the context and [CLS]. A span is extended to whole words; if several spans become the same words, the best score
    counts. [CLS] means "not in this window": where the answer is missing, [CLS] takes the probability. This makes the
    scores of several windows comparable.

    Args:
        top_k: the number of answers, best first.
        max_answer_length: in tokens.
        handle_impossible_answer: add the answer "there is no answer", an empty text, for models that were trained with
            such questions. Its score is that of [CLS], the lowest of all windows.
        max_length: the largest number of tokens in a window, question included; a long context is run in windows that
            overlap. Most models are trained with 384.
    """

    top_k: int = 1
    max_answer_length: int = 15
    handle_impossible_answer: bool = False
    max_length: int = 384
    model_class = DistilBertForQuestionAnswering

    def __post_init__(self) -> None:
        check_at_least(1, "top_k", self.top_k)
        check_at_least(1, "max_answer_length", self.max_answer_length)
        super().__post_init__()

    def encode(self, text: tuple[str, str]) -> BatchEncoding:
        """Turn a question and its context into one row, or into several windows, each with the question."""
        if not isinstance(text, tuple | list) or len(text) != 2:
            raise TypeError(f"expected a pair (question, context), got {type(text).__name__} {text!r:.60}")
        question, context = text
        room = self.max_length - len(self.tokenizer.encode(question)) - 1  # [CLS] question [SEP] … [SEP]
        if room < 1:
            raise ValueError(f"the question leaves no room for the context in a window of {self.max_length} tokens")
        return self.tokenizer(
            [question],
            [context],
            truncation="only_second",
            max_length=self.max_length,
            stride=min(OVERLAP, room // 2),
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )

    def forward(self, rows: list[list[int]]) -> Sequence[Tensor]:
        """Return the logits (S, 2) of each row: the answer starts at a token, the answer ends at it."""
        return [torch.stack((output.start_logits, output.end_logits), -1) for output in self.model.rows(rows)]

    def read(self, text: tuple[str, str], encoding: BatchEncoding, outputs: Sequence[Tensor]) -> list[Answer]:
        """Choose the best spans of all windows."""
        _, context = text
        words = word_spans(encoding)
        spans: dict[tuple[int, int], float] = {}
        no_answer = 1.0
        for i, logits in enumerate(outputs):
            tokens = [j for j, sequence_id in enumerate(encoding.sequence_ids(i)) if sequence_id == 1]
            probs = logits[[0, *tokens]].softmax(0)  # (1 + T, 2), [CLS] and the context
            no_answer = min(no_answer, probs[0].prod().item())
            word_ids = encoding.word_ids(i)
            bounds = [words[word_ids[j]] for j in tokens]
            spans_of_window = best_spans(probs[1:], bounds, self.max_answer_length)
            for span, score in islice(spans_of_window, min(self.top_k, len(tokens) ** 2)):
                spans[span] = max(score, spans.get(span, 0.0))
        answers = [Answer(context[start:end], score, start, end) for (start, end), score in spans.items()]
        if self.handle_impossible_answer:
            answers.append(Answer("", no_answer, 0, 0))
        return sorted(answers, key=lambda answer: answer.score, reverse=True)[: self.top_k]


def word_spans(encoding: BatchEncoding) -> dict[int | None, tuple[int, int]]:
    """Return the characters of each word of the second text, as (start, end); a window may hold a part of a word."""
    words: dict[int | None, tuple[int, int]] = {}
    for i, offsets in enumerate(encoding.offset_mapping):
        for word_id, sequence_id, (start, end) in zip(
            encoding.word_ids(i), encoding.sequence_ids(i), offsets, strict=True
        ):
            if sequence_id == 1:
                known_start, known_end = words.get(word_id, (start, end))
                words[word_id] = min(known_start, start), max(known_end, end)
    return words


def best_spans(
    probs: Tensor, bounds: Sequence[tuple[int, int]], max_length: int
) -> Iterator[tuple[tuple[int, int], float]]:
    """Yield the spans of whole words in a window, best first.

    Args:
        probs: (T, 2), for each token the probability that an answer starts there, and that it ends there.
        bounds: (start, end) of each token's word, in characters.
        max_length: the largest number of tokens in a span.

    Yields:
        (start, end) of the span, in characters, and its score.
    """
    n_tokens = len(probs)
    allowed = torch.ones(n_tokens, n_tokens).triu().tril(min(max_length, n_tokens) - 1)
    start, end = allowed.nonzero().unbind(-1)  # (N,) each
    scores = probs[start, 0] * probs[end, 1]
    order = scores.argsort(descending=True, stable=True)
    seen = set()
    for i, j, score in zip(start[order].tolist(), end[order].tolist(), scores[order].tolist(), strict=True):
        span = bounds[i][0], bounds[j][1]
        if span not in seen:
            seen.add(span)
            yield span, score


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

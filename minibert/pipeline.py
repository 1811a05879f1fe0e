"""Texts in, answers out: one callable for each task, which takes any iterable and gives its results one by one.

    classifier = TextClassifier("distilbert-base-uncased-finetuned-sst-2-english")
    for result in classifier(["Today is a nice day!", "But what about tomorrow?"]):
        print(result.label, result.score)

Results come in the order of the texts, and lazily: texts are read only when results are asked for, one batch at a
time. What bounds a batch is its number of tokens, not of texts: the model is packed, nothing is padded, and texts
need no sorting by length. Where `model.batch_invariant` is True a text's result is the same to the bit in any company.
A pipeline can be pickled, weights and all, and sent to another process. For a progress bar, wrap the texts.

Where a task can look at a part of a text at a time, a long text is run as several overlapping rows; elsewhere it is
refused, or with `truncation=True` cut, which the logger "minibert" reports text by text.
"""

import logging
import os
from abc import ABC, abstractmethod
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

OVERLAP = 128  # tokens that two neighbouring rows of a long text share, if so many fit

logger = logging.getLogger(__package__)

Input = TypeVar("Input")
Result = TypeVar("Result")
Item = TypeVar("Item")


@dataclass(eq=False)
class Pipeline(ABC, Generic[Input, Result]):
    """A tokenizer and a model for one task.

    A subclass names its model and writes three steps: from an input to rows of ids (`encode`), from a batch of rows to
    a tensor for each (`forward`), from the tensors of an input's rows to its result (`read`).

    Args:
        checkpoint: a folder, or a name on the Hugging Face Hub, with this task's head.
        revision: branch, tag or commit on the Hub.
        device: where the model runs; None is the CPU.
        max_length: the most tokens in a row, as far as the model takes them.
        batch_tokens: the most tokens in a batch; a row that is longer makes a batch alone.

    Raises:
        OSError: no such checkpoint.
        ValueError: it has another head, or an argument is out of range.
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
        files = CheckpointFiles(self.checkpoint, revision=self.revision)  # one for both: of the same commit
        self.model = pack(self.model_class.from_files(files, device=self.device))
        self.tokenizer = DistilBertTokenizer.from_files(files)
        positions = self.model.config.max_position_embeddings
        self.max_length = min(self.max_length, positions, self.tokenizer.model_max_length or positions)

    @abstractmethod
    def encode(self, text: Input) -> BatchEncoding:
        """Turn an input into `input_ids`, one row or several of at most `max_length` tokens."""

    @abstractmethod
    def forward(self, rows: list[list[int]]) -> Sequence[Tensor]:
        """Run the model on rows of ids, and return one tensor for each row."""

    @abstractmethod
    def read(self, text: Input, encoding: BatchEncoding, outputs: Sequence[Tensor]) -> Result:
        """Make an input's result from its rows and the tensor of each."""

    def __call__(self, texts: Iterable[Input]) -> Iterator[Result]:
        """Give the result of each text, in order.

        Args:
            texts: any iterable, an endless one too. It is read one text further than a batch.

        Raises:
            TypeError: one text in place of an iterable of texts.
            ValueError: while results are read, after the results of the texts before it: a text that this task cannot
                take, with its number.
        """
        if isinstance(texts, str):
            raise TypeError("expected an iterable of texts, got one str: pass [text]")
        portions = plan_batches(self._encode_all(texts), self.batch_tokens, count_tokens)
        return (result for portion in portions for result in self._run_portion(portion))

    def _encode_all(self, texts: Iterable[Input]) -> Iterator[tuple[Input, BatchEncoding]]:
        for number, text in enumerate(texts, 1):
            try:
                encoding = self.encode(text)
            except (TypeError, ValueError) as error:
                raise ValueError(f"text {number}: {error}") from None
            if max(map(len, encoding.input_ids)) <= 2:
                raise ValueError(f"text {number}: there is no text in it")
            yield text, encoding

    def _run_portion(self, portion: list[tuple[Input, BatchEncoding]]) -> Iterator[Result]:
        rows = [ids for _, encoding in portion for ids in encoding.input_ids]
        outputs = chain.from_iterable(map(self._run_batch, plan_batches(rows, self.batch_tokens)))
        for text, encoding in portion:
            yield self.read(text, encoding, list(islice(outputs, len(encoding.input_ids))))

    @torch.no_grad()
    def _run_batch(self, rows: list[list[int]]) -> list[Tensor]:
        return [output.cpu() for output in self.forward(rows)]

    def _encode_whole(self, text: str, truncation: bool) -> BatchEncoding:
        """Turn a text into one row.

        Raises:
            ValueError: it is too long, and not to be cut.
        """
        encoding = self.tokenizer([text])
        length = len(encoding.input_ids[0])
        if length <= self.max_length:
            return encoding
        if not truncation:
            raise ValueError(f"it has {length} tokens, more than {self.max_length}: truncate or split it")
        logger.warning("cut from %d to %d tokens: %.60r", length, self.max_length, text)
        return self.tokenizer([text], truncation=True, max_length=self.max_length)


def plan_batches(items: Iterable[Item], budget: int, size: Callable[[Any], int] = len) -> Iterator[list[Item]]:
    """Split items, in order, into batches of at most `budget` tokens; a larger item makes a batch alone.

    Args:
        items: any iterable. If it ends in an error, those before it still make a batch.
        budget: tokens.
        size: of an item, in tokens.
    """
    batch: list[Item] = []
    n_tokens = 0
    try:
        for item in items:
            if batch and n_tokens + size(item) > budget:
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


def check_at_least(least: int, name: str, value: int) -> None:
    """Refuse a smaller number."""
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")


@dataclass(frozen=True)
class Classification:
    """A text's class.

    Args:
        label: the one with the highest score.
        score: of this label.
        scores: of every label, see `label_scores`.
    """

    label: str
    score: float
    scores: dict[str, float]


@dataclass(eq=False, kw_only=True)
class TextClassifier(Pipeline[str, Classification]):
    """Which class is each text?

    Args:
        truncation: cut texts that are too long for the model.
    """

    truncation: bool = False
    model_class = DistilBertForSequenceClassification

    def encode(self, text: str) -> BatchEncoding:
        """Turn a text into one row."""
        return self._encode_whole(text, self.truncation)

    def forward(self, rows: list[list[int]]) -> Sequence[Tensor]:
        """Return the logits (L,) of each row."""
        return [output.logits for output in self.model.rows(rows)]

    def read(self, text: str, encoding: BatchEncoding, outputs: Sequence[Tensor]) -> Classification:
        """Name the classes and find the best."""
        # One text at a time: a sigmoid over many may round by where a number stands in a vector register.
        scores = label_scores(self.model.config, outputs[0]).tolist()
        best = max(range(len(scores)), key=scores.__getitem__)
        labels = self.model.config.id2label
        return Classification(labels[best], scores[best], {labels[i]: score for i, score in enumerate(scores)})


def label_scores(config: DistilBertConfig, logits: Tensor) -> Tensor:
    """(…, L) logits -> (…, L) scores: probabilities, or for a regression the values themselves."""
    if config.problem_type == "regression":
        return logits
    if config.problem_type == "multi_label_classification" or config.num_labels == 1:
        return logits.sigmoid()  # each label by itself
    return logits.softmax(-1)


@dataclass(frozen=True)
class Entity:
    """A stretch of a text that is something of a kind.

    Args:
        label: the kind, without B- or I-.
        score: mean over its words.
        text: as it is written there.
        start: place of its first character.
        end: place after its last character.
    """

    label: str
    score: float
    text: str
    start: int
    end: int


class Word(NamedTuple):
    """A word with its label, before words are grouped into entities; or a token, before tokens are joined to words."""

    label: str
    score: float
    start: int
    end: int


@dataclass(eq=False)
class TokenClassifier(Pipeline[str, list[Entity]]):
    """Which words of each text are something of a kind: names of people, places …?

    A word has the label and the score of its first token. Words that follow each other with one kind make an entity,
    which a label that begins with B- begins anew; words labelled O are in none. This is what transformers calls
    `aggregation_strategy="first"`.

    A long text is run in windows that overlap. Each token is judged in the window that shows more of its surroundings:
    the first half of an overlap in the window before, the second half in the window after.
    """

    model_class = DistilBertForTokenClassification

    def __post_init__(self) -> None:
        super().__post_init__()
        self.overlap = min(OVERLAP, (self.max_length - 2) // 2)
        self.tokenizer.truncation_side = "right"  # so that windows come from left to right

    def encode(self, text: str) -> BatchEncoding:
        """Turn a text into one row, or a long one into windows."""
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
        """Join tokens to words and words to entities."""
        windows = [self._tokens(encoding, i, probs) for i, probs in enumerate(outputs)]
        words = []
        for _, group in groupby(stitch(windows, self.overlap), key=lambda token: token[0]):
            tokens = [token for _, token in group]
            words.append(tokens[0]._replace(end=tokens[-1].end))
        return group_words(words, text)

    def _tokens(self, encoding: BatchEncoding, i: int, probs: Tensor) -> list[tuple[int | None, Word]]:
        """Return the tokens of window i, each with the number of its word."""
        scores, labels = (column.tolist() for column in probs.max(-1))
        columns = zip(encoding.word_ids(i), encoding.offset_mapping[i], labels, scores, strict=True)
        names = self.model.config.id2label
        tokens = [(word_id, Word(names[label], score, *offsets)) for word_id, offsets, label, score in columns]
        return tokens[1:-1]  # without [CLS] and [SEP]


def stitch(windows: Sequence[Sequence[Item]], overlap: int) -> list[Item]:
    """Join windows onto one sequence; of what two share, half comes from each.

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


def group_words(words: Sequence[Word], text: str) -> list[Entity]:
    """Group words of one kind that follow each other; a label that begins with B- begins a new group."""
    groups: list[list[Word]] = []
    for word in words:
        if groups and not word.label.startswith("B-") and kind(word) == kind(groups[-1][-1]):
            groups[-1].append(word)
        else:
            groups.append([word])
    entities = []
    for group in groups:
        score = sum(word.score for word in group) / len(group)
        start, end = group[0].start, group[-1].end
        entities.append(Entity(kind(group[0]), score, text[start:end], start, end))
    return [entity for entity in entities if entity.label != "O"]


def kind(word: Word) -> str:
    """Return a word's label without B- or I-."""
    return word.label[2:] if word.label.startswith(("B-", "I-")) else word.label


@dataclass(frozen=True)
class Candidate:
    """A token that may stand for a [MASK].

    Args:
        token: as in the vocabulary; with ## it continues the word before.
        token_id: its id.
        score: its probability there; each [MASK] is judged by itself.
    """

    token: str
    token_id: int
    score: float


@dataclass(eq=False, kw_only=True)
class MaskFiller(Pipeline[str, list[list[Candidate]]]):
    """Which tokens belong where a text says [MASK]? For each [MASK] the likeliest ones, best first.

    Args:
        top_k: how many.
        truncation: cut texts that are too long for the model.
    """

    top_k: int = 5
    truncation: bool = False
    model_class = DistilBertForMaskedLM

    def __post_init__(self) -> None:
        check_at_least(1, "top_k", self.top_k)
        super().__post_init__()
        if self.tokenizer.mask_token_id is None:
            raise ValueError(f"{self.checkpoint}: its vocabulary has no {self.tokenizer.mask_token}")

    def encode(self, text: str) -> BatchEncoding:
        """Turn a text into one row."""
        encoding = self._encode_whole(text, self.truncation)
        if self.tokenizer.mask_token_id not in encoding.input_ids[0]:
            raise ValueError(f"there is no {self.tokenizer.mask_token} in it to fill")
        return encoding

    def forward(self, rows: list[list[int]]) -> Sequence[Tensor]:
        """Return the probabilities of each row, (number of its [MASK]s, V)."""
        masks = [[i for i, token in enumerate(row) if token == self.tokenizer.mask_token_id] for row in rows]
        return [output.logits.softmax(-1) for output in self.model.rows(rows, at=masks)]

    def read(self, text: str, encoding: BatchEncoding, outputs: Sequence[Tensor]) -> list[list[Candidate]]:
        """Name the likeliest tokens."""
        best = outputs[0].topk(min(self.top_k, outputs[0].shape[-1]))
        return [
            [Candidate(self.tokenizer.convert_ids_to_tokens(i), i, score) for i, score in zip(ids, scores, strict=True)]
            for ids, scores in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]


@dataclass(frozen=True)
class Answer:
    """A stretch of the context that may answer the question.

    Args:
        text: as it is written there; empty for "there is no answer".
        score: probability that the answer begins and ends there.
        start: place of its first character.
        end: place after its last character.
    """

    text: str
    score: float
    start: int
    end: int


@dataclass(eq=False, kw_only=True)
class QuestionAnswerer(Pipeline[tuple[str, str], list[Answer]]):
    """Where in its context is the answer to each question? Takes pairs (question, context).

    A span of tokens scores P(begins at its first) · P(ends at its last), each a softmax over the context and [CLS], and
    is widened to whole words; of spans that come to the same words the best counts. [CLS] stands for "not here": in a
    window without the answer it takes the probability, which makes the scores of several windows comparable.

    Args:
        top_k: how many answers, best first.
        max_answer_length: in tokens.
        handle_impossible_answer: let "there is no answer" be one of them, an empty text, for models that were trained
            with such questions. It scores what [CLS] has in the window where it has least.
        max_length: of a window in tokens, question included; long contexts are run in windows that overlap. 384 is what
            models are usually trained on.
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
        """Turn a question and its context into one row, or a long context into windows, each with the question."""
        if not isinstance(text, tuple | list) or len(text) != 2:
            raise TypeError(f"expected a pair (question, context), got {type(text).__name__} {text!r:.60}")
        question, context = text
        room = self.max_length - len(self.tokenizer.encode(question)) - 1  # [CLS] question [SEP] … [SEP]
        if room < 1:
            raise ValueError(f"the question leaves no room for its context in a window of {self.max_length} tokens")
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
        """Return the logits (S, 2) of each row: that the answer begins at a token, that it ends there."""
        return [torch.stack((output.start_logits, output.end_logits), -1) for output in self.model.rows(rows)]

    def read(self, text: tuple[str, str], encoding: BatchEncoding, outputs: Sequence[Tensor]) -> list[Answer]:
        """Collect the best spans of all windows."""
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
            for span, score in islice(best_spans(probs[1:], bounds, self.max_answer_length), self.top_k):
                spans[span] = max(score, spans.get(span, 0.0))
        answers = [Answer(context[start:end], score, start, end) for (start, end), score in spans.items()]
        if self.handle_impossible_answer:
            answers.append(Answer("", no_answer, 0, 0))
        return sorted(answers, key=lambda answer: answer.score, reverse=True)[: self.top_k]


def word_spans(encoding: BatchEncoding) -> dict[int | None, tuple[int, int]]:
    """Find where each word of the second text lies; a word that one window cuts is whole in another."""
    words: dict[int | None, tuple[int, int]] = {}
    for i, offsets in enumerate(encoding.offset_mapping):
        for word_id, sequence_id, (start, end) in zip(
            encoding.word_ids(i), encoding.sequence_ids(i), offsets, strict=True
        ):
            if sequence_id == 1:
                first, last = words.get(word_id, (start, end))
                words[word_id] = min(first, start), max(last, end)
    return words


def best_spans(
    probs: Tensor, bounds: Sequence[tuple[int, int]], max_length: int
) -> Iterator[tuple[tuple[int, int], float]]:
    """Give the spans of whole words in a window, best first.

    Args:
        probs: (T, 2), for each token that an answer begins there, and that it ends there.
        bounds: of each token's word: its first character and the one after its last.
        max_length: the most tokens of a span.

    Returns:
        First character and the one after the last, and the score.
    """
    n_tokens = len(probs)
    start, end = torch.ones(n_tokens, n_tokens).triu().tril(max_length - 1).nonzero().unbind(-1)  # (N,) each
    scores = probs[start, 0] * probs[end, 1]
    order = scores.argsort(descending=True, stable=True)
    seen = set()
    for i, j, score in zip(start[order].tolist(), end[order].tolist(), scores[order].tolist(), strict=True):
        span = bounds[i][0], bounds[j][1]
        if span not in seen:
            seen.add(span)
            yield span, score


@dataclass(eq=False, kw_only=True)
class Embedder(Pipeline[str, Tensor]):
    """A vector (D,) for each text, from the last hidden states of any checkpoint, whatever its head.

    Args:
        pooling: "mean" over the text's tokens, [CLS] and [SEP] included, or "cls" for [CLS] alone.
        truncation: cut texts that are too long for the model.
    """

    pooling: Literal["mean", "cls"] = "mean"
    truncation: bool = False
    model_class = DistilBertModel

    def __post_init__(self) -> None:
        if self.pooling not in ("mean", "cls"):
            raise ValueError(f"pooling must be 'mean' or 'cls', got {self.pooling!r}")
        super().__post_init__()

    def encode(self, text: str) -> BatchEncoding:
        """Turn a text into one row."""
        return self._encode_whole(text, self.truncation)

    def forward(self, rows: list[list[int]]) -> Sequence[Tensor]:
        """Return the vector of each row."""
        states = [output.last_hidden_state for output in self.model.rows(rows)]
        return [state.mean(0) if self.pooling == "mean" else state[0].clone() for state in states]

    def read(self, text: str, encoding: BatchEncoding, outputs: Sequence[Tensor]) -> Tensor:
        """Return the vector of the one row."""
        return outputs[0]

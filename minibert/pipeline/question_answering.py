"""Where in its context is the answer to each question?"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from ..heads import DistilBertForQuestionAnswering
from ..tokenizer import BatchEncoding
from .base import OVERLAP, Pipeline, check_at_least, get_column


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
        question_column, text_column: where the questions and the contexts are, in an input that is a mapping of
            columns.
    """

    top_k: int = 1
    max_answer_length: int = 15
    handle_impossible_answer: bool = False
    max_length: int = 384
    question_column: str = "question"
    text_column: str = "context"
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
            most = min(self.top_k, len(tokens) ** 2)  # islice takes no huge number
            for span, score in islice(spans_of_window, most):
                spans[span] = max(score, spans.get(span, 0.0))
        answers = [Answer(context[start:end], score, start, end) for (start, end), score in spans.items()]
        if self.handle_impossible_answer:
            answers.append(Answer("", no_answer, 0, 0))
        return sorted(answers, key=lambda answer: answer.score, reverse=True)[: self.top_k]

    def from_columns(self, columns: dict[str, Any]) -> Iterable[tuple[str, str]]:
        """Return the pairs of a question and its context."""
        return zip(get_column(columns, self.question_column), get_column(columns, self.text_column), strict=True)

    def to_columns(self, results: list[list[Answer]]) -> dict[str, list[Any]]:
        """Return the answers to each question, as dicts."""
        return {"answers": [[asdict(answer) for answer in answers] for answers in results]}


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

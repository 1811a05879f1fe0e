"""Which words of each text are entities?"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any, NamedTuple

from torch import Tensor

from ..heads import DistilBertForTokenClassification
from ..tokenizer import BatchEncoding
from .base import OVERLAP, Item, Pipeline, check_text


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

    def to_columns(self, results: list[list[Entity]]) -> dict[str, list[Any]]:
        """Return the entities of each text, as dicts."""
        return {"entities": [[asdict(entity) for entity in entities] for entities in results]}

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

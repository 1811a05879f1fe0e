"""Which class is each text?"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..config import DistilBertConfig
from ..heads import DistilBertForSequenceClassification
from ..tokenizer import BatchEncoding
from .base import OneRowPipeline


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

    def to_columns(self, results: list[Classification]) -> dict[str, list[Any]]:
        """Return the best labels and their scores."""
        return {"label": [result.label for result in results], "score": [result.score for result in results]}


def label_scores(config: DistilBertConfig, logits: Tensor) -> Tensor:
    """(…, L) logits -> (…, L) scores: probabilities, or for a regression the logits themselves."""
    if config.problem_type == "regression":
        return logits
    if config.problem_type == "multi_label_classification" or config.num_labels == 1:
        return logits.sigmoid()  # the labels do not exclude each other
    return logits.softmax(-1)

"""Whether padding changes the answer itself: the label of short texts, alone and beside a long one."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..heads import DistilBertForSequenceClassification
from ..tokenizer import DistilBertTokenizer
from .report import Report, table
from .steps import check_eval

SHORT_TEXTS = (
    "a good film",
    "a great movie",
    "a fine film",
    "a funny film",
    "a touching story",
    "I liked it",
    "it works",
    "not bad",
    "a bad film",
    "boring",
)
LONG_TEXT = (  # of 24 words
    "We had planned to leave early, but our friends wanted to stay to the end, "
    "so we sat there until the lights came on."
)


@dataclass
class Flips(Report):
    """The logits of short texts, alone and padded to the length of a long one.

    Args:
        texts: the B short texts.
        beside: the long text.
        length: S, tokens of each padded text.
        labels: the L names.
        alone: (B, L) logits of each text by itself.
        without_mask: (B, L), padded.
        with_mask: (B, L), padded.
    """

    texts: list[str]
    beside: str
    length: int
    labels: list[str]
    alone: Tensor
    without_mask: Tensor
    with_mask: Tensor

    @property
    def flipped(self) -> list[int]:
        """Numbers of the texts whose label is another without the mask, and the same with it."""
        alone, without, restored = (x.argmax(dim=1) for x in (self.alone, self.without_mask, self.with_mask))
        return ((without != alone) & (restored == alone)).nonzero()[:, 0].tolist()

    def parts(self) -> Iterator[str]:
        """Return a row for each text: its label, and that label's logit."""
        runs = {"alone": self.alone, "padded, no mask": self.without_mask, "padded, mask": self.with_mask}
        cells = [
            [f"{self.label(logits[row])} {logits[row].max().item():.2f}" for logits in runs.values()]
            for row in range(len(self.texts))
        ]
        yield table(["text", *runs], [[text, *row] for text, row in zip(self.texts, cells, strict=True)])
        yield f"padded to {self.length} tokens; {len(self.flipped)} of {len(self.texts)} labels change without the mask"

    def label(self, logits: Tensor) -> str:
        """Return the name of the largest of (L,) logits."""
        return self.labels[int(logits.argmax())]


@torch.no_grad()
def label_flips(
    model: DistilBertForSequenceClassification,
    tokenizer: DistilBertTokenizer,
    texts: Sequence[str] = SHORT_TEXTS,
    beside: str = LONG_TEXT,
) -> Flips:
    """Classify texts alone, and padded to the length of a longer text, without the mask and with it.

    Args:
        model: a classifier, in eval mode.
        tokenizer: its tokenizer.
        texts: short ones; those that are longer than `beside` get no padding.
        beside: the long text, cut at the model's number of positions.

    Raises:
        ValueError: another class of model, or one in training mode.
    """
    check_eval(model)
    if not isinstance(model, DistilBertForSequenceClassification):
        raise ValueError(f"labels flip where a text has one, and {type(model).__name__} gives none")
    batch = tokenizer(
        [beside, *texts],
        padding=True,
        padding_side="right",
        truncation=True,
        max_length=model.config.max_position_embeddings,
        return_tensors="pt",
    ).to(model.device)
    input_ids, attention_mask = batch.input_ids[1:], batch.attention_mask[1:]
    alone = [model(row[real.bool()][None]).logits for row, real in zip(input_ids, attention_mask, strict=True)]
    return Flips(
        list(texts),
        beside,
        input_ids.shape[1],
        [model.config.id2label[i] for i in range(model.config.num_labels)],
        torch.cat(alone),
        model(input_ids).logits,
        model(input_ids, attention_mask).logits,
    )

"""The walk: a sentence alone, padded without a mask, padded with the mask, and why its logits move and come back."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from textwrap import indent
from typing import Any

import torch
from torch import Tensor

from ..heads import DistilBertForSequenceClassification
from ..terminal import visible
from ..tokenizer import DistilBertTokenizer
from .flips import Flips, label_flips
from .leak import LeakRoutes, leak_routes
from .models import attention_step
from .report import Report, table
from .steps import capture, check_eval
from .trace import keys_table, padding_head, why_this_head

SENTENCES = ("Today is a nice day!", "But what about tomorrow? Im not sure.")
RUNS = {
    "alone": "One sentence, without a mask",
    "alone, mask": "The same, with its mask",
    "padded": "Padded into one batch, without a mask",
    "padded, mask": "Padded into one batch, with the mask",
}
ROUNDING = (1e-6, 1e-5, 1e-4, 1e-3)  # a change of a logit up to one of these is rounding; its bits depend on the CPU
WIDTH = 96  # characters of a row of tokens


@dataclass
class Walk(Report):
    """What happened to the sentences, and inside the first layer.

    Shapes: B sentences, S tokens of the padded batch, L labels.

    Args:
        texts: the B sentences.
        tokens: S strings for each padded row.
        input_ids: (B, S).
        attention_mask: (B, S).
        labels: the L names.
        subject: row of the shortest sentence, the one that is followed.
        logits: for each of RUNS, "alone" and "alone, mask" (1, L), "padded" and "padded, mask" (B, L).
        head: head of layer 0 in which the subject's [CLS] gives the most attention to padding, without a mask.
        keys: what that [CLS] computes for each key there, (S,) each: scores, mask, masked_scores, probs, and
            probs_without_mask.
        pad_mass: for "padded" and "padded, mask", (n_layers,): the share of attention that the subject's real
            queries give to padding, mean over queries and heads.
        routes: how far the subject's logits move when padding is hidden from some queries only.
        flips: the labels of other short texts, alone and beside a long one.
    """

    texts: Sequence[str]
    tokens: list[list[str]]
    input_ids: Tensor
    attention_mask: Tensor
    labels: list[str]
    subject: int
    logits: dict[str, Tensor]
    head: int
    keys: dict[str, Tensor]
    pad_mass: dict[str, Tensor]
    routes: LeakRoutes
    flips: Flips

    def parts(self) -> Iterator[str]:
        """Return the lesson, to be read from top to bottom."""
        yield from (*self._runs(), *self._inside(), *self._shares(), *self._routes(), *self._flip())

    @property
    def even(self) -> float:
        """Share of the subject's attention that would go to padding if it attended to all keys alike."""
        return 1 - self.attention_mask[self.subject].double().mean().item()

    def _runs(self) -> Iterator[str]:
        for number, (run, title) in enumerate(RUNS.items(), 1):
            yield f"{number}  {title}"
            rows = range(len(self.texts)) if run.startswith("padded") else [self.subject]
            for row, logits in zip(rows, self.logits[run], strict=True):
                length = self.input_ids.shape[1] if run.startswith("padded") else int(self.attention_mask[row].sum())
                cells = {"tokens": self.tokens[row][:length], "ids": self.input_ids[row, :length].tolist()}
                if run.endswith("mask"):
                    cells["mask"] = self.attention_mask[row, :length].tolist()
                yield from _columns(cells)
                named = zip(map(visible, self.labels), logits.tolist(), strict=True)
                values = "   ".join(f"{label} {x:.4f}" for label, x in named)
                yield f"   logits  {values}{self._verdict(run, logits) if row == self.subject else ''}"
            yield ""

    def _verdict(self, run: str, logits: Tensor) -> str:
        if run == "alone":
            return ""
        moved = (logits - self.logits["alone"][0]).abs().max().item()
        if run == "alone, mask" and moved == 0:  # on every machine: a mask of all ones adds 0 to each score
            return "     <- the same bits as in 1"
        if bound := next((bound for bound in ROUNDING if moved <= bound), None):
            return f"     <- as in 1, to rounding (at most {bound:.0e})"
        return f"     <- moved by up to {moved:.4f}"

    def _inside(self) -> Iterator[str]:
        tokens, text = self.tokens[self.subject], self.texts[self.subject]
        yield f"Why: layer 0, head {self.head}, what [CLS] of {text!r} computes for each key"
        yield indent(why_this_head(0, self.head), "   ")
        yield indent(keys_table(tokens, self.keys), "   ")
        real = int(self.attention_mask[self.subject].sum())
        lost = self.keys["probs_without_mask"][real:].sum().item()
        yield f"   Without a mask [PAD] takes {lost:.1%} of this attention; evenly spread it would be {self.even:.1%}."
        yield "   The mask makes its scores so low that exp() of them is exactly 0: all attention goes to real keys."
        yield ""

    def _shares(self) -> Iterator[str]:
        yield "Share of the sentence's attention that goes to [PAD], mean over heads and real queries"
        shares = zip(*(share.tolist() for share in self.pad_mass.values()), strict=True)
        rows = [
            (layer, f"{without:.1%}", f"{mask:.1%}" if mask else "0") for layer, (without, mask) in enumerate(shares)
        ]
        yield indent(table(("layer", "without mask", "with mask"), rows), "   ")
        yield f"   Evenly spread over all keys it would be {self.even:.1%}."
        yield ""

    def _routes(self) -> Iterator[str]:
        yield "The logits are read at [CLS]. How [PAD] reaches it: the mask in the rows of some queries only"
        yield indent("\n".join(self.routes.parts()), "   ")
        yield ""

    def _flip(self) -> Iterator[str]:
        flips, flipped = self.flips, self.flips.flipped
        row = flipped[0] if flipped else int((flips.without_mask - flips.alone).abs().amax(dim=1).argmax())
        runs = {
            "alone": flips.alone[row],
            "padded, without a mask": flips.without_mask[row],
            "padded, with the mask": flips.with_mask[row],
        }
        yield f"Can the answer itself change? {flips.texts[row]!r} beside a text of {len(flips.beside.split())} words"
        header = ("run", *self.labels, "answer")
        cells = ((run, *(f"{x:.4f}" for x in logits.tolist()), flips.label(logits)) for run, logits in runs.items())
        yield indent(table(header, cells), "   ")
        counted = f"{len(flipped) or 'none'} of {len(flips.texts)} short texts"
        change = "changes its" if len(flipped) <= 1 else "change their"
        yield f"   Without the mask {counted} {change} label" + (
            "; the mask restores it." if flipped else "; this one moves the most."
        )


@torch.no_grad()
def walk(
    model: DistilBertForSequenceClassification, tokenizer: DistilBertTokenizer, texts: Sequence[str] = SENTENCES
) -> Walk:
    """Run sentences alone and padded, without and with a mask, and look into the first layer's attention.

    Args:
        model: a classifier, in eval mode.
        tokenizer: its tokenizer.
        texts: the sentences. Where all have the same length, four [PAD] are added, so that there is something to see.

    Raises:
        ValueError: a model in training mode; no list of sentences; sentences that fill all positions of the model, so
            that nothing can be padded.
    """
    check_eval(model)
    if isinstance(texts, str) or not texts:
        raise ValueError(f"the walk takes a list of at least one sentence, got {texts!r}")
    texts = list(texts)
    lengths = [len(ids) for ids in tokenizer(texts).input_ids]
    shortest, longest = min(lengths), max(lengths)
    length = longest if shortest < longest else min(longest + 4, model.config.max_position_embeddings)
    batch = tokenizer(texts, padding="max_length", max_length=length, padding_side="right", return_tensors="pt")
    input_ids, attention_mask, subject = batch.input_ids, batch.attention_mask, lengths.index(shortest)
    alone = input_ids[subject : subject + 1, :shortest]
    logits = {"alone": model(alone).logits, "alone, mask": model(alone, torch.ones_like(alone)).logits}
    with capture(model, "*.attention.probs") as without_mask:
        logits["padded"] = model(input_ids).logits
    with capture(model, "*.attention.*") as with_mask:
        logits["padded, mask"] = model(input_ids, attention_mask).logits

    probs, masked_probs = (
        [value[subject] for name, value in steps.items() if name.endswith(".probs")]  # each layer's (H, S, S)
        for steps in (without_mask, with_mask)
    )
    step = {name: with_mask[attention_step(model, 0, name)] for name in ("scores", "mask", "masked_scores")}
    head = padding_head(step["scores"][subject, :, 0], attention_mask[subject].bool())
    routes = leak_routes(model, batch)
    return Walk(
        texts=texts,
        tokens=[tokenizer.convert_ids_to_tokens(row) for row in input_ids.tolist()],
        input_ids=input_ids,
        attention_mask=attention_mask,
        labels=[model.config.id2label[i] for i in range(model.config.num_labels)],
        subject=subject,
        logits=logits,
        head=head,
        keys={
            "scores": step["scores"][subject, head, 0],
            "mask": step["mask"][subject, 0, 0],
            "masked_scores": step["masked_scores"][subject, head, 0],
            "probs": masked_probs[0][head, 0],
            "probs_without_mask": probs[0][head, 0],
        },
        pad_mass={
            run: torch.stack([p[:, :shortest, shortest:].sum(-1).mean() for p in each])
            for run, each in (("padded", probs), ("padded, mask", masked_probs))
        },
        routes=LeakRoutes(routes.hidden_from, routes.moved[:, [subject]]),
        flips=label_flips(model, tokenizer),
    )


def _columns(cells: dict[str, list[Any]]) -> Iterator[str]:
    """Lay out rows one below the other with aligned columns, in several lines where they are wider than WIDTH."""
    rows = {name: [visible(str(value)) for value in values] for name, values in cells.items()}
    lines: list[list[list[str]]] = []
    left = 0  # characters, of the last line
    for column in zip(*rows.values(), strict=True):
        width = max(map(len, column))
        if width >= left:
            lines.append([])
            left = WIDTH + 1  # no space follows the last column
        lines[-1].append([f"{value:<{width}}" for value in column])
        left -= width + 1
    for line in lines:
        for name, values in zip(rows, zip(*line, strict=True), strict=True):
            yield f"   {name:<6}  {' '.join(values).rstrip()}"

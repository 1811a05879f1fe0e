"""A padding audit of any callable `(input_ids, attention_mask) -> tensor`, of any library: does padding leak into it?

    audit(lambda ids, mask: model(ids, attention_mask=mask).last_hidden_state, tokenizer(texts, padding=True, …))

It knows nothing of what is called: it changes inputs that must not matter and compares the results.

Shapes: B texts, S slots of a padded row, n real tokens of one text.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..mask import check_attention_mask
from .report import Report, table

Call = Callable[[Tensor, Tensor], Any]
# The rounding that is allowed where shapes differ, as |difference| / max(1, |value|). A leak is far above it: in a
# trained model rounding moves float32 by about 1e-6, a leak by 0.1.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 1e-1}
PRECISE = (torch.float64, torch.float32)  # results in which a sum can be told from something near it
ROUNDING = 10  # times eps, of the largest number: so near come sums of results that are equal but for rounding
FINDINGS = {
    "mask ignored": "without the mask the result is the same, bit for bit: pass attention_mask on to the model",
    "mask inverted": "real tokens see padding and not one another: 1 must mean a real token, not one to ignore",
    "mask in the mean only": "the mean leaves padding out, attention does not: pass attention_mask to the model too",
    "mean over padding": "outputs at padded slots are averaged too: multiply by the mask, and divide by the mask's sum",
    "mean divided by all slots": "the sum leaves padding out, the divisor does not: divide by the mask's sum",
    "padding leaks": "other ids in padded slots change the result, in a way that the audit has no name for",
    "length matters": "the ids in padded slots do not matter, but how many slots there are does",
    "neighbours matter": "other rows of the batch change a row: a statistic over the batch, or one row's mask for all",
    "NaN": "a text without padding gives NaN: a row of scores that are all -inf, or numbers too large for the dtype",
}


@dataclass
class Check(Report):
    """One thing that was changed, and what came of it.

    Args:
        name: what was changed.
        demanded: what must then hold: "equal bits", "within" some rounding, or "reported" for nothing.
        difference: the greatest |difference| / max(1, |value|) at real tokens; infinite where a result became NaN.
        passed: None where nothing is demanded.
    """

    name: str
    demanded: str
    difference: float
    passed: bool | None

    def parts(self) -> list[str]:
        """Return a line."""
        return [f"{self.name}: {self.demanded}, difference {self.difference:.1e}"]


@dataclass
class Audit(Report):
    """What `audit` found.

    Args:
        checks: what was tried, and by how much the result moved.
        findings: names of what is wrong, out of FINDINGS; none where nothing is.
    """

    checks: list[Check]
    findings: list[str]

    @property
    def passed(self) -> bool:
        """Whether every demand is met."""
        return not self.findings

    def to_dict(self) -> dict[str, Any]:
        """Return the fields, and the result."""
        return super().to_dict() | {"passed": self.passed}

    def parts(self) -> list[str]:
        """Return what was changed and what came of it, a row each, and the findings."""
        words = {True: "passed", False: "FAILED", None: ""}
        rows = [(check.name, check.demanded, check.difference, words[check.passed]) for check in self.checks]
        verdict = [f"{name}: {FINDINGS[name]}" for name in self.findings] or ["No padding gets into the result."]
        return [table(("changed", "demanded", "difference", "result"), rows), "", *verdict]


@torch.no_grad()
def audit(
    call: Call,
    inputs: Mapping[str, Tensor],
    *,
    padding_side: str = "right",
    tolerance: float | None = None,
    seed: int = 0,
) -> Audit:
    """Change what must not matter to a padded batch, and see whether the results at real tokens stay.

    Other ids in the padded slots: shapes stay, so that no rounding can excuse a difference, and equal bits are
    demanded. A text alone, without padding, and beside other texts: sums run in another order, and the result must
    stay within `tolerance`. Padding on the other side is reported only: learned positions count from the padding.

    Args:
        call: takes input_ids and attention_mask, (B, S) each, and returns a tensor (or a NumPy array) whose first axis
            is B. Another axis that grows with S is one of tokens, as in (B, S, D), (B, S) or (B, H, S, S). Dropout must
            be off.
        inputs: input_ids and attention_mask, (B, S), 1 = real token; anything else is ignored. The rows are laid out
            anew, with their padding at `padding_side`. A small batch shows as much as a large one: the callable runs
            about 2 B times. To name a leak, one text of three tokens or more is needed, and four slots.
        padding_side: "right" or "left": where the callable is used to have padding.
        tolerance: the greatest |difference| / max(1, |value|) that is rounding; None takes TOLERANCE's for the dtype.
        seed: of the other ids, which are drawn from the real tokens of the batch.

    Returns:
        A report. Its findings say what is wrong, by name where it can be told.

    Raises:
        ValueError: inputs without padding; a result of another kind or shape, or one that differs when the callable
            runs again.
    """
    batch = Batch(inputs, padding_side, seed)
    subject = Subject(call, batch)
    ids, mask = batch.lay_out(batch.texts)
    padded, right = mask == 0, subject(ids, mask)
    if error(subject(ids, mask), right) != 0:
        raise ValueError("the callable gives another result for the same input: switch dropout off, model.eval()")
    alone = [subject(*batch.lay_out([text], length=len(text)))[0] for text in batch.texts]
    if tolerance is None:
        tolerance = TOLERANCE.get(subject.dtype, 0.0)

    leak = error(subject(batch.other_ids(ids, padded), mask), right)
    length = error(right, alone)
    neighbours = error([beside_others(subject, batch, row) for row in range(len(ids))], right)
    side = error(subject(*batch.lay_out(batch.texts, side=batch.other_side)), right)
    findings = []
    if leak:
        findings.append(name_leak(subject, batch, right))
    elif not length <= tolerance:
        per_slot = [result * mask.shape[1] / len(text) for result, text in zip(right, batch.texts, strict=True)]
        findings.append("mean divided by all slots" if error(per_slot, alone) <= tolerance else "length matters")
    if not neighbours <= tolerance:
        findings.append("neighbours matter")
    if any(result.isnan().any() for result in alone):
        findings.append("NaN")
    checks = [
        Check(f"other ids in {int(padded.sum())} padded slots", "equal bits", leak, not leak),
        Check("each text without its padding", f"within {tolerance:g}", length, length <= tolerance),
        Check("each text beside other texts", f"within {tolerance:g}", neighbours, neighbours <= tolerance),
        Check(f"padding on the {batch.other_side}", "nothing", side, None),
    ]
    return Audit(checks, findings)


class Batch:
    """The texts of a padded batch, to be laid out anew, and other ids for them."""

    def __init__(self, inputs: Mapping[str, Tensor], padding_side: str, seed: int) -> None:
        if padding_side not in ("right", "left"):
            raise ValueError(f"padding_side must be 'right' or 'left', got {padding_side!r}")
        for name in ("input_ids", "attention_mask"):
            if not isinstance(inputs.get(name), Tensor):
                raise ValueError(f"inputs need a tensor {name}: tokenizer(texts, padding=True, return_tensors='pt')")
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        if ids.ndim != 2 or mask.shape != ids.shape:
            raise ValueError(
                f"input_ids and attention_mask must be (B, S), got {tuple(ids.shape)}, {tuple(mask.shape)}"
            )
        check_attention_mask(mask, len(ids), ids.shape[1], heads=1)
        if mask.all():
            raise ValueError(f"nothing is padded: all rows have {ids.shape[1]} tokens; give texts of different lengths")
        self.texts = [row[real] for row, real in zip(ids, mask.bool(), strict=True)]  # B of (n,)
        self.pool = torch.cat(self.texts).unique()
        if len(self.pool) < 2:
            raise ValueError(f"every real token has the id {self.pool.item()}: give a text of different tokens")
        self.pad_id, self.length, self.mask_dtype = ids[~mask.bool()][0], ids.shape[1], mask.dtype
        self.side, self.other_side = padding_side, {"right": "left", "left": "right"}[padding_side]
        self.generator = torch.Generator().manual_seed(seed)

    def lay_out(self, texts: Sequence[Tensor], length: int | None = None, side: str = "") -> tuple[Tensor, Tensor]:
        """Pad texts to the batch's length, or another -> (B, S) ids and mask."""
        slots = torch.arange(length or self.length, device=self.pad_id.device)
        lengths = torch.tensor([len(text) for text in texts], device=slots.device)[:, None]
        real = slots < lengths if (side or self.side) == "right" else slots >= len(slots) - lengths
        ids = self.pad_id.expand(real.shape).masked_scatter(real, torch.cat(list(texts)))
        return ids, real.to(self.mask_dtype)

    def other_ids(self, ids: Tensor, where: Tensor) -> Tensor:
        """Replace ids where told, each by another of the batch's real tokens."""
        draw = torch.randint(len(self.pool), ids.shape, generator=self.generator).to(ids.device)
        draw = torch.where(self.pool[draw] == ids, (draw + 1) % len(self.pool), draw)
        return torch.where(where, self.pool[draw], ids)


class Subject:
    """The callable, and which axes of its results are those of tokens: they are as long as its input."""

    def __init__(self, call: Call, batch: Batch) -> None:
        self.call = call
        text = min(batch.texts, key=len)
        padded, alone = self._run(*batch.lay_out([text])), self._run(*batch.lay_out([text], length=len(text)))
        lengths = (batch.length, len(text))
        self.token_axes = [axis for axis in range(1, padded.ndim) if (padded.shape[axis], alone.shape[axis]) == lengths]
        self.dtype = padded.dtype

    def __call__(self, ids: Tensor, mask: Tensor, real: Tensor | None = None) -> list[Tensor]:
        """Return each row's result at real tokens, the mask's or others, as a list of numbers in float64."""
        rows = []
        for row, positions in zip(self._run(ids, mask), (mask if real is None else real).bool(), strict=True):
            for axis in self.token_axes:
                row = row.index_select(axis - 1, positions.nonzero()[:, 0].to(row.device))
            rows.append(row.flatten().double().cpu())
        return rows

    def _run(self, ids: Tensor, mask: Tensor) -> Tensor:
        result = self.call(ids.clone(), mask.clone())
        result = torch.from_numpy(result) if isinstance(result, np.ndarray) else result
        if not isinstance(result, Tensor):
            raise ValueError(
                f"the callable must return a tensor, got {type(result).__name__}: choose one of its values, as in "
                f"lambda ids, mask: model(ids, attention_mask=mask).last_hidden_state"
            )
        if result.ndim == 0 or len(result) != len(ids) or 0 in result.shape:
            raise ValueError(f"the result must have a row for each of {len(ids)} texts, got {tuple(result.shape)}")
        return result


def error(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> float:
    """Return the greatest |ours - theirs| / max(1, |theirs|); infinite where shapes differ, or one alone is NaN."""
    if any(a.shape != b.shape for a, b in zip(ours, theirs, strict=True)):
        return float("inf")
    return errors(torch.cat(list(ours)), torch.cat(list(theirs))).max().item()


def errors(ours: Tensor, theirs: Tensor) -> Tensor:
    """Return each number's |ours - theirs| / max(1, |theirs|) in float64; infinite where only one of them is NaN."""
    ours, theirs = ours.double(), theirs.double()
    error = (ours - theirs).abs() / theirs.abs().clamp(min=1)
    same = (ours == theirs) | (ours.isnan() & theirs.isnan())  # two infinities too
    return error.masked_fill(error.isnan(), float("inf")).masked_fill(same, 0)


def beside_others(subject: Subject, batch: Batch, row: int) -> Tensor:
    """Run a row beside rows of other ids without padding, as many as before, and return its result."""
    ids, mask = batch.lay_out(batch.texts[row : row + 1])
    strangers = ids.expand(max(2, len(batch.texts)), -1)
    strangers = batch.other_ids(strangers, torch.ones_like(strangers, dtype=torch.bool))
    at = torch.arange(len(strangers), device=ids.device)[:, None] == row
    return subject(torch.where(at, ids, strangers), torch.where(at, mask, torch.ones_like(mask)))[row]


def name_leak(subject: Subject, batch: Batch, right: list[Tensor]) -> str:
    """Say how padding gets in, from what acts through what: a name out of FINDINGS."""
    ids, mask = batch.lay_out(batch.texts)
    if error(subject(ids, torch.ones_like(mask), real=mask), right) == 0:
        return "mask ignored"
    text = max(batch.texts, key=len)
    ids, mask = batch.lay_out([text[: (len(text) + 1) // 2]])  # half a text: several real tokens, several padded slots
    real, padded = mask.bool(), mask == 0
    if min(real.sum(), padded.sum()) < 2 or subject.dtype not in PRECISE:
        return "padding leaks"

    def is_sum(parts: Sequence[Tensor], weights: Sequence[float], whole: Tensor) -> bool:
        return is_weighted_sum(parts, weights, whole, torch.finfo(subject.dtype).eps)

    def act_apart(slots: Tensor) -> bool:
        """Whether two groups of slots change the result each by itself: no attention joins them."""
        first, second = halves(slots)
        changed = batch.other_ids(ids, slots)
        parts = [subject(torch.where(group, changed, ids), mask)[0] for group in (slots & ~slots, first, second)]
        return is_sum(parts, [-1, 1, 1], subject(changed, mask)[0])

    if not subject.token_axes:  # pooled
        groups = halves(real)
        parts = [subject(ids, group.to(mask.dtype))[0] for group in groups]
        if is_sum(parts, [(group.sum() / real.sum()).item() for group in groups], subject(ids, mask)[0]):
            return "mask in the mean only"
        if act_apart(padded):
            return "mean over padding"
    return "mask inverted" if act_apart(real) else "padding leaks"


def halves(slots: Tensor) -> tuple[Tensor, Tensor]:
    """(1, S) bools -> every other one of them, and the rest."""
    odd = slots.cumsum(1) % 2 == 1
    return slots & odd, slots & ~odd


def is_weighted_sum(parts: Sequence[Tensor], weights: Sequence[float], whole: Tensor, eps: float) -> bool:
    """Whether a result is the weighted sum of others, each times a factor, since a mean may be scaled to length 1.

    A factor can be told only where there are more numbers than parts: for a few logits the weights are taken as given.
    """
    columns = torch.stack(list(parts), dim=1)  # (numbers, parts)
    if not columns.isfinite().all():
        return False
    factors = torch.tensor(weights, dtype=columns.dtype)[:, None]
    if len(columns) > len(parts):
        factors = torch.linalg.lstsq(columns, whole[:, None], driver="gelsd").solution
    return bool((columns @ factors - whole[:, None]).abs().max() <= ROUNDING * eps * columns.abs().max())

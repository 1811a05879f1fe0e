"""What each way to mask makes of a row of scores, in each precision."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .models import DTYPES, check_dtypes
from .report import Report, dtype_name, table

KINDS = {
    "finfo.min": "the dtype's smallest number, added to the scores of hidden keys",
    "-inf": "minus infinity, added to the scores of hidden keys",
    "-1e4": "-10,000, added to the scores of hidden keys",
    "-1e9": "-1,000,000,000, added to the scores of hidden keys",
    "sdpa": "torch's scaled_dot_product_attention with a boolean mask",
    "multiply": "no mask before the softmax; after it the hidden keys are multiplied by 0",
    "rows": "hides the rows of padded queries (rows without real keys), not the columns of padded keys",
}
OUTCOMES = {
    "right": "0 for hidden keys, the softmax over the others",
    "sums to": "hidden keys get 0, but the row does not sum to 1",
    "to padding": "this share of the attention goes to hidden keys",
    "uniform": "every key gets 1/S, hidden keys too",
    "unmasked": "the probabilities without any mask",
    "distorted": "neither uniform nor unmasked",
    "zeros": "every key gets 0",
    "NaN": "not a number, which spreads to all later values",
}
EXAMPLE_SCORES = torch.tensor([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]])
EXAMPLE_MASK = torch.tensor([[1, 1, 0], [0, 0, 0]])  # a padded row, and one with nothing to attend to
SAME = 1e-2  # probabilities that differ by at most this are called the same: bfloat16 has three digits


@dataclass
class MaskComparison(Report):
    """What masks of several kinds make of rows of scores.

    Args:
        kinds: K names.
        dtypes: T names.
        scores: (R, S).
        attention_mask: (R, S).
        probs: (K, T, R, S) float64.
        pad_mass: (K, T, R), their sum over hidden keys.
        row_sum: (K, T, R), their sum over all keys.
        deviation: (K, T, R), the greatest difference from the softmax over the real keys in float64, of the scores
            as the dtype holds them; NaN for a row with nothing to attend to, which has no right answer.
        outcomes: K lists of T lists of R: the same in a word or two.
    """

    kinds: list[str]
    dtypes: list[str]
    scores: Tensor
    attention_mask: Tensor
    probs: Tensor
    pad_mass: Tensor
    row_sum: Tensor
    deviation: Tensor
    outcomes: list[list[list[str]]]

    def parts(self) -> Iterator[str]:
        """Return a line for each row and kind, and below them what the words mean."""
        rows = []
        for row, real in enumerate(self.attention_mask.sum(dim=1).tolist()):
            keys = f"{real} of {self.attention_mask.shape[1]}"
            for kind, by_dtype in zip(self.kinds, self.outcomes, strict=True):
                rows.append([row, keys, kind, *(by_row[row] for by_row in by_dtype)])
        yield table(["row", "real keys", "mask", *self.dtypes], rows)
        seen = {outcome for by_dtype in self.outcomes for by_row in by_dtype for outcome in by_row}
        words = {kind: KINDS[kind] for kind in self.kinds}
        words |= {word: text for word, text in OUTCOMES.items() if any(word in outcome for outcome in seen)}
        yield ""
        yield from (f"{word + ':':<{1 + max(map(len, words))}}  {text}" for word, text in words.items())


@torch.no_grad()
def compare_masks(
    scores: Tensor = EXAMPLE_SCORES,
    attention_mask: Tensor = EXAMPLE_MASK,
    kinds: Sequence[str] = tuple(KINDS),
    dtypes: Sequence[torch.dtype] = DTYPES,
) -> MaskComparison:
    """Hide keys in each of the ways that people use, in each precision.

    All kinds but "rows" and "multiply" are right for a row that has real keys and scores of ordinary size: the weight
    of hidden keys is exactly 0.0, the other weights are right to rounding. For a row with nothing to attend to, the
    kinds give different results.

    Args:
        scores: (R, S), the scores of R queries by themselves, before the mask.
        attention_mask: (R, S), 1 = this query may attend to this key.
        kinds: out of KINDS. A number that is added is cast to the dtype: -1e9 is -inf in float16. For "rows" a query
            with nothing to attend to counts as padded.
        dtypes: out of DTYPES.

    Raises:
        ValueError: another kind, dtype or shape; a mask of other numbers than 0 and 1.

    Source: transformers issues #542, #1935, #13555, #14537 (why the mask is added, not multiplied), #15326 (NaN in a
    row with nothing to attend to).
    """
    check_dtypes(dtypes)
    if not kinds or (unknown := [kind for kind in kinds if kind not in KINDS]):
        raise ValueError(f"kinds must be some of {', '.join(KINDS)}, got {unknown if kinds else 'none'}")
    if scores.ndim != 2 or attention_mask.shape != scores.shape:
        raise ValueError(
            f"scores and attention_mask must have one shape (R, S), got {tuple(scores.shape)} and "
            f"{tuple(attention_mask.shape)}"
        )
    real = attention_mask.bool()
    if (real != attention_mask).any():
        raise ValueError(
            f"attention_mask must hold only 0 and 1, got {attention_mask[real != attention_mask][0].item()}"
        )
    cast = [scores.to(dtype) for dtype in dtypes]
    probs = torch.stack([torch.stack([masked_probs(x, real, kind).double() for x in cast]) for kind in kinds])
    right = torch.stack([masked_probs(x.double(), real, "-inf") for x in cast])  # (T, R, S)
    unmasked = torch.stack([x.double().softmax(dim=-1) for x in cast])
    return MaskComparison(
        kinds=list(kinds),
        dtypes=[dtype_name(dtype) for dtype in dtypes],
        scores=scores,
        attention_mask=attention_mask,
        probs=probs,
        pad_mass=torch.where(real, 0, probs).sum(dim=-1),
        row_sum=probs.sum(dim=-1),
        deviation=(probs - right).abs().amax(dim=-1),
        outcomes=[
            [list(map(outcome, *values, real)) for values in zip(by_dtype, right, unmasked, strict=True)]
            for by_dtype in probs
        ],
    )


def masked_probs(scores: Tensor, real: Tensor, kind: str) -> Tensor:
    """(R, S) scores and bools, True = may attend -> (R, S) probabilities in the scores' dtype."""
    if kind == "sdpa":  # one head, q = scores, k = v = 1: then softmax(q kᵀ) v is softmax(scores)
        identity = torch.eye(scores.shape[-1], dtype=scores.dtype, device=scores.device)
        return F.scaled_dot_product_attention(scores, identity, identity, attn_mask=real, scale=1.0)
    if kind == "multiply":
        return scores.softmax(dim=-1) * real
    if kind == "rows":
        real = real.any(dim=-1, keepdim=True)
    fill = torch.finfo(scores.dtype).min if kind in ("finfo.min", "rows") else float(kind)
    added = torch.where(real, 0.0, torch.tensor(fill, dtype=torch.float64)).to(scores.dtype)
    return (scores + added).softmax(dim=-1)


def outcome(probs: Tensor, right: Tensor, unmasked: Tensor, real: Tensor) -> str:
    """Say in a word or two what a mask made of a row, (S,) each."""
    if probs.isnan().any():
        return "NaN"
    if real.any():
        if (pad_mass := probs[~real].sum()) > 0:
            return f"{pad_mass:.1%} to padding"
        return "right" if same(probs, right) else f"sums to {probs.sum():.2f}"
    if not probs.any():
        return "zeros"
    if same(probs, torch.full_like(probs, 1 / len(probs))):
        return "uniform"
    return "unmasked" if same(probs, unmasked) else "distorted"


def same(first: Tensor, second: Tensor) -> bool:
    """Whether two rows of probabilities differ by at most SAME."""
    return bool((first - second).abs().max() <= SAME)

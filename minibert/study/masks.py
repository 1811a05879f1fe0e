"""What the mask does: to a row of scores, layer by layer, in some places only; and whether anything gets past it.

Shapes: B rows, S tokens with padding, H heads, N layers. What a row and a batch are: see `padding.py`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..mask import additive_mask
from .padding import (
    DTYPES,
    Model,
    Rows,
    attentions,
    check_dtypes,
    encoder_of,
    layers_by_heads,
    read_batch,
    run,
)
from .report import Report, dtype_name, table
from .steps import capture, edit

KINDS = ("finfo.min", "-inf", "-1e4", "-1e9", "sdpa", "multiply", "rows")
EXAMPLE_SCORES = torch.tensor([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]])
EXAMPLE_MASK = torch.tensor([[1, 1, 0], [0, 0, 0]])  # a padded row, and one with nothing to attend to
SAME = 1e-2  # probabilities as near as this are called the same: bfloat16 has three digits


# To a row of scores


@dataclass
class MaskComparison(Report):
    """What becomes of rows of scores under masks of several kinds.

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

    def __str__(self) -> str:
        rows = []
        for row, real in enumerate(self.attention_mask.sum(dim=1).tolist()):
            keys = f"{real} of {self.attention_mask.shape[1]}"
            for kind, by_dtype in zip(self.kinds, self.outcomes, strict=True):
                rows.append([row, keys, kind, *(outcomes[row] for outcomes in by_dtype)])
        return table(["row", "real keys", "mask", *self.dtypes], rows)


@torch.no_grad()
def compare_masks(
    scores: Tensor = EXAMPLE_SCORES,
    attention_mask: Tensor = EXAMPLE_MASK,
    kinds: Sequence[str] = KINDS,
    dtypes: Sequence[torch.dtype] = DTYPES,
) -> MaskComparison:
    """Hide keys in each of the ways in use, in each precision.

    All but "rows" and "multiply" are right for a row that has real keys and scores of ordinary size: the weight of
    hidden keys is exactly 0.0, the others are right to rounding. They differ in what they make of a row with nothing
    to attend to.

    Args:
        scores: (R, S), the scores of R queries by themselves, before the mask.
        attention_mask: (R, S), 1 = this query may attend to this key.
        kinds: out of KINDS. "finfo.min", "-inf", "-1e4", "-1e9": a number that is added, cast to the dtype (-1e9 is
            -inf in float16). "sdpa": PyTorch's scaled_dot_product_attention with a boolean mask. "multiply": softmax
            over all keys, then hidden ones times 0. "rows": the mask hides padded queries in place of keys, so that it
            leaves a real query's row alone; a query with nothing to attend to counts as padded.
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
            [outcomes(*in_dtype, real) for in_dtype in zip(by_dtype, right, unmasked, strict=True)]
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


def outcomes(probs: Tensor, right: Tensor, unmasked: Tensor, real: Tensor) -> list[str]:
    """Call `outcome` on each row of four (R, S)."""
    return [outcome(*row) for row in zip(probs, right, unmasked, real, strict=True)]


def outcome(probs: Tensor, right: Tensor, unmasked: Tensor, real: Tensor) -> str:
    """Say in a word or two what became of a row, (S,) each."""
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
    """Whether two rows of probabilities agree to SAME."""
    return bool((first - second).abs().max() <= SAME)


# In each layer


@dataclass
class Renormalisation(Report):
    """How far the masked probabilities are from the unmasked ones, rescaled over the real keys.

    Args:
        error: (N, H), the greatest difference over the real queries of the padded rows.
    """

    error: Tensor

    def __str__(self) -> str:
        return layers_by_heads(self.error, "max", self.error.amax(dim=1))


@torch.no_grad()
def renormalisation(model: Model, batch: Mapping[str, Tensor]) -> Renormalisation:
    """Compare the masked probabilities with `probs_unmasked / (1 - pad mass)`, and 0.0 at padding.

    In layer 0 they are equal to rounding: that is all that a mask does, exp(s) / Σ exp(s) over fewer keys. Later layers
    depart from it, since without the mask their inputs have already taken in the padding.

    Args:
        model: in eval mode.
        batch: see `read_batch`.

    Raises:
        ValueError: see `read_batch`.
    """
    rows = read_batch(model, batch)
    errors = []
    for masked, unmasked in zip(attentions(model, rows, True), attentions(model, rows, False), strict=True):
        kept = unmasked.double() * rows.real[:, None, None, :]  # its sum is 1 - pad mass, without cancellation
        error = (masked - kept / kept.sum(dim=-1, keepdim=True)).abs().amax(dim=-1)  # (B, H, S)
        errors.append(error.transpose(1, 2)[rows.padded_queries].amax(dim=0))  # (H,)
    return Renormalisation(torch.stack(errors))


# In some places only


@dataclass
class MaskOnly(Report):
    """How much of the mask's effect is there when it is on in some places only.

    A share is 1 - |x - masked| / |unmasked - masked|, with x the logits (without a head the last hidden states, at real
    tokens) and L2 norms over the batch: 0.0 as without a mask, 1.0 as with it, below 0 further off than without any.

    Args:
        layers: which layers, n of them.
        heads: which heads of each, h of them.
        change: |unmasked - masked|.
        together: share with the mask on in all these places.
        by_layer: (n,), share with it on in these heads of one layer.
        by_head: (n, h), share with it on in one head of one layer.
    """

    layers: list[int]
    heads: list[int]
    change: float
    together: float
    by_layer: Tensor
    by_head: Tensor

    def __str__(self) -> str:
        header = ["mask only in", "together", *(f"head {head}" for head in self.heads)]
        shares = torch.cat([self.by_layer[:, None], self.by_head], dim=1).tolist()
        rows = [[f"layer {i}", *(f"{x:.2f}" for x in row)] for i, row in zip(self.layers, shares, strict=True)]
        return f"{table(header, rows)}\nlayers together: {self.together:.2f}"


@torch.no_grad()
def mask_only(
    model: Model,
    batch: Mapping[str, Tensor],
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
) -> MaskOnly:
    """Switch the mask on in some places only, and see how much of its effect on the logits is there.

    With all layers and heads `together` is exactly 1.0. The shares of single places need not add up to it: one place
    that leaks feeds what it took in to all that follow.

    Args:
        model: in eval mode. It runs once for each place, once for each layer, and three times more.
        batch: see `read_batch`.
        layers: None for all.
        heads: None for all.

    Raises:
        ValueError: a layer or head that the model lacks; see also `read_batch`.
    """
    layers = check_places("layers", layers, model.config.n_layers)
    heads = check_places("heads", heads, model.config.n_heads)
    rows = read_batch(model, batch)
    masked, unmasked = results(model, rows, mask=True), results(model, rows, mask=False)
    change = (unmasked - masked).norm()

    def share(layers: Sequence[int], heads: Sequence[int]) -> float:
        with edit(encoder_of(model), partial_masks(model, rows, layers, heads)):
            return (1 - (results(model, rows, mask=True) - masked).norm() / change).item()

    return MaskOnly(
        layers,
        heads,
        change.item(),
        share(layers, heads),
        torch.tensor([share([layer], heads) for layer in layers], dtype=torch.float64),
        torch.tensor([[share([layer], [head]) for head in heads] for layer in layers], dtype=torch.float64),
    )


def check_places(name: str, places: Sequence[int] | None, count: int) -> list[int]:
    """Return the places as a list, all of them for None."""
    places = list(range(count)) if places is None else list(places)
    if not places or (wrong := [place for place in places if place not in range(count)]):
        raise ValueError(f"{name} must be some of 0 to {count - 1}, got {wrong if places else 'none'}")
    return places


def results(model: Model, rows: Rows, mask: bool) -> Tensor:
    """Return the logits, or without a head the last hidden states, of real tokens in float64."""
    result = list(run(model, rows, mask).values())[-1].double()
    return result[rows.real] if result.ndim == 3 else result


def partial_masks(model: Model, rows: Rows, layers: Sequence[int], heads: Sequence[int]) -> dict[str, Tensor]:
    """Return for each layer's step `mask` the additive mask in some heads, 0 in the others: (B, H, 1, S)."""
    mask = additive_mask(rows.attention_mask, model.dtype)
    masks = {}
    for layer in range(model.config.n_layers):
        on = torch.tensor([layer in layers and head in heads for head in range(model.config.n_heads)])
        masks[f"transformer.layer.{layer}.attention.mask"] = torch.where(on.to(mask.device)[:, None, None], mask, 0)
    return masks


# Whether anything gets past it


@dataclass
class PadInvariance(Report):
    """What other ids in the padded slots change at real positions.

    Args:
        mask: whether the mask was on.
        slots: how many slots were given other ids.
        bit_equal: no step, logits included, changed at a real position by a single bit.
        first_difference: name of the first step that did; None where none did.
        steps: names of all steps and submodules, in order of execution.
        differences: (steps,), the greatest difference at real positions.
        pad_gradient: the greatest gradient of the real positions' last hidden states to a padded slot's embedding.
    """

    mask: bool
    slots: int
    bit_equal: bool
    first_difference: str | None
    steps: list[str]
    differences: Tensor
    pad_gradient: float

    def __str__(self) -> str:
        return table(
            (f"other ids in {self.slots} padded slots", "with mask" if self.mask else "without mask"),
            [
                ("real positions bit-equal", "yes" if self.bit_equal else "no"),
                ("first step that differs", self.first_difference or "none"),
                ("greatest difference", self.differences.max().item()),
                ("greatest gradient to padding", self.pad_gradient),
            ],
        )


@torch.no_grad()
def check_pad_invariance(model: Model, batch: Mapping[str, Tensor], mask: bool = True, seed: int = 0) -> PadInvariance:
    """Put other ids into the padded slots and see whether any step changes at a real position.

    Shapes stay the same, so there is no rounding to excuse a difference: whatever changes has leaked. With the mask
    nothing does: every difference and the gradient are exactly 0.0. Without it the first step that differs is layer
    0's `attention.probs`: the padded keys enter through the denominator of the softmax.

    All steps are held twice, in memory: a small batch shows as much as a large one.

    A real position of a step that has a row for each (query, key), such as the scores, is a real query with a real
    key. A classifier's head reads position 0; in a row padded on the left that is padding, and its steps will differ.

    Args:
        model: in eval mode.
        batch: see `read_batch`.
        mask: whether the mask is on.
        seed: of the other ids, each of which differs from the one it replaces.

    Raises:
        ValueError: see `read_batch`.
    """
    rows = read_batch(model, batch)
    generator = torch.Generator().manual_seed(seed)
    shift = torch.randint(1, model.config.vocab_size, rows.input_ids.shape, generator=generator).to(rows.input_ids)
    other_ids = torch.where(rows.real, rows.input_ids, (rows.input_ids + shift) % model.config.vocab_size)
    with capture(model) as first:
        run(model, rows, mask)
    with capture(model) as second:
        run(model, rows._replace(input_ids=other_ids), mask)
    differences = torch.stack(
        [
            torch.where(real_part(name, value, rows.real), value - second[name], 0).abs().max().double()
            for name, value in first.items()
        ]
    )
    differing = [name for name, difference in zip(first, differences.tolist(), strict=True) if difference != 0]
    return PadInvariance(
        mask=mask,
        slots=int((~rows.real).sum()),
        bit_equal=not differing,
        first_difference=differing[0] if differing else None,
        steps=list(first),
        differences=differences,
        pad_gradient=pad_gradient(model, rows, mask, generator),
    )


def real_part(name: str, value: Tensor, real: Tensor) -> Tensor:
    """Say which numbers of a step belong to real tokens: bools that broadcast over its value."""
    if value.ndim == 2:  # (B, ·), a head that has pooled: one row for each text
        return torch.ones_like(value, dtype=torch.bool)
    if value.ndim == 3:  # (B, S, ·)
        return real[:, :, None]
    if name.endswith((".q", ".k", ".v", ".context")):  # (B, H, S, E)
        return real[:, None, :, None]
    return real[:, None, :, None] & real[:, None, None, :]  # (B, H, S, S); the mask's (B, 1, 1, S) broadcasts to it


@torch.enable_grad()
def pad_gradient(model: Model, rows: Rows, mask: bool, generator: torch.Generator) -> float:
    """Return the greatest gradient of the real positions' last hidden states to a padded slot's word embedding.

    It is taken of a random projection: LayerNorm holds a plain sum, or a sum of squares, almost constant.
    """
    encoder = encoder_of(model)
    embeds = encoder.embeddings.word_embeddings(rows.input_ids).detach().requires_grad_()
    inputs = rows.inputs(mask) | {"input_ids": None, "inputs_embeds": embeds}
    hidden_states = encoder(**inputs).last_hidden_state[rows.real]
    direction = torch.randn(hidden_states.shape, generator=generator).to(hidden_states)
    (gradient,) = torch.autograd.grad((hidden_states * direction).sum(), embeds)
    return gradient[~rows.real].abs().max().item()

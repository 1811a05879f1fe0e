"""How padding gets into a model, and how the mask keeps it out: layer by layer, and in some places only.

Shapes: B rows, S tokens with padding, H heads, N layers. What a row and a batch are: see `rows.py`.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..mask import additive_mask
from .models import Model, choose, encoder_of
from .report import Report, layers_by_heads, table
from .rows import Rows, attentions, read_batch, real_part, run
from .steps import capture, edit

# In each layer


@dataclass
class Renormalisation(Report):
    """How far the masked probabilities are from the unmasked ones, rescaled over the real keys.

    Args:
        error: (N, H), the greatest difference over the real queries of the padded rows.
    """

    error: Tensor

    def parts(self) -> Iterator[str]:
        """Return the differences, and what they are."""
        yield "greatest |with mask - without mask / (1 - share of padding)| of the attention to real keys"
        yield layers_by_heads(self.error, "max", self.error.amax(dim=1))
        yield "layer 0: rounding; later layers: without the mask their inputs already hold some of the padding"


@torch.no_grad()
def renormalisation(model: Model, batch: Mapping[str, Tensor]) -> Renormalisation:
    """Compare the masked probabilities with `probs_unmasked / (1 - pad mass)`, and 0.0 at padding.

    In layer 0 they are equal to rounding: that is all that a mask does, exp(s) / Σ exp(s) over fewer keys. Later layers
    differ more: without the mask their inputs already hold some of the padding.

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
    tokens) and L2 norms over the batch: 0.0 as without a mask, 1.0 as with the full mask, below 0 further away from
    the masked result than without a mask.

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

    def parts(self) -> Iterator[str]:
        """Return a row for each layer."""
        header = ["mask only in", "together", *(f"head {head}" for head in self.heads)]
        shares = torch.cat([self.by_layer[:, None], self.by_head], dim=1).tolist()
        rows = [[f"layer {i}", *(f"{x:.2f}" for x in row)] for i, row in zip(self.layers, shares, strict=True)]
        yield table(header, rows)
        yield f"layers together: {self.together:.2f}"
        yield "1 = the logits as with the full mask, 0 = as far from them as without a mask"


@torch.no_grad()
def mask_only(
    model: Model,
    batch: Mapping[str, Tensor],
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
) -> MaskOnly:
    """Switch the mask on in some layers and heads only, and measure how much of its effect on the logits is there.

    With all layers and heads `together` is exactly 1.0. The shares of single places need not add up to 1: what leaks in
    at one place reaches all later layers.

    Args:
        model: in eval mode. It runs once for each place, once for each layer, and three times more.
        batch: see `read_batch`.
        layers: None for all.
        heads: None for all.

    Raises:
        ValueError: a layer or head that the model lacks; see also `read_batch`.
    """
    layers = choose("layers", layers, model.config.n_layers)
    heads = choose("heads", heads, model.config.n_heads)
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


# By which route


ROUTES = {  # from which queries the padding is hidden, and how it still reaches [CLS]
    "no token": "both routes",
    "[CLS] alone": "the other tokens attend to [PAD], and [CLS] attends to them",
    "all tokens but [CLS]": "[CLS] itself attends to [PAD]",
    "all tokens": "none",
}


@dataclass
class LeakRoutes(Report):
    """How far padding moves the result when the mask leaves it some of its routes to [CLS].

    Args:
        hidden_from: the names of ROUTES: from which queries the padding is hidden, in all layers.
        moved: (4, B), the greatest difference from the run with the mask: of the logits where the head reads [CLS]
            alone, else of what the model returns for [CLS].
    """

    hidden_from: list[str]
    moved: Tensor

    def parts(self) -> Iterator[str]:
        """Return a row for each run, the worst of all texts."""
        yield table(
            ("padding is hidden from", "moved by", "route that is left"),
            zip(self.hidden_from, self.moved.amax(dim=1).tolist(), ROUTES.values(), strict=True),
        )


@torch.no_grad()
def leak_routes(model: Model, batch: Mapping[str, Tensor]) -> LeakRoutes:
    """Measure the two routes of the leak: [CLS] attends to padding, and so do the tokens that [CLS] attends to.

    With the padding hidden from [CLS] alone, or from all other tokens alone, a part of the leak is left; hidden from
    both, the result is exactly that of the mask. The parts need not add up: the routes mix in every layer.

    Args:
        model: in eval mode.
        batch: see `read_batch`. [CLS] is each row's first real token.

    Raises:
        ValueError: see `read_batch`.
    """
    rows = read_batch(model, batch)
    length = rows.real.shape[1]
    is_cls = torch.arange(length, device=rows.real.device) == rows.real.int().argmax(dim=1, keepdim=True)  # (B, S)
    everyone = torch.ones_like(is_cls)

    def result(attention_mask: Tensor) -> Tensor:
        value = list(run(model, rows._replace(attention_mask=attention_mask), mask=True).values())[-1].double()
        return value[is_cls] if value.ndim == 3 else value

    masked = result(rows.attention_mask)
    moved = []
    for hidden_from in (~everyone, is_cls, ~is_cls, everyone):  # (B, S) queries, in the order of ROUTES
        may_attend = rows.real[:, None, None, :] | ~hidden_from[:, None, :, None]  # (B, 1, S, S)
        moved.append((result(may_attend) - masked).abs().amax(dim=1))
    return LeakRoutes(list(ROUTES), torch.stack(moved))


# Whether anything gets past it


@dataclass
class PadInvariance(Report):
    """What other ids in the padded slots change at real positions.

    Args:
        mask: whether the mask was on.
        slots: how many slots were given other ids.
        bit_equal: no step, logits included, changed at a real position by a single bit.
        first_difference: name of the first step that did change; None where none did.
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

    def parts(self) -> Iterator[str]:
        """Return the findings."""
        yield table(
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

    Shapes stay the same, so rounding does not explain a difference: whatever changes has leaked. With the mask nothing
    changes: every difference and the gradient are exactly 0.0. Without it the first step that differs is layer 0's
    `attention.probs`: the padded keys enter through the denominator of the softmax.

    The memory holds all steps twice: give a small batch, which shows as much as a large one.

    A real position of a step that has a row for each (query, key), such as the scores, is a real query with a real
    key. A classifier's head reads position 0; in a row padded on the left, position 0 is padding, and the steps of the
    head differ.

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


@torch.enable_grad()
def pad_gradient(model: Model, rows: Rows, mask: bool, generator: torch.Generator) -> float:
    """Return the greatest gradient of the real positions' last hidden states to a padded slot's word embedding.

    The gradient is of a random projection: LayerNorm keeps a plain sum, and a sum of squares, almost constant.
    """
    encoder = encoder_of(model)
    embeds = encoder.embeddings.word_embeddings(rows.input_ids).detach().requires_grad_()
    inputs = rows.inputs(mask) | {"input_ids": None, "inputs_embeds": embeds}
    hidden_states = encoder(**inputs).last_hidden_state[rows.real]
    direction = torch.randn(hidden_states.shape, generator=generator).to(hidden_states)
    (gradient,) = torch.autograd.grad((hidden_states * direction).sum(), embeds)
    return gradient[~rows.real].abs().max().item()

"""Change a part of the computation and see how the answer changes: ablation and activation patching."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from operator import index
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..pretrained import PreTrainedModel
from .models import attention_step, choose, layer_name
from .plots import heatmap
from .report import Report, table
from .steps import Edits, capture, check_eval, edit

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def ablate_heads(model: PreTrainedModel, heads: Iterable[tuple[int, int]], how: str = "zero") -> Edits:
    """Take attention heads out in a `with` block: their output, the context, is replaced for every token.

    Args:
        model: any model.
        heads: pairs of (layer, head), from 0.
        how: "zero", or "mean": the head's mean over all real tokens of the batch. The mean keeps what the head adds to
            every token alike, and removes what differs between tokens.

    Raises:
        ValueError: a layer or head that the model does not have; another `how`; during the forward, "mean" with a
            mask that is not a padding mask, where which tokens are real is undefined.

    Source: Michel et al. 2019, "Are Sixteen Heads Really Better than One?" (zero).
    """
    if how not in ("zero", "mean"):
        raise ValueError(f"how must be 'zero' or 'mean', got {how!r}")
    heads_of: defaultdict[int, list[int]] = defaultdict(list)
    for pair in heads:
        try:
            layer, head = map(index, pair)
        except (TypeError, ValueError):
            raise ValueError(f"heads must be pairs of (layer, head), such as [(0, 1)], got {pair!r}") from None
        choose("layer", [layer], model.config.n_layers)
        heads_of[layer] += choose("head", [head], model.config.n_heads)

    def ablate(layer: int, context: Tensor) -> Tensor:  # (B, H, S, E)
        mask = masks.target.pop(attention_step(model, layer, "mask"), None)  # the next forward may have no mask
        for head in heads_of[layer]:
            context[:, head] = 0 if how == "zero" else _real_tokens(context[:, head], mask).mean(0)
        return context

    masks = capture(model, "*.attention.mask")
    edits = edit(model, {attention_step(model, layer, "context"): partial(ablate, layer) for layer in heads_of})
    edits.hooks = [*masks.hooks, *edits.hooks]
    return edits


def _real_tokens(values: Tensor, mask: Tensor | None) -> Tensor:
    """(B, S, E) and an additive mask -> (T, E), the real tokens."""
    if mask is None:
        return values.flatten(0, 1)
    if mask.shape[1:3] != (1, 1):
        raise ValueError(f"how='mean' needs a padding mask, (B, S), to know the real tokens; got {tuple(mask.shape)}")
    return values[mask[:, 0, 0] == 0]


@dataclass
class Patching(Report):
    """What patching one place at a time does to a metric.

    Args:
        axes: the names of the axes of `patched`.
        columns: the names of its columns, such as tokens.
        clean: the metric of the clean run.
        corrupt: the metric of the corrupt run.
        patched: the metric of the corrupt run with one clean value in it: (n_layers + 1, positions), hidden states
            with the embeddings first; or (n_layers, n_heads).
    """

    axes: tuple[str, str]
    columns: list[str]
    clean: float
    corrupt: float
    patched: Tensor

    def parts(self) -> Iterator[str]:
        """Return the share of the way from the corrupt to the clean metric that each place restores."""
        yield f"clean {self.clean:.4f}, corrupt {self.corrupt:.4f}; restored by each place:"
        rows = ((layer, *(f"{x:.0%}" for x in row)) for layer, row in enumerate(self.restored.tolist()))
        yield table((self.axes[0], *self.columns), rows)

    @property
    def restored(self) -> Tensor:
        """Share of the way from the corrupt to the clean metric, in the shape of `patched`."""
        return (self.patched - self.corrupt) / (self.clean - self.corrupt)

    def plot(self) -> "Figure":
        """Draw the shares; needs matplotlib."""
        rows = [f"{self.axes[0]} {i}" for i in range(len(self.patched))]
        largest = max(1.0, self.restored.abs().max().item())
        return heatmap(self.restored, rows, self.columns, "Restored by one clean value", "share", (-largest, largest))


@torch.no_grad()
def patch(
    model: PreTrainedModel,
    clean: Mapping[str, Tensor],
    corrupt: Mapping[str, Tensor],
    points: str,
    metric: Callable[[Any], Tensor],
    tokens: Sequence[str] | None = None,
) -> Patching:
    """Run the corrupt batch with one value of the clean run in it, for each place in turn (activation patching).

    Args:
        model: any model.
        clean: input_ids and attention_mask (B, S).
        corrupt: the same number of rows, each with as many real tokens as the clean row. The padding may differ:
            positions are counted in real tokens.
        points: "position": the hidden states after each layer, at one real token; "head": the output of one head, its
            context, at all real tokens.
        metric: from the model's output to a scalar, for instance `lambda output: output.logits[0, 1]`.
        tokens: names for the positions, as many as the longest row has real tokens; None numbers them.

    Raises:
        ValueError: rows of different numbers of real tokens; other points; a metric that is the same in both runs.

    Source: Meng et al. 2022, section 2 (causal tracing); Vig et al. 2020.
    """
    check_eval(model)
    if points not in ("position", "head"):
        raise ValueError(f"points must be 'position' or 'head', got {points!r}")
    for name, batch in (("clean", clean), ("corrupt", corrupt)):
        if "attention_mask" not in batch:
            raise ValueError(f"the {name} batch needs an attention_mask, to know its real tokens")
    real, real_clean = corrupt["attention_mask"].bool(), clean["attention_mask"].bool()  # (B, S) each
    if not torch.equal(real.sum(1), real_clean.sum(1)):  # nor where their number differs
        raise ValueError(
            f"rows must have as many real tokens in both batches, got {real_clean.sum(1).tolist()} in the clean one "
            f"and {real.sum(1).tolist()} in the corrupt one"
        )
    rank, rank_clean = real.cumsum(1) - 1, real_clean.cumsum(1) - 1  # which real token of its row each one is
    layers = range(model.config.n_layers)
    if points == "position":
        names = [f"{model.encoder_prefix}embeddings", *(f"{layer_name(model, i)}.output_layer_norm" for i in layers)]
        width = int(real.sum(1).max())
    else:
        names = [attention_step(model, layer, "context") for layer in layers]
        width = model.config.n_heads

    if tokens is not None and (points != "position" or len(tokens) != width):
        raise ValueError(f"tokens= names positions, {width} of them here; got {len(tokens)} with points={points!r}")

    with capture(model, *names) as source:
        clean_metric = metric(model(**clean)).item()
    corrupt_metric = metric(model(**corrupt)).item()
    if clean_metric == corrupt_metric:
        raise ValueError(f"there is nothing to restore: the metric of both runs is {clean_metric:.4f}")

    def patched_metric(name: str, index: int) -> float:
        def replace(value: Tensor) -> Tensor:
            value = value.clone()
            if points == "position":
                value[real & (rank == index)] = source[name][real_clean & (rank_clean == index)]
            else:  # (B, H, S, E) -> (B, S, E) of one head
                value[:, index][real] = source[name][:, index][real_clean]
            return value

        with edit(model, {name: replace}):
            return metric(model(**corrupt)).item()

    patched = torch.tensor([[patched_metric(name, index) for index in range(width)] for name in names])
    axes = ("layer", "head") if points == "head" else ("hidden state", "position")
    columns = [f"{axes[1]} {i}" for i in range(width)] if tokens is None else list(tokens)
    return Patching(axes, columns, clean_metric, corrupt_metric, patched)

"""The trace: every value of one forward pass, in order, with its formula; and all numbers of one query."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..pretrained import PreTrainedModel
from ..terminal import visible
from .models import attention_step, choose
from .report import Report, Table, dtype_name, table
from .steps import capture, check_eval

FORMULAS = {  # by the end of a step's name; x is the value before
    "word_embeddings": "W[ids]",
    "position_embeddings": "P[positions]",
    "embeddings.sum": "word + position",
    "LayerNorm": "γ (x - mean) / √(var + 1e-12) + β",
    "q_lin": "x Wqᵀ + bq",
    "k_lin": "x Wkᵀ + bk",
    "v_lin": "x Wvᵀ + bv",
    "attention.q": "q_lin by heads",
    "attention.k": "k_lin by heads",
    "attention.v": "v_lin by heads",
    "scores": "q kᵀ / √E",
    "mask": "0 = attend, finfo.min = ignore",
    "masked_scores": "scores + mask",
    "probs": "softmax over keys",
    "context": "probs v",
    "out_lin": "heads joined, x Woᵀ + bo",
    "sa_residual": "attention + its input",
    "sa_layer_norm": "γ (x - mean) / √(var + 1e-12) + β",
    "lin1": "x W1ᵀ + b1",
    "lin2": "x W2ᵀ + b2",
    "output_residual": "feed-forward + its input",
    "output_layer_norm": "γ (x - mean) / √(var + 1e-12) + β",
    "vocab_transform": "x Wtᵀ + bt",
    "vocab_layer_norm": "γ (x - mean) / √(var + 1e-12) + β",
    "vocab_projector": "x Wᵀ + b, W the word embeddings",
    "pre_classifier": "x[CLS] Wpᵀ + bp",
    "classifier": "x Wcᵀ + bc",
    "qa_outputs": "x Wqaᵀ + bqa",
}

KEY_COLUMNS: dict[str, tuple[str, Callable[[float], str]]] = {
    "scores": ("score", lambda x: f"{x:.3f}"),
    "mask": ("+ mask", lambda x: f"+ {x:.2g}"),
    "masked_scores": ("= masked score", lambda x: f"= {x:.4g}"),
    "probs": ("probability", lambda x: f"{x:.4f}" if x else "0"),  # exactly 0, not nearly
    "probs_without_mask": ("without mask", lambda x: f"{x:.4f}"),
}


@dataclass
class Trace(Report):
    """Every value in order of execution, and the numbers of one query for each key.

    Args:
        steps: a row each: name, formula, shape, dtype, smallest and largest value.
        layer: the layer looked into.
        head: the head looked into.
        row: the row of the batch looked into.
        query: the position looked into.
        tokens: the row's S tokens.
        keys: by column, (S,) each: scores, mask (where there is one), masked_scores, probs.
        head_is_chosen: the head was not asked for: it is the one whose scores give [PAD] the most.
    """

    steps: list[tuple[str, str, tuple[int, ...], str, float, float]]
    layer: int
    head: int
    row: int
    query: int
    tokens: Sequence[str]
    keys: dict[str, Tensor]
    head_is_chosen: bool

    def parts(self) -> Iterator[str]:
        """Return the steps as a table, and below it the query's numbers."""
        rows = [(name, formula, str(shape), dtype, low, high) for name, formula, shape, dtype, low, high in self.steps]
        query = f"query {self.query} ({visible(self.tokens[self.query])})"
        yield table(("step", "formula", "shape", "dtype", "min", "max"), rows)
        yield f"\nLayer {self.layer}, head {self.head}, row {self.row}, {query}: what it computes for each key"
        if self.head_is_chosen:
            yield why_this_head(self.layer, self.head)
        yield keys_table(self.tokens, self.keys)


def keys_table(tokens: Sequence[str], keys: Mapping[str, Tensor]) -> Table:
    """Lay out what one query computes for each key, side by side.

    Args:
        tokens: S keys.
        keys: by column, (S,) each: scores, masked_scores and probs; mask where there is one; and perhaps
            probs_without_mask.
    """
    shown = [(title, form, keys[name].tolist()) for name, (title, form) in KEY_COLUMNS.items() if name in keys]
    columns = [[form(x) for x in values] for _, form, values in shown]
    return table(["key", *(title for title, _, _ in shown)], zip(tokens, *columns, strict=True))


def why_this_head(layer: int, head: int) -> str:
    """Say why a head is shown that nobody asked for; see `padding_head`."""
    if layer > 0:  # the scores come from earlier layers, which had the mask
        return (
            f"(head {head}: of all heads it would give [PAD] the most, with the scores below and no mask added to them)"
        )
    return (
        "(layer 0: its scores are the same with and without the mask;\n "
        f"head {head}: of all heads it gives [PAD] the most without a mask)"
    )


def padding_head(scores: Tensor, real: Tensor) -> int:
    """Return the head in which a query would give padding the most attention if there were no mask.

    Args:
        scores: (H, S), one query's.
        real: (S,) bool.
    """
    return int(scores.softmax(dim=-1)[:, ~real].sum(dim=-1).argmax())


@torch.no_grad()
def trace(
    model: PreTrainedModel,
    batch: Mapping[str, Tensor],
    tokens: Sequence[Sequence[str]],
    layer: int = 0,
    head: int | None = None,
    row: int | None = None,
    query: int = 0,
) -> Trace:
    """Run a model and note every value on the way.

    Args:
        model: any model but multiple choice, whose rows are choices.
        batch: input_ids and attention_mask (B, S).
        tokens: of each row, S strings.
        layer: to look into, like head, row and query. In layer 0 the scores are the same with and without a mask.
        head: of the layer; None takes the one whose scores give padding the most, and 0 where the row has none.
        row: of the batch; None takes the row with the fewest real tokens.
        query: position in the row.

    Raises:
        ValueError: a layer, head, row or query that does not exist.
    """
    check_eval(model)
    mask = batch.get("attention_mask")
    real = (torch.ones_like(batch["input_ids"]) if mask is None or mask.ndim != 2 else mask).bool()
    row = int(real.sum(dim=1).argmin()) if row is None else row
    length = batch["input_ids"].shape[-1]
    places = {"layer": (layer, model.config.n_layers), "row": (row, len(tokens)), "query": (query, length)}
    for name, (number, count) in (places | {"head": (head or 0, model.config.n_heads)}).items():
        choose(name, [number], count)
    with capture(model) as captured:
        model(**batch)
    parts = {name for name, module in model.named_modules() if not any(module.children())}
    steps = [
        (
            name,
            formula(name, model),
            tuple(value.shape),
            dtype_name(value.dtype),
            value.min().item(),
            value.max().item(),
        )
        for name, value in captured.items()
        if name in parts and not name.endswith("dropout")  # which does nothing here
    ]
    head_is_chosen = head is None and not bool(real[row].all())
    if head is None:
        head = padding_head(captured[attention_step(model, layer, "scores")][row, :, query], real[row])
    value = {name: captured.get(attention_step(model, layer, name)) for name in KEY_COLUMNS}
    keys = {
        name: each.expand(-1, model.config.n_heads, length, -1)[row, head, query]  # a padding mask is (B, 1, 1, S)
        for name, each in value.items()
        if each is not None
    }
    return Trace(steps, layer, head, row, query, tokens[row], keys, head_is_chosen)


def formula(name: str, model: PreTrainedModel) -> str:
    """Return the formula of a step, by the end of its name."""
    if name.endswith("activation"):
        relu = isinstance(model.get_submodule(name), torch.nn.ReLU)
        return "max(x, 0)" if relu else "x Φ(x)"
    return next((text for end, text in FORMULAS.items() if f".{name}".endswith(f".{end}")), "")

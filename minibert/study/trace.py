"""The trace: every value of one forward pass, in order, with its formula; and all numbers of one query."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from textwrap import indent

import torch
from torch import Tensor

from ..pretrained import PreTrainedModel
from .models import attention_step, choose
from .report import Report, dtype_name, table
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
    """

    steps: list[tuple[str, str, tuple[int, ...], str, float, float]]
    layer: int
    head: int
    row: int
    query: int
    tokens: Sequence[str]
    keys: dict[str, Tensor]

    def __str__(self) -> str:
        """Return the steps as a table, and below it the query's numbers."""
        rows = [(name, formula, str(shape), dtype, low, high) for name, formula, shape, dtype, low, high in self.steps]
        place = f"Layer {self.layer}, head {self.head}, row {self.row}, query {self.query} ({self.tokens[self.query]})"
        steps = table(("step", "formula", "shape", "dtype", "min", "max"), rows)
        return f"{steps}\n\n{place}: what it computes for each key\n{indent(keys_table(self.tokens, self.keys), '   ')}"


def keys_table(tokens: Sequence[str], keys: Mapping[str, Tensor]) -> str:
    """Lay out what one query computes for each key, side by side.

    Args:
        tokens: S keys.
        keys: by column, (S,) each: scores, masked_scores and probs; mask where there is one; and perhaps
            probs_without_mask.
    """
    shown = [(title, form, keys[name].tolist()) for name, (title, form) in KEY_COLUMNS.items() if name in keys]
    columns = [[form(x) for x in values] for _, form, values in shown]
    return table(["key", *(title for title, _, _ in shown)], zip(tokens, *columns, strict=True))


@torch.no_grad()
def trace(
    model: PreTrainedModel,
    batch: Mapping[str, Tensor],
    tokens: Sequence[Sequence[str]],
    layer: int = 0,
    head: int = 0,
    row: int = 0,
    query: int = 0,
) -> Trace:
    """Run a model and note every value on the way.

    Args:
        model: any model but multiple choice, whose rows are choices.
        batch: input_ids and attention_mask (B, S).
        tokens: of each row, S strings.
        layer: to look into, like head, row and query.
        head: number of the head.
        row: of the batch.
        query: position in the row.

    Raises:
        ValueError: a layer, head, row or query that does not exist.
    """
    check_eval(model)
    length = batch["input_ids"].shape[-1]
    sizes = (model.config.n_layers, model.config.n_heads, len(tokens), length)
    for name, index, size in zip(("layer", "head", "row", "query"), (layer, head, row, query), sizes, strict=True):
        choose(name, [index], size)
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
    value = {name: captured.get(attention_step(model, layer, name)) for name in KEY_COLUMNS}
    keys = {
        name: each.expand(-1, model.config.n_heads, length, -1)[row, head, query]  # a padding mask is (B, 1, 1, S)
        for name, each in value.items()
        if each is not None
    }
    return Trace(steps, layer, head, row, query, tokens[row], keys)


def formula(name: str, model: PreTrainedModel) -> str:
    """Return the formula of a step, by the end of its name."""
    if name.endswith("activation"):
        relu = isinstance(model.get_submodule(name), torch.nn.ReLU)
        return "max(x, 0)" if relu else "x Φ(x)"
    return next((text for end, text in FORMULAS.items() if f".{name}".endswith(f".{end}")), "")

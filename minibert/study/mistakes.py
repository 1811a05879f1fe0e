"""The catalogue of what people get wrong when they write DistilBERT themselves: a name, and a small change of a model.

`mistaken(model, name)` is a copy of a right model with one mistake in it: another module, weight or function in it, or
a hook on it. No source is edited, and the model itself stays as it is. What only training shows (the places of dropout,
the loss, the gradients) is not here, because no forward pass shows it.

Shapes: B batch, S tokens, D dim, H heads, E = D / H.
"""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..heads import (
    DistilBertForMaskedLM,
    DistilBertForMultipleChoice,
    DistilBertForQuestionAnswering,
    DistilBertForSequenceClassification,
    DistilBertForTokenClassification,
)
from ..model import FFN, Embeddings, MultiHeadSelfAttention, Transformer, TransformerBlock, sinusoidal_table
from .models import Model

Change = Callable[[Any], None]  # changes a model in place


def mistaken(model: Model, name: str) -> Any:
    """Return a copy of a model with a mistake in it; both use the same weights where the mistake leaves them alone.

    Args:
        model: any model.
        name: out of `catalogue(model)`.

    Raises:
        ValueError: another name.
    """
    changes = catalogue(model)
    if name not in changes:
        raise ValueError(f"the catalogue for {type(model).__name__} has no {name!r}, but: {', '.join(changes)}")
    wrong = share(model)
    with torch.no_grad():
        changes[name](wrong)
    return wrong


def catalogue(model: Model) -> dict[str, Change]:
    """Return the mistakes that can be made in a model: those of the encoder, then those of its head."""
    return ENCODER | HEADS.get(type(model), {})


# Three kinds of change


def replace_parts(kind: type | tuple[type, ...], **new: Callable[[Any], Any]) -> Change:
    """Give every submodule of a kind other attributes; each is made from the submodule as it was."""

    def change(model: nn.Module) -> None:
        for module in [module for module in model.modules() if isinstance(module, kind)]:
            for name, value in {name: make(module) for name, make in new.items()}.items():
                setattr(module, name, value)

    return change


def replace_step(step: str, new: Callable[..., Tensor], *sources: str) -> Change:
    """Give a step another value in every layer.

    Args:
        step: the end of its name, such as "attention.probs".
        new: makes it from the step's value and those of the sources.
        sources: steps or submodules of the same layer that run before it. Where one does not (the mask, where none is
            passed), the step stays as it is.
    """

    def change(model: nn.Module) -> None:
        for name in [name for name, _ in model.named_modules() if name.endswith(step)]:
            values: dict[str, Tensor] = {}
            for source in sources:
                model.get_submodule(name.removesuffix(step) + source).register_forward_hook(
                    partial(note, values, source)
                )
            model.get_submodule(name).register_forward_hook(partial(replace, values))

    def note(values: dict[str, Tensor], source: str, module: nn.Module, inputs: object, value: Tensor) -> None:
        values[source] = value

    def replace(values: dict[str, Tensor], module: nn.Module, inputs: object, value: Tensor) -> Tensor:
        found = [values.pop(source, None) for source in sources]
        return value if any(source is None for source in found) else new(value, *found)

    return change


def replace_logits(new: Callable[[Tensor], Tensor]) -> Change:
    """Return other logits, made from the right ones."""

    def change(model: nn.Module) -> None:
        def replace(module: nn.Module, inputs: object, output: Any) -> None:
            output.logits = new(output.logits)

        model.register_forward_hook(replace)

    return change


# What the changes are made of


def several(*changes: Change) -> Change:
    """Make one change after the other."""

    def change(model: nn.Module) -> None:
        for each in changes:
            each(model)

    return change


def share(module: Any) -> Any:
    """Copy a module and its submodules, but not its parameters: as `copy.deepcopy` would, 20 times faster."""
    twin = copy.copy(module)
    for name, value in vars(module).items():
        if isinstance(value, dict):  # of parameters, of hooks
            vars(twin)[name] = value.copy()
    for name, child in module.named_children():
        twin._modules[name] = share(child)
    return twin


def without_bias(linear: nn.Linear) -> nn.Linear:
    """Copy a linear layer without its bias."""
    linear = share(linear)
    linear.register_parameter("bias", None)
    return linear


def embedding(table: Tensor) -> nn.Embedding:
    """Return an embedding of a table's rows."""
    return nn.Embedding.from_pretrained(table)


def ignored(mask: Tensor) -> Tensor:
    """Turn an additive mask into bools, True = a key to ignore."""
    return mask < 0


def masked(hide: Tensor, like: Tensor, number: float | None = None) -> Tensor:
    """Turn bools into an additive mask of a number, as far as the dtype has it; None is the dtype's minimum."""
    number = torch.finfo(like.dtype).min if number is None else number
    return torch.where(hide, torch.tensor(number, dtype=torch.float64), 0.0).to(like)


def causal(scores: Tensor) -> Tensor:
    """Hide the keys that come after the query."""
    return scores.masked_fill(torch.ones_like(scores).triu(1).bool(), torch.finfo(scores.dtype).min)


def mask_in_first_layer_only(model: Any) -> None:
    """Leave the mask out in the layers after the first."""
    for transformer in [module for module in model.modules() if isinstance(module, Transformer)]:
        for block in transformer.layer[1:]:
            replace_step("attention.mask", torch.zeros_like)(block)


def unbiased_norm(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    """Divide the squares' sum by D - 1, which is what `x.var()` does."""
    return (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True) + norm.eps).sqrt() * norm.weight + norm.bias


def pre_norm_block(block: TransformerBlock, hidden_states: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Normalize what goes into the attention and the FFN, as GPT does, not the sum that comes out."""
    attended, probs = block.attention(block.sa_layer_norm(hidden_states), mask)
    x = block.sa_residual(attended + hidden_states)
    return block.output_residual(block.ffn(block.output_layer_norm(x)) + x), probs


class QuickGELU(nn.Module):
    """x σ(1.702 x), the other approximation of the GELU (Hendrycks & Gimpel 2016)."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape -> the same."""
        return x * torch.sigmoid(1.702 * x)


def pool(choose: Callable[[Tensor, Tensor], Tensor]) -> Change:
    """Read the sequence off another vector than the first token's.

    Args:
        choose: (B, S, D) hidden states and (B, S, 1) weights, 1 = real token -> (B, D).
    """

    def change(model: Any) -> None:
        right, masks = model.head, []
        model.distilbert.register_forward_hook(lambda encoder, inputs, output: masks.append(inputs[1]))

        def head(hidden_states: Tensor) -> Tensor:
            mask = masks.pop()
            mask = torch.ones(hidden_states.shape[:2]) if mask is None or mask.ndim != 2 else mask
            return right(choose(hidden_states, mask.to(hidden_states)[:, :, None])[:, None])

        model.head = head

    return change


# The catalogue

no_attention_residual = replace_step("sa_residual", lambda _, attended: attended, "attention.out_lin")
no_ffn_residual = replace_step("output_residual", lambda _, transformed: transformed, "ffn.lin2")
with_activation = (FFN, DistilBertForMaskedLM)

ENCODER: dict[str, Change] = {
    # Embeddings
    "positions from 1": replace_parts(
        Embeddings, position_embeddings=lambda part: embedding(part.position_embeddings.weight.roll(-1, dims=0))
    ),
    "no positions": replace_step("position_embeddings", torch.zeros_like),
    "sinusoidal positions": replace_parts(
        Embeddings,
        position_embeddings=lambda part: embedding(
            sinusoidal_table(*part.position_embeddings.weight.shape).to(part.position_embeddings.weight)
        ),
    ),
    "word embeddings times √D": replace_step("word_embeddings", lambda words: words * words.shape[-1] ** 0.5),
    "[PAD] as zero": replace_parts(
        Embeddings,
        word_embeddings=lambda part: embedding(
            part.word_embeddings.weight.index_fill(0, torch.tensor(part.word_embeddings.padding_idx), 0)
        ),
    ),
    "no embedding LayerNorm": replace_parts(Embeddings, LayerNorm=lambda _: nn.Identity()),
    # LayerNorm
    "LayerNorm eps 1e-5": replace_parts(nn.LayerNorm, eps=lambda _: 1e-5),  # PyTorch's
    "LayerNorm eps 1e-6": replace_parts(nn.LayerNorm, eps=lambda _: 1e-6),  # Flax's
    "LayerNorm eps 1e-3": replace_parts(nn.LayerNorm, eps=lambda _: 1e-3),  # Keras's
    "LayerNorm with unbiased variance": replace_parts(nn.LayerNorm, forward=lambda norm: partial(unbiased_norm, norm)),
    "LayerNorm without weight and bias": replace_parts(
        nn.LayerNorm,
        weight=lambda norm: nn.Parameter(torch.ones_like(norm.weight)),
        bias=lambda norm: nn.Parameter(torch.zeros_like(norm.bias)),
    ),
    # The mask
    "no mask": replace_step("attention.mask", torch.zeros_like),
    "mask of -1e4": replace_step("attention.mask", lambda mask: masked(ignored(mask), mask, -1e4)),
    "mask of -1e9": replace_step("attention.mask", lambda mask: masked(ignored(mask), mask, -1e9)),
    "mask of -inf": replace_step("attention.mask", lambda mask: masked(ignored(mask), mask, -torch.inf)),
    "mask inverted": replace_step("attention.mask", lambda mask: masked(~ignored(mask), mask)),
    "mask inverted, of -1e4": replace_step("attention.mask", lambda mask: masked(~ignored(mask), mask, -1e4)),
    "mask hides queries": replace_step("attention.mask", lambda mask: mask.transpose(-2, -1)),
    "mask hides queries too": replace_step(
        "attention.mask", lambda mask: masked(ignored(mask) | ignored(mask).transpose(-2, -1), mask)
    ),
    "mask in the first layer only": mask_in_first_layer_only,
    "causal mask": replace_step("attention.masked_scores", causal),
    "scores multiplied by the mask": replace_step(
        "attention.masked_scores", lambda _, scores, mask: scores * ~ignored(mask), "attention.scores", "attention.mask"
    ),
    "mask multiplied after the softmax": several(
        replace_step("attention.masked_scores", lambda _, scores: scores, "attention.scores"),
        replace_step("attention.probs", lambda probs, mask: probs * ~ignored(mask), "attention.mask"),
    ),
    # Attention
    "q and k swapped": replace_parts(
        MultiHeadSelfAttention, q_lin=lambda part: part.k_lin, k_lin=lambda part: part.q_lin
    ),
    "k qᵀ in place of q kᵀ": replace_step("attention.scores", lambda scores: scores.transpose(-2, -1)),
    "v from k_lin": replace_parts(MultiHeadSelfAttention, v_lin=lambda part: share(part.k_lin)),
    "heads interleaved": replace_parts(
        MultiHeadSelfAttention,
        split_heads=lambda part: lambda x: x.unflatten(-1, (-1, part.n_heads)).permute(0, 3, 1, 2),
    ),
    "heads merged without moving them back": replace_parts(
        MultiHeadSelfAttention, merge_heads=lambda _: lambda x: x.reshape(x.shape[0], x.shape[2], -1)
    ),
    "scale left out": replace_parts(MultiHeadSelfAttention, scale=lambda _: 1.0),
    "scale by √D": replace_parts(MultiHeadSelfAttention, scale=lambda part: part.q_lin.in_features**-0.5),
    "scale by E": replace_parts(MultiHeadSelfAttention, scale=lambda part: part.scale**2),
    "softmax over queries": replace_step(
        "attention.probs", lambda _, scores: scores.softmax(-2), "attention.masked_scores"
    ),
    "no bias in q, k and v": replace_parts(
        MultiHeadSelfAttention,
        q_lin=lambda part: without_bias(part.q_lin),
        k_lin=lambda part: without_bias(part.k_lin),
        v_lin=lambda part: without_bias(part.v_lin),
    ),
    "no output projection": replace_parts(MultiHeadSelfAttention, out_lin=lambda _: nn.Identity()),
    "weights transposed where square": replace_parts(
        nn.Linear,
        weight=lambda part: nn.Parameter(part.weight.T) if part.in_features == part.out_features else part.weight,
    ),
    # The block
    "tanh GELU": replace_parts(with_activation, activation=lambda _: nn.GELU("tanh")),
    "quick GELU": replace_parts(with_activation, activation=lambda _: QuickGELU()),
    "ReLU for GELU": replace_parts(with_activation, activation=lambda _: nn.ReLU()),
    "no residual around the attention": no_attention_residual,
    "no residual around the FFN": no_ffn_residual,
    "no residuals": several(no_attention_residual, no_ffn_residual),
    "block's input added after the FFN": replace_step(  # its input is what the first residual adds to the attention
        "output_residual",
        lambda _, transformed, residual, attended: transformed + (residual - attended),
        *("ffn.lin2", "sa_residual", "attention.out_lin"),
    ),
    "pre-norm": replace_parts(TransformerBlock, forward=lambda block: partial(pre_norm_block, block)),
    # The layers
    "last layer missing": replace_parts(Transformer, layer=lambda part: part.layer[:-1]),
    "first layer missing": replace_parts(Transformer, layer=lambda part: part.layer[1:]),
    "last layer in place of each": replace_parts(
        Transformer, layer=lambda part: nn.ModuleList(share(part.layer[-1]) for _ in part.layer)
    ),
    "first layer in place of each": replace_parts(
        Transformer, layer=lambda part: nn.ModuleList(share(part.layer[0]) for _ in part.layer)
    ),
}

of_sequences = (DistilBertForSequenceClassification, DistilBertForMultipleChoice)
SEQUENCE_HEAD: dict[str, Change] = {
    "[CLS] from the last slot": pool(lambda hidden_states, real: hidden_states[:, -1]),
    "mean pooling in place of [CLS]": pool(lambda hidden_states, real: (hidden_states * real).sum(1) / real.sum(1)),
    "mean pooling over padding in place of [CLS]": pool(lambda hidden_states, real: hidden_states.mean(1)),
    "tanh in the classifier": replace_parts(of_sequences, activation=lambda _: nn.Tanh()),
    "no activation in the classifier": replace_parts(of_sequences, activation=lambda _: nn.Identity()),
    "no pre_classifier": replace_parts(of_sequences, pre_classifier=lambda _: nn.Identity()),
}
LABELS: dict[str, Change] = {
    "softmax of the logits": replace_logits(lambda logits: logits.softmax(dim=-1)),
    "labels in reverse order": replace_logits(lambda logits: logits.flip(-1)),
}
HEADS: dict[type, dict[str, Change]] = {
    DistilBertForMaskedLM: {
        "LayerNorm before the GELU in the head": replace_parts(
            DistilBertForMaskedLM,
            head=lambda lm: lambda x: lm.vocab_projector(lm.activation(lm.vocab_layer_norm(lm.vocab_transform(x)))),
        ),
        "no bias in the projector": replace_parts(
            DistilBertForMaskedLM, vocab_projector=lambda lm: without_bias(lm.vocab_projector)
        ),
    },
    DistilBertForSequenceClassification: SEQUENCE_HEAD | LABELS,
    DistilBertForTokenClassification: LABELS,
    DistilBertForQuestionAnswering: {
        "start and end swapped": replace_step("qa_outputs", lambda start_and_end: start_and_end.flip(-1)),
    },
    DistilBertForMultipleChoice: SEQUENCE_HEAD
    | {
        "choices dealt by column": replace_logits(lambda logits: logits.reshape(logits.shape[::-1]).T),
    },
}

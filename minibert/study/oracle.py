"""The same DistilBERT once more, in NumPy float64: an oracle to compare `model.py` with.

Written from the papers' formulas alone. It shares no code with `mask.py`, `model.py` and `heads.py`, only the names of
weights and steps, and has nothing but the forward pass in evaluation: no dropout, no gradient, no speed.

Shapes: B batch, S tokens, D dim, H heads, E = D / H, L labels, V vocabulary, C choices.

Source: Vaswani et al. 2017, "Attention Is All You Need"; Devlin et al. 2018, "BERT"; Sanh et al. 2019, "DistilBERT";
Hendrycks & Gimpel 2016, "Gaussian Error Linear Units"; Ba et al. 2016, "Layer Normalization".
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ..config import DistilBertConfig

Array = npt.NDArray[np.float64]
erf = np.vectorize(math.erf, otypes=[np.float64])  # NumPy has no erf; this one is exact, and slow


def run(
    tensors: Mapping[str, Any],
    config: DistilBertConfig,
    input_ids: Any,
    attention_mask: Any = None,
    position_ids: Any = None,
    *,
    ignore: float = float(np.finfo(np.float64).min),
) -> dict[str, Array]:
    """Compute every value between the ids and the answer.

    Args:
        tensors: weights by their checkpoint names, tensors or arrays. Names that begin with `distilbert.` are those
            of a model with a head; the names of the head's weights tell which head it is.
        config: sizes, the activation and whether the masked-LM projector is the word-embedding table.
        input_ids: (B, S); for multiple choice (B, C, S), and so the other inputs.
        attention_mask: (B, S), 1 = a key to attend to; or (B, 1 or H, S, S), 1 = this query may attend to this key.
        position_ids: (B, S) or (1, S); None counts from 0.
        ignore: what the mask adds to the score of a key that is not to be attended to. The paper's is minus infinity;
            a model in float32 adds `torch.finfo(torch.float32).min`.

    Returns:
        Arrays by the names of the torch model's steps and submodules, in order of execution; last what the model
        returns: `last_hidden_state`, `logits`, or `start_logits` and `end_logits`.

    Raises:
        ValueError: a mask of other numbers than 0 and 1.
    """
    ids = to_array(input_ids).astype(int)
    positions = np.arange(ids.shape[-1])[None] if position_ids is None else to_array(position_ids).astype(int)
    mask = None if attention_mask is None else additive(to_array(attention_mask), ids.ndim, ignore)
    choices = ids.shape[1] if ids.ndim == 3 else None  # multiple choice: each is a text of its own
    ids, positions = ids.reshape(-1, ids.shape[-1]), positions.reshape(-1, ids.shape[-1])

    model = Values(tensors)
    prefix = "distilbert." if any(name.startswith("distilbert.") for name in tensors) else ""
    x = embeddings(model, prefix + "embeddings.", ids, positions)
    for layer in range(config.n_layers):
        x = block(model, f"{prefix}transformer.layer.{layer}.", x, mask, config)
    head(model, x, choices, config)
    return model.values


def additive(mask: Array, rank_of_ids: int, ignore: float) -> Array:
    """Return 0 where a query may attend and `ignore` where not, to be added to (B, H, S, S) scores (3.2.3)."""
    if not np.isin(mask, (0, 1)).all():
        raise ValueError(f"attention_mask must hold only 0 and 1, got {mask[~np.isin(mask, (0, 1))][0]}")
    if rank_of_ids == 3:
        mask = mask.reshape(-1, *mask.shape[2:])
    return np.where(mask[:, None, None, :] if mask.ndim == 2 else mask, 0.0, ignore)


class Values:
    """The weights, and every value computed from them so far."""

    def __init__(self, tensors: Mapping[str, Any]) -> None:
        self.weights = {name: to_array(tensor) for name, tensor in tensors.items()}
        self.values: dict[str, Array] = {}

    def step(self, name: str, value: Array) -> Array:
        """Keep a value under its name."""
        self.values[name] = value
        return value

    def linear(self, name: str, x: Array) -> Array:
        """Return x Wᵀ + b."""
        return self.step(name, x @ self.weights[name + ".weight"].T + self.weights[name + ".bias"])

    def layer_norm(self, name: str, x: Array) -> Array:
        """Return γ (x - mean) / √(variance + ε) + β over the last axis (Ba et al. 2016; BERT's ε is 1e-12)."""
        mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
        normalized = (x - mean) / np.sqrt(variance + 1e-12)
        return self.step(name, normalized * self.weights[name + ".weight"] + self.weights[name + ".bias"])


def embeddings(model: Values, name: str, ids: npt.NDArray[np.int_], positions: npt.NDArray[np.int_]) -> Array:
    """Word + position, normalized: BERT's input (Devlin et al. 2018, figure 2) without its segments (Sanh et al.)."""
    words = model.step(name + "word_embeddings", model.weights[name + "word_embeddings.weight"][ids])  # (B, S, D)
    x = words + model.step(name + "position_embeddings", model.weights[name + "position_embeddings.weight"][positions])
    return model.layer_norm(name + "LayerNorm", model.step(name + "sum", x))


def block(model: Values, name: str, x: Array, mask: Array | None, config: DistilBertConfig) -> Array:
    """LayerNorm(x + Sublayer(x)) for attention, then for the feed-forward network (Vaswani et al. 2017, 3.1)."""
    attended = attention(model, name + "attention.", x, mask, config.n_heads)
    x = model.layer_norm(name + "sa_layer_norm", model.step(name + "sa_residual", x + attended))
    inner = model.step(name + "ffn.activation", activation(model.linear(name + "ffn.lin1", x), config))  # 3.3
    residual = model.step(name + "output_residual", x + model.linear(name + "ffn.lin2", inner))
    return model.layer_norm(name + "output_layer_norm", residual)


def attention(model: Values, name: str, x: Array, mask: Array | None, n_heads: int) -> Array:
    """Concat(head₁ … head_H) Wᴼ with head = softmax(Q Kᵀ / √E + mask) V (Vaswani et al. 2017, 3.2)."""
    q, k, v = (
        model.step(name + each, np.stack(np.split(model.linear(f"{name}{each}_lin", x), n_heads, axis=-1), axis=1))
        for each in "qkv"
    )  # (B, H, S, E)
    scores = model.step(name + "scores", q @ k.swapaxes(-2, -1) / math.sqrt(q.shape[-1]))
    if mask is not None:
        scores = scores + model.step(name + "mask", mask)
    probs = model.step(name + "probs", softmax(model.step(name + "masked_scores", scores)))  # (B, H, S, S)
    context = model.step(name + "context", probs @ v)
    return model.linear(name + "out_lin", np.concatenate([context[:, h] for h in range(n_heads)], axis=-1))


def head(model: Values, hidden: Array, choices: int | None, config: DistilBertConfig) -> None:
    """Compute the head's values from the (B, S, D) hidden states; the names of its weights say which head it is."""
    if "vocab_transform.weight" in model.weights:  # BERT's masked LM; the output matrix is the table of words
        x = model.step("activation", activation(model.linear("vocab_transform", hidden), config))
        x = model.layer_norm("vocab_layer_norm", x)
        tied = config.tie_word_embeddings
        table = model.weights["distilbert.embeddings.word_embeddings.weight" if tied else "vocab_projector.weight"]
        model.step("logits", model.step("vocab_projector", x @ table.T + model.weights["vocab_projector.bias"]))
    elif "qa_outputs.weight" in model.weights:
        start_and_end = model.linear("qa_outputs", hidden)
        model.step("start_logits", start_and_end[:, :, 0])
        model.step("end_logits", start_and_end[:, :, 1])
    elif "pre_classifier.weight" in model.weights:  # of [CLS], the first token: a sequence, or each of C choices
        x = model.step("activation", np.maximum(model.linear("pre_classifier", hidden[:, 0]), 0))
        logits = model.linear("classifier", x)
        model.step("logits", logits.reshape(-1, choices) if choices else logits)
    elif "classifier.weight" in model.weights:
        model.step("logits", model.linear("classifier", hidden))
    else:
        model.step("last_hidden_state", hidden)


def softmax(x: Array) -> Array:
    """Return exp(x) / Σ exp(x) along the keys; taking the largest away first changes nothing but the overflow."""
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def activation(x: Array, config: DistilBertConfig) -> Array:
    """GELU, x Φ(x) with Φ(x) = (1 + erf(x / √2)) / 2 (Hendrycks & Gimpel 2016), or ReLU."""
    if config.activation == "relu":
        return np.maximum(x, 0)
    return x * (1 + erf(x / math.sqrt(2))) / 2


def to_array(values: Any) -> Array:
    """Return a tensor, an array or a list in float64."""
    if isinstance(values, torch.Tensor):
        values = values.detach().double().cpu().numpy()
    return np.asarray(values, dtype=np.float64)

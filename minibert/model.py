"""DistilBERT's encoder: from token ids to hidden states, every value on the way a named step.

Shapes: B batch, S tokens, D dim, H heads, E = D / H, V vocabulary. Scores are (query, key).
Submodules are named as in the checkpoint (`q_lin`, `sa_layer_norm`, `transformer.layer.0`, `LayerNorm`).

Source: Sanh et al. 2019 (DistilBERT: BERT with half the layers, no segment embeddings, no pooler), Devlin et al. 2018
(BERT), Vaswani et al. 2017 (the block). The order of operations is that of
https://github.com/huggingface/transformers/blob/v5.23.0/src/transformers/models/distilbert/modeling_distilbert.py
with `attn_implementation="eager"`, so that the results are equal bit for bit.
"""

from typing import Any, cast

import torch
from torch import Tensor, nn

from .config import DistilBertConfig
from .mask import additive_mask, check_attention_mask, has_values
from .outputs import EncoderOutput
from .pretrained import PreTrainedModel

LAYER_NORM_EPS = 1e-12


class Step(nn.Identity):
    """A named value: a module that returns its input, so that PyTorch's forward hooks can read or replace it.

    Its name is its path in the model, such as `transformer.layer.0.attention.scores`.
    """


class Embeddings(nn.Module):
    """Word embedding + learned position embedding, normalized. DistilBERT has no segment embedding."""

    def __init__(self, config: DistilBertConfig) -> None:
        super().__init__()
        # Empty tables, filled later by init_weights or from a checkpoint: nn.Embedding(V, D) draws random values, which
        # takes more than a second on the meta device, where from_pretrained builds the model.
        words, positions = (
            torch.empty(config.vocab_size, config.dim),
            torch.empty(config.max_position_embeddings, config.dim),
        )
        self.word_embeddings = nn.Embedding.from_pretrained(words, freeze=False, padding_idx=config.pad_token_id)
        self.position_embeddings = nn.Embedding.from_pretrained(positions, freeze=False)
        self.sum = Step()
        self.LayerNorm = nn.LayerNorm(config.dim, eps=LAYER_NORM_EPS)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        input_ids: Tensor | None,
        inputs_embeds: Tensor | None = None,
        position_ids: Tensor | None = None,
    ) -> Tensor:
        """Embed (B, S) ids, or add positions to (B, S, D) word embeddings -> (B, S, D)."""
        words = self.word_embeddings(input_ids) if inputs_embeds is None else inputs_embeds  # (B, S, D)
        if position_ids is None:
            position_ids = torch.arange(words.shape[1], device=words.device)[None]  # (1, S)
        x = self.sum(words + self.position_embeddings(position_ids))
        return self.dropout(self.LayerNorm(x))


class MultiHeadSelfAttention(nn.Module):
    """softmax(q kᵀ / √E + mask) v for each head (Vaswani et al. 2017, section 3.2)."""

    def __init__(self, config: DistilBertConfig) -> None:
        super().__init__()
        self.n_heads = config.n_heads
        self.scale = (config.dim // config.n_heads) ** -0.5
        self.q_lin = nn.Linear(config.dim, config.dim)
        self.k_lin = nn.Linear(config.dim, config.dim)
        self.v_lin = nn.Linear(config.dim, config.dim)
        self.out_lin = nn.Linear(config.dim, config.dim)
        self.dropout = nn.Dropout(config.attention_dropout)
        self.q, self.k, self.v = Step(), Step(), Step()
        self.scores = Step()
        self.mask = Step()
        self.masked_scores = Step()
        self.probs = Step()
        self.context = Step()

    def forward(self, hidden_states: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """(B, S, D) and an additive mask, (B, 1, 1, S) or (1 or B, 1 or H, S, S) -> (B, S, D) and the probabilities."""
        q = self.q(self.split_heads(self.q_lin(hidden_states)))  # (B, H, S, E)
        k = self.k(self.split_heads(self.k_lin(hidden_states)))
        v = self.v(self.split_heads(self.v_lin(hidden_states)))
        scores = self.scores(q @ k.transpose(-2, -1) * self.scale)  # (B, H, S, S)
        if mask is not None:
            scores = scores + self.mask(mask)
        probs = self.probs(self.masked_scores(scores).softmax(dim=-1))  # each row sums to 1
        context = self.context(self.dropout(probs) @ v)  # (B, H, S, E)
        return self.out_lin(self.merge_heads(context)), probs  # (B, S, D)

    def split_heads(self, x: Tensor) -> Tensor:
        """(B, S, D) -> (B, H, S, E)."""
        return x.unflatten(-1, (self.n_heads, -1)).transpose(1, 2)

    def merge_heads(self, x: Tensor) -> Tensor:
        """(B, H, S, E) -> (B, S, D)."""
        return x.transpose(1, 2).flatten(-2)


class FFN(nn.Module):
    """Two linear layers with a GELU between them, applied to each position separately."""

    def __init__(self, config: DistilBertConfig) -> None:
        super().__init__()
        self.lin1 = nn.Linear(config.dim, config.hidden_dim)
        self.activation = activation(config)
        self.lin2 = nn.Linear(config.hidden_dim, config.dim)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(B, S, D) -> (B, S, D)."""
        return self.dropout(self.lin2(self.activation(self.lin1(x))))


class TransformerBlock(nn.Module):
    """Attention, then the feed-forward layer; each is added to its input, and the sum is normalized (post-norm)."""

    def __init__(self, config: DistilBertConfig) -> None:
        super().__init__()
        self.attention = MultiHeadSelfAttention(config)
        self.sa_residual = Step()
        self.sa_layer_norm = nn.LayerNorm(config.dim, eps=LAYER_NORM_EPS)
        self.ffn = FFN(config)
        self.output_residual = Step()
        self.output_layer_norm = nn.LayerNorm(config.dim, eps=LAYER_NORM_EPS)

    def forward(self, hidden_states: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """(B, S, D) and an additive mask -> (B, S, D) and the attention probabilities (B, H, S, S)."""
        attended, probs = self.attention(hidden_states, mask)
        x = self.sa_layer_norm(self.sa_residual(attended + hidden_states))
        return self.output_layer_norm(self.output_residual(self.ffn(x) + x)), probs


class Transformer(nn.Module):
    """The transformer blocks in sequence."""

    def __init__(self, config: DistilBertConfig) -> None:
        super().__init__()
        self.layer = nn.ModuleList(TransformerBlock(config) for _ in range(config.n_layers))

    def forward(
        self,
        hidden_states: Tensor,
        mask: Tensor | None,
        output_hidden_states: bool | None = False,
        output_attentions: bool | None = False,
    ) -> EncoderOutput:
        """(B, S, D) and an additive mask -> the last hidden states, and on request those of all layers and the maps."""
        all_hidden_states, all_attentions = [hidden_states], []
        for layer in self.layer:
            hidden_states, probs = layer(hidden_states, mask)
            if output_hidden_states:
                all_hidden_states.append(hidden_states)
            if output_attentions:
                all_attentions.append(probs)
        return EncoderOutput(
            last_hidden_state=hidden_states,
            hidden_states=tuple(all_hidden_states) if output_hidden_states else None,
            attentions=tuple(all_attentions) if output_attentions else None,
        )


class DistilBertModel(PreTrainedModel):
    """The encoder without a head: token ids in, hidden states out."""

    encoder_prefix = ""

    def __init__(self, config: DistilBertConfig) -> None:
        super().__init__(config)
        self.embeddings = Embeddings(config)
        self.transformer = Transformer(config)
        self.init_weights(self.embeddings, self.transformer)  # N(0, 0.02), see pretrained.py
        if config.sinusoidal_pos_embds:
            self.embeddings.position_embeddings.weight.data = sinusoidal_table(
                config.max_position_embeddings, config.dim
            )

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        *,
        inputs_embeds: Tensor | None = None,
        position_ids: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        output_hidden_states: bool | None = False,
        output_attentions: bool | None = False,
        return_dict: bool | None = True,
    ) -> EncoderOutput | tuple[Any, ...]:
        """Run the encoder.

        Args:
            input_ids: (B, S) token ids, int64 or int32.
            attention_mask: (B, S), 1 = real token, 0 = padding; other patterns as in `mask.check_attention_mask`. None:
                no mask at all, every token is attended to.
            inputs_embeds: (B, S, D) word embeddings, in place of `input_ids`.
            position_ids: (B, S) or (1, S) row numbers of the position table; None means 0, 1, 2, … With padding on the
                left, count from the first real token of each text.
            token_type_ids: ignored: DistilBERT has no segments, but some tokenizers return these ids.
            output_hidden_states: also return the hidden states after each layer.
            output_attentions: also return the attention probabilities of each layer.
            return_dict: False returns `output.to_tuple()`.

        Raises:
            ValueError: see `check_inputs`.
        """
        weight = self.embeddings.position_embeddings.weight
        check_inputs(self.config, input_ids, attention_mask, inputs_embeds, position_ids, weight)
        hidden_states = self.embeddings(input_ids, inputs_embeds, position_ids)  # (B, S, D)
        mask = None if attention_mask is None else additive_mask(attention_mask, hidden_states.dtype)
        output = self.transformer(hidden_states, mask, output_hidden_states, output_attentions)
        return output.to_tuple() if return_dict is False else output


def check_inputs(
    config: DistilBertConfig,
    input_ids: Tensor | None,
    attention_mask: Tensor | None,
    inputs_embeds: Tensor | None,
    position_ids: Tensor | None,
    weight: Tensor,
) -> None:
    """Refuse an input that would fail deep inside the model or give wrong results.

    Shapes are always checked. Values are checked only outside compilation: the check costs a synchronization on a GPU.

    `weight` is one of the model's parameters, with which device and dtype are compared.

    Raises:
        ValueError: names the wrong value and the way out.
    """
    if (input_ids is None) == (inputs_embeds is None):
        raise ValueError("pass either input_ids or inputs_embeds")
    for given in (input_ids, attention_mask, inputs_embeds, position_ids):
        if not isinstance(given, Tensor):
            continue  # not given, or refused below
        if given.layout != torch.strided or given.is_nested or given.is_quantized:
            raise ValueError("the inputs must be plain tensors, not sparse, nested or quantized ones")
        if given.is_meta != weight.is_meta:
            raise ValueError(f"an input is on {given.device}, the model is on {weight.device}: use .to(model.device)")
    if inputs_embeds is None:
        check_ids("input_ids", input_ids, "vocab_size", config.vocab_size)
    elif not isinstance(inputs_embeds, Tensor) or not inputs_embeds.is_floating_point():
        got = inputs_embeds.dtype if isinstance(inputs_embeds, Tensor) else type(inputs_embeds).__name__
        raise ValueError(f"inputs_embeds must be a tensor of floating-point numbers, got {got}")
    elif inputs_embeds.ndim != 3 or inputs_embeds.shape[2] != config.dim or 0 in inputs_embeds.shape:
        raise ValueError(f"inputs_embeds must have shape (B, S, {config.dim}), got {tuple(inputs_embeds.shape)}")
    elif not torch.is_autocast_enabled(weight.device.type):
        check_dtype(inputs_embeds.dtype, weight.dtype)
    inputs = cast(Tensor, input_ids if inputs_embeds is None else inputs_embeds)
    batch, length = inputs.shape[:2]
    if position_ids is not None:
        check_ids("position_ids", position_ids, "max_position_embeddings", config.max_position_embeddings)
        if position_ids.shape not in ((batch, length), (1, length)):
            raise ValueError(f"position_ids must be ({batch} or 1, {length}), got {tuple(position_ids.shape)}")
    elif length > config.max_position_embeddings:
        raise ValueError(
            f"input has {length} tokens but this model has {config.max_position_embeddings} positions: tokenize with "
            f"truncation=True, or split the text"
        )
    if attention_mask is not None:
        check_attention_mask(attention_mask, batch, length, config.n_heads)


def check_dtype(given: torch.dtype, dtype: torch.dtype) -> None:
    """Refuse embeddings that are more precise than the model, such as float64 for a float32 model."""
    if torch.promote_types(given, dtype) != dtype:
        raise ValueError(f"inputs_embeds are {given}, but the model is {dtype}: use inputs_embeds.to(model.dtype)")


def check_ids(name: str, ids: object, size_name: str, size: int) -> None:
    """Refuse ids that are not a (B, S) tensor of integers from 0 to size - 1."""
    if not isinstance(ids, Tensor) or ids.dtype not in (torch.int64, torch.int32):
        got = ids.dtype if isinstance(ids, Tensor) else type(ids).__name__
        raise ValueError(f"{name} must be a tensor of int64 or int32, got {got}")
    if ids.ndim != 2 or 0 in ids.shape:
        raise ValueError(
            f"{name} must have shape (B, S), at least one token, got {tuple(ids.shape)}: one sequence is a batch of "
            f"one, ids[None]"
        )
    if has_values(ids) and not 0 <= ids.min() <= ids.max() < size:
        wrong = ids.min() if ids.min() < 0 else ids.max()
        hint = ": tokenizer and model do not match" if name == "input_ids" else ""
        raise ValueError(f"{name} contain {wrong.item()} but {size_name} is {size}{hint}")


def activation(config: DistilBertConfig) -> nn.Module:
    """Return the exact GELU, x Φ(x) (Hendrycks & Gimpel 2016), or ReLU if the config says so."""
    return nn.GELU() if config.activation == "gelu" else nn.ReLU()


def sinusoidal_table(n_positions: int, dim: int) -> Tensor:
    """Return the (n_positions, dim) table of sines and cosines of Vaswani et al. 2017, section 3.5."""
    exponent = torch.arange(dim, dtype=torch.float64) // 2 * 2 / dim
    table = torch.arange(n_positions, dtype=torch.float64)[:, None] / 10000**exponent
    table[:, 0::2], table[:, 1::2] = table[:, 0::2].sin(), table[:, 1::2].cos()
    return table.float()

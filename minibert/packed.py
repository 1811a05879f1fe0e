"""The fast path: the same model without padding.

Tokens meet each other only in attention. Everything else (the embeddings, linear layers, LayerNorm, GELU, the heads)
looks at one token at a time and does not ask in which row it stands. So the real tokens of a batch are packed into one
flat (T, D), row after row, and only attention needs to know the rows. They lie sorted by length: rows of equal length
are a plain view (rows, length, D) of the flat tensor without a padded slot in it, and the mask has nothing left to do.
A hole in a mask is a token that is not there; each real token keeps its own position. A head that reads only [CLS] runs
the last layer for that token alone. On x86 CPUs `kernels.py` prepares the linear layers, and then a text gets the same
bits alone and in any batch.

Shapes: B batch, S tokens, T real tokens of the batch, D dim, H heads, E = D / H, C choices.
Source of the flat layout: Zeng et al. 2022, "Boosting Distributed Training Performance of the Unpadded BERT Model".
"""

from functools import cached_property
from itertools import groupby
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from .heads import (
    DistilBertForMaskedLM,
    DistilBertForMultipleChoice,
    DistilBertForQuestionAnswering,
    DistilBertForSequenceClassification,
    DistilBertForTokenClassification,
    LogitsOutput,
    SpanOutput,
    flatten_choices,
)
from .kernels import BLOCK, Int8Linear, copy_structure, is_cpu_float32, round_once, rows_are_independent, use_kernels
from .model import DistilBertModel, EncoderOutput, TransformerBlock, check_inputs
from .pretrained import PreTrainedModel

CLS_HEADS = (DistilBertForSequenceClassification, DistilBertForMultipleChoice)  # they read the first token alone
TOKEN_HEADS = (DistilBertForMaskedLM, DistilBertForTokenClassification)
FFN_ROWS = 1024  # at a time: the widest tensor (T, 4 D) would come from new pages at each call, smaller ones are reused


def pack(model: PreTrainedModel, *, int8: bool = False, batch_invariant: bool = False) -> "PackedModel":
    """Return the model's fast form, for inference: the same call, the same outputs.

    It shares the model's parameters, but prepared weights are copies: after changing weights, pack again.

    Args:
        model: `DistilBertModel` or one of the five heads, in eval mode, on any device, of any floating-point dtype.
        int8: run the encoder's linear layers on int8 numbers: faster, and less exact; see `kernels.Int8Linear`.
        batch_invariant: insist on `PackedModel.batch_invariant`.

    Raises:
        ValueError: another class of model; one in training mode, or with hooks; int8 or batch invariance where this
            model or machine cannot have it.
    """
    if type(model) not in (DistilBertModel, DistilBertForQuestionAnswering, *CLS_HEADS, *TOKEN_HEADS):
        raise ValueError(f"pack takes DistilBertModel and the five heads, not {type(model).__name__}")
    if model.training:
        raise ValueError("a packed model is for inference: call model.eval() first")
    hooked = [name for name, part in model.named_modules() if part._forward_hooks or part._forward_pre_hooks]
    if hooked:
        raise ValueError(
            f"a packed model runs no hooks, but there are some on {hooked[:3]}: remove them before packing"
        )
    if int8 and not (is_cpu_float32(model) and Int8Linear.is_available()):
        raise ValueError(f"int8 needs float32 on an x86 CPU with VNNI, got {model.dtype} on {model.device}")
    fast = PackedModel(model, int8)
    if batch_invariant and not fast.batch_invariant:
        raise ValueError(
            f"{fast} cannot give the same bits in every batch: that needs float32 on an x86 CPU with MKL, more than "
            f"one attention head, and dim and hidden_dim that are multiples of {BLOCK}"
        )
    return fast


class PackedModel:
    """A model without padding; see `pack`. It can be pickled and deep-copied: the copy chooses its kernel anew."""

    def __init__(self, model: PreTrainedModel, int8: bool) -> None:
        self.plain, self.model = copy_structure(model), copy_structure(model)  # `plain` is what a pickle holds
        self.int8 = int8
        self.config, self.device, self.dtype = model.config, model.device, model.dtype
        self.encoder = cast(DistilBertModel, getattr(self.model, "distilbert", self.model))
        self.kernels = use_kernels(self.model, self.encoder, int8)

    def __reduce__(self) -> tuple[object, ...]:
        return PackedModel, (self.plain, self.int8)

    def __repr__(self) -> str:
        return f"PackedModel({type(self.model).__name__}, {self.dtype}, {self.device}, {self.kernels})"

    @cached_property
    def batch_invariant(self) -> bool:
        """Whether a text gets the same bits alone and in any batch, order and padding, with any number of threads.

        It needs prepared linear layers, which are tried out on this machine, several heads (for one query of one head
        torch's attention takes another path), and sizes that fill vector registers.
        """
        fits = self.config.dim % BLOCK == 0 and self.config.hidden_dim % BLOCK == 0 and self.config.n_heads > 1
        return fits and rows_are_independent(self.model)

    @torch.no_grad()
    def __call__(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        *,
        inputs_embeds: Tensor | None = None,
        position_ids: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
    ) -> Any:  # as for any module
        """Run the model, without recording gradients. Arguments are the model's own, but for those that are refused.

        Returns:
            The dataclass that the model returns. Padded slots hold 0; in start_logits and end_logits the dtype's
            minimum, so that no argmax can choose them.

        Raises:
            ValueError: see `model.check_inputs`; labels, positions of answers, `output_attentions`; embeddings that
                require a gradient; a 4-D mask; a row that begins with padding, if the head reads [CLS].
        """
        if output_attentions or any(argument is not None for argument in (labels, start_positions, end_positions)):
            raise ValueError("a packed model gives no loss and no attentions: use the model itself")
        if inputs_embeds is not None and inputs_embeds.requires_grad:
            raise ValueError("a packed model records no gradient: pass inputs_embeds.detach(), or use the model itself")
        model, tokens = self.model, input_ids if inputs_embeds is None else inputs_embeds
        n_choices = None
        if isinstance(model, DistilBertForMultipleChoice) and tokens is not None:
            if tokens.ndim != (3 if inputs_embeds is None else 4):
                raise ValueError(f"multiple choice takes (B, C, S) or embeds (B, C, S, D), got {tuple(tokens.shape)}")
            n_choices = tokens.shape[1]
            input_ids, attention_mask = flatten_choices(input_ids), flatten_choices(attention_mask)
            inputs_embeds, position_ids = flatten_choices(inputs_embeds), flatten_choices(position_ids)
        check_inputs(self.config, input_ids, attention_mask, inputs_embeds, position_ids)
        tokens = cast(Tensor, input_ids if inputs_embeds is None else inputs_embeds)
        layout = Layout(find_real(tokens, attention_mask, isinstance(model, CLS_HEADS)))
        states = self._encode(layout, tokens, position_ids, isinstance(model, CLS_HEADS) and not output_hidden_states)
        x = states[-1]
        hidden_states = tuple(layout.unpack(state) for state in states) if output_hidden_states else None
        if isinstance(model, CLS_HEADS):
            first = x[layout.first] if output_hidden_states else x  # (B, D), of the sorted rows
            logits = model.head(first[:, None])[layout.order.argsort()]
            logits = logits if n_choices is None else logits.view(-1, n_choices)
            return LogitsOutput(logits, hidden_states=hidden_states)
        if isinstance(model, DistilBertForQuestionAnswering):
            start, end = layout.unpack(model.qa_outputs(x), torch.finfo(x.dtype).min).unbind(-1)
            return SpanOutput(start, end, hidden_states=hidden_states)
        if isinstance(model, TOKEN_HEADS):
            return LogitsOutput(layout.unpack(model.head(x)), hidden_states=hidden_states)
        return EncoderOutput(layout.unpack(x), hidden_states)

    def _encode(self, layout: "Layout", tokens: Tensor, position_ids: Tensor | None, first_only: bool) -> list[Tensor]:
        """Return the embeddings and each layer's result, (T, D); with `first_only` the last layer's is (B, D)."""
        if position_ids is None:
            position_ids = torch.arange(tokens.shape[1], device=tokens.device)[None]  # (1, S)
        packed, positions = layout.pack(tokens)[None], layout.pack(position_ids)[None]  # (1, T) or (1, T, D); (1, T)
        ids, embeds = (packed, None) if tokens.ndim == 2 else (None, packed)
        states = [self.encoder.embeddings(ids, embeds, positions)[0]]
        for i, block in enumerate(self.encoder.transformer.layer, 1):
            only_now = first_only and i == self.config.n_layers
            states.append(run_block(cast(TransformerBlock, block), states[-1], layout, only_now))
        return states


def find_real(tokens: Tensor, attention_mask: Tensor | None, needs_first: bool) -> Tensor:
    """Return the (B, S) bools of the real tokens.

    Raises:
        ValueError: a mask that is not one of tokens; padding in a row's first slot where a head needs it.
    """
    if attention_mask is None:
        return torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
    if attention_mask.ndim != 2:
        raise ValueError("a packed model takes a (B, S) attention_mask: for a 4-D pattern use the model itself")
    real = attention_mask.bool()
    if needs_first and not real[:, 0].all():
        row = (~real[:, 0]).nonzero()[0].item()
        raise ValueError(f"row {row} begins with padding, but this head reads its first slot, [CLS]: pad on the right")
    return real


class Layout:
    """Where the tokens of a padded batch lie in the flat one: by the number of real tokens in a row, then by row.

    Args:
        real: (B, S) bools, True = a real token.
    """

    def __init__(self, real: Tensor) -> None:
        self.shape = real.shape
        lengths, self.order = real.sum(1).sort(stable=True)  # (B,) each
        slots = torch.arange(real.numel(), device=real.device).view(real.shape)
        self.slots = slots[self.order][real[self.order]]  # (T,) of each packed token in the padded batch
        self.first = lengths.cumsum(0) - lengths  # (B,) each sorted row's first packed token
        self.groups = [(len(list(rows)), length) for length, rows in groupby(lengths.tolist())]  # (rows, length)

    def pack(self, x: Tensor) -> Tensor:
        """(B, S, …) or (1, S, …) -> (T, …)."""
        return x.expand(*self.shape, *x.shape[2:]).flatten(0, 1)[self.slots]

    def unpack(self, x: Tensor, padding: float = 0.0) -> Tensor:
        """(T, …) -> (B, S, …)."""
        padded = x.new_full((self.shape.numel(), *x.shape[1:]), padding)
        padded[self.slots] = x
        return padded.unflatten(0, self.shape)


def run_block(block: TransformerBlock, x: Tensor, layout: Layout, first_only: bool) -> Tensor:
    """(T, D) -> (T, D), as `TransformerBlock` does; with `first_only` (B, D), the first token of each sorted row."""
    attention = block.attention
    queries, ready = x[layout.first] if first_only else x, round_once(attention, x)
    q, k, v = attention.q_lin(queries if first_only else ready), attention.k_lin(ready), attention.v_lin(ready)
    context = attend(q, k, v, layout.groups, attention.n_heads)
    x = block.sa_layer_norm(attention.out_lin(context).add_(queries))  # in place: see InPlaceGELU
    return torch.cat([block.output_layer_norm(block.ffn(rows).add_(rows)) for rows in x.split(FFN_ROWS)])


def attend(q: Tensor, k: Tensor, v: Tensor, groups: list[tuple[int, int]], n_heads: int) -> Tensor:
    """Let the tokens of each row attend to each other.

    Args:
        q: (T, D), or (B, D) for one query a row.
        k: (T, D).
        v: (T, D).
        groups: (rows, length) of rows of equal length, in the order in which they lie.
        n_heads: H.

    Returns:
        Shaped like q.
    """
    key_sizes = [rows * length for rows, length in groups]
    query_sizes = key_sizes if len(q) == len(k) else [rows for rows, _ in groups]
    contexts = []
    for (rows, _), *parts in zip(groups, q.split(query_sizes), k.split(key_sizes), v.split(key_sizes), strict=True):
        heads = (part.unflatten(0, (rows, -1)).unflatten(-1, (n_heads, -1)).transpose(1, 2) for part in parts)
        context = F.scaled_dot_product_attention(*heads)  # (rows, H, length or 1, E)
        contexts.append(context.transpose(1, 2).flatten(-2).flatten(0, 1))
    return torch.cat(contexts)

"""The fast path: the same model without padding.

Only attention lets tokens read each other. Everything else (the embeddings, linear layers, LayerNorm, GELU, the heads)
computes each token by itself. So the real tokens of a batch are packed into one flat (T, D), row after row, and only
attention needs to know the rows. The rows are sorted by length. Then rows of equal length are a plain view
(rows, length, D) of the flat tensor. This view has no padded slot, so attention needs no mask. A hole in a mask is left
out in the same way; each real token keeps its own position. If the head reads only [CLS], the last layer runs for that
token alone. On x86 CPUs `kernels.py` prepares the linear layers. A text then gets the same bits alone and in any batch.

Shapes: B batch, S tokens, T real tokens of the batch, D dim, H heads, E = D / H, C choices.
Source of the flat layout: Zeng et al. 2022, "Boosting Distributed Training Performance of the Unpadded BERT Model".
"""

import platform
import re
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property, partial
from itertools import accumulate, groupby
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.module import _global_forward_hooks, _global_forward_pre_hooks

from . import kernels
from .heads import (
    DistilBertForMaskedLM,
    DistilBertForMultipleChoice,
    DistilBertForQuestionAnswering,
    DistilBertForSequenceClassification,
    DistilBertForTokenClassification,
    flatten_choices,
)
from .model import (
    DistilBertModel,
    MultiHeadSelfAttention,
    TransformerBlock,
    check_ids,
    check_inputs,
)
from .outputs import EncoderOutput, LogitsOutput, SpanOutput
from .pretrained import PreTrainedModel
from .trial import choose_linear, find_difference

CLS_HEADS = (DistilBertForSequenceClassification, DistilBertForMultipleChoice)  # they read the first token alone
TOKEN_HEADS = (DistilBertForMaskedLM, DistilBertForTokenClassification, DistilBertForQuestionAnswering)
FFN_ROWS = 1024  # tokens at a time on a CPU: a tensor larger than (1024, 4 D) would get new memory at each call


def pack(model: PreTrainedModel, *, int8: bool = False, batch_invariant: bool = False) -> "PackedModel":
    """Return the model's fast form, for inference: the same call, the same outputs.

    It shares the model's parameters, but prepared weights are copies: after a change of weights, pack again. A packed
    model refuses to run after changes that torch counts, such as an optimizer's step. It cannot see those by a fused
    optimizer or through `.data`, or new tensors in place of the old ones. Layers may have been removed. Autocast is off
    inside. A model as small as the demo gains time only in batches of some 16 texts or more.

    Args:
        model: `DistilBertModel` or one of the five heads, in eval mode, on any device, of any floating-point dtype.
        int8: quantize the encoder's linear layers to int8. This is faster and less exact; see `kernels.Int8Linear`.
        batch_invariant: raise an error where `PackedModel.batch_invariant` is False.

    Raises:
        ValueError: another class of model; a model in training mode, with hooks, or with a part that is not the one
            of `model.py`; int8 or batch invariance where this model or machine cannot have it.
    """
    check_packable(model)
    if any(part.training for part in model.modules() if not isinstance(part, nn.ModuleList)):  # a slice of one is new
        raise ValueError(
            "a packed model is for inference: call model.eval() first; for training there is PackedForTraining"
        )
    if int8 and not (kernels.is_cpu_float32(model) and kernels.Int8Linear.is_available()):
        raise ValueError(
            f"int8 needs float32 on an x86 CPU where oneDNN's int8 products are exact, got {model.dtype} on "
            f"{model.device}, platform {platform.machine()}"
        )
    fast = PackedModel(model, int8, batch_invariant)
    if batch_invariant and fast.difference is not None:
        raise ValueError(f"{fast} cannot give the same bits in every batch on this machine: {fast.difference}")
    return fast


def check_packable(model: PreTrainedModel) -> None:
    """Refuse a model of another class, with hooks, or with a part that is not the one of `model.py`."""
    if type(model) not in (DistilBertModel, *CLS_HEADS, *TOKEN_HEADS):
        raise ValueError(f"pack takes DistilBertModel and the five heads, not {type(model).__name__}")
    check_hooks(model)
    if (changed := find_changed_part(model)) is not None:
        raise ValueError(f"pack runs the formulas of model.py, but {changed}: use the model itself")


def check_hooks(model: nn.Module) -> None:
    """Refuse hooks on the forward pass of a model's modules: only some of the modules are called."""
    hooked = [name for name, part in model.named_modules() if part._forward_hooks or part._forward_pre_hooks]
    if hooked or _global_forward_hooks or _global_forward_pre_hooks:
        where = hooked[:3] or "all modules"
        raise ValueError(f"a packed model runs no hooks, but there are some on {where}: remove them before packing")


def versions(weights: Sequence[Tensor]) -> list[int]:
    """Return how often torch saw each tensor change in place; it does not count this for tensors of inference mode."""
    return [0 if weight.is_inference() else weight._version for weight in weights]


def find_changed_part(model: PreTrainedModel) -> str | None:
    """Return in words where a model is not what its class builds; None if it is. Layers may be missing."""
    with torch.device("meta"):
        built = dict(type(model)(replace(model.config, n_layers=1)).named_modules())
    for name, part in model.named_modules():
        expected = built.get(re.sub(r"\blayer\.\d+", "layer.0", name))
        if type(part) is not type(expected):
            return f"{name} is of class {type(part).__name__}"
        if "forward" in vars(part):
            return f"{name or type(model).__name__} has a forward of its own"
        if isinstance(part, MultiHeadSelfAttention) and part.scale != (part.q_lin.out_features // part.n_heads) ** -0.5:
            return f"{name}.scale is {part.scale}"
    return None


class PackedModel:
    """A model without padding. Call `pack` to make one. Loading a pickle or a deep copy calls `pack` again."""

    def __init__(self, model: PreTrainedModel, int8: bool, batch_invariant: bool) -> None:
        self.plain = kernels.copy_structure(model)  # for pickles
        self.model = kernels.copy_structure(model)
        self.repack = partial(pack, int8=int8, batch_invariant=batch_invariant)
        self.config, self.device, self.dtype = model.config, model.device, model.dtype
        self.weights = list(model.parameters())
        self.versions = versions(self.weights)
        self.encoder = cast(DistilBertModel, getattr(self.model, "distilbert", self.model))
        self.kernels = kernels.use_kernels(self.model, self.encoder, choose_linear(self.model), int8)

    def __reduce__(self) -> tuple[object, ...]:
        return self.repack, (self.plain,)

    def __repr__(self) -> str:
        return f"PackedModel({type(self.model).__name__}, {self.dtype}, {self.device}, {self.kernels})"

    @property
    def batch_invariant(self) -> bool:
        """Whether a text gets the same bits alone and in any batch, order and padding, with any number of threads.

        This is tried out on this machine, once in each process: see `trial.py`.
        """
        return self.difference is None

    @cached_property
    def difference(self) -> str | None:
        """The reason, in words, why a text's bits depend on its batch; None if they do not."""
        if not kernels.is_cpu_float32(self.plain):
            return f"there is no such kernel for {self.dtype} on {self.device}"
        return find_difference(self.model, self.config.n_heads, self.config.dim, self.config.hidden_dim)

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
        return_dict: bool | None = None,
    ) -> Any:  # as for any module
        """Run the model without recording gradients. It takes the model's arguments, except those that are refused.

        Returns:
            The output that the model returns. Padded slots hold 0. In start_logits and end_logits they hold the
            dtype's minimum, so that argmax never chooses them.

        Raises:
            ValueError: see `model.check_inputs`. Also refused: labels, positions of answers, `output_attentions` and
                `return_dict=False`; embeddings that require a gradient; a 4-D mask; lists; weights that have
                changed since the model was packed; and, if the head reads [CLS], a row that begins with padding.
        """
        if isinstance(input_ids, list | tuple):
            raise ValueError("input_ids must be a (B, S) tensor, got a list: for rows without padding use .rows(lists)")
        if output_attentions or any(argument is not None for argument in (labels, start_positions, end_positions)):
            raise ValueError("a packed model gives no loss and no attentions: use the model itself")
        if return_dict is False:
            raise ValueError("a packed model gives no tuple: leave out return_dict=False, and call .to_tuple()")
        if inputs_embeds is not None and inputs_embeds.requires_grad:
            raise ValueError("a packed model records no gradient: pass inputs_embeds.detach(), or use the model itself")
        model, n_choices = self.model, None
        if isinstance(model, DistilBertForMultipleChoice):
            n_choices, (input_ids, attention_mask, inputs_embeds, position_ids) = flatten_choices(
                input_ids, attention_mask, inputs_embeds, position_ids
            )
        weight = self.encoder.embeddings.word_embeddings.weight
        check_inputs(self.config, input_ids, attention_mask, inputs_embeds, position_ids, weight)
        tokens = cast(Tensor, input_ids if inputs_embeds is None else inputs_embeds)
        real = find_real(tokens, attention_mask, isinstance(model, CLS_HEADS))
        layout = Layout(real.sum(1))
        slots = Slots(real, layout.order)
        if position_ids is None:
            position_ids = torch.arange(tokens.shape[1], device=tokens.device)[None]  # (1, S)
        result, states = self._run(layout, slots.pack(tokens), slots.pack(position_ids), output_hidden_states)
        if not isinstance(model, CLS_HEADS):  # they give one result for each row, the others one for each token
            result = slots.unpack(result, torch.finfo(result.dtype).min if self._is_span else 0.0)
        elif n_choices is not None:
            result = result.view(-1, n_choices)
        return self._output(result, tuple(map(slots.unpack, states)) if output_hidden_states else None)

    @torch.no_grad()
    def rows(self, rows: Sequence[Sequence[int]], at: Sequence[Sequence[int]] | None = None) -> list[Any]:
        """Run rows of different lengths as they are, without padding.

        Args:
            rows: the ids of each row, as a tokenizer gives them without padding. For multiple choice a row is a choice.
            at: for each row, the positions of the tokens to return, for a model that returns a value for each token;
                None for all. A masked LM returns V numbers for each token, so pass the positions of [MASK].

        Returns:
            For each row the output that the model returns, without the batch axis: logits are (L,), for a token head
            (S, L), for multiple choice (1,); hidden states are (S, D). S is the length of the row.

        Raises:
            ValueError: a tensor, or one row alone; no rows; an empty row, or one longer than the position table; ids
                out of range; `at` for a head that reads [CLS], or a position outside its row; weights that have changed
                since the model was packed.
        """
        if not isinstance(rows, Sequence) or not all(hasattr(row, "__len__") for row in rows):
            raise ValueError(
                f"rows needs a list of ids for each row, as in tokenizer(texts).input_ids, got {type(rows).__name__}; "
                "a padded tensor goes into the ordinary call, with its mask"
            )
        limit = self.config.max_position_embeddings
        lengths = [len(row) for row in rows]
        if not lengths or not 1 <= min(lengths) <= max(lengths) <= limit:
            wrong = next((f"row {i} has {n}" for i, n in enumerate(lengths) if not 1 <= n <= limit), "got no rows")
            raise ValueError(f"rows need 1 to {limit} tokens each, but {wrong}")
        layout = Layout(torch.tensor(lengths, device=self.device))
        order = layout.order.tolist()
        ids = torch.tensor([i for row in order for i in rows[row]])  # (T,)
        check_ids("rows", ids[None], "vocab_size", self.config.vocab_size)
        position_ids = torch.cat([torch.arange(lengths[row]) for row in order])
        chosen = None if at is None else self._choose(at, lengths, order)
        result, _ = self._run(layout, ids.to(self.device), position_ids.to(self.device), False, chosen)
        if not isinstance(self.model, CLS_HEADS):
            sizes = lengths if at is None else list(map(len, at))
            parts = result.split([sizes[row] for row in order])
            return [self._output(parts[place]) for place in layout.order.argsort().tolist()]
        return [self._output(row) for row in result]

    def _choose(self, at: Sequence[Sequence[int]], lengths: list[int], order: list[int]) -> Tensor:
        """Return the indices in the flat batch of the tokens at these positions of each row."""
        if isinstance(self.model, CLS_HEADS):
            raise ValueError(f"{type(self.model).__name__} gives one result for each row: leave out at=")
        if len(at) != len(lengths) or any(not 0 <= i < n for own, n in zip(at, lengths, strict=True) for i in own):
            raise ValueError(
                f"at needs positions in each of {len(lengths)} rows of {lengths} tokens, got {list(at)}"[:300]
            )
        starts = accumulate((lengths[row] for row in order), initial=0)
        chosen = [start + i for start, row in zip(starts, order, strict=False) for i in at[row]]
        return torch.tensor(chosen, dtype=torch.long, device=self.device)

    def _run(
        self,
        layout: "Layout",
        tokens: Tensor,
        position_ids: Tensor,
        output_hidden_states: bool,
        chosen: Tensor | None = None,
    ) -> tuple[Tensor, Sequence[Tensor]]:
        """Run packed tokens, ids (T,) or embeddings (T, D). A head with a result for each token runs on `chosen` alone.

        Returns:
            The output of the head, or the last hidden states: (T, …) in the layout's order; if the head reads [CLS],
            (B, L) in the batch's order. Then the hidden states, (T, D) each, if `output_hidden_states`.
        """
        model, shared = self.model, self.encoder.embeddings.word_embeddings.weight
        if (shared.dtype, shared.device) != (self.dtype, self.device):
            raise ValueError(
                f"the model was packed as {self.dtype} on {self.device} and is now {shared.dtype} on {shared.device}: "
                f"pack it again"
            )
        if versions(self.weights) != self.versions:
            raise ValueError("the model's weights have changed since it was packed: pack it again")
        n_blocks = len(self.encoder.transformer.layer)
        first_only = isinstance(model, CLS_HEADS) and not output_hidden_states and n_blocks > 0
        with torch.autocast(self.device.type, enabled=False):
            each = encode(self.encoder, layout, tokens, position_ids, first_only)
            states = deque(each, None if output_hidden_states else 1)
            x = states[-1]
            if chosen is not None:
                x = x[chosen]
            if isinstance(model, CLS_HEADS):
                first = x if first_only else x[layout.first]  # (B, D), of the sorted rows
                return model.head(first[:, None])[layout.order.argsort()], states
            return model.head(x) if isinstance(model, TOKEN_HEADS) else x, states

    @property
    def _is_span(self) -> bool:
        return isinstance(self.model, DistilBertForQuestionAnswering)

    def _output(self, result: Tensor, hidden_states: tuple[Tensor, ...] | None = None) -> Any:
        if self._is_span:
            start, end = result.unbind(-1)
            return SpanOutput(start_logits=start, end_logits=end, hidden_states=hidden_states)
        if isinstance(self.model, DistilBertModel):
            return EncoderOutput(result, hidden_states)
        return LogitsOutput(logits=result, hidden_states=hidden_states)


def find_real(tokens: Tensor, attention_mask: Tensor | None, needs_first: bool) -> Tensor:
    """Return the (B, S) bools of the real tokens.

    Raises:
        ValueError: a 4-D mask; padding in the first slot of a row, if `needs_first`.
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
    """The order of rows of different lengths in one flat tensor: sorted by length; equal lengths keep their order.

    Args:
        lengths: (B,), at least 1 each.
    """

    def __init__(self, lengths: Tensor) -> None:
        self.lengths, self.order = lengths.sort(stable=True)  # (B,) each; order: the numbers of the sorted rows
        self.bounds = F.pad(self.lengths.cumsum(0), (1, 0)).int()  # (B + 1,) first token of each sorted row, and T
        self.first = self.bounds[:-1]
        self.groups = [(len(list(rows)), length) for length, rows in groupby(self.lengths.tolist())]  # (rows, length)


class Slots:
    """The slots of a padded batch that hold the tokens of the flat one.

    Args:
        real: (B, S) bools, True = a real token.
        order: (B,), of the rows in the flat batch.
    """

    def __init__(self, real: Tensor, order: Tensor) -> None:
        self.shape = real.shape
        numbers = torch.arange(real.numel(), device=real.device).view(real.shape)
        self.slots = numbers[order][real[order]]  # (T,)

    def pack(self, x: Tensor) -> Tensor:
        """(B, S, …) or (1, S, …) -> (T, …)."""
        return x.expand(*self.shape, *x.shape[2:]).flatten(0, 1)[self.slots]

    def unpack(self, x: Tensor, padding: float = 0.0) -> Tensor:
        """(T, …) -> (B, S, …)."""
        padded = x.new_full((self.shape.numel(), *x.shape[1:]), padding)
        padded[self.slots] = x
        return padded.unflatten(0, self.shape)


def encode(
    encoder: DistilBertModel, layout: Layout, tokens: Tensor, position_ids: Tensor, first_only: bool
) -> Iterator[Tensor]:
    """Yield the embeddings and the result of each layer, (T, D); with `first_only` the last one is (B, D)."""
    ids, embeds = (tokens[None], None) if tokens.ndim == 1 else (None, tokens[None])  # (1, T) or (1, T, D)
    yield (x := encoder.embeddings(ids, embeds, position_ids[None])[0])
    blocks = cast(Sequence[TransformerBlock], encoder.transformer.layer)
    for i, block in enumerate(blocks, 1):
        yield (x := run_block(block, x, layout, first_only and i == len(blocks)))


def run_block(block: TransformerBlock, x: Tensor, layout: Layout, first_only: bool) -> Tensor:
    """(T, D) -> (T, D), as `TransformerBlock` does; with `first_only` (B, D), the first token of each sorted row."""
    attention = block.attention
    queries, ready = x[layout.first] if first_only else x, kernels.quantize_once(attention, x)
    q, k, v = attention.q_lin(queries if first_only else ready), attention.k_lin(ready), attention.v_lin(ready)
    dropout = attention.dropout.p if attention.dropout.training else 0.0
    context = attend(q, k, v, layout, attention.n_heads, dropout)
    x = block.sa_layer_norm(add(attention.out_lin(context), queries))
    n_rows = FFN_ROWS if x.device.type == "cpu" else len(x)
    return torch.cat([block.output_layer_norm(add(block.ffn(rows), rows)) for rows in x.split(n_rows)])


def add(x: Tensor, residual: Tensor) -> Tensor:
    """Return x + residual, in the memory of x (see `InPlaceGELU`) unless a gradient or autocast needs new memory."""
    return x + residual if x.requires_grad or x.dtype != residual.dtype else x.add_(residual)


def attend(q: Tensor, k: Tensor, v: Tensor, layout: Layout, n_heads: int, dropout: float = 0.0) -> Tensor:
    """Let the tokens of each row attend to each other: (T, D), or q (B, D) for one query a row -> shaped like q."""
    q, k, v = (x.unflatten(-1, (n_heads, -1)) for x in (q, k, v))  # (T, H, E), or q (B, H, E)
    one_query = len(q) < len(k)
    if dropout == 0 and (varlen := kernels.varlen_attention(q)):
        longest = layout.groups[-1][1]
        bounds = torch.arange(len(q) + 1, dtype=torch.int32, device=q.device) if one_query else layout.bounds
        return varlen(q, k, v, bounds, layout.bounds, 1 if one_query else longest, longest).flatten(1)
    key_sizes = [rows * length for rows, length in layout.groups]
    query_sizes = [rows for rows, _ in layout.groups] if one_query else key_sizes
    contexts = []
    for group in zip(layout.groups, q.split(query_sizes), k.split(key_sizes), v.split(key_sizes), strict=True):
        (rows, _), *parts = group
        # (rows, H, length or 1, E) each
        queries, keys, values = (part.unflatten(0, (rows, -1)).transpose(1, 2) for part in parts)
        contexts.append(kernels.attention(queries, keys, values, dropout).transpose(1, 2).flatten(0, 1))
    return torch.cat(contexts).flatten(1)

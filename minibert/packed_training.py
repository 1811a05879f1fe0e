"""Training without padding: the model's own modules, run on the real tokens of a batch, with gradients and dropout.

The layout is that of `packed.py`. What has no gradient is left out: prepared weights, and GELU in place. Autocast is
not switched off.

Shapes: B batch, S tokens, T real tokens of the batch, N labelled tokens, D dim, L labels, V vocabulary, C choices.
"""

from collections import deque
from typing import Any, cast

import torch
from torch import Tensor, nn

from .heads import (
    IGNORE,
    DistilBertForMaskedLM,
    DistilBertForMultipleChoice,
    DistilBertForQuestionAnswering,
    check_tensor,
    flatten_choices,
)
from .model import DistilBertModel, check_inputs
from .outputs import EncoderOutput, LogitsOutput
from .packed import CLS_HEADS, Layout, Slots, check_hooks, check_packable, encode, find_real
from .pretrained import PreTrainedModel


class PackedForTraining(nn.Module):
    """A model that is trained without padding: the same call, the same loss, the same gradients to rounding.

        packed = PackedForTraining(model).train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=5e-5)
        packed(input_ids, attention_mask, labels=labels).loss.backward()

    It takes the padded batches that any data loader makes: padded ids take no time, since they are left out before the
    embeddings. The parameters are the model's own, so there is nothing to pack again after a step. `train()` and
    `eval()` go to the model. Save the model, not this module. Autocast works.

    Dropout draws from torch's generator, so a seed fixes it; the draws differ from those of the padded model. On a CPU
    the same weights, batch, seed and number of threads give the same bits, in another process too. Weights that were
    just loaded are mapped from a file. They can lie at other addresses modulo 64, and where MKL uses AVX2 that can
    change bits: clone them.

    DDP and FSDP2 wrap this module, not the model, since the `forward` of the model and of its layers is not called:
    `DistributedDataParallel(packed)`, or `fully_shard(packed)` with all parameters in one group.

    Args:
        model: `DistilBertModel` or a head, but not question answering, whose loss compares padded slots too.

    Raises:
        ValueError: another class of model; a model with hooks, with gradient checkpointing, or with a part that is not
            the one of `model.py`.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        check_packable(model)
        if isinstance(model, DistilBertForQuestionAnswering):
            raise ValueError("the loss of question answering compares padded slots too: train the model itself")
        self.model = model
        self.training = model.training

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        *,
        labels: Tensor | None = None,
        token_type_ids: Tensor | None = None,
    ) -> EncoderOutput | LogitsOutput:
        """Run the model on the real tokens; arguments and labels are those of its own `forward`.

        Returns:
            The output that the model returns; padded slots hold 0. A masked LM with labels computes the logits of the
            labelled tokens alone: (N, V), in the order of `labels[labels != -100]`.

        Raises:
            ValueError: see `model.check_inputs`; a 4-D mask; if the head reads [CLS], a row that begins with padding;
                a label in a padded slot; labels for the bare encoder; hooks.
        """
        model: Any = self.model
        check_hooks(model)
        if labels is not None and isinstance(model, DistilBertModel):
            raise ValueError("DistilBertModel has no loss: leave out labels, or choose a head")
        n_choices = None
        if isinstance(model, DistilBertForMultipleChoice):
            n_choices, (ids, attention_mask, *_) = flatten_choices(input_ids, attention_mask, None, None)
            input_ids = cast(Tensor, ids)
        encoder = cast(DistilBertModel, model.base_model)
        check_inputs(model.config, input_ids, attention_mask, None, None, encoder.embeddings.word_embeddings.weight)
        reads_first = isinstance(model, CLS_HEADS)
        real = find_real(input_ids, attention_mask, reads_first)
        if labels is not None and not reads_first:
            check_token_labels(labels, real)
        layout = Layout(real.sum(1))
        slots = Slots(real, layout.order)
        positions = torch.arange(real.shape[1], device=real.device)[None]  # (1, S)
        first_only = reads_first and len(encoder.transformer.layer) > 0
        states = encode(encoder, layout, slots.pack(input_ids), slots.pack(positions), first_only)
        x = deque(states, 1).pop()  # (T, D), or (B, D) with first_only
        if isinstance(model, DistilBertModel):
            return EncoderOutput(slots.unpack(x))
        if reads_first:
            first = x if first_only else x[layout.first]
            logits = model.head(first[:, None])[layout.order.argsort()]  # (B, L)
        elif isinstance(model, DistilBertForMaskedLM) and labels is not None:
            labelled = labels != IGNORE
            places = slots.unpack(torch.arange(len(x), device=x.device))  # (B, S), the row of x for each real token
            logits, labels = model.head(x[places[labelled]]), labels[labelled]  # (N, V) and (N,)
        else:
            logits = slots.unpack(model.head(x))  # (B, S, L or V)
        if n_choices is not None:
            logits = logits.view(-1, n_choices)  # (B, C)
        return LogitsOutput(None if labels is None else model.loss(logits, labels), logits)


def check_token_labels(labels: Tensor, real: Tensor) -> None:
    """Refuse labels that are not (B, S), or that are not -100 in a padded slot: there is no logit for them."""
    check_tensor("labels", labels)
    if labels.shape != real.shape:
        raise ValueError(f"labels must have the shape of the ids, {tuple(real.shape)}, got {tuple(labels.shape)}")
    if (wrong := (labels != IGNORE) & ~real).any():
        row, slot = wrong.nonzero()[0].tolist()
        raise ValueError(f"labels hold {labels[row, slot].item()} in a padded slot, row {row}, slot {slot}: use -100")

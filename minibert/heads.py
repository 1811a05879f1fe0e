"""The five task heads: each is the encoder, one or two layers on top of it, and a loss.

Shapes: B batch, S tokens, D dim, V vocabulary, L labels (num_labels), C choices. Losses are those of
https://github.com/huggingface/transformers/blob/v5.23.0/src/transformers/models/distilbert/modeling_distilbert.py
"""

from abc import ABC, abstractmethod
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import DistilBertConfig
from .mask import has_values
from .model import LAYER_NORM_EPS, DistilBertModel, activation
from .outputs import LogitsOutput, SpanOutput
from .pretrained import PreTrainedModel, fill_in_tied, leave_out_tied

IGNORE = -100  # a label that is left out of the loss


class ModelWithHead(PreTrainedModel, ABC):
    """The encoder with a head that maps hidden states to logits; a subclass writes `head` and `loss`."""

    def __init__(self, config: DistilBertConfig) -> None:
        super().__init__(config)
        self.distilbert = DistilBertModel(config)

    @abstractmethod
    def head(self, hidden_states: Tensor) -> Tensor:
        """(B, S, D) -> logits."""

    @abstractmethod
    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Logits and labels -> scalar."""

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        *,
        inputs_embeds: Tensor | None = None,
        position_ids: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = False,
        output_attentions: bool | None = False,
        return_dict: bool | None = True,
    ) -> LogitsOutput | tuple[Any, ...]:
        """Run the encoder and the head; arguments are those of `DistilBertModel.forward` and the labels.

        `labels` have the shape and dtype that the docstring of the class gives. With them the output holds the loss.

        Raises:
            ValueError: see `model.check_inputs`; labels that do not fit the logits.
        """
        encoded = self.distilbert(
            input_ids,
            attention_mask,
            inputs_embeds=inputs_embeds,
            position_ids=position_ids,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
        )
        logits = self.head(encoded.last_hidden_state)
        loss = None if labels is None else self.loss(logits, labels)
        output = LogitsOutput(loss, logits, encoded.hidden_states, encoded.attentions)
        return output.to_tuple() if return_dict is False else output


class DistilBertForMaskedLM(ModelWithHead):
    """Which token belongs here? Labels: (B, S) token ids, -100 where there is nothing to predict."""

    def __init__(self, config: DistilBertConfig) -> None:
        super().__init__(config)
        self.vocab_transform = nn.Linear(config.dim, config.dim)
        self.activation = activation(config)
        self.vocab_layer_norm = nn.LayerNorm(config.dim, eps=LAYER_NORM_EPS)
        self.vocab_projector = nn.Linear(config.dim, config.vocab_size)
        self.init_weights(self.vocab_transform, self.vocab_layer_norm, self.vocab_projector)
        self.tie_weights()
        self.register_state_dict_post_hook(leave_out_tied)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_pre_hook(fill_in_tied)  # type: ignore[no-untyped-call]

    def tie_weights(self) -> None:
        """Share the word-embedding table with the projector (Press & Wolf 2017) if the config says so."""
        if self.config.tie_word_embeddings:
            self.vocab_projector.weight = self.distilbert.embeddings.word_embeddings.weight

    def head(self, hidden_states: Tensor) -> Tensor:
        """(B, S, D) -> (B, S, V)."""
        return self.vocab_projector(self.vocab_layer_norm(self.activation(self.vocab_transform(hidden_states))))

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy over the labelled positions."""
        return cross_entropy(logits, labels)


class DistilBertForSequenceClassification(ModelWithHead):
    """Which class is this text? Computed from the hidden state of the first token, [CLS].

    Labels, by `config.problem_type`: single_label_classification, (B,) class numbers (int64);
    multi_label_classification, (B, L) floats, 0 or 1; regression, (B,) or (B, L) numbers. If the problem type is None,
    each call infers it from the labels: regression if L is 1, single label for integers, otherwise multi label.
    """

    head_has_labels = True

    def __init__(self, config: DistilBertConfig) -> None:
        super().__init__(config)
        self.pre_classifier = nn.Linear(config.dim, config.dim)
        self.activation = nn.ReLU()
        self.dropout = nn.Dropout(config.seq_classif_dropout)
        self.classifier = nn.Linear(config.dim, config.num_labels)
        self.init_weights(self.pre_classifier, self.classifier)

    def head(self, hidden_states: Tensor) -> Tensor:
        """(B, S, D) -> (B, L)."""
        return self.classifier(self.dropout(self.activation(self.pre_classifier(hidden_states[:, 0]))))

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy, binary cross-entropy with logits, or mean squared error."""
        check_tensor("labels", labels)
        problem_type = self.config.problem_type
        if problem_type is None and logits.shape[-1] == 1:
            problem_type = "regression"
        elif problem_type is None:
            problem_type = "multi_label_classification" if labels.is_floating_point() else "single_label_classification"
        if problem_type == "single_label_classification":
            return cross_entropy(logits, labels)
        if problem_type == "regression":
            labels = labels.to(logits.dtype)
        if not labels.is_floating_point() or labels.shape not in (logits.shape, logits.squeeze(-1).shape):
            raise ValueError(
                f"{problem_type} needs floating-point labels of shape {tuple(logits.shape)}, "
                f"got {labels.dtype} of shape {tuple(labels.shape)}"
            )
        loss = F.mse_loss if problem_type == "regression" else F.binary_cross_entropy_with_logits
        return loss(logits, labels.view(logits.shape))


class DistilBertForTokenClassification(ModelWithHead):
    """Which class is each token? Labels: (B, S) class numbers, -100 for tokens that are left out of the loss."""

    head_has_labels = True

    def __init__(self, config: DistilBertConfig) -> None:
        super().__init__(config)
        self.dropout = nn.Dropout(config.dropout)
        self.classifier = nn.Linear(config.dim, config.num_labels)
        self.init_weights(self.classifier)

    def head(self, hidden_states: Tensor) -> Tensor:
        """(B, S, D) -> (B, S, L)."""
        return self.classifier(self.dropout(hidden_states))

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy over the labelled tokens."""
        return cross_entropy(logits, labels)


class DistilBertForMultipleChoice(ModelWithHead):
    """Which of C texts fits best? Inputs have one more axis, (B, C, S). Labels: (B,) numbers of the right choice."""

    def __init__(self, config: DistilBertConfig) -> None:
        super().__init__(config)
        self.pre_classifier = nn.Linear(config.dim, config.dim)
        self.activation = nn.ReLU()
        self.dropout = nn.Dropout(config.seq_classif_dropout)
        self.classifier = nn.Linear(config.dim, 1)
        self.init_weights(self.pre_classifier, self.classifier)

    def head(self, hidden_states: Tensor) -> Tensor:
        """(B * C, S, D) -> (B * C, 1)."""
        return self.classifier(self.dropout(self.activation(self.pre_classifier(hidden_states[:, 0]))))

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy over the choices."""
        return cross_entropy(logits, labels)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        *,
        inputs_embeds: Tensor | None = None,
        position_ids: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = False,
        output_attentions: bool | None = False,
        return_dict: bool | None = True,
    ) -> LogitsOutput | tuple[Any, ...]:
        """Score each choice as a text of its own: (B, C, S) is run as (B * C, S).

        `input_ids`, `attention_mask` and `position_ids` are (B, C, S), `inputs_embeds` (B, C, S, D). Hidden states and
        attentions are returned as (B * C, S, D) and (B * C, H, S, S).

        Raises:
            ValueError: an input without the axis of choices; otherwise as for the other heads.
        """
        choices, (input_ids, attention_mask, inputs_embeds, position_ids) = flatten_choices(
            input_ids, attention_mask, inputs_embeds, position_ids
        )
        output = super().forward(
            input_ids,
            attention_mask,
            inputs_embeds=inputs_embeds,
            position_ids=position_ids,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
        )
        output = cast(LogitsOutput, output)
        logits = output.logits.view(-1, choices)  # (B, C)
        loss = None if labels is None else self.loss(logits, labels)
        output = LogitsOutput(loss, logits, output.hidden_states, output.attentions)
        return output.to_tuple() if return_dict is False else output


class DistilBertForQuestionAnswering(PreTrainedModel):
    """Where in the text is the answer? Two logits for each token: the answer starts there, the answer ends there.

    Labels: `start_positions` and `end_positions`, (B,) int64 each, the first and the last token of the answer. Both are
    clamped to 0 … S. An answer that was truncated away is given as S or more, and is left out of the loss.
    """

    def __init__(self, config: DistilBertConfig) -> None:
        super().__init__(config)
        if config.num_labels != 2:
            raise ValueError(
                f"question answering has 2 labels, start and end, but num_labels is {config.num_labels}: "
                f"pass num_labels=2"
            )
        self.distilbert = DistilBertModel(config)
        self.dropout = nn.Dropout(config.qa_dropout)
        self.qa_outputs = nn.Linear(config.dim, 2)
        self.init_weights(self.qa_outputs)

    def head(self, hidden_states: Tensor) -> Tensor:
        """(B, S, D) -> (B, S, 2), start and end."""
        return self.qa_outputs(self.dropout(hidden_states))

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        *,
        inputs_embeds: Tensor | None = None,
        position_ids: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
        output_hidden_states: bool | None = False,
        output_attentions: bool | None = False,
        return_dict: bool | None = True,
    ) -> SpanOutput | tuple[Any, ...]:
        """Run the encoder and the head; arguments are those of `DistilBertModel.forward` and the two labels.

        Raises:
            ValueError: see `model.check_inputs`; one position without the other.
        """
        if (start_positions is None) != (end_positions is None):
            raise ValueError("pass both start_positions and end_positions, or neither")
        encoded = self.distilbert(
            input_ids,
            attention_mask,
            inputs_embeds=inputs_embeds,
            position_ids=position_ids,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
        )
        start_logits, end_logits = self.head(encoded.last_hidden_state).unbind(-1)  # (B, S) each
        loss = None
        if start_positions is not None and end_positions is not None:
            loss = (span_loss(start_logits, start_positions) + span_loss(end_logits, end_positions)) / 2
        output = SpanOutput(loss, start_logits, end_logits, encoded.hidden_states, encoded.attentions)
        return output.to_tuple() if return_dict is False else output


def flatten_choices(
    input_ids: Tensor | None, attention_mask: Tensor | None, inputs_embeds: Tensor | None, position_ids: Tensor | None
) -> tuple[int, list[Tensor | None]]:
    """Check that an input has the axis of choices, and merge that axis with the batch's: (B, C, …) -> (B * C, …).

    Returns:
        C, and the four arguments in their order.

    Raises:
        ValueError: ids that are not (B, C, S), or embeddings that are not (B, C, S, D).
    """
    tensors = (input_ids, attention_mask, inputs_embeds, position_ids)
    for tensor in tensors:
        check_tensor("an input of multiple choice", tensor)
    inputs, rank = (input_ids, 3) if inputs_embeds is None else (inputs_embeds, 4)
    if inputs is not None and inputs.ndim != rank:
        raise ValueError(f"multiple choice takes (B, C, S) ids or (B, C, S, D) embeds, got {tuple(inputs.shape)}")
    choices = 1 if inputs is None else inputs.shape[1]  # if both are None, check_inputs raises the error
    return choices, [None if tensor is None else tensor.flatten(0, 1) for tensor in tensors]


def check_tensor(name: str, value: object) -> None:
    """Refuse a list or an array where a tensor, or None, is needed."""
    if value is not None and not isinstance(value, Tensor):
        raise ValueError(f"{name} must be a tensor, got {type(value).__name__}")


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of (…, L) logits against (…) class numbers; labels of -100 are left out.

    Raises:
        ValueError: labels of another shape, dtype or range.
    """
    check_tensor("labels", labels)
    n_classes = logits.shape[-1]
    if labels.dtype != torch.int64 or labels.shape not in (logits.shape[:-1], (*logits.shape[:-1], 1)):
        raise ValueError(
            f"labels must be int64 of shape {tuple(logits.shape[:-1])}, "
            f"got {labels.dtype} of shape {tuple(labels.shape)}"
        )
    if has_values(labels):
        wrong = (labels != IGNORE) & ((labels < 0) | (labels >= n_classes))
        if wrong.any():
            raise ValueError(f"labels contain {labels[wrong][0].item()}, but the classes are 0 to {n_classes - 1}")
    return F.cross_entropy(logits.view(-1, n_classes), labels.view(-1), ignore_index=IGNORE)


def span_loss(logits: Tensor, positions: Tensor) -> Tensor:
    """Mean cross-entropy of (B, S) logits against (B,) positions, which are clamped to 0 … S; S is left out.

    Raises:
        ValueError: positions of another shape or dtype.
    """
    check_tensor("positions", positions)
    batch, length = logits.shape
    if positions.dtype != torch.int64 or positions.shape not in ((batch,), (batch, 1)):
        raise ValueError(
            f"positions must be int64 of shape ({batch},), got {positions.dtype} of {tuple(positions.shape)}"
        )
    return F.cross_entropy(logits, positions.view(-1).clamp(0, length), ignore_index=length)

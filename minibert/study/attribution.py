"""Which tokens an answer rests on: attention rollout, gradient x input, integrated gradients; and the logit lens."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape

import torch
from torch import Tensor

from ..heads import DistilBertForMultipleChoice, DistilBertForSequenceClassification
from ..model import DistilBertModel
from .models import Model, choose
from .report import Report, table
from .steps import check_eval

Target = Tensor | Sequence[int] | int | None


def rollout(attentions: Sequence[Tensor], attention_mask: Tensor) -> Tensor:
    """Follow attention through all layers. Half of what a token passes on is its own value: the residual connection.

    Args:
        attentions: n_layers of (B, H, S, S), as `output_attentions=True` gives them.
        attention_mask: (B, S), 1 = real token.

    Returns:
        (B, S, S): how much of each real query's last hidden state comes from each real token's embedding. Rows of
        real queries sum to 1; rows and columns of padding are 0.

    Source: Abnar & Zuidema 2020, section 3.
    """
    real = attention_mask.bool()  # (B, S)
    pairs = real[:, :, None] & real[:, None, :]  # (B, S, S)
    identity = torch.eye(real.shape[1], device=real.device).expand_as(pairs) * pairs
    flow = identity
    for probs in attentions:
        mixed = probs.mean(dim=1) * pairs + identity
        flow = mixed / mixed.sum(-1, keepdim=True).clamp(min=torch.finfo(mixed.dtype).tiny) @ flow
    return flow


@dataclass
class Attribution(Report):
    """How much each token adds to the logit of a class.

    Args:
        scores: (B, S), 0 at padding.
        target: (B,) class whose logit is explained.
        logits: (B, L) of the model.
        explained: (B,) sum of the scores.
        to_explain: (B,) the sum that integrated gradients reach with many steps: the target's logit less that of the
            baseline; None for gradient x input, which has no such rule.
        tokens: B lists of S strings, for printing; None prints numbers.
    """

    scores: Tensor
    target: Tensor
    logits: Tensor
    explained: Tensor
    to_explain: Tensor | None
    tokens: Sequence[Sequence[str]] | None = None

    def parts(self) -> Iterator[str]:
        """Return a row for each token of each text."""
        rows = [
            (row, i if self.tokens is None else self.tokens[row][i], x)
            for row, scores in enumerate(self.scores.tolist())
            for i, x in enumerate(scores)
        ]
        yield table(("row", "token", "score"), rows)

    def _repr_html_(self) -> str:
        """Return each text with its tokens in colour: blue adds to the class, red takes from it."""
        if self.tokens is None:
            return super()._repr_html_()
        largest = self.scores.abs().max().item() or 1.0
        texts = []
        for row, tokens in enumerate(self.tokens):
            spans = []
            for token, score in zip(tokens, self.scores[row].tolist(), strict=True):
                colour = f"rgba({'50, 110, 230' if score > 0 else '230, 60, 50'}, {0.7 * abs(score) / largest:.2f})"
                spans.append(f'<span title="{score:.3g}" style="background: {colour}">{escape(token)}</span>')
            texts.append(f"<div>class {self.target[row].item()}: {' '.join(spans)}</div>")
        return "".join(texts)


def gradient_times_input(
    model: DistilBertForSequenceClassification,
    batch: Mapping[str, Tensor],
    target: Target = None,
    tokens: Sequence[Sequence[str]] | None = None,
) -> Attribution:
    """Multiply each word embedding by the gradient of the target's logit with respect to it.

    Args:
        model: a classifier in eval mode.
        batch: input_ids and attention_mask (B, S).
        target: a class, or B of them, one for each text; None explains the predicted ones.
        tokens: B lists of S strings, for printing and for coloured text in a notebook.

    Source: Shrikumar et al. 2016.
    """
    embeds = _word_embeddings(model, batch)
    logits, target = _predict(model, embeds, batch, target)
    scores = (_gradient(model, embeds, batch, target) * embeds).sum(-1)
    return Attribution(scores, target, logits, scores.sum(-1), None, tokens)


def integrated_gradients(
    model: DistilBertForSequenceClassification,
    batch: Mapping[str, Tensor],
    target: Target = None,
    steps: int = 32,
    tokens: Sequence[Sequence[str]] | None = None,
) -> Attribution:
    """Integrate the gradient along the straight line from a baseline to the input; the baseline is all [PAD].

    Args:
        model: a classifier in eval mode.
        batch: input_ids and attention_mask (B, S).
        target: a class, or B of them, one for each text; None explains the predicted ones.
        steps: points on the line (midpoint rule). They are enough when `explained` is near `to_explain`.
        tokens: B lists of S strings, for printing and for coloured text in a notebook.

    Raises:
        ValueError: the model has no padding token; fewer than one step.

    Source: Sundararajan et al. 2017.
    """
    if model.config.pad_token_id is None:
        raise ValueError("integrated gradients start from [PAD], and config.pad_token_id is None")
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    embeds = _word_embeddings(model, batch)
    logits, target = _predict(model, embeds, batch, target)
    pad = torch.full_like(batch["input_ids"], model.config.pad_token_id)
    baseline = model.distilbert.embeddings.word_embeddings(pad).detach()
    gradients = [
        _gradient(model, baseline + (embeds - baseline) * (step + 0.5) / steps, batch, target) for step in range(steps)
    ]
    scores = (torch.stack(gradients).mean(0) * (embeds - baseline)).sum(-1)
    start, _ = _predict(model, baseline, batch, target)
    gained = (logits - start).gather(1, target[:, None])[:, 0]
    return Attribution(scores, target, logits, scores.sum(-1), gained, tokens)


@torch.no_grad()
def logit_lens(model: Model, batch: Mapping[str, Tensor]) -> Tensor:
    """Read each layer's hidden states with the model's head, as if they were the last.

    The lens was made for models that normalize before each block: one final LayerNorm reads their residual stream.
    DistilBERT normalizes after each block, so each layer has its own basis and scale. In the lower layers compare which
    logit is the largest, rather than the logits' values.

    Args:
        model: any model with a head but multiple choice, in eval mode.
        batch: input_ids and attention_mask (B, S).

    Returns:
        (n_layers + 1, *logits) logits, the embeddings' first, the model's own last. The shape of logits is (B, S, V)
        for masked LM, (B, L) for sequence classification, (B, S, L) for token classification, and (B, S, 2) for
        question answering, start and end.

    Raises:
        ValueError: a model in training mode, without a head, or for multiple choice.

    Source: nostalgebraist 2020, "interpreting GPT: the logit lens".
    """
    check_eval(model)
    if isinstance(model, DistilBertModel | DistilBertForMultipleChoice):
        raise ValueError(f"the logit lens needs a head that reads (B, S) texts: {type(model).__name__} has none")
    hidden_states = model.distilbert(
        batch["input_ids"], batch.get("attention_mask"), output_hidden_states=True
    ).hidden_states
    return torch.stack([model.head(hidden) for hidden in hidden_states])


def _word_embeddings(model: DistilBertForSequenceClassification, batch: Mapping[str, Tensor]) -> Tensor:
    check_eval(model)
    if not isinstance(model, DistilBertForSequenceClassification):
        raise ValueError(f"it explains the class of a text, and {type(model).__name__} gives none")
    return model.distilbert.embeddings.word_embeddings(batch["input_ids"]).detach()  # (B, S, D)


@torch.no_grad()
def _predict(
    model: DistilBertForSequenceClassification, embeds: Tensor, batch: Mapping[str, Tensor], target: Target
) -> tuple[Tensor, Tensor]:
    """Logits (B, L), and the classes to explain (B,)."""
    logits = model(inputs_embeds=embeds, attention_mask=batch.get("attention_mask")).logits
    if target is None:
        return logits, logits.argmax(-1)
    classes = torch.as_tensor(target, device=logits.device).flatten()
    if classes.dtype != torch.int64 or len(classes) not in (1, len(logits)):
        raise ValueError(f"target must be a class, or one for each of {len(logits)} texts, got {target}")
    choose("target", classes.tolist(), logits.shape[1])
    return logits, classes.expand(len(logits))


@torch.inference_mode(False)
@torch.enable_grad()
def _gradient(
    model: DistilBertForSequenceClassification, embeds: Tensor, batch: Mapping[str, Tensor], target: Tensor
) -> Tensor:
    """Gradient of the target's logit with respect to the word embeddings, (B, S, D)."""
    embeds, target = embeds.clone().requires_grad_(), target.clone()  # what inference mode has made has no gradient
    logits = model(inputs_embeds=embeds, attention_mask=batch.get("attention_mask")).logits
    (gradient,) = torch.autograd.grad(logits.gather(1, target[:, None]).sum(), embeds)
    return gradient

"""Attention as one HTML page: every map, the numbers behind each map, and what the mask does to them.

The page holds the scores of two runs, one without the mask and one with it, as float16. Its JavaScript computes the
probabilities from them. So the page agrees with the tensors to the rounding of float16: a score s is off by at most
|s| / 2048, and a probability by a factor within exp(±2 |s|max / 2048). A score takes 8/3 bytes of the file, so each row
adds 16/3 · layers · heads · tokens² bytes, and twice as many where two states of the model are compared. For 6 layers
of 12 heads and 64 tokens this is 1.6 MB, for 128 tokens 6.3 MB. Where an edit changes the mask, the masked scores or
the probabilities of a layer, the page also holds the probabilities of that layer, since its scores do not give them.

Shapes: B rows, S tokens with padding, H heads. Scores are (query, key).
"""

import base64
import html
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..heads import (
    DistilBertForMaskedLM,
    DistilBertForMultipleChoice,
    DistilBertForQuestionAnswering,
    DistilBertForSequenceClassification,
    DistilBertForTokenClassification,
)
from ..mask import additive_mask
from ..pretrained import PreTrainedModel
from ..tokenizer import DistilBertTokenizer
from .models import choose
from .steps import capture, check_eval

LIMIT = 32 * 2**20  # bytes of a page: a browser opens such a file at once
TEMPLATES = Path(__file__).with_name("templates")


class Page(str):
    """HTML that a notebook shows in a frame of its own, so that several pages do not disturb each other."""

    def _repr_html_(self) -> str:
        return f'<iframe srcdoc="{html.escape(self)}" style="width: 100%; height: 50rem; border: 0"></iframe>'

    def __repr__(self) -> str:  # a notebook saves this text too, beside the page
        return f"<HTML page, {len(self) / 1e6:.2f} MB>"


@torch.no_grad()
def attention_page(
    model: PreTrainedModel,
    tokenizer: DistilBertTokenizer,
    texts: str | Sequence[str],
    pairs: Sequence[str] | None = None,
    *,
    length: int | None = None,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    after: AbstractContextManager[Any] | None = None,
    title: str = "Attention",
) -> Page:
    """Show a model's attention on texts, without the mask and with it, as one HTML file that needs no other file.

    Args:
        model: any model except multiple choice, in eval mode.
        tokenizer: the model's tokenizer.
        texts: one text for each row of the batch.
        pairs: the second text of each row.
        length: pad or truncate the rows to this number of tokens; None: pad to the longest row.
        layers: the layers to show; None: all.
        heads: the heads to show, the same in each layer; None: all.
        after: a change to the model, such as `edit(model, …)` or `ablate_heads(model, …)`: the page then shows the
            model before the change, after it, and the difference.
        title: the heading of the page.

    Returns:
        A str: write it to a file as UTF-8. A notebook shows it as a page.

    Raises:
        ValueError: a model in training mode or with choices; a layer or head that the model does not have; a page
            larger than LIMIT.
    """
    layers = sorted({*choose("layers", layers, model.config.n_layers)})
    heads = sorted({*choose("heads", heads, model.config.n_heads)})
    inputs = encode(model, tokenizer, texts, pairs, length)
    rows, tokens = inputs["input_ids"].shape
    states = 1 if after is None else 2
    size = states * rows * len(layers) * len(heads) * tokens**2 * 16 // 3
    if size > LIMIT:
        raise ValueError(
            f"the page would take {size / 2**20:.0f} MiB, more than {LIMIT / 2**20:.0f}, for {rows} rows of {tokens} "
            f"tokens in {len(layers)} layers of {len(heads)} heads: choose with layers= or heads=, or cut texts"
        )
    runs = list(_runs(model, tokenizer, inputs, layers, heads, "model" if after is None else "before"))
    if after is not None:
        with after:
            runs += _runs(model, tokenizer, inputs, layers, heads, "after")
    data = {
        "tokens": [tokenizer.convert_ids_to_tokens(row) for row in inputs["input_ids"].tolist()],
        "real": inputs["attention_mask"].tolist(),
        "layers": layers,
        "heads": heads,
        "mask": torch.finfo(model.dtype).min,
        "runs": runs,
    }
    return Page(fill("page.html", title, data))


def encode(
    model: PreTrainedModel,
    tokenizer: DistilBertTokenizer,
    texts: str | Sequence[str],
    pairs: Sequence[str] | None = None,
    length: int | None = None,
) -> dict[str, Tensor]:
    """Tokenize texts into input_ids and attention_mask, (B, S) each, on the model's device; refuse models as above."""
    if isinstance(model, DistilBertForMultipleChoice):
        raise ValueError("DistilBertForMultipleChoice has several texts in a row: pass its .distilbert, a choice a row")
    check_eval(model)
    texts = [texts] if isinstance(texts, str) else list(texts)
    positions = model.config.max_position_embeddings
    if length is not None and length > positions:
        raise ValueError(f"length must be at most {positions}, the number of the model's positions, got {length}")
    if length is None:
        batch = tokenizer(texts, pairs, padding=True, return_tensors="pt")
    else:
        batch = tokenizer(texts, pairs, padding="max_length", truncation=True, max_length=length, return_tensors="pt")
    return {name: batch[name].to(model.device) for name in ("input_ids", "attention_mask")}


def _runs(
    model: PreTrainedModel,
    tokenizer: DistilBertTokenizer,
    inputs: Mapping[str, Tensor],
    layers: Sequence[int],
    heads: Sequence[int],
    state: str,
) -> Iterator[dict[str, Any]]:
    """Run the model without the mask and with it; yield what the page holds of each run."""
    prefix = f"{model.encoder_prefix}transformer.layer."
    names = [f"{prefix}{layer}.attention." for layer in layers]
    patterns = [name + step for name in names for step in ("scores", "probs")]
    for mask in (None, inputs["attention_mask"]):
        with capture(model, *patterns) as steps:
            output = model(inputs["input_ids"], mask)
        run: dict[str, Any] = {"state": state, "masked": mask is not None, "scores": [], "probs": {}}
        additive = 0 if mask is None else additive_mask(mask, model.dtype)
        for number, name in enumerate(names):
            scores, probs = steps[name + "scores"], steps[name + "probs"]  # (B, H, S, S)
            run["scores"].append(_pack(scores[:, heads]))
            if not torch.equal(probs, (scores + additive).softmax(-1)):  # an edit changed a value between them
                run["probs"][number] = _pack(probs[:, heads])
        run["predictions"] = [
            list(_predictions(model, tokenizer, inputs, output, row)) for row in range(len(inputs["input_ids"]))
        ]
        yield run


def _predictions(
    model: PreTrainedModel, tokenizer: DistilBertTokenizer, inputs: Mapping[str, Tensor], output: Any, row: int
) -> Iterator[tuple[str, str]]:
    """Yield the model's predictions for a row, a name and a text each; an encoder without a head has none."""
    tokens = tokenizer.convert_ids_to_tokens(inputs["input_ids"][row].tolist())
    padding = inputs["attention_mask"][row] == 0
    names = model.config.id2label
    if isinstance(model, DistilBertForSequenceClassification):
        logits = output.logits[row]
        for i, (logit, share) in enumerate(zip(logits.tolist(), logits.softmax(0).tolist(), strict=True)):
            yield names[i], f"{logit:.4f} ({share:.1%})"
    elif isinstance(model, DistilBertForTokenClassification):
        for i, label in enumerate(output.logits[row].argmax(-1).tolist()):
            if not padding[i]:
                yield tokens[i], names[label]
    elif isinstance(model, DistilBertForQuestionAnswering):
        for name, logits in (("start", output.start_logits[row]), ("end", output.end_logits[row])):
            best = int(logits.masked_fill(padding, -torch.inf).argmax())  # an answer is never padding
            yield name, f"{tokens[best]} at {best} ({logits[best]:.4f})"
    elif isinstance(model, DistilBertForMaskedLM):
        for i, token in enumerate(tokens):
            if token == tokenizer.mask_token:
                best = output.logits[row, i].softmax(0).topk(3)
                words = tokenizer.convert_ids_to_tokens(best.indices.tolist())
                shares = best.values.tolist()
                yield f"{token} at {i}", ", ".join(f"{w} {p:.1%}" for w, p in zip(words, shares, strict=True))


def _pack(values: Tensor) -> list[str]:
    """(B, H, S, S) -> each row as little-endian float16 in base64, clamped to the range of float16."""
    largest = torch.finfo(torch.float16).max
    clamped = values.float().clamp(-largest, largest).cpu().numpy().astype("<f2")
    return [base64.b64encode(row.tobytes()).decode() for row in clamped]


def fill(template: str, title: str, data: Mapping[str, Any]) -> str:
    """Fill a template: `{{title}}`, `{{data}}`, and other templates by their names.

    In one pass: what a part holds is not searched for placeholders again.

    Raises:
        ValueError: a page larger than LIMIT.
    """

    def read(name: str) -> str:
        return (TEMPLATES / name).read_text(encoding="utf-8")

    parts = {
        "title": html.escape(title),
        "data": json.dumps(data).replace("<", r"\u003c"),  # so that no token can end the script element
    }
    page = re.sub(r"\{\{([\w.]+)\}\}", lambda match: parts.get(match[1]) or read(match[1]), read(template))
    if len(page) > LIMIT:
        raise ValueError(
            f"the page would take {len(page) / 2**20:.0f} MiB, more than {LIMIT / 2**20:.0f}, with the names of all "
            f"labels and tokens: give fewer or shorter texts, or a model with fewer or shorter labels"
        )
    return page

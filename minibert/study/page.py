"""Attention as one HTML page: every map, the numbers behind each, and what the mask does to them.

The page holds the scores of two runs, without the mask and with it, as float16, and its JavaScript derives the
probabilities. So it agrees with the tensors to float16's rounding: a score s is off by at most |s| / 2048, and a
probability by a factor within exp(±2 |s|max / 2048). A score takes 8/3 bytes of the file, so the file grows by
16/3 · layers · heads · tokens² bytes for each row, twice that where two states of the model are compared. For 6 layers
of 12 heads and 64 tokens that is 1.6 MB, for 128 tokens 6.3 MB. An edit of a mask, masked scores or probabilities adds
the probabilities of its layer, which no softmax of scores would give.

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
from .steps import capture, check_eval

LIMIT = 32 * 2**20  # bytes of a page: browsers open it at once, and mail and repositories still take it
TEMPLATES = Path(__file__).with_name("templates")


class Page(str):
    """HTML that a notebook shows, in a frame of its own, so that several do not disturb each other."""

    def _repr_html_(self) -> str:
        return f'<iframe srcdoc="{html.escape(self)}" style="width: 100%; height: 50rem; border: 0"></iframe>'

    def __repr__(self) -> str:  # a notebook saves it too, next to the page
        return f"<attention page, {len(self) / 1e6:.2f} MB>"


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
    """Show a model's attention on texts, with the mask and without, as one HTML file that needs nothing else.

    Args:
        model: any model but multiple choice, in eval mode.
        tokenizer: its tokenizer.
        texts: a row each.
        pairs: the second text of each row.
        length: pad or cut the rows to so many tokens; None: pad to the longest.
        layers: those to show; None for all.
        heads: those to show of each layer; None for all.
        after: a change to the model, such as `edit(model, …)` or `ablate_heads(model, …)`: the page then shows the
            model before and after it, and the difference.
        title: above the page.

    Returns:
        A str, to be written to a file in UTF-8; in a notebook it shows itself.

    Raises:
        ValueError: a model in training mode or with choices, a layer or head that there is not, or a page larger than
            LIMIT.
    """
    layers = _chosen("layers", layers, model.config.n_layers)
    heads = _chosen("heads", heads, model.config.n_heads)
    inputs = encode(model, tokenizer, texts, pairs, length)
    rows, tokens = inputs["input_ids"].shape
    states = 1 if after is None else 2
    size = states * rows * len(layers) * len(heads) * tokens**2 * 16 // 3
    if size > LIMIT:
        raise ValueError(
            f"the page would take {size / 2**20:.0f} MiB, more than {LIMIT / 2**20:.0f}, for {rows} rows of {tokens} "
            f"tokens in {len(layers)} layers of {len(heads)} heads: choose with layers= or heads=, or give less text"
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
    return Page(_fill(title, data))


def encode(
    model: PreTrainedModel,
    tokenizer: DistilBertTokenizer,
    texts: str | Sequence[str],
    pairs: Sequence[str] | None = None,
    length: int | None = None,
) -> dict[str, Tensor]:
    """Tokenize texts into input_ids and attention_mask, (B, S) each, where the model is; refuse a model as above."""
    if isinstance(model, DistilBertForMultipleChoice):
        raise ValueError("DistilBertForMultipleChoice has several texts a row: pass its .distilbert, a choice a row")
    check_eval(model)
    texts = [texts] if isinstance(texts, str) else list(texts)
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
    """Run the model without its mask and with it."""
    prefix = f"{model.encoder_prefix}transformer.layer."
    names = [f"{prefix}{layer}.attention." for layer in layers]
    patterns = [name + step for name in names for step in ("scores", "probs")]
    for mask in (None, inputs["attention_mask"]):
        with capture(model, *patterns, limit=2**63) as steps:  # small: the page has its own limit
            output = model(inputs["input_ids"], mask)
        run: dict[str, Any] = {"state": state, "masked": mask is not None, "scores": [], "probs": {}}
        additive = 0 if mask is None else additive_mask(mask, model.dtype)
        for number, name in enumerate(names):
            scores, probs = steps[name + "scores"], steps[name + "probs"]  # (B, H, S, S)
            run["scores"].append(_pack(scores[:, heads]))
            if not torch.equal(probs, (scores + additive).softmax(-1)):  # an edit has cut in between
                run["probs"][number] = _pack(probs[:, heads])
        run["predictions"] = [
            list(_predictions(model, tokenizer, inputs["input_ids"], output, row))
            for row in range(len(inputs["input_ids"]))
        ]
        yield run


def _predictions(
    model: PreTrainedModel, tokenizer: DistilBertTokenizer, input_ids: Tensor, output: Any, row: int
) -> Iterator[tuple[str, str]]:
    """Give what the model says of a row, as pairs of what is asked and the answer; an encoder says nothing."""
    tokens = tokenizer.convert_ids_to_tokens(input_ids[row].tolist())
    names = model.config.id2label
    if isinstance(model, DistilBertForSequenceClassification):
        logits = output.logits[row]
        for i, (logit, share) in enumerate(zip(logits.tolist(), logits.softmax(-1).tolist(), strict=True)):
            yield names[i], f"{logit:.4f} ({share:.1%})"
    elif isinstance(model, DistilBertForTokenClassification):
        for token, label in zip(tokens, output.logits[row].argmax(-1).tolist(), strict=True):
            if token != tokenizer.pad_token:
                yield token, names[label]
    elif isinstance(model, DistilBertForQuestionAnswering):
        for name, logits in (("start", output.start_logits[row]), ("end", output.end_logits[row])):
            yield name, f"{tokens[int(logits.argmax())]} at {int(logits.argmax())} ({logits.max().item():.4f})"
    elif isinstance(model, DistilBertForMaskedLM):
        for i, token in enumerate(tokens):
            if token == tokenizer.mask_token:
                best = output.logits[row, i].softmax(-1).topk(3)
                words = tokenizer.convert_ids_to_tokens(best.indices.tolist())
                shares = best.values.tolist()
                yield f"{token} at {i}", ", ".join(f"{w} {p:.1%}" for w, p in zip(words, shares, strict=True))


def _chosen(name: str, chosen: Sequence[int] | None, size: int) -> list[int]:
    """Return the numbers asked for, all of them for None, in order and once each."""
    numbers = sorted(set(range(size) if chosen is None else chosen))
    if not numbers or not 0 <= numbers[0] <= numbers[-1] < size:
        raise ValueError(f"{name} must be numbers from 0 to {size - 1}, got {chosen}")
    return numbers


def _pack(values: Tensor) -> list[str]:
    """(B, H, S, S) -> each row as little-endian float16 in base64; what float16 cannot hold is cut to its range."""
    cut = values.float().clamp(-65504, 65504).cpu().numpy().astype("<f2")
    return [base64.b64encode(row.tobytes()).decode() for row in cut]


def _fill(title: str, data: Mapping[str, Any]) -> str:
    """Put the parts into the template, all in one pass, so that no part is searched for the names of others."""
    parts = {name: (TEMPLATES / f"page.{name}").read_text(encoding="utf-8") for name in ("html", "css", "js")}
    parts["title"] = html.escape(title)
    parts["data"] = json.dumps(data).replace("<", r"\u003c")  # ASCII; and no token can end the script element
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], parts["html"])

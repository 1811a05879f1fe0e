"""`pack` against the model: random rows, holes, dtypes, threads; equal bits alone and in the batch."""

import copy

import torch

from minibert import pack
from minibert.kernels import threads

from ..models import HEADS, batch, model, tensors
from ..test_packed import ON_CLS, is_by_token, largest_difference, real_tokens
from .tools import accepted

SHAPES = [{}, {"dim": 64, "hidden_dim": 192}, {"dim": 24, "n_heads": 3, "hidden_dim": 40, "activation": "relu"}]
DTYPES = ("float32", "float64", "bfloat16", "float16")
MODELS = {}


def make(source):
    rows, longest = source.integer(1, 6), source.integer(1, 16)
    kind = source.choice(["ragged", "ragged", "holes", "left", "none", "any"])

    def lengths():
        length = source.integer(1, longest)
        if kind == "left":
            return [0] * (longest - length) + [1] * length
        row = [1] * length + [0] * (longest - length)
        return [source.integer(0, 1) if kind == "any" or (kind == "holes" and i) else bit for i, bit in enumerate(row)]

    return {
        "head": source.choice(list(HEADS)),
        "config": source.integer(0, len(SHAPES) - 1),
        "dtype": source.choice(["float32", "float32", *DTYPES]),
        "threads": source.choice([1, 1, 1, 2, 3]),
        "mask": None if kind == "none" else [lengths() for _ in range(rows)],
        "mask_dtype": source.choice(["int64", "bool", "float32"]),
        "shape": (rows, longest),
        "seed": source.integer(0, 255),
        "embeds": source.once_in(5),
        "positions": source.once_in(5),
        "states": source.once_in(3),
    }


def models(head, config, dtype, threads):
    key = (head, config, dtype, threads)
    if key not in MODELS:
        torch.manual_seed(0)
        each = model(head, **SHAPES[config]).to(getattr(torch, dtype))
        MODELS[key] = each, pack(each)
    return MODELS[key]


def inputs_of(value, each):
    rows, longest = value["shape"]
    torch.manual_seed(value["seed"])
    inputs = batch(value["head"], "ones", (rows, longest))
    ids = inputs["input_ids"]
    mask = None
    if value["mask"] is not None:
        mask = torch.tensor(value["mask"], dtype=getattr(torch, value["mask_dtype"]))
        mask = mask if ids.ndim == 2 else mask[:, None].repeat(1, ids.shape[1], 1)
    inputs["attention_mask"] = mask
    if value["positions"]:
        inputs["position_ids"] = torch.randint(0, 16, ids.shape)
    if value["embeds"]:
        inputs["inputs_embeds"] = torch.randn(*ids.shape, each.config.dim).to(each.dtype)
        del inputs["input_ids"]
    return inputs, ids


def check(value):
    with torch.no_grad(), threads(value["threads"]):
        return check_with_threads(value)


def check_with_threads(value):
    each, fast = models(value["head"], value["config"], value["dtype"], value["threads"])
    inputs, ids = inputs_of(value, each)
    states = {"output_hidden_states": value["states"]}
    output = accepted(lambda: fast(**inputs, **states))
    mask = inputs["attention_mask"]
    if output is None:
        no_key = mask is not None and not mask.bool().any(-1).all()
        no_first = mask is not None and value["head"] in ON_CLS and not mask[..., 0].bool().all()
        assert no_key or no_first, "pack refuses what the model takes"
        return False
    real = real_tokens({"input_ids": ids, "attention_mask": mask})
    expected = each(**inputs, **states)
    difference = largest_difference(expected, output, real)
    limit = {torch.float64: 1e-12, torch.float32: 3e-5}.get(each.dtype) or 8 * rounding(each, inputs, real)
    assert difference <= limit, f"differs by {difference}, more than {limit}"
    if fast.batch_invariant:
        for row in range(len(ids)):
            compare_alone(fast, inputs, states, output, row, ids)
    return True


def rounding(each, inputs, real):
    """By how much the hidden states and the result of the model itself differ from those in float64."""
    exact = copy.deepcopy(each).double()
    exact_inputs = {n: x.double() if x is not None and x.is_floating_point() else x for n, x in inputs.items()}
    states = {"output_hidden_states": True}
    of_model, of_exact = tensors(each(**inputs, **states)), tensors(exact(**exact_inputs, **states))
    worst = 0.0
    for name, tensor in of_model.items():
        at = real if is_by_token(name, tensor) else ...
        worst = max(worst, (tensor[at] - of_exact[name][at]).abs().max().item())
    return worst


def compare_alone(fast, inputs, states, output, row, ids):
    """A row alone, without its padding on the right, has the same bits as in the batch."""
    mask, end = inputs["attention_mask"], ids.shape[-1]
    if mask is not None:
        end = int(mask[row].bool().nonzero()[:, -1].max()) + 1
    alone = {name: x[row : row + 1].narrow(ids.ndim - 1, 0, end) for name, x in inputs.items() if x is not None}
    own, together = tensors(fast(**alone, **states)), tensors(output)
    for name, tensor in own.items():
        part = together[name].unflatten(0, (len(ids), -1))[
            row
        ]  # hidden states of multiple choice: a row for each choice
        if is_by_token(name, tensor):
            part = part[:, : tensor.shape[1]]
        assert torch.equal(tensor, part), f"{name} of row {row} has other bits alone"

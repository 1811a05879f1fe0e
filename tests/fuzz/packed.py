"""`pack` against the model: random rows, holes, dtypes, threads; equal bits alone and in the batch."""

import copy
import functools

import torch

from minibert import pack
from minibert.kernels import threads

from ..models import HEADS, batch, model, tensors
from ..test_packed import ON_CLS, is_by_token, largest_difference, real_tokens
from .tools import accepted

SHAPES = [{}, {"dim": 64, "hidden_dim": 192}, {"dim": 24, "n_heads": 3, "hidden_dim": 40, "activation": "relu"}]
DTYPES = ("float32", "float64", "bfloat16", "float16")


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


@functools.cache
def models(head, config, dtype, threads):
    """A model and its packed form, made while torch uses so many threads."""
    torch.manual_seed(0)
    each = model(head, **SHAPES[config]).to(getattr(torch, dtype))
    return each, pack(each)


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
    limit = {"float64": 1e-12, "float32": 3e-5}.get(value["dtype"])
    if limit is None:  # the errors of both, and as much again: there are rarer inputs than those that `rounding` tries
        limit = 4 * rounding(value["head"], value["config"], value["dtype"])
    assert difference <= limit, f"differs by {difference}, more than {limit}"
    if fast.batch_invariant:
        for row in range(len(ids)):
            compare_alone(fast, inputs, states, output, row, ids)
    return True


@functools.cache
def rounding(head, config, dtype):
    """The largest error of the model itself against float64, over 64 rows of 16 tokens.

    Not that of the input at hand: a few numbers alone can be nearly exact by chance.
    """
    each, _ = models(head, config, dtype, 1)
    torch.manual_seed(0)
    inputs = batch(head, "ones", (64, 16))
    of_model = tensors(each(**inputs, output_hidden_states=True))
    exact = tensors(copy.deepcopy(each).double()(**inputs, output_hidden_states=True))
    return max((tensor - exact[name]).abs().max().item() for name, tensor in of_model.items())


def compare_alone(fast, inputs, states, output, row, ids):
    """A row alone, without its padding on the right, has the same bits as in the batch."""
    mask, end = inputs["attention_mask"], ids.shape[-1]
    if mask is not None:
        end = int(mask[row].bool().nonzero()[:, -1].max()) + 1
    alone = {name: x[row : row + 1].narrow(ids.ndim - 1, 0, end) for name, x in inputs.items() if x is not None}
    own, together = tensors(fast(**alone, **states)), tensors(output)
    for name, tensor in own.items():
        # hidden states of multiple choice have a row for each choice
        part = together[name].unflatten(0, (len(ids), -1))[row]
        if is_by_token(name, tensor):
            part = part[:, : tensor.shape[1]]
        assert torch.equal(tensor, part), f"{name} of row {row} has other bits alone"

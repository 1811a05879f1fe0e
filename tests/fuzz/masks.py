"""Any mask and any positions. Oracle: transformers with eager attention, bit for bit."""

import torch

from minibert.mask import additive_mask

from ..models import model
from ..test_parity import assert_same_bits, twin
from .tools import accepted

DTYPES = ["bool", "int64", "int32", "uint8", "int8", "float32", "float64", "float16", "bfloat16"]
DTYPES += ["complex64", "uint16", "uint64", "float8_e4m3fn", "qint8"]
MODEL_DTYPES = ["float32", "float64", "bfloat16", "float16"]
VALUES = [0, 1, 0, 1, 0, 1, -1, 2, 255, 0.5, -0.0, 1e-30, -1e4, float("-inf"), float("inf"), float("nan")]
LAYOUTS = ["plain", "transposed", "expanded", "offset", "sparse", "csr", "nested", "meta", "grad", "conj"]
HEADS, SIZES = 2, {"n_layers": 1, "dim": 8, "hidden_dim": 8, "n_heads": 2}
MODELS = {}


def shape_of(source, batch, length):
    near = [batch, length, 1, HEADS, 0, batch + 1, length - 1]
    usual = [(batch, length)] * 3 + [(b, h, length, length) for b in (1, batch) for h in (1, HEADS)]
    return (
        source.choice([*usual, (batch, length, length)])
        if source.integer(0, 3)
        else tuple(source.several(lambda: source.choice(near), 5))
    )


def make(source):
    batch, length = source.integer(1, 3), source.integer(1, 6)
    shape = shape_of(source, batch, length)
    only_bits = source.integer(0, 3) > 0
    values = source.several(lambda: source.choice(VALUES[: 4 if only_bits else None]), 12) or [1]
    dtype = source.choice(DTYPES[: 6 if only_bits else None])
    return {
        "model": source.choice(MODEL_DTYPES),
        "ids": (batch, length),
        "mask": (shape, "bool" if len(shape) == 4 and only_bits else dtype, values),
        "layout": source.choice(LAYOUTS) if source.once_in(3) else "plain",
        "positions": source.choice([None, None, "reversed", "shared", "negative", "beyond", "float", "meta"]),
    }


def tensor(shape, dtype, values, layout):
    """A mask whose values repeat those given."""
    count = torch.Size(shape).numel()
    numbers = torch.tensor((values * (count // len(values) + 1))[:count], dtype=torch.float64).reshape(shape)
    if dtype == "qint8":
        return torch.quantize_per_tensor(numbers.float().nan_to_num(), 1.0, 0, torch.qint8)
    mask = numbers.nan_to_num(0, 99, -99).clamp(0, 99).to(getattr(torch, dtype)) if "int" in dtype else None
    mask = numbers.to(getattr(torch, dtype)) if mask is None else mask
    match layout:
        case "transposed":
            return mask.mT.contiguous().mT if mask.ndim > 1 else mask
        case "expanded":
            return mask[:1].expand(shape) if mask.ndim and shape[0] else mask
        case "offset":
            return torch.stack([mask, mask], -1)[..., 1]
        case "sparse":
            return mask.to_sparse()
        case "csr":
            return mask.to_sparse_csr()
        case "nested":
            return torch.nested.nested_tensor(list(mask), layout=torch.strided)
        case "meta":
            return mask.to("meta")
        case "grad" if mask.is_floating_point():
            return mask.requires_grad_()
        case "conj" if mask.is_complex():
            return mask.conj()
    return mask


def models(dtype):
    if dtype not in MODELS:
        torch.manual_seed(0)
        ours = model(**SIZES).to(getattr(torch, dtype))
        MODELS[dtype] = ours, twin(ours)
    return MODELS[dtype]


def positions(kind, batch, length):
    arange = torch.arange(length)
    kinds = {
        "reversed": arange.flip(0)[None].expand(batch, length),
        "shared": arange[None] + 3,
        "negative": arange[None] - 1,
        "beyond": arange[None] + 16 - length + 1,
        "float": arange[None].float(),
        "meta": arange[None].to("meta"),
    }
    return kinds.get(kind)


@torch.no_grad()
def check(value):
    ours, theirs = models(value["model"])
    try:
        mask = tensor(*value["mask"], value["layout"])
    except (RuntimeError, IndexError, TypeError):  # torch has no such tensor
        return False
    ids = torch.arange(value["ids"][0] * value["ids"][1]).reshape(value["ids"]) + 1
    every = {"output_hidden_states": True, "output_attentions": True}
    every["position_ids"] = positions(value["positions"], *value["ids"])
    output = accepted(lambda: ours(ids, mask, **every))
    if output is None:
        return False
    assert ((mask == 0) | (mask == 1)).all(), "a mask of other values than 0 and 1 is accepted"
    real = mask.bool()
    visible = real[:, None, None, :] if mask.ndim == 2 else real
    assert visible.any(-1).all(), "a row that may attend to nothing is accepted"
    if value["model"] != "float16":  # there the minimum of the dtype plus a score may be -inf
        for probs in output.attentions:
            assert (probs.masked_select(~visible.expand_as(probs)) == 0).all(), "a hidden key gets attention"
    if mask.ndim == 4:  # transformers adds a 4-D mask of bools as numbers
        mask = additive_mask(mask, ours.dtype)
    assert_same_bits(output, theirs(ids, mask, **every))
    return True

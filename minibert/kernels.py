"""The modules that `pack` puts into a model: linear layers prepared once for x86 CPUs, and a GELU in place.

A matrix product can add up in another order if it has another number of rows, or if its operands lie at other
addresses. The last bits of a text's logits then depend on the other texts of its batch. The kernels here avoid that
where they can. `trial.py` tests on this machine whether they do.
"""

import copy
import platform
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, ClassVar, NamedTuple, Self, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .pretrained import PreTrainedModel

X86 = platform.machine() in ("x86_64", "AMD64")
LANES = 16  # float32 numbers in a vector register of AVX-512
TYPICAL_ROWS = 512  # layouts of weights are made for so many rows; they serve any number
MOST_THREADS = 8  # a layout that MKL makes for 16 threads adds up in an order that depends on the number of rows


class PreparedLinear(nn.Module, ABC):
    """A linear layer whose weights are laid out, or quantized, once.

    Args:
        weight: (out, in), float32, on the CPU.
        bias: (out,).
    """

    label: ClassVar[str]  # the name of this kind in print(pack(model))

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.width, self.n_inputs = weight.shape
        self.bias = bias.detach()

    @classmethod
    def of(cls, linear: nn.Linear) -> Self:
        """Prepare a layer."""
        bias = linear.weight.new_zeros(linear.out_features) if linear.bias is None else linear.bias
        return cls(linear.weight, bias)

    @staticmethod
    @abstractmethod
    def is_available() -> bool:
        """Whether torch has what this kind needs."""

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """(…, in) -> (…, out), float32."""


class MklLinear(PreparedLinear):
    """Weights laid out once, not at each call, in the order in which MKL's matrix product reads them.

    Measured on Intel CPUs with AVX-512: a row does not depend on the others if the layout is made for at most 8 threads
    and the width is a multiple of 16. So the layout is made for the threads in use, at most 8, and zeros fill up the
    width.
    """

    label = "weights prepacked for MKL"

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__(weight, bias)
        missing = -self.width % LANES
        weight, self.bias = F.pad(weight, (0, 0, 0, missing)), F.pad(bias, (0, missing))
        with threads(min(torch.get_num_threads(), MOST_THREADS)):
            self.packed = torch.ops.mkl._mkl_reorder_linear_weight(weight, TYPICAL_ROWS)
        self.shape_only = weight.new_empty(1).expand(weight.shape)  # nothing else is read of the weight itself

    @staticmethod
    def is_available() -> bool:
        """Whether torch has MKL, and the private operators used here."""
        return X86 and torch.backends.mkl.is_available() and hasattr(torch.ops.mkl, "_mkl_linear")

    def forward(self, x: Tensor) -> Tensor:
        """(…, in) -> (…, out), float32."""
        rows = x.numel() // self.n_inputs
        product = torch.ops.mkl._mkl_linear(x, self.packed, self.shape_only, self.bias, rows)
        return product if product.shape[-1] == self.width else product[..., : self.width]


class OneDnnLinear(PreparedLinear):
    """Weights laid out once in the order in which oneDNN's matrix product reads them.

    oneDNN computes a single row as a matrix-vector product. With AVX-512 and many inputs, that adds up in another
    order. So a single row is doubled.
    """

    label = "weights prepacked for oneDNN"

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__(weight, bias)
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), TYPICAL_ROWS)

    @staticmethod
    def is_available() -> bool:
        """Whether torch has oneDNN, and the private operators used here."""
        known = hasattr(torch.ops.mkldnn, "_reorder_linear_weight") and hasattr(torch.ops.mkldnn, "_linear_pointwise")
        return X86 and has_onednn() and known

    def forward(self, x: Tensor) -> Tensor:
        """(…, in) -> (…, out), float32."""
        single = x.numel() == self.n_inputs
        rows = x.reshape(1, -1).repeat(2, 1) if single else x
        product = torch.ops.mkldnn._linear_pointwise(rows, self.packed, self.bias, "none", [], "")
        return product[0].view(*x.shape[:-1], -1) if single else product


class Int8Linear(PreparedLinear):
    """Weights and inputs quantized to int8: each output channel of the weights has its own scale, each row of x too.

    Sums of integers are exact in any order, and the scale of a row does not depend on other rows.
    `scripts/train_demo_model.py FOLDER --report` measures the loss of accuracy on the demo checkpoint.
    """

    label = "int8"

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__(weight, bias)
        self.scales = int8_scales(weight, int8_limit())[:, 0]  # (out,)
        self.zeros = torch.zeros(len(self.scales), dtype=torch.long)
        quantized = (weight / self.scales[:, None]).round().to(torch.int8)
        self.packed = torch.ops.onednn.qlinear_prepack(quantized, None)

    @staticmethod
    def is_available() -> bool:
        """Whether torch has the private operators used here, and their products are exact on this CPU."""
        return int8_limit() > 0

    def forward(self, x: "Tensor | Int8Rows") -> Tensor:
        """(…, in) -> (…, out), float32."""
        rows = x if isinstance(x, Int8Rows) else Int8Rows.of(x)
        product = int8_product(rows.uint8, 128, self.packed, self.scales, self.zeros)
        return torch.addcmul(self.bias, product, rows.scales, out=product)


class Int8Rows(NamedTuple):
    """Rows of x in int8.

    Args:
        uint8: (…, in), -127 … 127 as 1 … 255: zero is at 128.
        scales: (…, 1), see `int8_scales`.
    """

    uint8: Tensor
    scales: Tensor

    @classmethod
    def of(cls, x: Tensor) -> Self:
        """Quantize."""
        scales = int8_scales(x, 127)
        return cls(torch.div(x, scales).add_(128.5).to(torch.uint8), scales)


def int8_scales(x: Tensor, limit: int) -> Tensor:
    """(…, N) -> (…, 1): the scale, a float for the integer 1. The largest of N numbers becomes `limit`."""
    largest = torch.maximum(x.amax(-1, keepdim=True), -x.amin(-1, keepdim=True))
    return largest.div_(limit).clamp_(min=torch.finfo(x.dtype).tiny)


def int8_product(x: Tensor, zero: int, packed: Tensor, scales: Tensor, zeros: Tensor) -> Tensor:
    """(…, in) uint8 and packed (out, in) int8 -> (…, out) float32: (x - zero) @ weightᵀ * scales."""
    return torch.ops.onednn.qlinear_pointwise(
        x, 1.0, zero, packed, scales, zeros, None, 1.0, 0, torch.float32, "none", [], ""
    )


@cache
def int8_limit() -> int:
    """Return the largest int8 weight whose products are exact on this CPU: 127, 63, or 0 where there is none.

    A CPU without VNNI adds two products of uint8 and int8 in 16 bits. With large weights this saturates silently. With
    weights within ±63 two products fit: 2 * 255 * 63 < 2**15. So the largest products are computed and compared; flags
    of the CPU are not read.
    """
    if not (X86 and has_onednn() and hasattr(torch.ops.onednn, "qlinear_prepack")):
        return 0
    x = torch.full((3, 64), 255, dtype=torch.uint8)
    signs = torch.tensor([[1], [-1]]).repeat(LANES, 64)
    for limit in (127, 63):
        weight = (signs * limit).to(torch.int8)
        packed, n = torch.ops.onednn.qlinear_prepack(weight, None), len(weight)
        product = int8_product(x, 0, packed, torch.ones(n), torch.zeros(n, dtype=torch.long))
        if torch.equal(product, (x.long() @ weight.long().T).float()):
            return limit
    return 0


def quantize_once(attention: nn.Module, x: Tensor) -> Tensor | Int8Rows:
    """Return the input of the query, key and value layers: x, or for int8 its rows, quantized once for all three."""
    return Int8Rows.of(x) if isinstance(attention.k_lin, Int8Linear) else x


class InPlaceGELU(nn.Module):
    """GELU that overwrites its input, since getting new memory from the operating system takes time."""

    def __init__(self, gelu: nn.GELU) -> None:
        super().__init__()
        self.approximate = gelu.approximate

    def forward(self, x: Tensor) -> Tensor:
        """(…) -> (…), the same memory."""
        return torch.ops.aten.gelu_(x, approximate=self.approximate)


def attention(q: Tensor, k: Tensor, v: Tensor, dropout: float = 0.0) -> Tensor:
    """softmax(q kᵀ / √E) v: q (rows, H, Q, E), k and v (rows, H, S, E) -> (rows, H, Q, E).

    In training, `dropout` is the share of the probabilities that becomes 0.

    On a CPU, torch computes these products with MKL. They depend on the other rows and on addresses if one query meets
    more keys, if E is not a multiple of 16, or if rows * H is 1. Such inputs are filled up, and the results are cut.
    """
    n_heads, n_queries, size = q.shape[1:]
    if q.device.type == "cpu":
        if n_queries == 1:
            q = q.expand(-1, -1, 4, -1)
        filling = (0, -size % LANES, 0, 0, 0, 1 if n_heads == 1 else 0)
        if any(filling):
            q, k, v = (F.pad(x, filling) for x in (q, k, v))
    context = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, scale=size**-0.5)
    return context[:, :n_heads, :n_queries, :size]


def varlen_attention(q: Tensor) -> Callable[..., Any] | None:
    """Return torch's attention over rows of any length, or None where it cannot run on q (T, H, E).

    It runs in half precision on GPUs from compute capability 8.0 on, in torch from 2.10 on.
    """
    fits = q.is_cuda and q.dtype in (torch.float16, torch.bfloat16) and q.shape[-1] % 8 == 0 and q.shape[-1] <= 256
    if not fits or not torch.backends.cuda.is_flash_attention_available():
        return None
    if torch.cuda.get_device_capability(q.device) < (8, 0):
        return None
    try:
        from torch.nn.attention.varlen import varlen_attn  # slow to import: only where it is needed
    except ImportError:
        return None
    return varlen_attn


Model = TypeVar("Model", bound=nn.Module)


def has_onednn() -> bool:
    """Whether torch has oneDNN, and it is not switched off."""
    return torch.backends.mkldnn.is_available() and bool(torch.backends.mkldnn.enabled)


def is_cpu_float32(model: PreTrainedModel) -> bool:
    """Whether prepared linear layers may take the place of the model's."""
    return model.device.type == "cpu" and model.dtype == torch.float32


def copy_structure(model: Model) -> Model:
    """Copy a model's modules but not its parameters, which the copy shares."""
    return copy.deepcopy(model, {id(parameter): parameter for parameter in model.parameters()})


def use_kernels(model: PreTrainedModel, encoder: nn.Module, linear: type[PreparedLinear] | None, int8: bool) -> str:
    """Put kernels into a model, `linear` in place of nn.Linear, and return their names."""
    replace_modules(model, nn.GELU, InPlaceGELU)
    if int8:
        replace_modules(encoder, nn.Linear, Int8Linear.of)
    if linear is not None:
        replace_modules(model, nn.Linear, linear.of)
    label = "F.linear" if linear is None else linear.label
    if not int8:
        return label
    quantized = Int8Linear.label if int8_limit() == 127 else f"{Int8Linear.label}, weights within {int8_limit()}"
    return quantized if encoder is model else f"{quantized}, the head: {label}"


@torch.no_grad()
def replace_modules(root: nn.Module, old: type[nn.Module], new: Callable[[Any], nn.Module]) -> None:
    """Put a `new(module)` in place of each module of class `old` below a module."""
    for parent in list(root.modules()):
        for name, child in parent.named_children():
            if type(child) is old:
                setattr(parent, name, new(child))


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Let torch use `count` threads inside a with block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)

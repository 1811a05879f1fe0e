"""What `pack` puts in place of a model's modules: linear layers prepared once for x86 CPUs, and a GELU in place.

Both kinds of layers give a row the same bits whatever the number of rows beside it and of threads. `nn.Linear` does
not: the order in which a matrix product adds up depends on its size.
"""

import copy
import platform
from collections.abc import Callable
from typing import Any, NamedTuple, Self, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .pretrained import PreTrainedModel

X86 = platform.machine() in ("x86_64", "AMD64")
BLOCK = 16  # float32 numbers in a vector register of AVX-512
MOST_THREADS = 8  # a layout made for 16 adds up in another order where the number of rows is another


class MklLinear(nn.Module):
    """Weights laid out once, not at each call, in the order in which MKL's matrix product reads them.

    Rows do not depend on each other under two conditions, found by measuring: the layout is made for at most 8 threads
    (it is fastest for as many as will run), and the width is a multiple of 16; zeros fill it up.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.width, self.n_inputs = linear.out_features, linear.in_features
        missing = -self.width % BLOCK
        weight, self.bias = F.pad(linear.weight, (0, 0, 0, missing)), F.pad(linear.bias, (0, missing))
        threads = torch.get_num_threads()
        torch.set_num_threads(min(threads, MOST_THREADS))
        self.packed = torch.ops.mkl._mkl_reorder_linear_weight(weight, 512)  # 512 rows are typical; any number may come
        torch.set_num_threads(threads)
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


class Int8Linear(nn.Module):
    """Numbers rounded to int8: each output channel's weights with a scale of their own, each row of x likewise.

    Integers add up exactly in any order, and no row's scale depends on another row. On the demo checkpoint's 1,066
    held-out texts no label changes, and a logit by 0.016 at most (`scripts/train_demo_model.py FOLDER --report`).
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.n_inputs = linear.in_features
        self.bias = linear.bias.clone()
        self.scales = int8_scales(linear.weight)[:, 0]  # (out,)
        self.zeros = torch.zeros(len(self.scales), dtype=torch.long)
        weight = (linear.weight / self.scales[:, None]).round().to(torch.int8)
        self.packed = torch.ops.onednn.qlinear_prepack(weight, None)

    @staticmethod
    def is_available() -> bool:
        """Whether the CPU multiplies int8 exactly (VNNI), and torch has the operators used here."""
        known = hasattr(torch.ops.onednn, "qlinear_prepack") and hasattr(torch.cpu, "_is_vnni_supported")  # private
        return X86 and torch.backends.mkldnn.is_available() and known and torch.cpu._is_vnni_supported()

    def forward(self, x: "Tensor | Int8Rows") -> Tensor:
        """(…, in) -> (…, out), float32."""
        rows = x if isinstance(x, Int8Rows) else Int8Rows.of(x)
        product = torch.ops.onednn.qlinear_pointwise(
            rows.uint8, 1.0, 128, self.packed, self.scales, self.zeros, None, 1.0, 0, torch.float32, "none", [], ""
        )
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
        """Round."""
        scales = int8_scales(x)
        return cls(torch.div(x, scales).add_(128.5).to(torch.uint8), scales)


def round_once(attention: nn.Module, x: Tensor) -> Tensor | Int8Rows:
    """Return what the query, key and value layers read: x, or if they are int8 its rows, rounded once for the three."""
    return Int8Rows.of(x) if isinstance(attention.k_lin, Int8Linear) else x


class InPlaceGELU(nn.Module):
    """GELU that overwrites its input: to write to fresh memory costs the system's time for handing it out."""

    def __init__(self, gelu: nn.GELU) -> None:
        super().__init__()
        self.approximate = gelu.approximate

    def forward(self, x: Tensor) -> Tensor:
        """(…) -> (…), the same memory."""
        return torch.ops.aten.gelu_(x, approximate=self.approximate)


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


Kernel = MklLinear | Int8Linear


def int8_scales(x: Tensor) -> Tensor:
    """(…, N) -> (…, 1): what 1 stands for, so that the largest of N numbers becomes 127."""
    largest = torch.maximum(x.amax(-1, keepdim=True), -x.amin(-1, keepdim=True))
    return largest.div_(127).clamp_(min=torch.finfo(x.dtype).tiny)


def is_cpu_float32(model: PreTrainedModel) -> bool:
    """Whether prepared linear layers may take the place of the model's."""
    return model.device.type == "cpu" and model.dtype == torch.float32


Model = TypeVar("Model", bound=nn.Module)


def copy_structure(model: Model) -> Model:
    """Copy a model's modules but not its parameters, which the copy shares."""
    return copy.deepcopy(model, {id(parameter): parameter for parameter in model.parameters()})


def use_kernels(model: PreTrainedModel, encoder: nn.Module, int8: bool) -> str:
    """Put the fastest kernels that this machine has into a model, and return what they are."""
    replace_modules(model, nn.GELU, InPlaceGELU)
    if int8:
        replace_modules(encoder, nn.Linear, Int8Linear)
    name = "F.linear"
    if is_cpu_float32(model) and MklLinear.is_available():
        replace_modules(model, nn.Linear, MklLinear)
        name = "weights prepacked for MKL"
    return name if not int8 else "int8" if encoder is model else f"int8, the head: {name}"


@torch.no_grad()
def replace_modules(root: nn.Module, old: type[nn.Module], new: Callable[[Any], nn.Module]) -> None:
    """Put a `new(module)` in place of each module of class `old` below a module."""
    for parent in list(root.modules()):
        for name, child in parent.named_children():
            if type(child) is old:
                setattr(parent, name, new(child))


@torch.no_grad()
def rows_are_independent(model: nn.Module) -> bool:
    """Whether all linear layers of a model are of the kinds above, and on this machine do what these promise."""
    if not torch.backends.mkldnn.enabled:  # without oneDNN a GELU rounds by a number's place in a vector register
        return False
    kernels = [part for part in model.modules() if isinstance(part, Kernel)]
    shapes = {(type(kernel), kernel.n_inputs, len(kernel.bias)): kernel for kernel in kernels}
    for kernel in shapes.values():  # one of each shape
        x = torch.linspace(-1, 1, 40 * kernel.n_inputs).view(40, -1)
        together = kernel(x)
        if not all(torch.equal(kernel(x[:n]), together[:n]) for n in (1, 2, 7, 16, 33)):
            return False
    return not any(isinstance(part, nn.Linear) for part in model.modules())

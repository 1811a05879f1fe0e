"""Does a text get the same bits alone and in any batch on this machine? A trial of each kernel answers.

A process tries each kind of kernel with each shape of layer once, and keeps the answer.

Measured with torch 2.13: MKL's products pass on Intel CPUs with AVX-512. They fail on AMD CPUs, where MKL uses AVX2:
there 1 to 3 rows add up in another order than more rows, and the address of a buffer changes bits too. oneDNN's
products pass on AVX2 and on AVX-512. In torch 2.6 they fail: on AVX2 from about 70 rows on, and on AVX-512 in layers of
more than 1,024 inputs, if many threads share few rows.
"""

import math
import os
from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import Tensor, nn

from .kernels import (
    InPlaceGELU,
    MklLinear,
    OneDnnLinear,
    PreparedLinear,
    attention,
    has_onednn,
    is_cpu_float32,
    threads,
)
from .pretrained import PreTrainedModel

TRIAL_THREADS, MANY_THREADS = [1, 2], [8]
TRIAL_ROWS = (1, 1, 2, 2, 3, 3, *range(4, 18), 33, 64, 64, 128)  # in turn with 1 and with 2 threads
MANY_THREADS_ROWS = (1, 17, 64)  # few: 8 threads on fewer cores take milliseconds
TRIAL_LENGTHS = (1, 2, 3, 4, 5, 7, 9, 16, 17, 31, 33, 65)
TRIAL_OFFSETS = (0, 4, 8, 1)  # float32 numbers beyond an address that is a multiple of 64 bytes, as torch allocates


def _try_one_thread() -> None:
    TRIAL_THREADS[:] = MANY_THREADS[:] = [1]


if hasattr(os, "register_at_fork"):  # not on Windows
    # In a forked process torch hangs when it runs on several threads, if it did so before the fork too.
    os.register_at_fork(after_in_child=_try_one_thread)


def choose_linear(model: PreTrainedModel) -> type[PreparedLinear] | None:
    """Return the first kind of prepared linear layer that passes the trial; else the last one; None if there is none.

    The last one is taken in any case, so it is not tried here: only who asks for batch invariance waits for its trial.
    The choice depends on the machine, on torch and on the shapes of the layers, never on time: two processes give the
    same bits.
    """
    kinds: tuple[type[PreparedLinear], ...] = (MklLinear, OneDnnLinear)
    available = [kind for kind in kinds if is_cpu_float32(model) and kind.is_available()]
    shapes = {(part.in_features, part.out_features) for part in model.modules() if isinstance(part, nn.Linear)}
    for kind in available[:-1]:
        if not any(linear_difference(kind, *shape) for shape in sorted(shapes)):
            return kind
    return available[-1] if available else None


def find_difference(model: nn.Module, n_heads: int, dim: int, hidden_dim: int) -> str | None:
    """Return the reason, in words, why a row's bits depend on its batch on this machine; None if a trial finds none."""
    plain = next((name for name, part in model.named_modules() if isinstance(part, nn.Linear)), None)
    if plain is not None:
        return f"{plain} runs on F.linear, which adds up in another order for another number of rows"
    if not has_onednn():
        return "oneDNN is switched off, and torch's own GELU rounds a number by its place in memory"
    prepared = [part for part in model.modules() if isinstance(part, PreparedLinear)]
    differences = (linear_difference(type(part), part.n_inputs, part.width) for part in prepared)
    found = next(filter(None, differences), None)
    return found or attention_difference(n_heads, dim // n_heads) or gelu_difference(hidden_dim)


@cache
def linear_difference(kernel: type[PreparedLinear], n_inputs: int, width: int) -> str | None:
    """Return how a row alone and in a batch differ in a linear layer, in words; None if they do not."""
    with torch.no_grad():
        prepared = kernel(numbers(width, n_inputs), numbers(width))
    x, what = numbers(128, n_inputs), f"{kernel.label}, {n_inputs} to {width}"
    found = differ(prepared, x, TRIAL_ROWS, what)
    return found or differ(prepared, x, MANY_THREADS_ROWS, what, thread_counts=MANY_THREADS)


@cache
def gelu_difference(width: int) -> str | None:
    """The same for GELU."""
    return differ(InPlaceGELU(nn.GELU()), numbers(128, width), TRIAL_ROWS, f"GELU of {width} numbers")


@cache
def attention_difference(n_heads: int, size: int) -> str | None:
    """The same for attention, of all tokens and of the first alone, with `n_heads` heads of `size`."""
    for length in TRIAL_LENGTHS:

        def attend(x: Tensor) -> Tensor:
            q, k, v = x.unflatten(-1, (3, n_heads, -1)).permute(2, 0, 3, 1, 4)  # (rows, H, length, E) each
            return torch.cat([attention(q, k, v), attention(q[:, :, :1], k, v)], 2)

        x = numbers(5, length, 3 * n_heads * size)
        what = f"attention with {n_heads} heads of {size} over {length} tokens"
        row_counts, offsets = (1, 1, 2, 2), TRIAL_OFFSETS[:2]  # what follows a linear layer is new memory
        if found := differ(attend, x, row_counts, what, offsets):
            return found
    return None


@torch.no_grad()
def differ(
    run: Callable[[Tensor], Tensor],
    x: Tensor,
    row_counts: Sequence[int],
    what: str,
    offsets: Sequence[int] = TRIAL_OFFSETS,
    thread_counts: Sequence[int] = TRIAL_THREADS,
) -> str | None:
    """Return in words how some rows of x differ from the same rows in all of x; None if they do not.

    Not every number of rows is run with every number of threads and at every address: oneDNN generates code for each
    number of rows and of threads, and that takes a millisecond.
    """
    expected = run(x.clone())
    for i, count in enumerate(row_counts):
        n_threads, offset = thread_counts[i % len(thread_counts)], offsets[i // len(thread_counts) % len(offsets)]
        start = min(i, len(x) - count)
        with threads(n_threads):
            alone = run(at_offset(x[start : start + count], offset))
        if not torch.equal(alone, expected[start : start + count]):
            return f"{what}: {count} of {len(x)} rows have other bits when they run alone (threads: {n_threads})"
    return None


def numbers(*shape: int) -> Tensor:
    """Return numbers of both signs and several magnitudes, always the same, and leave torch's random state alone."""
    few = torch.randn(4093, generator=torch.Generator().manual_seed(0))  # a prime number of them: no two rows are equal
    return few.repeat(math.prod(shape) // len(few) + 1)[: math.prod(shape)].view(shape)


def at_offset(x: Tensor, offset: int) -> Tensor:
    """Copy x to an address that is so many numbers beyond a multiple of 64 bytes, where torch's memory begins."""
    return x.new_empty(x.numel() + offset)[offset:].view(x.shape).copy_(x)

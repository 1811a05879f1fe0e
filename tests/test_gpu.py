"""On a GPU: parity with transformers on the device, and pack with torch's attention over rows of any length.

scripts/test -m gpu
"""

import copy
import warnings

import pytest
import torch

from minibert import kernels, pack

from .machine import needs
from .models import HEADS, batch, model, tensors
from .test_packed import LONG, is_by_token, largest_difference, random_batch, real_tokens

pytestmark = [pytest.mark.gpu, needs("gpu")]
each_head = pytest.mark.parametrize("head", HEADS)
SIZES = LONG | {"dim": 128, "n_heads": 4, "hidden_dim": 256}  # heads of 32: variable-length attention takes them


def to_gpu(inputs):
    return {name: tensor.cuda() for name, tensor in inputs.items() if tensor is not None}


@pytest.mark.reference
@each_head
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_model_is_that_of_transformers_on_the_device(head, dtype):
    from .test_parity import assert_same_bits, twin

    ours = model(head).to("cuda", dtype)
    theirs, inputs = twin(ours).cuda(), to_gpu(batch(head))
    with torch.no_grad():
        assert_same_bits(ours(**inputs), theirs(**inputs))


@each_head
def test_pack_in_float32_is_the_model(head):
    each = model(head, **SIZES).cuda()
    inputs = to_gpu(random_batch(head, 9, 200, "holes"))
    with torch.no_grad():
        assert largest_difference(each(**inputs), pack(each)(**inputs), real_tokens(inputs)) < 1e-4


@each_head
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_pack_in_half_precision_is_as_near_to_float64_as_the_model(head, dtype):
    each = model(head, **SIZES).to("cuda", dtype)
    exact = copy.deepcopy(each).double()
    inputs = to_gpu(random_batch(head, 9, 200))
    real = real_tokens(inputs)
    with torch.no_grad():
        expected, of_model, of_packed = (tensors(run(**inputs)) for run in (exact, each, pack(each)))
    for name, tensor in expected.items():
        at = real if is_by_token(name, tensor) else ...
        worst = (of_model[name][at] - tensor[at]).abs().max()
        assert (of_packed[name][at] - tensor[at]).abs().max() <= 2 * worst + 2e-3, name


def test_half_precision_runs_on_variable_length_attention():
    assert kernels.varlen_attention(torch.zeros(3, 4, 32, dtype=torch.bfloat16, device="cuda")) is not None
    assert kernels.varlen_attention(torch.zeros(3, 4, 32, device="cuda")) is None


def synchronisations(run):
    """How often a call waits for the GPU, as torch itself reports."""
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            run()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("called a synchronizing CUDA operation" in str(warning.message) for warning in seen)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_layer_waits_for_the_gpu(dtype):
    inputs = to_gpu(random_batch("DistilBertModel", 9, 100))
    counts = []
    for n_layers in (1, 4):
        fast = pack(model(**SIZES, n_layers=n_layers).to("cuda", dtype))
        fast(**inputs)  # what is loaded once is loaded
        counts.append(synchronisations(lambda fast=fast: fast(**inputs)))
    assert counts[0] == counts[1]


def test_memory_follows_the_real_tokens():
    fast = pack(model(**SIZES).to("cuda", torch.bfloat16))
    ids = torch.ones(64, 512, dtype=torch.long, device="cuda")
    mask = (torch.arange(512, device="cuda") < torch.tensor([512] + [4] * 63, device="cuda")[:, None]).long()
    peaks = []
    for attention_mask in (mask, torch.ones_like(mask)):
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        fast(ids, attention_mask)
        peaks.append(torch.cuda.max_memory_allocated() - before)
    assert peaks[0] < peaks[1] / 3

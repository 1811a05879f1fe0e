"""The kernels by themselves: where they are available, and their arithmetic, worked out by hand."""

from types import SimpleNamespace

import pytest
import torch

from minibert import kernels
from minibert.kernels import InPlaceGELU, Int8Linear, Int8Rows, MklLinear, OneDnnLinear, int8_scales

from .machine import needs


@pytest.fixture
def fresh_limit():
    kernels.int8_limit.cache_clear()
    yield
    kernels.int8_limit.cache_clear()


@needs("mkl", "int8")
@pytest.mark.usefixtures("fresh_limit")
@pytest.mark.parametrize(
    ("where", "name", "value", "lost"),
    [
        (kernels, "X86", False, {MklLinear, OneDnnLinear, Int8Linear}),
        (torch.backends.mkl, "is_available", lambda: False, {MklLinear}),
        (torch.backends.mkldnn, "is_available", lambda: False, {OneDnnLinear, Int8Linear}),
        (torch.backends.mkldnn, "enabled", False, {OneDnnLinear, Int8Linear}),
        (torch.ops, "mkl", SimpleNamespace(), {MklLinear}),
        (torch.ops, "mkldnn", SimpleNamespace(_reorder_linear_weight=None), {OneDnnLinear}),
        (torch.ops, "mkldnn", SimpleNamespace(_linear_pointwise=None), {OneDnnLinear}),
        (torch.ops, "onednn", SimpleNamespace(), {Int8Linear}),
        (kernels, "X86", True, set()),
    ],
)
def test_a_kernel_is_available_only_with_all_that_it_needs(monkeypatch, where, name, value, lost):
    monkeypatch.setattr(where, name, value)
    assert {kind for kind in (MklLinear, OneDnnLinear, Int8Linear) if not kind.is_available()} == lost


@needs("int8")
@pytest.mark.usefixtures("fresh_limit")
@pytest.mark.parametrize(("bits", "limit"), [(32, 127), (16, 63), (8, 0)])
def test_the_limit_of_int8_weights_is_that_of_exact_products(monkeypatch, bits, limit):
    weights = {}  # by the packed layout's address: oneDNN does not give them back
    pack = torch.ops.onednn.qlinear_prepack

    def remember(weight, shape):
        packed = pack(weight, shape)
        weights[id(packed)] = weight, packed
        return packed

    def product(x, zero, packed, scales, zeros):
        """As a CPU does that adds two neighbouring products in so many bits."""
        pairs = ((x.long() - zero)[:, None] * weights[id(packed)][0].long()).unflatten(-1, (-1, 2)).sum(-1)
        return pairs.clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1).sum(-1).float()

    operators = SimpleNamespace(qlinear_prepack=remember)
    monkeypatch.setattr(torch.ops, "onednn", operators)
    monkeypatch.setattr(kernels, "int8_product", product)
    assert kernels.int8_limit() == limit
    assert Int8Linear.is_available() == (limit > 0)


def test_the_largest_number_of_a_row_becomes_the_limit():
    x = torch.tensor([[-254.0, 1.0, 2.0], [0.5, -0.25, 63.5], [0.0, 0.0, 0.0]])
    scales = int8_scales(x, 127)
    assert scales.tolist() == [[2.0], [0.5], [torch.finfo(torch.float32).tiny]]
    assert torch.equal(int8_scales(x[:2], 63) * 63, torch.tensor([[254.0], [63.5]]))
    rows = Int8Rows.of(x)
    assert rows.uint8.tolist() == [[1, 129, 129], [129, 128, 255], [128, 128, 128]]  # halves are rounded up
    assert torch.equal(rows.scales, scales)


@needs("int8")
def test_an_int8_layer_multiplies_rounded_numbers():
    limit = kernels.int8_limit()
    weight = torch.tensor([[1.0, -2.0, 4.0], [0.5, 0.0, -0.25]]) * limit / 4
    layer = Int8Linear(weight, torch.tensor([10.0, -10.0]))
    rounded = torch.tensor([[1.0, -2.0, 4.0], [4.0, 0.0, -2.0]]) * limit / 4
    scales = torch.tensor([1.0, 0.125])
    assert torch.equal(layer.scales, scales)
    x = torch.tensor([[127.0, 0.0, -3.0], [1.0, 2.0, 3.0]])
    exact = torch.stack([Int8Rows.of(row[None]).uint8[0].float() - 128 for row in x]) * int8_scales(x, 127)
    assert torch.allclose(layer(x), exact @ (rounded.round() * scales[:, None]).T + layer.bias, rtol=1e-6)


@pytest.mark.parametrize("kind", [MklLinear, OneDnnLinear, Int8Linear])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("width", [3, 16, 40])
def test_a_prepared_layer_is_the_layer_to_rounding(kind, bias, width):
    if not kind.is_available():
        pytest.skip("this machine does not have it")
    linear = torch.nn.Linear(8, width, bias).requires_grad_(False)
    layer = kind.of(linear)
    for shape in ((1, 8), (2, 8), (width, 8), (1, 1, 8), (3, 5, 8)):
        x = torch.randn(shape)
        found = layer(x)
        assert found.shape == (*shape[:-1], width)
        assert found.dtype == torch.float32
        assert torch.allclose(found, linear(x), atol=0.05 if kind is Int8Linear else 1e-5)
    if kind is MklLinear:
        assert layer.shape_only.shape == (-(-width // 16) * 16, 8)


@needs("mkl")
@pytest.mark.usefixtures("torch_as_before")
def test_a_layout_of_mkl_is_made_for_at_most_8_threads(monkeypatch):
    counts, use = [], torch.set_num_threads
    monkeypatch.setattr(torch, "set_num_threads", lambda count: counts.append(count) or use(count))
    for before, during in ((1, 1), (8, 8), (16, 8)):
        use(before)
        MklLinear.of(torch.nn.Linear(4, 4))
        assert counts == [during, before]
        counts.clear()


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_gelu_overwrites_its_input(approximate):
    x = torch.linspace(-3, 3, 20)
    expected = torch.nn.functional.gelu(x, approximate=approximate)
    assert InPlaceGELU(torch.nn.GELU(approximate))(x) is x
    assert torch.allclose(x, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("heads", "queries", "keys", "size", "filled"),  # filled: heads, queries, size that torch's attention gets
    [
        (4, 5, 5, 16, (4, 5, 16)),
        (4, 1, 5, 16, (4, 4, 16)),
        (4, 2, 5, 16, (4, 2, 16)),
        (1, 5, 5, 16, (2, 5, 16)),
        (2, 5, 5, 8, (2, 5, 16)),
        (2, 5, 5, 17, (2, 5, 32)),
        (1, 1, 1, 33, (2, 4, 48)),
    ],
)
def test_attention_on_a_cpu_gets_what_does_not_depend_on_others(monkeypatch, heads, queries, keys, size, filled):
    right, shapes = torch.nn.functional.scaled_dot_product_attention, []

    def attend(q, k, v, **options):
        shapes.append((q.shape, k.shape, v.shape))
        return right(q, k, v, **options)

    monkeypatch.setattr(kernels.F, "scaled_dot_product_attention", attend)
    q, k, v = (torch.randn(3, heads, n, size, dtype=torch.float64) for n in (queries, keys, keys))
    probs = (q @ k.mT / size**0.5).softmax(-1)
    assert torch.allclose(kernels.attention(q, k, v), probs @ v)
    n_heads, n_queries, width = filled
    assert shapes == [((3, n_heads, n_queries, width), (3, n_heads, keys, width), (3, n_heads, keys, width))]


@pytest.mark.parametrize(
    ("changed", "takes"),
    [
        ({}, True),
        ({"dtype": torch.bfloat16}, True),
        ({"size": 256}, True),
        ({"capability": (9, 0)}, True),
        ({"is_cuda": False}, False),
        ({"dtype": torch.float32}, False),
        ({"size": 60}, False),
        ({"size": 264}, False),
        ({"flash": False}, False),
        ({"capability": (7, 5)}, False),
    ],
)
def test_which_gpus_and_tensors_have_attention_over_rows_of_any_length(monkeypatch, changed, takes):
    varlen = pytest.importorskip("torch.nn.attention.varlen")
    case = {"is_cuda": True, "dtype": torch.float16, "size": 64, "flash": True, "capability": (8, 0)} | changed
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: case["flash"])
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: case["capability"])
    q = SimpleNamespace(is_cuda=case["is_cuda"], dtype=case["dtype"], shape=(10, 12, case["size"]), device="cuda")
    assert kernels.varlen_attention(q) is (varlen.varlen_attn if takes else None)

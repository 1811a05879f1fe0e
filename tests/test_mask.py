"""The mask contract."""

import pytest
import torch

from minibert import additive_mask
from minibert.mask import check_attention_mask

from .models import batch, model

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", DTYPES)
def test_padding_becomes_the_dtypes_minimum(dtype):
    ignore = torch.finfo(dtype).min
    for attention_mask in (
        torch.tensor([[1, 1, 0]]),
        torch.tensor([[1.0, 1.0, 0.0]]),
        torch.tensor([[True, True, False]]),
    ):
        mask = additive_mask(attention_mask, dtype)
        assert mask.dtype == dtype
        assert mask.tolist() == [[[[0.0, 0.0, ignore]]]]  # (B, 1, 1, S)


def test_a_pattern_of_queries_and_keys_keeps_its_shape():
    allowed = torch.tensor([[[[True, False], [True, True]]]])
    ignore = torch.finfo(torch.float32).min
    assert additive_mask(allowed, torch.float32).tolist() == [[[[0.0, ignore], [0.0, 0.0]]]]


@pytest.mark.parametrize("dtype", DTYPES)
def test_masked_keys_get_exactly_0(dtype):
    scores = torch.randn(2, 4, 5, 5).mul(20).to(dtype)
    probs = (scores + additive_mask(torch.tensor([[1, 1, 1, 0, 0], [1, 0, 0, 1, 0]]), dtype)).softmax(-1)
    assert (probs[0, :, :, 3:] == 0).all()
    assert (probs[1][:, :, [1, 2, 4]] == 0).all()
    assert not probs.isnan().any()


@pytest.mark.parametrize(
    ("mask", "says"),
    [
        ([[1, 1, 0]], "got list"),
        (torch.ones(1, 3), r"shape \(1, 3\), but the input needs \(2, 3\)"),
        (torch.ones(2, 4), r"shape \(2, 4\), but the input needs \(2, 3\)"),
        (torch.ones(3), r"shape \(3,\)"),
        (torch.ones(2, 1, 1, 3, dtype=torch.bool), r"shape \(2, 1, 1, 3\)"),
        (torch.ones(2, 2, 3, 3, dtype=torch.bool), r"\(1 or 2, 1 or 4, 3, 3\)"),
        (torch.ones(3, 1, 3, 3, dtype=torch.bool), r"\(1 or 2, 1 or 4, 3, 3\)"),
        (torch.zeros(2, 1, 3, 3), "must be bool, True = may attend, got torch.float32"),
        (torch.tensor([[1, 1, 0.5], [1, 1, 1]]), "got 0.5"),
        (torch.tensor([[0, 0, -1e4], [0, 0, 0]]), "got -10000.0"),
        (torch.tensor([[1, 1, float("nan")], [1, 1, 1]]), "got nan"),
        (torch.tensor([[1, 1, 2], [1, 1, 1]]), "got 2"),
        (torch.tensor([[1, 0, 0], [0, 0, 0]]), r"row \[1\] is all 0"),
        (torch.eye(3, dtype=torch.bool).logical_not().tril().expand(2, 1, 3, 3), r"row \[0, 0, 0\] is all 0"),
    ],
)
def test_anything_else_is_refused_with_what_it_got(mask, says):
    with pytest.raises(ValueError, match=says):
        check_attention_mask(mask, batch=2, length=3, heads=4)
    with pytest.raises(ValueError, match=says):
        model()(torch.ones(2, 3, dtype=torch.long), mask)


def test_no_mask_is_the_mask_of_ones():
    each = model()
    inputs = batch(mask="ones")
    assert torch.equal(each(**inputs).last_hidden_state, each(inputs["input_ids"]).last_hidden_state)


def test_a_pattern_that_hides_the_same_keys_is_the_padding_mask():
    each = model()
    inputs = batch(mask="holes")
    pattern = inputs["attention_mask"].bool()[:, None, None, :].expand(3, 4, 7, 7)
    expected = each(**inputs).last_hidden_state
    assert torch.equal(each(inputs["input_ids"], pattern).last_hidden_state, expected)
    assert torch.equal(each(inputs["input_ids"], pattern[:, :1]).last_hidden_state, expected)


@pytest.mark.parametrize("heads", [1, 4])
def test_one_pattern_for_all_texts_is_that_pattern_for_each(heads):
    each = model()
    ids = batch()["input_ids"]
    causal = torch.ones(7, 7, dtype=torch.bool).tril().expand(1, heads, 7, 7)
    output = each(ids, causal, output_attentions=True)
    assert torch.equal(output.last_hidden_state, each(ids, causal.expand(3, heads, 7, 7)).last_hidden_state)
    assert (output.attentions[0].triu(1) == 0).all()
    other = torch.cat([ids[:, :4], ids[:, 4:].flip(1) % 49 + 1], dim=1)  # later tokens change nothing before them
    assert torch.equal(each(other, causal).last_hidden_state[:, :4], output.last_hidden_state[:, :4])


@pytest.mark.parametrize(
    "change",
    [
        torch.Tensor.to_sparse,
        torch.Tensor.to_sparse_csr,
        lambda mask: torch.nested.nested_tensor(list(mask), layout=torch.jagged),
        lambda mask: torch.quantize_per_tensor(mask, 1.0, 0, torch.qint8),
    ],
    ids=["sparse", "csr", "nested", "quantized"],
)
@pytest.mark.filterwarnings("ignore")  # torch's own: such tensors are in beta, or to be removed
def test_only_plain_tensors_are_taken(change):
    ids = torch.ones(2, 3, dtype=torch.long)
    with pytest.raises(ValueError, match="the inputs must be plain tensors, not sparse, nested or quantized ones"):
        model()(ids, change(torch.ones(2, 3)))


def test_a_model_on_the_meta_device_gives_shapes():
    # There are no values to be checked: neither those of the ids nor those of the mask.
    inputs = {name: tensor.to("meta") for name, tensor in batch().items()}
    output = model().to("meta")(**inputs).last_hidden_state
    assert (output.shape, output.device.type) == ((3, 7, 32), "meta")


@pytest.mark.parametrize("name", ["attention_mask", "position_ids"])
def test_no_input_is_on_the_meta_device_beside_a_model_with_numbers(name):
    ids = torch.ones(2, 3, dtype=torch.long)
    with pytest.raises(ValueError, match="an input is on meta, the model is on cpu"):
        model()(ids, **{name: ids.to("meta")})

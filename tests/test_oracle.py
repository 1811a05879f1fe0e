"""The model against the papers' formulas in NumPy, and the formulas against numbers worked out by hand."""

import ast
import inspect

import numpy as np
import pytest
import torch

from minibert import DistilBertConfig
from minibert.study import compare, oracle

from .models import BASE_SIZES, batch, model

BASE_SHAPE = {"dim": 768, "n_layers": 6, "n_heads": 12, "hidden_dim": 3072}


def assert_agree(each, inputs, tolerance=1e-12):
    assert compare(each.double(), "oracle", inputs, tolerance=tolerance).ok


@pytest.mark.parametrize(
    ("initializer_range", "tolerance"), [(0.02, 1e-12), (0.3, 1e-8)]
)  # of each number: at 0.3 sums of large numbers cancel
def test_every_step_of_the_base_shape_agrees_with_float64(initializer_range, tolerance):
    each = model(**BASE_SIZES | BASE_SHAPE | {"initializer_range": initializer_range})
    assert_agree(each, batch(shape=(3, 24), vocab_size=1000), tolerance)


@pytest.mark.parametrize("heads", [1, 4])
@pytest.mark.parametrize("head", ["DistilBertModel", "DistilBertForMultipleChoice"])
def test_patterns_of_queries_and_keys_agree(head, heads):
    inputs = batch(head)
    allowed = torch.rand(*inputs["input_ids"].shape[:-1], heads, 7, 7) < 0.5
    allowed[..., 0] = True  # every query has a key
    assert_agree(model(head), inputs | {"attention_mask": allowed})


@pytest.mark.parametrize("head", ["DistilBertModel", "DistilBertForMultipleChoice"])
def test_position_ids_agree(head):
    inputs = batch(head, "left")
    position_ids = (inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    assert_agree(model(head), inputs | {"position_ids": position_ids})


def test_relu_and_an_untied_projector_agree():
    each = model("DistilBertForMaskedLM", activation="relu", tie_word_embeddings=False)
    assert_agree(each, batch("DistilBertForMaskedLM"))


def test_float32_weights_and_plain_lists_are_taken():
    each, inputs = model(), batch()
    arrays = {name: parameter.detach().numpy() for name, parameter in each.named_parameters()}
    lists = {name: tensor.tolist() for name, tensor in inputs.items()}
    from_arrays = oracle.run(arrays, each.config, **lists)
    from_tensors = oracle.run(dict(each.named_parameters()), each.config, **inputs)
    for name, value in from_tensors.items():
        assert np.array_equal(from_arrays[name], value), name


def test_minus_infinity_and_the_smallest_number_hide_a_key_alike():
    each, inputs = model(), batch()
    outputs = [
        oracle.run(each.state_dict(), each.config, **inputs, ignore=ignore)["last_hidden_state"]
        for ignore in (-np.inf, np.finfo(np.float64).min, torch.finfo(torch.float32).min)
    ]
    assert np.array_equal(outputs[0], outputs[1])
    assert np.array_equal(outputs[0], outputs[2])


@pytest.mark.parametrize("wrong", [0.5, -1e4, 2])
def test_a_mask_of_other_numbers_is_refused(wrong):
    each, inputs = model(), batch()
    with pytest.raises(ValueError, match=f"only 0 and 1, got {wrong}"):
        oracle.run(each.state_dict(), each.config, inputs["input_ids"], inputs["attention_mask"] * wrong)


def test_the_formulas_give_the_numbers_worked_out_by_hand():
    gelu, relu = DistilBertConfig(), DistilBertConfig(activation="relu")
    x = np.array([-1.0, 0.0, 1.0])
    phi = 0.8413447460685429  # Φ(1), from a table of the normal distribution
    assert oracle.activation(x, gelu) == pytest.approx([phi - 1, 0, phi], abs=1e-15)
    assert oracle.activation(x, relu).tolist() == [0, 0, 1]
    assert oracle.softmax(np.log([[1.0, 3.0]])) == pytest.approx(np.array([[0.25, 0.75]]), abs=1e-15)
    norm = oracle.Values({"n.weight": [2.0, 2.0], "n.bias": [1.0, 0.0]})
    assert norm.layer_norm("n", np.array([[3.0, 7.0]])) == pytest.approx(np.array([[-1.0, 2.0]]), abs=1e-12)


def test_attention_over_equal_keys_is_the_mean_of_the_real_values():
    zero, one = np.zeros((2, 2)), np.eye(2)
    weights = {"q_lin": zero, "k_lin": zero, "v_lin": one, "out_lin": one}
    tensors = {f"{name}.weight": matrix for name, matrix in weights.items()}
    tensors |= {f"{name}.bias": np.zeros(2) for name in weights}
    x = np.array([[[1.0, 10.0], [3.0, 20.0], [99.0, 99.0]]])  # the third is padding
    mask = oracle.additive(np.array([[1.0, 1.0, 0.0]]), 2, -np.inf)
    assert oracle.attention(oracle.Values(tensors), "", x, mask, n_heads=2).tolist() == [[[2, 15], [2, 15], [2, 15]]]


def test_it_shares_no_code_with_the_model():
    imports = [node for node in ast.walk(ast.parse(inspect.getsource(oracle))) if isinstance(node, ast.ImportFrom)]
    assert [node.module for node in imports if node.level] == ["config"]
    assert "nn" not in dir(oracle)

"""Bit for bit what transformers computes with its eager attention, on CPU."""

import pytest
import torch

from .models import BASE_SIZES, HEADS, SHAPES, batch, labels, model, tensors

pytestmark = pytest.mark.reference
transformers = pytest.importorskip("transformers")

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
ALL = {"output_hidden_states": True, "output_attentions": True}


def twin(ours, attention="eager"):
    """The same model of transformers, with the same weights.

    They lie in the same memory, since MKL's AVX2 products depend on addresses modulo 64.
    """
    config = transformers.DistilBertConfig(**ours.config.to_dict(), attn_implementation=attention)
    theirs = getattr(transformers, type(ours).__name__)(config).to(ours.dtype)
    tensors = {name: parameter.detach() for name, parameter in ours.named_parameters(remove_duplicate=False)}
    theirs.load_state_dict(tensors, assign=True)  # strict: the names are the same, and all of them
    theirs.tie_weights()
    return theirs.train(ours.training).requires_grad_()


def assert_same_bits(ours, theirs):
    ours, theirs = tensors(ours), tensors(theirs)
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert torch.equal(ours[name], theirs[name]), name


def assert_same_gradients(ours, theirs):
    theirs = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        assert torch.equal(parameter.grad, theirs[name].grad), name


@pytest.mark.parametrize("mask", ["ragged", "left", "holes", "ones", "none"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head", HEADS)
def test_every_output_is_transformers_bit_for_bit(head, dtype, mask):
    ours = model(head).to(dtype)
    theirs = twin(ours)
    for shape in SHAPES:
        inputs = batch(head, mask, shape)
        with torch.no_grad():
            assert_same_bits(ours(**inputs, **ALL), theirs(**inputs, **ALL))


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head", list(HEADS)[1:])
def test_loss_and_every_gradient_are_transformers_bit_for_bit(head, dtype, training):
    ours = model(head).to(dtype).train(training)
    theirs = twin(ours)
    for mask in ("ragged", "holes", "none"):
        inputs = batch(head, mask)
        inputs |= labels(head, inputs["input_ids"])
        outputs = []
        for each in (ours, theirs):
            each.zero_grad()
            torch.manual_seed(1)  # the same dropout, if it is in the same places and of the same shapes
            outputs.append(each(**inputs, output_hidden_states=True))
            outputs[-1].loss.backward()
        assert_same_bits(*outputs)
        assert_same_gradients(ours, theirs)


@pytest.mark.parametrize("head", HEADS)
def test_relu_padding_id_and_untied_projector_match(head):
    ours = model(head, activation="relu", pad_token_id=None, tie_word_embeddings=False)
    theirs = twin(ours)
    inputs = batch(head)
    assert_same_bits(ours(**inputs, **ALL), theirs(**inputs, **ALL))


@pytest.mark.parametrize(
    ("num_labels", "problem_type", "make"),
    [
        (1, None, lambda: torch.randn(3)),
        (1, "regression", lambda: torch.randn(3, 1)),
        (1, None, lambda: torch.tensor([2, 0, 1])),
        (3, "regression", lambda: torch.randn(3, 3)),
        (3, None, lambda: torch.randint(0, 2, (3, 3)).float()),
        (3, "multi_label_classification", lambda: torch.randint(0, 2, (3, 3)).float()),
        (3, None, lambda: torch.tensor([2, -100, 0])),
        (3, "single_label_classification", lambda: torch.tensor([[2], [1], [0]])),
    ],
)
def test_each_problem_type_has_transformers_loss(num_labels, problem_type, make):
    ours = model("DistilBertForSequenceClassification", num_labels=num_labels, problem_type=problem_type)
    theirs = twin(ours)
    inputs = batch() | {"labels": make()}
    outputs = ours(**inputs), theirs(**inputs)
    for output in outputs:
        output.loss.backward()
    assert_same_bits(*outputs)
    assert_same_gradients(ours, theirs)
    assert ours.config.problem_type == problem_type  # an inferred one is not stored


def test_position_ids_and_word_embeddings_match():
    ours = model()
    theirs = twin(ours)
    inputs = batch(mask="left")
    position_ids = (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)
    assert_same_bits(ours(**inputs, position_ids=position_ids), theirs(**inputs, position_ids=position_ids))
    inputs["inputs_embeds"] = ours.embeddings.word_embeddings(inputs.pop("input_ids"))
    assert_same_bits(ours(**inputs), theirs(**inputs))


@pytest.mark.parametrize("heads", [1, 4])
def test_a_pattern_of_queries_and_keys_matches(heads):
    ours = model()
    allowed = torch.rand(3, heads, 7, 7) < 0.5
    allowed[..., 0] = True  # every query has a key
    ids = batch()["input_ids"]
    additive = torch.zeros(allowed.shape).masked_fill(~allowed, torch.finfo(torch.float32).min)
    assert_same_bits(ours(ids, allowed), twin(ours)(ids, additive))


@pytest.mark.parametrize("dim", [32, 15])
def test_sinusoidal_positions_are_drawn_alike(dim):
    ours = model(sinusoidal_pos_embds=True, dim=dim, n_heads=1)
    theirs = transformers.DistilBertModel(transformers.DistilBertConfig(**ours.config.to_dict()))
    drawn = theirs.embeddings.position_embeddings.weight
    assert torch.equal(ours.embeddings.position_embeddings.weight, drawn)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_base_shape_is_close_to_sdpa(dtype, tolerance):
    ours = model(**BASE_SIZES, dim=768, n_heads=12, n_layers=6, hidden_dim=3072).to(dtype)
    inputs = batch(shape=(3, 24), vocab_size=1000)
    with torch.no_grad():
        difference = ours(**inputs).last_hidden_state - twin(ours, "sdpa")(**inputs).last_hidden_state
    assert difference.abs().max() < tolerance

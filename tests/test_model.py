"""Properties of the encoder and its heads that need no reference model; those of padding are in test_padding.py."""

import copy
import os
import pickle
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import minibert

from .machine import needs_outputs_in_graphs
from .models import BASE_SIZES, HEADS, SIZES, batch, labels, model, tensors

each_head = pytest.mark.parametrize("head", HEADS)
ALL = {"output_hidden_states": True, "output_attentions": True}


def assert_same(first, second):
    first, second = tensors(first), tensors(second)
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name


@each_head
def test_permuting_the_batch_permutes_the_result(head):
    # To rounding: a matrix product may sum a row in another order when the row stands elsewhere in its block.
    each, inputs = model(head).double(), batch(head)
    order = torch.tensor([2, 0, 1])
    permuted = each(**{name: tensor[order] for name, tensor in inputs.items()})
    for name, tensor in tensors(each(**inputs)).items():
        assert (tensors(permuted)[name] - tensor[order]).abs().max() < 1e-12, name
        assert (tensors(permuted)[name] - tensor).abs().max() > 1e-3, name


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-13)])
def test_a_padded_row_is_the_row_alone_to_rounding(dtype, tolerance):
    each = model(**BASE_SIZES, dim=768, n_heads=12, n_layers=6, hidden_dim=3072).to(dtype)
    ids = torch.randint(1, 1000, (2, 24))
    mask = (torch.arange(24) < torch.tensor([9, 24])[:, None]).long()
    with torch.no_grad():
        padded, alone = each(ids, mask).last_hidden_state[0, :9], each(ids[:1, :9]).last_hidden_state[0]
        leaking = each(ids).last_hidden_state[0, :9]
    assert (padded - alone).abs().max() < tolerance
    assert (leaking - alone).abs().max() > 1e-2


@each_head
def test_word_embeddings_can_be_given_in_place_of_ids(head):
    each, inputs = model(head), batch(head)
    encoder = getattr(each, "distilbert", each)
    embeds = encoder.embeddings.word_embeddings(inputs["input_ids"])
    expected = each(**inputs, **ALL)
    assert_same(each(inputs_embeds=embeds, attention_mask=inputs["attention_mask"], **ALL), expected)


@each_head
def test_segment_ids_of_another_tokenizer_are_ignored(head):
    each, inputs = model(head), batch(head)
    assert_same(each(**inputs, token_type_ids=torch.ones_like(inputs["input_ids"])), each(**inputs))


@each_head
def test_nothing_more_is_returned_than_asked_for(head):
    each, inputs = model(head), batch(head)
    output = each(**inputs)
    assert output.hidden_states is None
    assert output.attentions is None
    assert getattr(output, "loss", None) is None
    output = each(**inputs, **ALL)
    rows = 6 if head == "DistilBertForMultipleChoice" else 3
    assert [tuple(h.shape) for h in output.hidden_states] == [(rows, 7, 32)] * 3
    assert [tuple(a.shape) for a in output.attentions] == [(rows, 4, 7, 7)] * 2
    if head == "DistilBertModel":
        assert torch.equal(output.hidden_states[-1], output.last_hidden_state)
        assert list(each.transformer(output.hidden_states[0], None)) == ["last_hidden_state"]


def test_attentions_are_the_probabilities_before_dropout():
    each = model(attention_dropout=0.5).train()
    for probs in each(**batch(), output_attentions=True).attentions:
        assert torch.allclose(probs.sum(-1), torch.ones(3, 4, 7))


@each_head
@needs_outputs_in_graphs
def test_compiles_as_one_graph(head):
    # The "eager" backend runs the captured graph with PyTorch's own kernels: no C++ compiler needed.
    each, inputs = model(head), batch(head)
    compiled = torch.compile(each, fullgraph=True, backend="eager")
    if HEADS[head]:
        inputs |= labels(head, inputs["input_ids"])
    assert_same(compiled(**inputs, **ALL), each(**inputs, **ALL))
    with pytest.raises((ValueError, torch._dynamo.exc.Unsupported)):  # shapes are checked there too
        compiled(inputs["input_ids"], torch.ones(*inputs["input_ids"].shape[:-1], 2))


@each_head
def test_survives_pickling_and_copying(head):
    each, inputs = model(head), batch(head)
    for other in (pickle.loads(pickle.dumps(each)), copy.deepcopy(each)):
        assert_same(other(**inputs), each(**inputs))
        assert [name for name, _ in other.named_parameters()] == [name for name, _ in each.named_parameters()]


def test_threads_may_share_a_model():
    each = model()
    inputs = [batch(mask=mask) for mask in ("ragged", "holes", "ones", "left") * 8]
    expected = [each(**i, **ALL) for i in inputs]
    with ThreadPoolExecutor(4) as pool:
        for output, known in zip(pool.map(lambda i: each(**i, **ALL), inputs), expected, strict=True):
            assert_same(output, known)


@each_head
def test_moves_to_another_device_and_dtype(head):
    each = model(head)
    assert (each.device.type, each.dtype) == ("cpu", torch.float32)
    assert each.to(torch.float64).dtype == torch.float64
    assert each.to("meta").device.type == "meta"


def test_the_masked_lm_projector_is_the_embedding_table():
    each = model("DistilBertForMaskedLM")
    assert each.vocab_projector.weight is each.distilbert.embeddings.word_embeddings.weight
    untied = model("DistilBertForMaskedLM", tie_word_embeddings=False)
    assert untied.vocab_projector.weight is not untied.distilbert.embeddings.word_embeddings.weight


@each_head
@pytest.mark.parametrize("pad", [0, 3, None])
def test_fresh_weights_have_the_configs_spread(head, pad):
    config = minibert.DistilBertConfig(vocab_size=2000, dim=128, n_layers=1, n_heads=4, pad_token_id=pad)
    each = getattr(minibert, head)(config)
    for name, parameter in each.named_parameters():
        if name.endswith("bias"):
            assert (parameter == 0).all(), name
        elif "norm" in name.lower():
            assert (parameter == 1).all(), name
        else:
            spread = 4 / (2 * parameter.numel()) ** 0.5  # four standard errors
            assert parameter.std().item() == pytest.approx(0.02, rel=spread), name
    words = each.base_model.embeddings.word_embeddings.weight
    assert (words == 0).all(1).nonzero().flatten().tolist() == ([] if pad is None else [pad])


IDS = torch.ones(2, 3, dtype=torch.long)
EMBEDS = torch.zeros(2, 3, SIZES["dim"])


@pytest.mark.parametrize(
    ("inputs", "says"),
    [
        ({}, "either input_ids or inputs_embeds"),
        ({"input_ids": IDS, "inputs_embeds": EMBEDS}, "either input_ids or inputs_embeds"),
        ({"input_ids": [[1, 2]]}, "must be a tensor of int64 or int32, got list"),
        ({"input_ids": IDS.float()}, "got torch.float32"),
        ({"input_ids": IDS.bool()}, "got torch.bool"),
        ({"input_ids": IDS[0]}, r"got \(3,\): one sequence is a batch of one"),
        ({"input_ids": IDS[:, :0]}, r"at least one token, got \(2, 0\)"),
        ({"input_ids": IDS[:0]}, r"got \(0, 3\)"),
        ({"input_ids": IDS * 50}, "contain 50 but vocab_size is 50: tokenizer and model do not match"),
        ({"input_ids": IDS - 2}, "contain -1 but vocab_size is 50"),
        ({"input_ids": torch.tensor([[0, 50]])}, "contain 50 but vocab_size is 50"),
        ({"input_ids": torch.ones(1, 17, dtype=torch.long)}, "17 tokens but this model has 16 positions: .*truncation"),
        ({"inputs_embeds": EMBEDS[..., 1:]}, r"shape \(B, S, 32\), got \(2, 3, 31\)"),
        ({"inputs_embeds": EMBEDS[0]}, r"got \(3, 32\)"),
        ({"inputs_embeds": EMBEDS[:, :0]}, r"got \(2, 0, 32\)"),
        ({"inputs_embeds": EMBEDS.tolist()}, "must be a tensor of floating-point numbers, got list"),
        ({"inputs_embeds": EMBEDS.long()}, "must be a tensor of floating-point numbers, got torch.int64"),
        ({"inputs_embeds": EMBEDS.double()}, r"are torch.float64, but the model is torch.float32: .*to\(model.dtype"),
        ({"input_ids": IDS.to("meta")}, r"an input is on meta, the model is on cpu: use .to\(model.device\)"),
        ({"input_ids": IDS, "position_ids": IDS[:, :2]}, r"\(2 or 1, 3\), got \(2, 2\)"),
        ({"input_ids": IDS, "position_ids": IDS * 16}, "contain 16 but max_position_embeddings is 16"),
        ({"input_ids": IDS, "position_ids": IDS.float()}, "position_ids must be a tensor of int64"),
    ],
)
def test_an_impossible_input_is_refused(inputs, says):
    with pytest.raises(ValueError, match=says):
        model()(**inputs)


def test_the_longest_input_and_positions_beyond_it_are_taken():
    each, ids = model(), torch.ones(2, 16, dtype=torch.long)
    longest = each(ids).last_hidden_state
    twice = torch.arange(16).repeat(2)[None]  # more tokens than positions
    again = each(torch.ones(2, 32, dtype=torch.long), position_ids=twice)
    assert longest.shape == (2, 16, 32)
    assert again.last_hidden_state.shape == (2, 32, 32)


@pytest.mark.parametrize("head", [head for head in HEADS if HEADS[head]])
def test_labels_may_have_an_axis_of_1_at_the_end(head):
    each, inputs = model(head), batch(head)
    given = labels(head, inputs["input_ids"])
    for name in given:
        loss = each(**inputs, **given).loss
        assert torch.equal(each(**inputs, **given | {name: given[name][..., None]}).loss, loss)
        with pytest.raises(ValueError, match="must be int64 of shape"):
            each(**inputs, **given | {name: given[name][..., None].expand(*given[name].shape, 2)})


@pytest.mark.parametrize(
    ("head", "wrong", "says"),
    [
        ("DistilBertForSequenceClassification", {"labels": torch.tensor([0, 2])}, "contain 2, .* classes are 0 to 1"),
        ("DistilBertForSequenceClassification", {"labels": torch.tensor([0])}, r"int64 of shape \(2,\), got .* \(1,\)"),
        ("DistilBertForSequenceClassification", {"labels": torch.tensor([0.0, 1.0])}, r"floating-point .*\(2, 2\)"),
        (
            "DistilBertForSequenceClassification",
            {"labels": torch.ones(1, 4)},
            r"floating-point .*\(2, 2\), got .*\(1, 4\)",
        ),
        (
            "DistilBertForTokenClassification",
            {"labels": IDS.T.contiguous()},
            r"int64 of shape \(2, 3\), got .*\(3, 2\)",
        ),
        ("DistilBertForSequenceClassification", {"labels": IDS[:, 0].int()}, "int64 .* got torch.int32"),
        ("DistilBertForTokenClassification", {"labels": IDS - 3}, "contain -2"),
        ("DistilBertForMaskedLM", {"labels": IDS[:, :2]}, r"shape \(2, 3\), got torch.int64 of shape \(2, 2\)"),
        ("DistilBertForQuestionAnswering", {"start_positions": IDS[:, 0]}, "both start_positions and end_positions"),
        (
            "DistilBertForQuestionAnswering",
            {"start_positions": IDS[0], "end_positions": IDS[0]},
            r"int64 of shape \(2,\)",
        ),
        ("DistilBertForMultipleChoice", {}, r"takes \(B, C, S\) ids .* got \(2, 3\)"),
        ("DistilBertForMultipleChoice", {"input_ids": None}, "either input_ids or inputs_embeds"),
        ("DistilBertForMultipleChoice", {"input_ids": [[[1, 2]]]}, "must be a tensor, got list"),
        ("DistilBertForSequenceClassification", {"labels": [0, 1]}, "labels must be a tensor, got list"),
        ("DistilBertForTokenClassification", {"labels": IDS.numpy()}, "labels must be a tensor, got ndarray"),
        (
            "DistilBertForQuestionAnswering",
            {"start_positions": [0, 1], "end_positions": [0, 1]},
            "positions must be a tensor, got list",
        ),
    ],
)
def test_labels_and_shapes_that_do_not_fit_the_head_are_refused(head, wrong, says):
    with pytest.raises(ValueError, match=says):
        model(head)(**{"input_ids": IDS} | wrong)


def test_a_padded_forward_is_short_enough_to_follow():
    # transformers 5.23 enters 11 files and 61 functions and executes 306 lines for the same two layers. A dataclass's
    # generated __init__ has no file, and is not counted.
    each, inputs = model(), batch()
    ours, functions, lines = os.path.dirname(minibert.__file__), set(), set()

    def trace(frame, event, argument):
        code = frame.f_code
        if not code.co_filename.startswith(ours):
            return None
        if event == "line":
            lines.add((code.co_filename, frame.f_lineno))
        functions.add((code.co_filename, code.co_qualname))
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    each(**inputs)
    sys.settrace(before)
    assert len({file for file, _ in functions}) <= 3, functions
    assert len(functions) <= 14, functions
    assert 20 < len(lines) <= 80, len(lines)

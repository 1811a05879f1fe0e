"""Outputs are dataclasses, mappings and sequences; torch.export, torch.func and accelerate see their tensors."""

import copy
import operator
import pickle

import pytest
import torch
from torch.func import functional_call, grad, vmap
from torch.utils import _pytree as pytree

from minibert import pack
from minibert.outputs import EncoderOutput, LogitsOutput, SpanOutput

from .machine import needs_outputs_in_graphs
from .models import HEADS, batch, labels, model

each_head = pytest.mark.parametrize("head", HEADS)
CLASSIFIER = "DistilBertForSequenceClassification"
ALL = {"output_hidden_states": True, "output_attentions": True}


def test_a_field_is_read_by_attribute_key_and_index():
    logits, loss = torch.ones(2), torch.tensor(1.0)
    output = LogitsOutput(logits=logits)
    assert output.logits is output["logits"] is output[0] is logits
    assert dict(output) == {"logits": logits}
    assert ("logits" in output, "loss" in output, len(output)) == (True, False, 1)
    output = LogitsOutput(loss=loss, logits=logits)
    assert output[:2] == output.to_tuple() == (loss, logits)
    assert list(output.keys()) == ["loss", "logits"]
    assert output.get("attentions", "none") == "none"
    output["logits"] = output.logits + 1
    assert output.logits is output["logits"] is dict(**output)["logits"]
    assert isinstance(output, dict)
    with pytest.raises(KeyError, match="attentions"):
        output["attentions"]
    with pytest.raises(IndexError):
        output[2]


@pytest.mark.parametrize("kind", [EncoderOutput, LogitsOutput, SpanOutput])
def test_an_output_is_built_again_from_its_mapping(kind):
    names = [name for name in kind.__annotations__ if name != "hidden_states"]
    output = kind(**{name: torch.randn(2) for name in names})
    for again in (
        kind(dict(output)),
        kind(output),
        kind((name, output[name]) for name in names),
        copy.deepcopy(output),
        pickle.loads(pickle.dumps(output)),
    ):
        assert type(again) is kind
        assert list(again) == names
        assert all(torch.equal(again[name], output[name]) for name in names)
        assert again.hidden_states is None


def test_the_methods_of_a_dict_lose_nothing():
    output = LogitsOutput(loss=torch.tensor(1.0), logits=torch.ones(2))
    for again in (output.copy(), copy.copy(output)):
        assert (type(again), list(again)) == (LogitsOutput, ["loss", "logits"])
        assert again.logits is output.logits
    again = output.copy()
    again.loss = None
    assert output.loss is not None
    assert output | {"loss": 0, "more": 1} == {"loss": 0, "logits": output.logits, "more": 1}
    assert {"loss": 0, "more": 1} | output == {"loss": output.loss, "logits": output.logits, "more": 1}


@pytest.mark.parametrize(
    "change",
    [
        lambda output: output.update(logits=0),
        lambda output: output.setdefault("loss", 0),
        lambda output: output.pop("logits"),
        lambda output: output.popitem(),
        lambda output: output.clear(),
        lambda output: operator.delitem(output, "logits"),
        lambda output: operator.ior(output, {"logits": 0}),
    ],
)
def test_an_output_is_changed_by_its_attributes_only(change):
    output = LogitsOutput(logits=torch.ones(2))
    with pytest.raises(TypeError, match="set the attribute"):
        change(output)
    assert list(output) == ["logits"]


@each_head
def test_return_dict_false_gives_the_tuple(head):
    each, inputs = model(head), batch(head)
    inputs |= labels(head, inputs["input_ids"]) if HEADS[head] else {}
    output = each(**inputs, **ALL)
    found = each(**inputs, **ALL, return_dict=False)
    assert type(found) is tuple
    assert len(found) == len(output)
    for a, b in zip(found, output.to_tuple(), strict=True):
        assert all(map(torch.equal, a, b)) if isinstance(a, tuple) else torch.equal(a, b)
    assert type(each(**inputs, return_dict=None, output_attentions=None)) is type(output)


@pytest.mark.reference
@each_head
def test_the_order_is_that_of_transformers(head):
    transformers = pytest.importorskip("transformers")
    ours, inputs = model(head), batch(head)
    config = transformers.DistilBertConfig(**ours.config.to_dict(), attn_implementation="eager")
    theirs = getattr(transformers, head)(config)
    for more in ({}, ALL, labels(head, inputs["input_ids"]) if HEADS[head] else {}):
        assert list(ours(**inputs, **more)) == list(theirs(**inputs, **more))


@each_head
def test_a_packed_model_returns_the_same_fields(head):
    each, inputs = model(head), batch(head)
    assert list(pack(each)(**inputs, output_hidden_states=True)) == list(each(**inputs, output_hidden_states=True))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("head", HEADS)
def test_a_trace_of_torchscript_gives_a_dict(head):
    each, inputs = model(head), batch(head)
    traced = torch.jit.trace(each, example_kwarg_inputs=inputs, strict=False)
    expected, found = each(**inputs), traced(**inputs)
    assert list(found) == list(expected)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], atol=1e-6, rtol=0)


def test_pytrees_see_the_tensors():
    output = model(CLASSIFIER)(**batch(), output_hidden_states=True)
    halved = pytree.tree_map(lambda tensor: tensor / 2, output)
    assert type(halved) is LogitsOutput
    assert list(halved) == ["logits", "hidden_states"]
    assert torch.equal(halved.hidden_states[1], output.hidden_states[1] / 2)


@pytest.mark.parametrize("head", ["DistilBertForQuestionAnswering", "DistilBertForMultipleChoice"])
@needs_outputs_in_graphs
def test_exports_with_any_batch_and_length(head, tmp_path):
    each, inputs = model(head), batch(head)
    length = 2 if head == "DistilBertForMultipleChoice" else 1
    dims = {0: torch.export.Dim("batch", min=2, max=64), length: torch.export.Dim("length", min=2, max=16)}
    program = torch.export.export(each, (), inputs, dynamic_shapes=dict.fromkeys(inputs, dims))
    torch.export.save(program, tmp_path / "model.pt2")
    loaded = torch.export.load(tmp_path / "model.pt2").module()
    other = batch(head, shape=(5, 11))
    found, expected = loaded(**other), each(**other)
    assert type(found) is type(expected)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@each_head
def test_vmap_and_per_sample_gradients(head):
    each, inputs = model(head).double(), batch(head)
    given = labels(head, inputs["input_ids"]) if HEADS[head] else {}

    def one(parameters, ids, mask, given):
        output = functional_call(
            each, parameters, (ids[None], mask[None]), {name: label[None] for name, label in given.items()}
        )
        return output.loss if given else output.last_hidden_state.square().sum()

    parameters = {name: parameter.detach() for name, parameter in each.named_parameters()}
    arguments = (inputs["input_ids"], inputs["attention_mask"], given)
    together = vmap(grad(one), in_dims=(None, 0, 0, 0))(parameters, *arguments)
    assert any(gradient.abs().max() > 1e-3 for gradient in together.values())
    for i in range(3):
        alone = grad(one)(parameters, *pytree.tree_map(lambda tensor, i=i: tensor[i], arguments))
        for name, gradient in alone.items():
            assert (together[name][i] - gradient).abs().max() < 1e-12, name

"""torch.export and ONNX: exported once, run at another batch size and length."""

import numpy as np
import pytest
import torch

import minibert

from ..models import batch, model

HEADS = ("DistilBertForSequenceClassification", "DistilBertForQuestionAnswering")


def dynamic():
    rows, length = torch.export.Dim("batch", max=64), torch.export.Dim("length", max=16)
    return {"input_ids": {0: rows, 1: length}, "attention_mask": {0: rows, 1: length}}


@pytest.mark.parametrize("head", HEADS)
def test_an_exported_program_is_saved_and_gives_the_same_outputs_at_another_shape(head, tmp_path):
    made = model(head)
    program = torch.export.export(made, (), batch(head, shape=(2, 7)), dynamic_shapes=dynamic())
    torch.export.save(program, tmp_path / "model.pt2")
    loaded = torch.export.load(tmp_path / "model.pt2").module()
    inputs = batch(head, shape=(5, 12))
    with torch.no_grad():
        expected, got = made(**inputs), loaded(**inputs)
    assert type(got) is type(expected)
    assert list(got) == list(expected)
    for name in expected:
        torch.testing.assert_close(got[name], expected[name], rtol=0, atol=1e-5)


@pytest.mark.parametrize("head", HEADS)
def test_onnxruntime_gives_the_same_outputs_at_another_shape(head, tmp_path):
    import onnxruntime

    made = model(head)
    path = tmp_path / "model.onnx"
    torch.onnx.export(
        made,
        (),
        path,
        kwargs=batch(head, shape=(2, 7)),
        dynamo=True,
        dynamic_shapes=dynamic(),
        verbose=False,
    )
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    inputs = batch(head, shape=(5, 12))
    with torch.no_grad():
        expected = made(**inputs).to_tuple()
    got = session.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})
    assert len(got) == len(expected)
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, b.numpy(), rtol=0, atol=1e-4)


def test_an_exported_program_refuses_a_shape_that_it_was_not_exported_for():
    made = model()
    program = torch.export.export(made, (), batch(shape=(2, 7)), dynamic_shapes=dynamic()).module()
    with pytest.raises(Exception, match=r"16|length"):
        program(**batch(shape=(2, 17)))
    assert isinstance(program(**batch(shape=(1, 16))), minibert.outputs.EncoderOutput)

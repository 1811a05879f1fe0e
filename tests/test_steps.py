"""Any value can be read and replaced, by name."""

import pytest
import torch

from minibert import pack
from minibert.model import Step
from minibert.study import capture, edit
from minibert.study.steps import LIMIT, matching_names

from .models import HEADS, batch, model, tensors

each_head = pytest.mark.parametrize("head", HEADS)
PROBS = "transformer.layer.{}.attention.probs"
STEPS_OF_A_BLOCK = [
    *(f"attention.{name}" for name in ("q", "k", "v", "scores", "mask", "masked_scores", "probs", "context")),
    *("sa_residual", "ffn.lin1", "ffn.activation", "output_residual"),
]


def test_every_value_of_the_formulas_is_captured_in_order_of_execution():
    each = model(n_layers=1)
    with capture(each) as steps:
        each(**batch())
    names = [name.removeprefix("transformer.layer.0.") for name in steps]
    assert [name for name in names if name in STEPS_OF_A_BLOCK] == STEPS_OF_A_BLOCK
    assert names[:5] == [
        f"embeddings.{n}" for n in ("word_embeddings", "position_embeddings", "sum", "LayerNorm", "dropout")
    ]
    assert names[-1] == "transformer.layer.0"


def test_the_steps_fit_together():
    each = model()
    with capture(each, "transformer.layer.0.*") as steps:
        output = each(**batch(), output_attentions=True)
    step = {name.removeprefix("transformer.layer.0."): value for name, value in steps.items()}
    assert step["attention.q"].shape == (3, 4, 7, 8)
    assert torch.equal(
        step["attention.scores"],
        step["attention.q"] @ step["attention.k"].transpose(-2, -1) * each.transformer.layer[0].attention.scale,
    )
    assert step["attention.mask"].shape == (3, 1, 1, 7)
    assert torch.equal(step["attention.masked_scores"], step["attention.scores"] + step["attention.mask"])
    assert torch.equal(step["attention.probs"], output.attentions[0])
    assert torch.equal(step["attention.context"], step["attention.probs"] @ step["attention.v"])
    assert torch.equal(step["ffn.activation"], torch.nn.functional.gelu(step["ffn.lin1"]))
    assert torch.equal(step["attention"], step["attention.out_lin"])  # of several values, the one that flows on


def test_without_a_mask_there_is_no_mask_step():
    each = model()
    with capture(each, "*.mask", "*.masked_scores") as steps:
        each(**batch(mask="none"))
    assert list(steps) == [f"transformer.layer.{i}.attention.masked_scores" for i in range(2)]


@each_head
def test_capturing_changes_nothing_and_leaves_nothing_behind(head):
    each, inputs = model(head), batch(head)
    before = tensors(each(**inputs))
    with capture(each) as steps:
        during = tensors(each(**inputs))
    assert steps
    assert not any(module._forward_hooks for module in each.modules())
    for name, value in before.items():
        assert torch.equal(value, during[name])


def test_a_second_forward_replaces_the_first_ones_values():
    each = model()
    with capture(each, "*.probs") as steps:
        each(**batch(shape=(3, 7)))
        each(**batch(shape=(2, 5)))
    assert [value.shape for value in steps.values()] == [(2, 4, 5, 5)] * 2


def test_the_order_is_that_of_the_last_forward():
    each = model(n_layers=1)
    with capture(each, "*.mask", "*.probs") as steps:
        each(**batch(mask="none"))
        each(**batch())
    assert [name.rpartition(".")[2] for name in steps] == ["mask", "probs"]


def test_captured_values_keep_their_graph():
    each = model()
    with capture(each, PROBS.format(0)) as steps:
        output = each(**batch())
    (gradient,) = torch.autograd.grad(output.last_hidden_state.sum(), list(steps.values()))
    assert gradient.abs().sum() > 0
    with capture(each, PROBS.format(0)) as steps, torch.no_grad():
        each(**batch())
    assert not steps[PROBS.format(0)].requires_grad


@pytest.mark.parametrize(
    ("to", "dtype", "shape"),
    [
        (torch.float16, torch.float16, (3, 4, 7, 7)),
        ("cpu", torch.float32, (3, 4, 7, 7)),
        (torch.device("cpu"), torch.float32, (3, 4, 7, 7)),
        (lambda probs: probs.mean(dim=1), torch.float32, (3, 7, 7)),
    ],
)
def test_values_are_sent_away_as_they_come(to, dtype, shape):
    each = model()
    with capture(each, "*.probs", to=to) as steps:
        each(**batch())
    assert [(value.dtype, tuple(value.shape)) for value in steps.values()] == [(dtype, shape)] * 2


def test_a_capture_above_the_limit_is_refused_and_holds_nothing():
    each = model()
    needed = 2 * 4 * 3 * 4 * 7 * 7  # two layers of four bytes for each of (B, H, S, S)
    with capture(each, "*.probs", limit=needed) as steps:
        each(**batch())
    assert len(steps) == 2
    with (
        pytest.raises(ValueError, match=rf"{needed:,} bytes at {PROBS.format(1)}, more than limit={needed - 1:,}"),
        capture(each, "*.probs", limit=needed - 1) as steps,
    ):
        each(**batch())
    assert not steps


@each_head
def test_every_steps_edit_lands(head):
    each, inputs = model(head), batch(head)
    if head == "DistilBertForMultipleChoice":
        inputs["attention_mask"][:, :, 0] = 1
    before = tensors(each(**inputs))
    steps = [name for name, module in each.named_modules() if isinstance(module, Step)]
    assert len(steps) == 1 + 2 * 10  # the embeddings' sum; in each block eight of the attention and two residuals
    for name in steps:
        # Not a constant shift: softmax and LayerNorm would swallow one.
        with edit(each, {name: lambda value: value + torch.randn_like(value)}):
            after = tensors(each(**inputs))
        assert all(not torch.equal(before[key], after[key]) for key in before), name
    for key, value in tensors(each(**inputs)).items():
        assert torch.equal(value, before[key])  # and is gone again


def test_one_head_is_edited_in_two_lines():
    each, inputs = model(), batch()

    def only_head_1(scores):
        scores = scores.clone()
        scores[:, 1] = 0
        return scores

    with edit(each, {"transformer.layer.1.attention.scores": only_head_1}), capture(each, PROBS.format(1)) as steps:
        each(**inputs)
    probs = steps[PROBS.format(1)]
    real = inputs["attention_mask"].bool()
    for row in range(3):
        n = int(real[row].sum())
        assert torch.allclose(probs[row, 1, :, :n], torch.full((7, n), 1 / n))
    assert not torch.allclose(probs[2, 0], torch.full((7, 7), 1 / 7), atol=1e-2)


def test_an_edit_may_be_a_value_or_a_function_of_it():
    each, inputs = model(), batch()
    outputs = []
    for way in (torch.zeros(3, 4, 7, 8, dtype=torch.float64), torch.zeros_like, lambda value: value.double() * 0):
        with edit(each, {"*.context": way}):
            outputs.append(each(**inputs).last_hidden_state)
    assert all(torch.equal(outputs[0], other) for other in outputs[1:])
    assert outputs[0].dtype == torch.float32


def test_a_module_with_several_outputs_is_edited_in_the_first():
    each, inputs = model(), batch()
    with edit(each, {"transformer.layer.1": lambda value: value * 2}):
        output = each(**inputs, output_attentions=True)
    plain = each(**inputs, output_attentions=True)
    assert torch.equal(output.last_hidden_state, plain.last_hidden_state * 2)
    assert torch.equal(output.attentions[1], plain.attentions[1])


def test_a_capture_inside_an_edit_sees_the_new_value_and_around_it_the_old():
    each, inputs = model(), batch()
    zero = {PROBS.format(0): torch.zeros_like}
    with edit(each, zero), capture(each, PROBS.format(0)) as inner:
        each(**inputs)
    with capture(each, PROBS.format(0)) as outer, edit(each, zero):
        each(**inputs)
    assert (inner[PROBS.format(0)] == 0).all()
    assert (outer[PROBS.format(0)] != 0).any()


def test_edits_nest():
    each, inputs = model(), batch()
    with (
        edit(each, {"embeddings": lambda x: x + 1}),
        edit(each, {"embeddings": lambda x: x * 2}),
        capture(each, "embeddings") as both,
    ):
        each(**inputs)
    with capture(each, "embeddings") as none:
        each(**inputs)
    assert torch.equal(both["embeddings"], (none["embeddings"] + 1) * 2)


def test_the_mask_of_one_layer_may_be_made_one_of_each_head():
    each, inputs = model(), batch()

    def only_head_0(mask):
        return torch.cat([mask, torch.zeros_like(mask).expand(-1, 3, -1, -1)], dim=1)  # (B, H, 1, S)

    with edit(each, {"*.mask": only_head_0}), capture(each, PROBS.format(0)) as steps:
        each(**inputs)
    padding = inputs["attention_mask"][0] == 0
    assert (steps[PROBS.format(0)][0, 0][:, padding] == 0).all()
    assert (steps[PROBS.format(0)][0, 1:][..., padding] > 0).all()


@pytest.mark.parametrize("how", [capture, lambda model, name: edit(model, {name: torch.zeros_like})])
@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("transformer.layer.0.attention.prob", r"did you mean transformer\.layer\.0\.attention\.probs\?$"),
        ("*.prob", r"did you mean \*\.probs\?$"),
        ("*.attention.n_lin", r"did you mean \*\.attention\.v_lin or \*\.attention\.q_lin or \*\.attention\.k_lin\?$"),
        ("*.layer.1.*.score", r"did you mean \*\.layer\.1\.\*\.scores\?$"),
        ("distilbert.embeddings.sum", r"did you mean embeddings\.sum"),
        ("xyz", r"fits 'xyz'$"),
    ],
)
def test_an_unknown_name_is_refused_with_the_near_ones(how, name, says):
    with pytest.raises(ValueError, match=says), how(model(), name):
        pass


def test_an_edit_of_another_shape_or_of_no_tensor_is_refused():
    each, inputs = model("DistilBertForSequenceClassification"), batch()
    with (
        pytest.raises(ValueError, match=r"layer.0.attention.q gives shape \(3, 4, 7\), the value has \(3, 4, 7, 8\)"),
        edit(each, {"*.layer.0.attention.q": lambda q: q[..., 0]}),
    ):
        each(**inputs)
    with (
        pytest.raises(ValueError, match=r"distilbert returns a EncoderOutput, not a tensor"),
        edit(each, {"distilbert": torch.zeros_like}),
    ):
        each(**inputs)


@pytest.mark.parametrize(("shape", "name"), [((2, 4, 7, 7), "scores"), ((2, 4, 7, 7), "mask"), ((1, 4, 7, 6), "mask")])
def test_an_edit_keeps_the_batch_and_the_keys(shape, name):
    each, inputs = model(n_layers=1), batch(shape=(1, 7))
    with (
        edit(each, {f"*.attention.{name}": torch.zeros(shape)}),
        pytest.raises(ValueError, match=r"gives shape \(.*\), the value has \(1, "),
    ):
        each(**inputs)


@pytest.mark.parametrize("shape", [(3, 4, 1, 7), (3, 1, 7, 7), (3, 4, 7, 7)])
def test_a_mask_may_be_made_one_of_each_head_and_query(shape):
    each = model(n_layers=1)
    with edit(each, {"*.attention.mask": torch.zeros(shape)}), capture(each, "*.masked_scores", "*.scores") as steps:
        each(**batch())
    scores, masked = steps.values()
    assert torch.equal(scores, masked)


@pytest.mark.parametrize(("name", "shape"), [("mask", (3, 2, 7, 7)), ("mask", (3, 4, 1, 7)), ("scores", (3, 1, 7, 7))])
def test_axes_that_are_there_stay(name, shape):
    each, inputs = model(n_layers=1), batch()
    inputs["attention_mask"] = torch.ones(3, 4, 7, 7, dtype=torch.bool)
    with edit(each, {f"*.attention.{name}": torch.zeros(3, 4, 7, 7)}):
        each(**inputs)
    with edit(each, {f"*.attention.{name}": torch.zeros(shape)}), pytest.raises(ValueError, match="gives shape"):
        each(**inputs)


def test_only_a_mask_may_get_heads():
    each = model(n_layers=1, n_heads=1)
    with edit(each, {"*.scores": torch.zeros(3, 2, 7, 7)}), pytest.raises(ValueError, match="gives shape"):
        each(**batch())


def test_a_change_in_place_stays_in_its_layer_and_its_edit():
    def hide(mask):
        mask[..., 0] = torch.finfo(mask.dtype).min
        return mask

    each, inputs = model(), batch(mask="ones")
    name = "transformer.layer.0.attention.mask"
    with capture(each, name) as before, edit(each, {name: hide}), capture(each, "*.attention.probs") as probs:
        each(**inputs)
    first, second = probs.values()
    assert (first[..., 0] == 0).all()
    assert (second[..., 0] > 0).all()
    assert (before[name] == 0).all()


def test_an_edit_that_changed_nothing_says_so():
    each, inputs = model(), batch()
    fast = pack(each)
    edits = edit(each, {"*.attention.mask": torch.zeros_like, "*.attention.scores": torch.zeros_like})
    with pytest.warns(UserWarning, match=r"edit of \*\.attention\.mask changed nothing: no such step ran"), edits:
        each(inputs["input_ids"])
    with edits:  # used again, with a mask
        each(**inputs)
    with pytest.warns(UserWarning, match=r"\*\.attention\.mask, \*\.attention\.scores changed nothing"), edits:
        fast(**inputs)
    with pytest.raises(ZeroDivisionError), edits:  # no warning on top of an error
        1 / 0  # noqa: B018


@pytest.mark.parametrize("look", [capture, lambda each: edit(each, {"*": torch.zeros_like})])
def test_what_is_no_model_is_refused(look):
    with pytest.raises(ValueError, match="PackedModel has no steps to look into: pass the model itself"):
        look(pack(model()))


def test_an_edit_that_returns_no_tensor_is_refused():
    def in_place(probs):
        probs[:] = 0

    for change in (in_place, 0.0):
        each = model()
        with (
            pytest.raises(ValueError, match=r"gives a (NoneType|float): return the new value, a tensor"),
            edit(each, {PROBS.format(0): change}),
        ):
            each(**batch())


def test_values_may_be_reduced_to_plain_numbers():
    each = model()
    with capture(each, "*.probs", to=lambda probs: probs.max().item()) as steps:
        each(**batch())
    assert all(type(value) is float for value in steps.values())


def test_names_come_in_the_models_order_each_once():
    names = matching_names(model(), ("*.probs", "*.attention.[qp]*", "embeddings.sum"))
    assert names == ["embeddings.sum"] + [
        f"transformer.layer.{i}.attention.{name}" for i in range(2) for name in ("q_lin", "q", "probs")
    ]


def test_captured_values_print_as_names_and_shapes():
    each = model()
    with capture(each, "*.probs") as steps:
        each(**batch())
    assert repr(steps).splitlines() == [
        "2 captured values",
        "step                                 shape         dtype",
        "transformer.layer.0.attention.probs  (3, 4, 7, 7)  float32",
        "transformer.layer.1.attention.probs  (3, 4, 7, 7)  float32",
    ]
    assert steps._repr_html_().count("<tr>") == 3
    with capture(each, "*.0.*.probs", to=lambda probs: probs.sum().item() * 0) as steps:
        each(**batch())
    assert repr(steps).split()[-2:] == ["transformer.layer.0.attention.probs", "0"]


def test_a_capture_shown_by_itself_says_what_it_is():
    shown = repr(capture(model(), "*.probs"))
    assert shown.startswith("a capture of 2 values of DistilBertModel, from transformer.layer.0.attention.probs to ")
    assert "with capture(model, …) as steps:" in shown
    assert capture(model()).limit == LIMIT == 8 * 1024**3  # bytes


def test_a_capture_may_be_used_again():
    each = model()
    probs = capture(each, PROBS.format(0))
    with probs as first:
        each(**batch(shape=(3, 7)))
    with probs as second:
        each(**batch(shape=(2, 5)))
    assert [steps[PROBS.format(0)].shape for steps in (first, second)] == [(3, 4, 7, 7), (2, 4, 5, 5)]
    assert not any(module._forward_hooks for module in each.modules())

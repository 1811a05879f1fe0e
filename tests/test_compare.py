"""compare() says what differs, where first, and how much; and nothing where nothing does."""

import json
import sys

import pytest
import torch

import minibert
from minibert.pretrained import PreTrainedModel
from minibert.study import edit
from minibert.study.compare import (
    CheckpointComparison,
    ComparedStep,
    Comparison,
    _compare_step,
    _merge,
    compare,
    compare_checkpoint,
)
from minibert.study.models import MODELS

from .checkpoints import CLASSIFIER
from .hub import files
from .models import HEADS, MASKS, SHAPES, batch, labels, model

each_head = pytest.mark.parametrize("head", HEADS)
SCORES = {"scores", "masked_scores"}  # only these are hidden inside transformers' attention


def last_names(names):
    return {name.rpartition(".")[2] for name in names}


@pytest.mark.parametrize("mask", MASKS)
@each_head
def test_every_value_agrees_with_the_oracle(head, mask):
    each = model(head).double()
    for shape in SHAPES:
        found = compare(each, "oracle", batch(head, mask, shape))
        assert found.ok
        assert last_names(found.not_given) == {"dropout"}
        assert 0 < found.error_real < 1e-12 < found.tolerance == 1e-9
        assert (found.error_padded > 0) == (found.padded > 0)
        assert len(found.steps) > 40


def test_float32_agrees_with_the_oracle_to_its_own_rounding():
    found = compare(model(), "oracle", batch())
    assert found.ok
    assert 1e-7 < found.error_real < found.tolerance == 1e-4


def test_a_coarse_dtype_needs_a_tolerance_of_its_own():
    found = compare(model(initializer_range=0.02).bfloat16(), "oracle", batch(), tolerance=0.1)
    assert found.ok
    assert found.error_real > 1e-3


def test_values_come_in_order_of_execution():
    found = compare(model(n_layers=1).double(), "oracle", batch())
    layer = "transformer.layer.0"
    attention = ["q_lin", "q", "k_lin", "k", "v_lin", "v"]
    attention += ["scores", "mask", "masked_scores", "probs", "context", "out_lin"]
    assert [step.name for step in found.steps] == [
        *(f"embeddings.{name}" for name in ("word_embeddings", "position_embeddings", "sum", "LayerNorm")),
        *(f"{layer}.attention.{name}" for name in attention),
        *(f"{layer}.{name}" for name in ("sa_residual", "sa_layer_norm")),
        *(f"{layer}.ffn.{name}" for name in ("lin1", "activation", "lin2")),
        *(f"{layer}.{name}" for name in ("output_residual", "output_layer_norm")),
        "last_hidden_state",
    ]


@each_head
def test_whichever_value_is_wrong_is_named_first(head):
    each, inputs = model(head).double(), batch(head)
    names = [step.name for step in compare(each, "oracle", inputs).steps]
    names = [name for name in names if not name.endswith(("last_hidden_state", "logits"))]
    for name in names:
        with edit(each, {name: lambda x: x + 1e-6 * x.isfinite() * (1 + x.abs())}):
            found = compare(each, "oracle", inputs)
        assert found.first_divergence == name
        assert not found.ok


def test_errors_at_padding_are_kept_apart_from_those_at_real_tokens():
    each, inputs = model(), batch()
    padding = (inputs["attention_mask"] == 0)[..., None]
    with edit(each, {"embeddings.LayerNorm": lambda x: x + 0.5 * padding}):
        found = compare(each, model_like(each), inputs)
    assert found.first_divergence == "embeddings.LayerNorm"
    assert found.error_real == 0  # the mask holds
    assert found.error_padded > 0.1
    assert found.padded == int(padding.sum()) == 9
    with edit(each, {"transformer.layer.0.attention.mask": lambda mask: mask * 0.5}):
        mask = next(s for s in compare(each, model_like(each), inputs).steps if s.name.endswith(".mask"))
    assert (mask.error_real, mask.error_padded) == (0, 0.5)  # of keys; relative, where numbers are large


def model_like(each):
    other = type(each)(each.config).to(each.dtype).train(each.training)
    other.load_state_dict(each.state_dict())
    return other


@each_head
def test_two_models_of_the_same_weights_drop_the_same_in_training(head):
    each, inputs = model(head).train(), batch(head)
    inputs |= labels(head, inputs["input_ids"]) if HEADS[head] else {}
    before = torch.get_rng_state()
    found = compare(each, model_like(each), inputs)
    assert found.verdict == "equal bit for bit"
    assert found.not_given == []
    assert ("loss" in last_names(step.name for step in found.steps)) == bool(HEADS[head])
    assert not torch.equal(torch.get_rng_state(), before)  # as after one run


def test_a_value_of_another_shape_is_named():
    each, other = model(hidden_dim=64), model(hidden_dim=48)
    other.load_state_dict(each.state_dict() | {k: v for k, v in other.state_dict().items() if "ffn.lin" in k})
    found = compare(each, other, batch())
    step = next(step for step in found.steps if step.result != "OK")
    assert (step.name, step.result, step.shape) == ("transformer.layer.0.ffn.lin1", "SHAPE", (3, 7, 64))
    assert step.error_real is None


def test_a_value_that_was_never_computed_is_named():
    each = model()
    whole = model_like(each)
    each.transformer.layer[1].ffn.forward = lambda x: each.transformer.layer[1].ffn.lin2(
        torch.nn.functional.gelu(each.transformer.layer[1].ffn.lin1(x))
    )
    found = compare(each, whole, batch())
    assert found.first_divergence == "transformer.layer.1.ffn.activation"
    assert [step.name for step in found.steps if step.result == "MISSING"] == [
        "transformer.layer.1.ffn.activation",
        "transformer.layer.1.ffn.dropout",
    ]


def test_values_that_only_the_other_has_stand_where_it_has_them():
    assert _merge(["a", "b"], ["x", "a", "y", "b", "z"]) == ["x", "a", "y", "b", "z"]
    assert _merge(["a", "b", "c"], ["c", "x"]) == ["a", "b", "c", "x"]


def test_a_nan_is_a_difference_and_equal_infinities_are_not():
    each, inputs = model(), batch()
    with edit(each, {"embeddings.sum": lambda x: x * float("nan")}):
        found = compare(each, "oracle", inputs)
    assert (found.first_divergence, found.error_real) == ("embeddings.sum", float("inf"))
    other, infinite = model_like(each), {"transformer.layer.1.attention.mask": lambda mask: mask * 2}
    with edit(each, infinite), edit(other, infinite):
        assert compare(each, other, inputs).verdict == "equal bit for bit"


def test_another_dtype_is_equal_only_to_rounding():
    each = model()
    found = compare(each, model_like(each).double(), batch(mask="none"), tolerance=1e-3)
    assert found.verdict == "equal to rounding"
    assert not any(step.equal for step in found.steps)


def test_word_embeddings_and_patterns_have_no_padding_to_tell_apart():
    each, inputs = model(), batch()
    embeds = each.embeddings.word_embeddings(inputs["input_ids"]).detach()
    found = compare(each, model_like(each), {"inputs_embeds": embeds})
    assert (found.ok, found.shape, found.padded) == (True, (3, 7), 0)
    pattern = torch.ones(3, 4, 7, 7, dtype=torch.bool).tril()
    found = compare(each.double(), "oracle", inputs | {"attention_mask": pattern})
    assert (found.ok, found.padded) == (True, 0)


def test_prints_a_table_and_what_comes_of_it():
    each, inputs = model(n_layers=1).double(), batch()
    lines = str(compare(each, "oracle", inputs)).splitlines()
    assert lines[0] == "DistilBertModel and oracle, float64, a batch of 3 x 7, 9 padded"
    assert lines[2].split("  ")[0] == "value"
    assert lines[3].split() == ["embeddings.word_embeddings", "3", "x", "7", "x", "32", "OK", "yes", "0", "0"]
    assert lines[-3] == "An error is |ours - other's| / max(1, |other's|), the largest of a value's numbers."
    assert lines[-2] == "24 values: equal to rounding (tolerance 1e-09)"
    assert lines[-1] == (
        "Not given by oracle: embeddings.dropout, transformer.layer.*.attention.dropout, "
        "transformer.layer.*.ffn.dropout"
    )
    with edit(each, {"embeddings.sum": lambda x: x + 1}):
        found = compare(each, model_like(each), inputs)
    assert str(found).splitlines()[-2:] == [
        "27 values: DIFFERENT, first at embeddings.sum (tolerance 0)",
        "Not given by minibert.DistilBertModel: nothing is missing",
    ]
    content = json.loads(json.dumps(found.to_dict()))
    assert (content["ok"], content["first_divergence"]) == (False, "embeddings.sum")
    assert content["steps"][2] | {"error_real": 1, "error_padded": 1} == {
        "name": "embeddings.sum",
        "result": "DIFF",
        "shape": [3, 7, 32],
        "equal": False,
        "error_real": 1,
        "error_padded": 1,
    }


def comparison_of(*steps, not_given=()):
    """A comparison of given steps."""
    return Comparison("Ours", "theirs.Theirs", "float32", (2, 3), 1, 0.25, list(steps), list(not_given))


EQUAL, OFF = ComparedStep("a", "OK", (2, 3), True, 0.0, None), ComparedStep("b", "OK", (2,), False, 0.125, 0.0625)
WRONG, OTHER = ComparedStep("c", "DIFF", (2, 1), False, 0.5, 2.0), ComparedStep("d", "SHAPE", (9,))
ERROR = "An error is |ours - other's| / max(1, |other's|), the largest of a value's numbers."


def test_a_comparison_prints_its_steps_and_the_first_that_differs():
    result = comparison_of(EQUAL, OFF, WRONG, OTHER, not_given=["e", "x.layer.0.y", "x.layer.11.y", "x.layer.0.z"])
    assert str(result).splitlines() == [
        "Ours and theirs.Theirs, float32, a batch of 2 x 3, 1 padded",
        "",
        "value  shape  result  equal  error at real  error at padded",
        "a      2 x 3  OK      yes    0",
        "b          2  OK      no     1.2e-01        6.2e-02",
        "c      2 x 1  DIFF    no     5.0e-01        2.0e+00",
        "d          9  SHAPE   no",
        "",
        ERROR,
        "4 values: DIFFERENT, first at c (tolerance 0.25)",
        "Not given by theirs.Theirs: e, x.layer.*.y, x.layer.*.z",
    ]
    assert (result.ok, result.first_divergence) == (False, "c")
    assert (result.error_real, result.error_padded) == (0.5, 2.0)
    right = comparison_of(EQUAL, OFF)
    assert (right.ok, right.first_divergence, right.verdict) == (True, None, "equal to rounding")
    assert (right.error_real, right.error_padded) == (0.125, 0.0625)
    assert (comparison_of(OTHER).error_real, comparison_of(OTHER).error_padded) == (0.0, 0.0)
    assert comparison_of(EQUAL).verdict == "equal bit for bit"


def test_a_checkpoint_prints_a_line_for_each_comparison_and_the_first_failed_one():
    failed = comparison_of(EQUAL, WRONG, not_given=["e"])
    result = CheckpointComparison("name", [comparison_of(EQUAL), failed, comparison_of(OFF, WRONG)])
    assert str(result).splitlines() == [
        "name",
        "",
        "with           dtype    batch  padded  values  error at real  error at padded  result",
        "theirs.Theirs  float32  2 x 3       1       1              0                0  equal bit for bit",
        "theirs.Theirs  float32  2 x 3       1       2        5.0e-01          2.0e+00  DIFFERENT, first at c",
        "theirs.Theirs  float32  2 x 3       1       2        5.0e-01          2.0e+00  DIFFERENT, first at c",
        "",
        ERROR,
        "Not given by theirs.Theirs: nothing is missing",
        "Not given by theirs.Theirs: e",
        "",
        *str(failed).splitlines(),
    ]
    assert (result.ok, CheckpointComparison("name", [comparison_of(OFF)]).ok) == (False, True)


def test_an_error_that_is_the_tolerance_is_ok_and_is_relative_to_large_numbers_of_the_other():
    real = torch.tensor([[True, False]])
    theirs = torch.tensor([[[0.5, -4.0], [1.0, 8.0]]])  # (B, S, D)
    off = torch.tensor([[[0.25, 1.0], [0.5, 2.0]]])
    for ours in (theirs + off, theirs - off):
        for tolerance, result in ((0.5, "OK"), (0.499, "DIFF")):
            step = _compare_step("x", ours, theirs, real, tolerance)
            assert step == ComparedStep("x", result, (1, 2, 2), False, 0.25, 0.5)
    assert _compare_step("x", theirs.clone(), theirs, real, 0.0) == ComparedStep("x", "OK", (1, 2, 2), True, 0.0, 0.0)
    double = _compare_step("x", theirs.double(), theirs, real, 0.0)
    assert double == ComparedStep("x", "OK", (1, 2, 2), False, 0.0, 0.0)
    assert _compare_step("x", theirs, theirs, real | True, 0.0).error_padded is None
    assert _compare_step("x", None, theirs, real, 0.0) == ComparedStep("x", "MISSING", (1, 2, 2))
    assert _compare_step("x", theirs[0], theirs, real, 0.0) == ComparedStep("x", "SHAPE", (2, 2))


@pytest.mark.parametrize(
    ("change", "other", "batch_change", "says"),
    [
        (lambda m: m, "transformers", {}, "a model or 'oracle', got 'transformers'"),
        (lambda m: m.train(), "oracle", {}, r"no dropout: call model\.eval\(\)"),
        (lambda m: m.half(), "oracle", {}, r"float16 is too coarse .*: compare model\.double\(\)"),
        (lambda m: m, "oracle", {"token_type_ids": torch.zeros(3, 7)}, "knows input_ids, .* not token_type_ids"),
    ],
)
def test_what_cannot_be_compared_is_refused(change, other, batch_change, says):
    with pytest.raises(ValueError, match=says):
        compare(change(model()), other, batch() | batch_change)


@pytest.mark.reference
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("mask", MASKS)
@each_head
def test_every_value_that_transformers_gives_is_the_same_bit_for_bit(head, mask, dtype):
    pytest.importorskip("transformers")
    from .test_parity import twin

    each, inputs = model(head).to(dtype), batch(head, mask)
    found = compare(each, twin(each), inputs)
    assert found.ok
    assert found.verdict == "equal bit for bit"
    if mask in ("ragged", "left", "holes"):
        assert last_names(found.not_given) - {"activation"} == SCORES
        assert {"mask", "probs", "context", "sum", "sa_residual"} <= last_names(s.name for s in found.steps)


@pytest.mark.reference
@each_head
def test_transformers_drops_the_same_in_training(head):
    pytest.importorskip("transformers")
    from .test_parity import twin

    each, inputs = model(head).train(), batch(head)
    inputs |= labels(head, inputs["input_ids"]) if HEADS[head] else {}
    found = compare(each, twin(each), inputs)
    assert found.verdict == "equal bit for bit"
    assert "probs" in last_names(found.not_given)  # it keeps those after dropout only
    assert "dropout" in last_names(step.name for step in found.steps)


@pytest.mark.reference
def test_transformers_sdpa_agrees_to_rounding():
    pytest.importorskip("transformers")
    from .test_parity import twin

    each = model()
    found = compare(each, twin(each, "sdpa"), batch(), tolerance=1e-4)
    assert found.ok
    assert last_names(found.not_given) == {*SCORES, "mask", "probs", "dropout"}


VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "today", "is", "a", "nice", "day", "!", "?", "."]


def save(folder, head, architectures=None, vocabulary=VOCABULARY):
    """A checkpoint of a small model; other `architectures` in its config.json where given."""
    model(head).save_pretrained(folder)
    if vocabulary:
        (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
        (folder / "tokenizer_config.json").write_text('{"do_lower_case": true}')
    if architectures is not None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"architectures": architectures}))
    return folder


@each_head
def test_a_checkpoint_agrees_with_the_oracle(tmp_path, head):
    found = compare_checkpoint(save(tmp_path, head), against=["oracle"])
    assert found.ok
    assert [c.model for c in found.comparisons] == [head] * 4
    assert {c.dtype for c in found.comparisons} == {"float64"}
    choices = (1,) if head == "DistilBertForMultipleChoice" else ()
    shapes = [(2, 4), (3, 16), (4, 16), (2, 11)]  # 16 positions; [CLS] but what about tomorrow ? im not sure . [SEP]
    assert [c.shape for c in found.comparisons] == [choices + shape for shape in shapes]
    assert [c.padded for c in found.comparisons] == [3, 23, 30, 3]  # lengths 4 1; 16 8 1; 16 11 6 1; 8 11


def test_a_checkpoint_is_compared_on_batches_of_up_to_64_tokens(tmp_path):  # RANDOM_BATCHES
    model(n_layers=1, max_position_embeddings=80).save_pretrained(tmp_path)
    found = compare_checkpoint(tmp_path, against=["oracle"])
    assert [c.shape for c in found.comparisons] == [(2, 4), (3, 16), (4, 64)]  # and no sentences without a tokenizer
    assert [c.padded for c in found.comparisons] == [3, 23, 4 * 64 - 64 - 43 - 22 - 1]
    assert compare_checkpoint(tmp_path, against=["oracle"]) == found  # the same batches each time


@pytest.mark.reference
@each_head
def test_a_checkpoint_agrees_with_transformers_own_reading_of_it(tmp_path, head):
    pytest.importorskip("transformers")
    found = compare_checkpoint(save(tmp_path, head, vocabulary=None))
    assert [(c.other, c.dtype) for c in found.comparisons] == [
        *[(f"transformers.{head}", "float32")] * 3,
        *[("oracle", "float64")] * 3,
    ]
    assert found.ok
    assert [c.verdict for c in found.comparisons[:3]] == ["equal bit for bit"] * 3
    assert json.loads(json.dumps(found.to_dict()))["ok"]


@pytest.mark.reference
def test_a_checkpoint_in_half_precision_is_compared_in_float32(tmp_path):
    pytest.importorskip("transformers")
    model().bfloat16().save_pretrained(tmp_path)
    found = compare_checkpoint(tmp_path, against=["transformers"])
    assert [(c.dtype, c.verdict) for c in found.comparisons] == [("float32", "equal bit for bit")] * 3


@pytest.mark.reference
def test_a_checkpoint_that_differs_from_transformers_is_shown_value_by_value(tmp_path, monkeypatch):
    pytest.importorskip("transformers")
    monkeypatch.setattr("minibert.model.LAYER_NORM_EPS", 1e-5)
    found = compare_checkpoint(save(tmp_path, "DistilBertModel"), against=["transformers"])
    assert not found.ok
    assert not found.to_dict()["ok"]
    lines = str(found).splitlines()
    assert lines[0] == str(tmp_path)
    assert lines[3].split()[:6] == ["transformers.DistilBertModel", "float32", "2", "x", "4", "3"]
    assert lines[3].endswith("DIFFERENT, first at embeddings.LayerNorm")
    assert lines[9] == (
        "Not given by transformers.DistilBertModel: "
        "transformer.layer.*.attention.scores, transformer.layer.*.attention.masked_scores"
    )
    assert lines[11] == "DistilBertModel and transformers.DistilBertModel, float32, a batch of 2 x 4, 3 padded"


def test_a_checkpoint_that_names_no_class_is_compared_as_the_encoder(tmp_path):
    found = compare_checkpoint(save(tmp_path, "DistilBertForMaskedLM", architectures=[]), against=["oracle"])
    assert {c.model for c in found.comparisons} == {"DistilBertModel"}
    assert found.ok


@pytest.mark.parametrize("architectures", [["BertModel"], "DistilBertModel", [["x"]], {"a": 1}])
def test_a_checkpoint_of_another_class_is_refused(tmp_path, architectures):
    with pytest.raises(ValueError, match=r"architectures .*, but not one of .*DistilBertForMultipleChoice"):
        compare_checkpoint(save(tmp_path, "DistilBertModel", architectures))


def test_without_transformers_the_error_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(
        ValueError, match=r"pip install transformers \(the extra test\); or compare with the oracle alone"
    ):
        compare_checkpoint(save(tmp_path, "DistilBertModel"))


def test_only_transformers_and_the_oracle_are_known(tmp_path):
    with pytest.raises(ValueError, match=r"against must be of .*, got 'tensorflow'"):
        compare_checkpoint(tmp_path, against=["oracle", "tensorflow"])


def test_every_public_model_can_be_compared():
    public = {name: getattr(minibert, name) for name in minibert.__all__}
    models = {name for name, each in public.items() if isinstance(each, type) and issubclass(each, PreTrainedModel)}
    assert set(MODELS) == models


@pytest.mark.reference
def test_transformers_reads_the_revision_that_is_compared(hub, tmp_path, monkeypatch):
    transformers = pytest.importorskip("transformers")
    monkeypatch.setattr(transformers.utils.hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    older, newer = (files(save(tmp_path / name, CLASSIFIER, vocabulary=None)) for name in ("older", "newer"))
    commit = hub.commit("someone/tiny", older)
    hub.commit("someone/tiny", newer)
    for revision in (commit, None):
        assert compare_checkpoint("someone/tiny", revision=revision, against=["transformers"]).ok
    assert f"GET {commit}/model.safetensors" in hub.requests

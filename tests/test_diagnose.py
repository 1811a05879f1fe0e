"""The diagnosis: a catalogued mistake is called by its name, an unknown one is not guessed."""

import copy
import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from minibert.study import capture, diagnose
from minibert.study.audit import errors
from minibert.study.compare import OUTPUTS, real_positions
from minibert.study.diagnose import (
    LEAST_EPS,
    ROUNDING,
    VISIBLE,
    Diagnosis,
    GivenValue,
    Pair,
    Run,
    coarsest_dtype,
    count_groups,
    different,
    examples,
    greatest_error,
    judge,
    read_run,
)
from minibert.study.mistakes import catalogue, mistaken, share

from .command_line import run
from .models import HEADS, batch, model
from .mutants import example

CLASSIFIER = "DistilBertForSequenceClassification"
LAYER = "distilbert.transformer.layer.0."
# Where nothing but real tokens is read, as in a classifier, a mistake at padding does not show.
ONLY_AT_PADDING = {"[PAD] as zero", "mask hides queries too"}
OTHER_MASKS = {"mask of -1e4", "mask of -1e9", "mask of -inf"}  # exp() of each is 0
TOO_SMALL = {"LayerNorm eps 1e-6", "LayerNorm eps 1e-5"}  # with these weights
TWINS = {"q and k swapped", "k qᵀ in place of q kᵀ"}  # (q kᵀ)ᵀ = k qᵀ


def setting(head=CLASSIFIER):
    """A right model in float32, and inputs."""
    original, inputs, _ = example(head)
    return original.float(), inputs


def output(model, inputs):
    with torch.no_grad():
        return model(**inputs)


@pytest.fixture(scope="module")
def classifier():
    return setting()


@pytest.mark.parametrize("head", HEADS)
def test_every_mistake_is_told_from_all_others_by_the_outputs_alone(head):
    right_model, inputs = setting(head)
    pair = Pair(right_model, copy.deepcopy(right_model).double(), None)
    right = pair.run(inputs)
    names = [name for name in OUTPUTS if name in right.values]
    with torch.no_grad():
        runs = {name: pair.mistaken(name).run(inputs, names) for name in catalogue(right_model)}
    pooled = head in (CLASSIFIER, "DistilBertForMultipleChoice")
    for name in runs:
        with torch.no_grad():  # theirs: in float64, which float32 is within rounding of
            theirs = Run(read_run(pair.mistaken(name).exact, inputs, names), {})
        mistakes, unseen = judge(right, runs, theirs, names, real_positions(inputs).flatten(0, -2))
        if mistakes:
            assert set(mistakes) == (TWINS if name in TWINS else {name})
        else:
            assert name in unseen
    assert OTHER_MASKS <= set(unseen) <= OTHER_MASKS | TOO_SMALL | (ONLY_AT_PADDING if pooled else set())


@pytest.mark.parametrize("name", ["tanh GELU", "mask hides queries", "mask inverted"])
def test_logits_alone_say_which_mistake_it_is(classifier, name):
    right, inputs = classifier
    report = diagnose(right, inputs, output(mistaken(right, name), inputs).logits)
    assert (report.verdict, report.step, report.mistakes) == ("mistake", None, [name])
    assert report.apart is report.apart_step is None


def test_the_epsilon_of_layer_norm_is_named_from_the_hidden_states():
    right, inputs = setting("DistilBertModel")
    theirs = output(mistaken(right, "LayerNorm eps 1e-5"), inputs).last_hidden_state
    assert diagnose(right, inputs, theirs).mistakes == ["LayerNorm eps 1e-5"]


def test_values_by_name_say_where_it_begins(classifier):
    right, inputs = classifier
    wrong = mistaken(right, "positions from 1")
    with capture(wrong, "*") as steps, torch.no_grad():
        wrong(**inputs)
    chosen = ["ffn.lin1", "attention.q", "attention.mask"]  # not in order of execution
    theirs = {LAYER.removeprefix("distilbert.") + name: steps[LAYER + name].numpy() for name in chosen}
    theirs |= {"distilbert.embeddings.word_embeddings": steps["distilbert.embeddings.word_embeddings"].tolist()}
    report = diagnose(right, inputs, theirs)
    assert report.step == LAYER + "attention.q"
    assert report.mistakes == ["positions from 1"]
    assert [value.result for value in report.given] == ["OK", "DIFF", "OK", "DIFF"]
    assert [value.name for value in report.given][1:3] == [LAYER + "attention.q", LAYER + "attention.mask"]


def test_a_value_in_the_middle_tells_twins_apart(classifier):
    right, inputs = classifier
    wrong = mistaken(right, "k qᵀ in place of q kᵀ")
    report = diagnose(right, inputs, output(wrong, inputs).logits)
    assert set(report.mistakes) == TWINS
    assert report.apart is None  # no input does
    assert report.apart_step == LAYER + "attention.q_lin"
    with capture(wrong, report.apart_step) as steps:
        logits = output(wrong, inputs).logits
    assert diagnose(right, inputs, steps | {"logits": logits}).mistakes == ["k qᵀ in place of q kᵀ"]


def test_mistakes_alike_on_this_input_come_with_one_that_tells_them_apart(classifier):
    right, inputs = classifier
    unpadded = {"input_ids": inputs["input_ids"]}
    wrong = mistaken(right, "mean pooling in place of [CLS]")
    report = diagnose(right, unpadded, output(wrong, unpadded).logits)
    assert report.mistakes == ["mean pooling in place of [CLS]", "mean pooling over padding in place of [CLS]"]
    assert "attention_mask" in report.apart
    assert diagnose(right, report.apart, output(wrong, report.apart).logits).mistakes == report.mistakes[:1]
    assert "An input that tells them apart:" in str(report)


def test_right_values_are_called_right_and_what_they_cannot_show_is_listed(classifier):
    right, inputs = classifier
    report = diagnose(right, inputs, output(copy.deepcopy(right).double(), inputs).logits.float())
    assert (report.verdict, report.step, report.mistakes) == ("right", None, [])
    assert OTHER_MASKS <= set(report.unseen) <= OTHER_MASKS | ONLY_AT_PADDING | TOO_SMALL
    assert report.apart_step is not None or report.apart is not None
    unpadded = {"input_ids": inputs["input_ids"][:, :1], "attention_mask": torch.ones(3, 1)}
    one_token = diagnose(right, unpadded, output(right, unpadded).logits)
    assert {"scale left out", "causal mask", "no mask", "q and k swapped"} <= set(one_token.unseen)
    tried = Pair(right, copy.deepcopy(right).double(), None)
    with torch.no_grad():
        runs = {name: tried.mistaken(name).run(one_token.apart, ["logits"]) for name in ["", *one_token.unseen]}
    assert count_groups(runs, ["logits"]) > len(runs) / 2


def two_mistakes(right):
    wrong = mistaken(right, "tanh GELU")
    catalogue(right)["no residual around the FFN"](wrong)
    return wrong


def eps_between(right):
    wrong = share(right)
    for norm in [module for module in wrong.modules() if isinstance(module, torch.nn.LayerNorm)]:
        norm.eps = 3e-5
    return wrong


def noisy(right):
    wrong = copy.deepcopy(right)
    wrong.classifier.bias.data += torch.tensor([1e-3, -1e-3])
    return wrong


@pytest.mark.parametrize("make", [two_mistakes, eps_between, noisy])
def test_an_unknown_mistake_is_not_guessed(classifier, make):
    right, inputs = classifier
    report = diagnose(right, inputs, output(make(right), inputs).logits)
    assert (report.verdict, report.mistakes, report.apart) == ("unknown", [], None)
    assert f"Unknown: none of {report.tried} mistakes gives these numbers" in str(report)


def test_what_differs_at_padding_only_is_no_mistake():
    right, inputs = setting("DistilBertModel")
    hidden = output(right, inputs).last_hidden_state
    unpadded = hidden * inputs["attention_mask"][..., None]  # as an implementation without padding gives it
    report = diagnose(right, inputs, {"last_hidden_state": unpadded})
    assert (report.verdict, report.mistakes) == ("right at real tokens", [])
    assert [value.result for value in report.given] == ["PADDING"]
    wrong = output(mistaken(right, "causal mask"), inputs).last_hidden_state * inputs["attention_mask"][..., None]
    assert diagnose(right, inputs, wrong).mistakes == ["causal mask"]


@pytest.mark.parametrize("repeated", [False, True])
@pytest.mark.parametrize("name", ["mask", "masked_scores", "probs", "dropout"])
def test_attention_from_a_real_query_to_padding_is_wrong(classifier, name, repeated):
    right, inputs = classifier
    name = f"{LAYER}attention.{name}"
    with capture(right, name) as steps:
        output(right, inputs)
    real = inputs["attention_mask"].bool()
    leaky = steps[name].clone()
    if repeated:
        leaky = leaky.expand(-1, -1, real.shape[1], -1).clone()
    row = int(real.sum(1).argmin())
    leaky[row, 0, 0, -1] = -5.0 if "mask" in name else 0.5  # [CLS] -> [PAD]
    report = diagnose(right, inputs, {name: leaky})
    assert (report.verdict, report.step, report.given[0].result) == ("unknown", name, "DIFF")
    assert report.given[0].error > report.given[0].tolerance


def test_attention_of_padding_and_raw_scores_of_padded_keys_are_not_read(classifier):
    right, inputs = classifier
    scores, probs = LAYER + "attention.scores", LAYER + "attention.probs"
    with capture(right, scores, probs) as steps:
        output(right, inputs)
    row = int(inputs["attention_mask"].sum(1).argmin())
    steps[scores][row, 0, 0, -1] += 1  # before the mask
    steps[probs][row, 0, -1, :] = 0.5  # a padded query's
    report = diagnose(right, inputs, steps)
    assert report.verdict == "right at real tokens"
    assert [(value.result, value.error_padded > 0.1) for value in report.given] == [("PADDING", True)] * 2


def test_logits_of_a_whole_text_have_no_error_at_padding(classifier):
    right, inputs = classifier
    assert diagnose(right, inputs, output(right, inputs).logits).given[0].error_padded is None


def test_masks_may_be_repeated_for_each_query(classifier):
    right, inputs = classifier
    with capture(right, "*.attention.mask") as steps:
        output(right, inputs)
    mask = steps[LAYER + "attention.mask"]
    report = diagnose(right, inputs, {LAYER + "attention.mask": mask.expand(-1, -1, mask.shape[-1], -1)})
    assert report.verdict == "right"
    report = diagnose(right, inputs, {LAYER + "attention.mask": mask.clamp(min=-1e4)})
    assert (report.step, report.mistakes) == (LAYER + "attention.mask", ["mask of -1e4"])


def test_rounded_and_half_precision_numbers_are_taken(classifier):
    right, inputs = classifier
    logits = output(mistaken(right, "scale left out"), inputs).logits
    printed = logits.numpy().round(3)
    assert diagnose(right, inputs, printed).verdict == "unknown"
    assert diagnose(right, inputs, printed, tolerance=6e-4).mistakes == ["scale left out"]
    half = output(copy.deepcopy(right).bfloat16(), inputs).logits
    assert diagnose(right, inputs, half).verdict == "right"


@pytest.mark.reference
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_transformers_is_right_and_its_planted_mistakes_are_named(classifier, attention):
    pytest.importorskip("transformers")
    from .test_parity import twin

    right, inputs = classifier
    theirs = twin(right, attention)
    assert diagnose(right, inputs, output(theirs, inputs)).verdict == "right"  # an output is a mapping
    theirs = twin(right, attention)
    for block in theirs.distilbert.transformer.layer:
        block.ffn.activation = torch.nn.GELU("tanh")
    assert diagnose(right, inputs, output(theirs, inputs)).mistakes == ["tanh GELU"]


def test_the_model_stays_as_it_is(classifier):
    right, inputs = classifier
    before = copy.deepcopy(right.state_dict())
    expected = output(right, inputs).logits
    for name in catalogue(right):
        mistaken(right, name)
    assert all(torch.equal(right.state_dict()[name], value) for name, value in before.items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in right.modules())
    assert torch.equal(output(right, inputs).logits, expected)
    assert right.distilbert.embeddings.word_embeddings.weight is mistaken(right, "pre-norm").get_parameter(
        "distilbert.embeddings.word_embeddings.weight"
    )


def test_the_report_prints_and_goes_into_json(classifier):
    right, inputs = classifier
    report = diagnose(right, inputs, {"logits": output(mistaken(right, "no positions"), inputs).logits})
    lines = str(report).splitlines()
    assert lines[0].split()[:3] == ["value", "shape", "result"]
    assert lines[-2:] == ["Wrong. This mistake gives these very numbers:", "   no positions"]
    assert json.loads(json.dumps(report.to_dict()))["mistakes"] == ["no positions"]


OK = GivenValue("a", (1, 2), 0.0, 0.25, 1e-6, "PADDING")
DIFF = GivenValue("logits", (2,), 0.5, None, 1e-6, "DIFF")
TABLE = [
    "value   shape  result   error at real  at padded  tolerance",
    "a       1 x 2  PADDING              0  2.5e-01      1.0e-06",
    "logits      2  DIFF           5.0e-01               1.0e-06",
    "",
]
IDS = {"input_ids": torch.tensor([[1, 2]])}


@pytest.mark.parametrize(
    ("report", "lines"),
    [
        (
            Diagnosis("mistake", "a", ["x", "y"], ["z"], 5, [OK, DIFF], IDS, "b"),
            [
                "Wrong, first at a. Each of these mistakes gives these very numbers:",
                "   x",
                "   y",
                "An input that tells them apart:",
                "   input_ids = [[1, 2]]",
                "With it, the value of b tells more of them apart.",
            ],
        ),
        (
            Diagnosis("mistake", None, ["x"], ["z"], 5, [OK, DIFF], None, None),
            ["Wrong. This mistake gives these very numbers:", "   x"],
        ),
        (
            Diagnosis("unknown", "a", [], ["z", "w"], 5, [OK, DIFF], None, None),
            [
                "Wrong, first at a. Unknown: none of 5 mistakes gives these numbers.",
                "These of 5 mistakes do not show in these values: z, w.",
            ],
        ),
        (
            Diagnosis("right", None, [], ["z"], 5, [OK, DIFF], IDS, None),
            [
                "Right: what is given is what the model computes, to rounding.",
                "These of 5 mistakes do not show in these values: z.",
                "An input that shows more of them:",
                "   input_ids = [[1, 2]]",
            ],
        ),
        (
            Diagnosis("right at real tokens", None, [], [], 5, [OK, DIFF], None, "b"),
            [
                "Right at real tokens, to rounding; at padding it differs, where nobody should read it.",
                "The value of b tells more of them apart.",
            ],
        ),
    ],
)
def test_a_diagnosis_prints_its_verdict(report, lines):
    assert str(report).splitlines() == TABLE + lines
    assert str(DIFF) == "logits: DIFF, error 5.0e-01"


def values(number, tolerance=None, name="x"):
    """A run with one value."""
    return Run({name: torch.tensor([[number]])}, {} if tolerance is None else {name: tolerance})


def test_values_differ_where_they_are_further_apart_than_rounding_may_bring_them():
    assert different(values(0.0, 0.25), values(0.25), ["x"]) == []
    assert different(values(0.0, 0.25), values(0.2501), ["x"]) == ["x"]
    assert different(values(0.0, 0.125), values(0.25, 0.25), ["x"]) == []  # the greater of both
    assert different(values(0.0, 0.25), values(0.75), ["x"], times=3) == []
    assert different(values(0.0, 0.25), values(0.7501), ["x"], times=3) == ["x"]
    assert different(values(0.0), values(0.0), ["x"]) == []
    assert different(values(0.0, 9.0), values(0.0, 9.0, name="y"), ["x"]) == ["x"]
    assert different(values(0.0, 9.0), values(0.0, 9.0, name="y"), ["y"]) == ["y"]
    assert different(values(0.0, 9.0), values(float("nan")), ["x"]) == ["x"]
    assert greatest_error(values(0.0), Run({"x": torch.zeros(1, 3, 2)}, {}), "x") == 0  # broadcast
    assert greatest_error(Run({"x": torch.zeros(2)}, {}), Run({"x": torch.zeros(3)}, {}), "x") == float("inf")


def test_a_mistake_shows_if_it_moves_values_by_more_than_three_times_the_rounding():
    right, real = values(0.0, 0.25), torch.tensor([[True]])
    runs = {"seen": values(0.7501, 0.25), "unseen": values(0.75, 0.25), "other": values(1.0, 0.25)}
    assert VISIBLE == 3
    assert judge(right, runs, values(0.25), ["x"], real) == ([], ["unseen"])
    assert judge(right, runs, values(0.7), ["x"], real) == (["seen"], ["unseen"])
    assert judge(right, runs, values(0.8), ["x"], real) == (["seen", "other"], ["unseen"])
    assert judge(right, runs, values(1.25), ["x"], real) == (["other"], ["unseen"])
    assert judge(right, runs, values(1.2501), ["x"], real) == ([], ["unseen"])
    assert count_groups({"right": right, "unseen": runs["unseen"]}, ["x"]) == 1
    assert count_groups({"right": right} | runs, ["x"]) == 2
    assert count_groups({"right": right} | runs | {"far": values(9.0, 0.25)}, ["x"]) == 3


def test_eight_times_the_models_own_rounding_and_eight_times_eps_are_rounding(classifier):
    right, inputs = classifier
    exact = copy.deepcopy(right).double()
    with torch.no_grad():
        ran = Pair(right, exact, None).run(inputs)
        low, double = read_run(right, inputs), read_run(exact, inputs)
        given = Pair(right, exact, 0.5).run(inputs)
    assert list(ran.values) == list(low)
    assert (ROUNDING, LEAST_EPS) == (8, 8)
    eps, least = torch.finfo(torch.float32).eps, torch.finfo(torch.float32).min
    for name, value in low.items():
        rounding = errors(value.clamp(min=least), double[name].clamp(min=least)).max().item()
        assert ran.tolerance[name] == max(8 * rounding, 8 * eps)
    assert ran.tolerance["distilbert.embeddings.word_embeddings"] == 8 * eps
    assert ran.tolerance[LAYER + "attention.mask"] == 8 * eps
    assert ran.tolerance["logits"] > 8 * eps
    assert set(given.tolerance.values()) == {0.5}


def test_the_coarsest_dtype_is_that_of_a_value_that_is_not_whole_numbers():
    half, brain, double = (torch.zeros(1, dtype=dtype) for dtype in (torch.float16, torch.bfloat16, torch.float64))
    assert coarsest_dtype({"a": half, "b": brain, "c": double}) == torch.bfloat16
    assert coarsest_dtype({"a": half, "b": [1.0]}) == torch.float16
    assert coarsest_dtype(half) == torch.float16
    for value in (double, torch.zeros(1, dtype=torch.long), [1.0], np.zeros(1, np.float16), {"a": double}):
        assert coarsest_dtype(value) == torch.float32


def test_no_rounding_at_all_may_be_asked_for(classifier):
    right, inputs = classifier
    logits = output(right, inputs).logits
    report = diagnose(right, inputs, logits, tolerance=0.0)
    assert report.verdict == "right"
    assert report.given == [GivenValue("logits", tuple(logits.shape), 0.0, None, 0.0, "OK")]
    assert diagnose(right, inputs, logits + 1e-3, tolerance=0.0).verdict == "unknown"


@pytest.mark.parametrize(
    ("theirs", "message"),
    [
        ({"transformer.layer.0.attention.prob": 1}, "computes no .* did you mean distilbert.transformer.layer.0.atten"),
        ({"logits": np.zeros((3, 3))}, r"logits has shape \(3, 3\), but the model's has \(3, 2\)"),
        ({"logits": "high"}, "logits is not a tensor, an array or a list of numbers, but a str"),
        ({"distilbert.classifier": 1}, "computes no 'distilbert.classifier' for these inputs: did you mean classifier"),
        ({"pre_clasifier": 1}, "computes no 'pre_clasifier' for these inputs: did you mean pre_classifier"),
        ({}, "no value is given"),
        (
            {"logits": torch.zeros(3, 2).to(torch.float8_e4m3fn)},
            r"a value has the dtype torch.float8_e4m3fn: give it as one of torch.float16, .*, torch.float64$",
        ),
        (torch.zeros(3, 2, dtype=torch.complex64), r"a value has the dtype torch.complex64: give it as one of"),
    ],
)
def test_values_that_do_not_fit_are_refused(classifier, theirs, message):
    right, inputs = classifier
    with pytest.raises(ValueError, match=message):
        diagnose(right, inputs, theirs)


def test_a_value_that_is_given_twice_is_refused(classifier):
    right, inputs = classifier
    with capture(right, "*.embeddings.sum") as steps:
        output(right, inputs)
    (value,) = steps.values()
    with pytest.raises(ValueError, match=r"distilbert.embeddings.sum is given twice, once as embeddings.sum$"):
        diagnose(right, inputs, {"distilbert.embeddings.sum": value, "embeddings.sum": value})


@pytest.mark.parametrize("tolerance", [-1.0, float("nan"), float("inf")])
def test_an_impossible_tolerance_is_refused(classifier, tolerance):
    right, inputs = classifier
    with pytest.raises(ValueError, match=f"tolerance must be a finite number, at least 0, got {tolerance}"):
        diagnose(right, inputs, torch.zeros(3, 2), tolerance=tolerance)


def test_a_model_that_cannot_be_asked_is_refused(classifier):
    right, inputs = classifier
    with pytest.raises(ValueError, match=r"call model.eval\(\) first"):
        diagnose(copy.deepcopy(right).train(), inputs, torch.zeros(3, 2))
    answers = model("DistilBertForQuestionAnswering")
    with pytest.raises(ValueError, match="returns start_logits and end_logits: give a mapping"):
        diagnose(answers, batch(), torch.zeros(3, 7))
    with pytest.raises(ValueError, match="the catalogue for DistilBertForQuestionAnswering has no 'pooling', but: pos"):
        mistaken(answers, "pooling")


def test_the_command_reads_a_file_and_fails_where_the_values_are_wrong(checkpoint, capsys, tmp_path):
    from .command_line import load

    right, tokenizer = load(checkpoint)
    inputs = tokenizer(["a nice day", "not"], padding=True, return_tensors="pt")
    tensors = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    save_file({"logits": output(right, inputs).logits, **tensors}, tmp_path / "right.safetensors")
    save_file({"logits": output(mistaken(right, "no mask"), inputs).logits}, tmp_path / "wrong.safetensors")
    (tmp_path / "damaged.safetensors").write_bytes(b"no tensors")
    status, out, _ = run(capsys, "diagnose", tmp_path / "right.safetensors", "--model", checkpoint)
    assert status == 0
    assert "Right: " in out
    status, out, _ = run(
        capsys, "diagnose", tmp_path / "wrong.safetensors", "a nice day", "not", "--model", checkpoint, "--json"
    )
    assert status == 1
    assert json.loads(out)["mistakes"] == ["no mask"]
    status, _, err = run(capsys, "diagnose", tmp_path / "right.safetensors", "not", "--model", checkpoint)
    assert status == 2
    assert "holds input_ids and attention_mask: give no texts" in err
    (tmp_path / "folder.safetensors").mkdir()
    save_file({"logits": torch.zeros(2, 2), "attention_mask": inputs["attention_mask"]}, tmp_path / "mask.safetensors")
    for name, message in [
        ("damaged", "not a valid safetensors file"),
        ("missing", "No such file"),
        ("folder", "Is a directory"),
        ("mask", "holds attention_mask, but not input_ids: give both, or neither"),
    ]:
        file = tmp_path / f"{name}.safetensors"
        status, _, err = run(capsys, "diagnose", file, "--model", checkpoint)
        assert status == 2
        assert message in err
        assert str(file) in err


@pytest.mark.parametrize(("positions", "lengths"), [(16, [8, 4, 1]), (5, [5, 3, 1])])
def test_the_examples_are_padded_to_several_lengths_then_without_a_mask(positions, lengths):
    masked, plain = examples(model(max_position_embeddings=positions))
    assert masked["attention_mask"].sum(1).tolist() == lengths
    assert masked["input_ids"].shape == (3, lengths[0])
    assert (masked["input_ids"][masked["attention_mask"] == 0] == 0).all()  # [PAD]
    assert plain.keys() == {"input_ids"}
    assert torch.equal(next(examples(model(max_position_embeddings=positions)))["input_ids"], plain["input_ids"])
    assert torch.equal(plain["input_ids"], masked["input_ids"])

"""The exercises: a copy is graded, minibert itself stays as it is."""

import os
import sys
from importlib.machinery import PathFinder
from pathlib import Path

import pytest
import torch

import minibert
from minibert import additive_mask
from minibert.study.compare import ComparedStep, Comparison
from minibert.study.exercises import (
    EXERCISES,
    PACKAGE,
    SOURCE,
    Grade,
    changed,
    exercise_file,
    grade,
    initial,
    mask_faults,
    start,
)

from .command_line import run

each_exercise = pytest.mark.parametrize("number", range(1, len(EXERCISES) + 1))
SCALE, MINE, DROPOUT = 5, 10, 9


def solved(folder, number):
    """A copy that holds what the exercise asks for."""
    exercise, copy = EXERCISES[number - 1], start(folder, number)
    if number == MINE:
        copy.write_text((SOURCE / "mask.py").read_text("utf-8"), "utf-8")
    elif not exercise.made:
        copy.write_text(changed(initial(number), exercise), "utf-8")
    return copy


def test_there_are_ten():
    assert len(EXERCISES) == 10
    assert {exercise.file for exercise in EXERCISES} == {"mask.py", "model.py"}
    for exercise in EXERCISES:
        source = (SOURCE / exercise.file).read_text("utf-8")
        assert all(source.count(old) == 1 for old, _ in exercise.edits), exercise.title


@each_exercise
def test_the_change_differs_first_where_the_exercise_says_and_no_other_prediction_is_right(tmp_path, number):
    solved(tmp_path, number)
    exercise = EXERCISES[number - 1]
    right = grade(tmp_path, number, exercise.first)
    assert right.ok, str(right)
    assert f"Your prediction, {exercise.first}, is right." in str(right)
    assert grade(tmp_path, number, exercise.first.rpartition(".")[2]).ok
    wrong = grade(tmp_path, number, "v_lin")
    assert wrong.change_is_right
    assert not wrong.ok
    assert "Your prediction, v_lin, is not right." in str(wrong)


@each_exercise
def test_a_copy_as_it_was_made_is_not_graded_as_solved(tmp_path, capsys, number):
    status, out, err = run(capsys, "exercise", number, "--folder", tmp_path, "--predict", EXERCISES[number - 1].first)
    if number == MINE:
        assert (status, "mask.py, line " in err, "NotImplementedError: write additive_mask here" in err) == (
            2,
            True,
            True,
        )
    elif EXERCISES[number - 1].made:
        assert status == 0
    else:
        assert status == 1
        assert "The copy is unchanged so far: change it first." in out


def test_it_is_told_graded_hinted_answered_and_reset(tmp_path, capsys):
    def exercise(*arguments):
        return run(capsys, "exercise", SCALE, "--folder", tmp_path, *arguments)

    status, out, err = exercise()
    copy = tmp_path / "5" / "model.py"
    assert (status, err) == (0, "")
    assert out.startswith("Exercise 5 of 10: The scale\n")
    assert f"Change {copy}, and predict the first step" in out
    assert f"    minibert exercise 5 --folder {tmp_path} --predict STEP\n" in out
    assert copy.read_text("utf-8") == (SOURCE / "model.py").read_text("utf-8")
    solved(tmp_path, SCALE)
    status, out, _ = exercise("--predict", "probs")
    assert status == 1
    assert "distilbert.transformer.layer.0.attention.scores  DIFF" in out
    assert "Hint: q, k and v do not depend on the scale." in out
    assert "variance" not in out
    status, out, _ = exercise("--predict", "probs", "--answer")
    assert (status, "variance" in out) == (1, True)
    status, out, _ = exercise("--predict", "layer.0.attention.scores", "--verbose")
    assert (status, "variance" in out) == (0, True)
    assert "distilbert.transformer.layer.2.output_layer_norm" in out  # all of the comparison
    assert exercise("--reset")[0] == 0
    assert copy.read_text("utf-8") == (SOURCE / "model.py").read_text("utf-8")


def test_a_grade_prints_the_first_error_and_how_far_probabilities_and_logits_moved(tmp_path):
    solved(tmp_path, SCALE)
    graded = grade(tmp_path, SCALE, "scores")
    steps = [step for step in graded.comparison.steps if step.result != "OK"]
    first, probabilities, logits = str(graded).splitlines()[1:4]
    assert first.split() == [steps[0].name, "DIFF", f"{steps[0].error_real:.2g}", f"{steps[0].error_padded:.2g}"]
    for line, end in ((probabilities, ".probs"), (logits, "logits")):
        largest = max(step.error_real for step in steps if step.name.endswith(end))
        assert line.endswith(f"differ by {largest:.2g} at most.")
    assert probabilities != logits


def graded(*steps, faults=(), asked="scores", prediction="scores"):
    """A grade of some steps: name, result, error at real and at padded tokens."""
    compared = [ComparedStep(name, result, (1,), False, real, padded) for name, result, real, padded in steps]
    comparison = Comparison("ours", "oracle", "float64", (1, 2), 1, 0.0, compared, [])
    return Grade(prediction, comparison.first_divergence or "none", asked, list(faults), comparison)


RIGHT = "Your prediction, scores, is right."
ELSEWHERE = "This is not the change that the exercise asks for: that one first differs elsewhere."


def test_a_grade_prints_the_first_step_that_differs_the_largest_errors_and_the_verdict():
    header = "first step that differs  result  error at real  error at padded"
    steps = [("q", "OK", 9.0, 9.0), ("a.scores", "DIFF", 0.5, 0.25), ("a.probs", "DIFF", 0.125, 1.0)]
    steps += [("b.probs", "DIFF", 0.375, 2.0), ("logits", "DIFF", 0.0625, None), ("c.probs", "OK", 7.0, 7.0)]
    assert str(graded(*steps)).splitlines() == [
        header,
        "a.scores                 DIFF              0.5             0.25",
        "At real tokens the probabilities differ by 0.38 at most.",
        "At real tokens the logits differ by 0.062 at most.",
        RIGHT,
    ]
    steps = [("a.mask", "SHAPE", None, None), ("a.probs", "SHAPE", None, 1.0)]
    assert str(graded(*steps)).splitlines() == [
        header,
        "a.mask                   SHAPE",
        "At real tokens the probabilities differ by 0 at most.",
        "At real tokens the logits differ by 0 at most.",
        ELSEWHERE,
    ]


@pytest.mark.parametrize(
    ("faults", "asked", "prediction", "right", "ok", "says"),
    [
        ([], "none", "none", True, True, ["Your prediction, none, is right."]),
        ([], "none", "probs", True, False, ["Your prediction, probs, is not right."]),
        (["a fault"], "none", "none", False, False, ["a fault"]),
        ([], "scores", "none", False, False, [ELSEWHERE]),
        (["a fault"], "scores", "scores", False, False, ["a fault", ELSEWHERE]),
    ],
)
def test_a_grade_where_no_step_differs(faults, asked, prediction, right, ok, says):
    result = graded(("q", "OK", 0.0, 0.0), faults=faults, asked=asked, prediction=prediction)
    assert str(result).splitlines() == ["No step differs.", *says]
    assert (result.change_is_right, result.ok) == (right, ok)


def test_a_step_is_called_by_the_end_of_its_name_but_not_by_a_part_of_a_word(tmp_path):
    solved(tmp_path, SCALE)
    assert grade(tmp_path, SCALE, "attention.scores").ok
    assert not grade(tmp_path, SCALE, "masked_scores").ok
    with pytest.raises(ValueError, match="did you mean masked_scores or scores"):
        grade(tmp_path, SCALE, "ed_scores")
    with pytest.raises(ValueError, match=r"no step's name is 'x', or ends with it: `minibert trace` prints the names$"):
        grade(tmp_path, SCALE, "x")
    with pytest.raises(ValueError, match=r"no step's name is 'layer.9.scores', .*: did you mean scores or"):
        grade(tmp_path, SCALE, "layer.9.scores")


def test_a_prediction_may_be_a_whole_name(tmp_path):
    solved(tmp_path, SCALE)
    assert grade(tmp_path, SCALE, "distilbert.transformer.layer.0.attention.scores").ok
    assert not grade(tmp_path, SCALE, "classifier").ok  # a step, but not the first


def test_work_is_kept_until_it_is_reset(tmp_path):
    copy = solved(tmp_path, SCALE)
    before = copy.read_bytes()
    assert start(tmp_path / "new" / "folder", SCALE).exists()
    assert start(tmp_path, SCALE).read_bytes() == before
    grade(tmp_path, SCALE, "scores")
    assert copy.read_bytes() == before
    assert list(copy.parent.iterdir()) == [copy]  # no bytecode either


@pytest.mark.parametrize("before", [True, False])
def test_bytecode_is_written_afterwards_as_before(tmp_path, monkeypatch, before):
    monkeypatch.setattr(sys, "dont_write_bytecode", before)
    solved(tmp_path, SCALE)
    assert grade(tmp_path, SCALE, "scores").ok
    assert sys.dont_write_bytecode is before


def test_a_copy_is_found_in_a_folder_that_python_has_listed_before(tmp_path):
    copy = exercise_file(tmp_path, SCALE)
    copy.parent.mkdir()
    times = copy.parent.stat()
    assert PathFinder.find_spec("model", [str(copy.parent)]) is None  # Python keeps the list of the folder's files
    solved(tmp_path, SCALE)
    os.utime(copy.parent, ns=(times.st_atime_ns, times.st_mtime_ns))  # as on a disk with coarse times
    assert grade(tmp_path, SCALE, "scores").ok


def test_each_grade_reads_the_copy_anew_and_leaves_minibert_as_it_is(tmp_path):
    copy = solved(tmp_path, DROPOUT)
    modules, before = set(sys.modules), sys.modules["minibert.model"]
    assert grade(tmp_path, DROPOUT, "none").first == "none"
    copy.write_text(copy.read_text("utf-8").replace("LAYER_NORM_EPS = 1e-12", "LAYER_NORM_EPS = 1e-05"), "utf-8")
    other = grade(tmp_path, DROPOUT, "none")
    assert other.first == "distilbert.embeddings.LayerNorm"
    assert "This is not the change that the exercise asks for" in str(other)
    assert sys.modules["minibert.model"] is before
    assert minibert.DistilBertModel.__module__ == "minibert.model"
    assert not {name for name in set(sys.modules) - modules if name.startswith(PACKAGE)}


def test_an_additive_mask_that_returns_nothing_is_told_so(tmp_path):
    copy = start(tmp_path, MINE)
    text = copy.read_text("utf-8").replace('raise NotImplementedError("write additive_mask here")', "return None")
    copy.write_text(text, "utf-8")
    result = grade(tmp_path, MINE, "none")
    assert not result.ok
    assert result.faults == ["numbers (B, S): it returns a NoneType, not a tensor"]
    assert result.faults[0] in str(result)


def wrong_where(condition, change=torch.zeros_like):
    """An additive mask that is wrong for some masks and dtypes."""

    def wrong(mask, dtype):
        right = additive_mask(mask, dtype)
        return change(right) if condition(mask, dtype) else right

    return wrong


LEAST = torch.finfo(torch.float32).min


@pytest.mark.parametrize(
    ("wrong", "fault"),
    [
        (
            lambda mask, dtype: mask[:, None, None, :].to(dtype),
            "numbers (B, S), torch.float32: [1.0, 1.0, 0.0, 1.0, 0.0, 0.0], not "
            f"{[0.0, 0.0, LEAST, 0.0, LEAST, LEAST]}",
        ),
        (
            wrong_where(lambda mask, dtype: mask.dtype == torch.bool),
            f"bools (B, S), torch.float32: {[0.0] * 3}, not {[0.0, 0.0, LEAST]}",
        ),
        (
            wrong_where(lambda mask, dtype: mask.ndim == 4),
            f"bools (B, 1, S, S), torch.float32: {[0.0] * 4}, not {[0.0, LEAST, 0.0, 0.0]}",
        ),
        (
            wrong_where(lambda mask, dtype: mask.shape == (2, 4, 2, 2)),
            f"bools (B, H, S, S), torch.float32: {[0.0] * 32}, not {[0.0, LEAST, 0.0, 0.0] * 8}",
        ),
        (
            wrong_where(lambda mask, dtype: dtype == torch.float64, lambda right: right.float()),
            "numbers (B, S): torch.float32 of (2, 1, 1, 3), not torch.float64 of (2, 1, 1, 3)",
        ),
        (
            wrong_where(lambda mask, dtype: dtype == torch.bfloat16, lambda right: right[0]),
            "numbers (B, S): torch.bfloat16 of (1, 1, 3), not torch.bfloat16 of (2, 1, 1, 3)",
        ),
        (
            wrong_where(lambda mask, dtype: dtype == torch.float16, lambda right: 0 * right + 1),
            f"numbers (B, S), torch.float16: {[1.0] * 6}, not {[0.0, 0.0, -65504.0, 0.0, -65504.0, -65504.0]}",
        ),
        (
            lambda mask, dtype: additive_mask(mask.clone(), dtype) + 0 * mask.zero_()[:, None, None, :],
            "numbers (B, S): it changes the attention_mask that it is given",
        ),
    ],
)
def test_the_first_fault_of_an_additive_mask_is_named(wrong, fault):
    assert mask_faults(wrong) == [fault]


def test_the_right_additive_mask_has_no_fault():
    assert mask_faults(additive_mask) == []


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("def additive_mask(:\n", "line 1: SyntaxError"),
        ("import torch\n1 / 0\n", "line 2: ZeroDivisionError"),
        ("def fail():\n    1 / 0\n\n\nfail()\n", "line 2: ZeroDivisionError"),
        ("from torch import Tensor\n", "cannot import name"),
    ],
)
def test_a_copy_that_does_not_run_is_named_with_its_line(tmp_path, capsys, text, says):
    start(tmp_path, MINE).write_text(text, "utf-8")
    status, _, err = run(capsys, "exercise", MINE, "--folder", tmp_path, "--predict", "none")
    assert status == 2
    assert says in err
    assert grade.__module__ in sys.modules
    assert PACKAGE not in sys.modules


def test_a_copy_that_is_not_utf_8_or_not_there_is_named(tmp_path, capsys):
    with pytest.raises(OSError, match=r"model\.py"):
        grade(tmp_path, SCALE, "scores")
    copy = start(tmp_path, SCALE)
    copy.write_bytes("# é\n".encode("latin-1") + copy.read_bytes())
    with pytest.raises(ValueError, match="not UTF-8"):
        grade(tmp_path, SCALE, "scores")
    status, _, err = run(capsys, "exercise", SCALE, "--folder", tmp_path, "--predict", "scores")
    assert (status, f"{copy} is not UTF-8" in err) == (2, True)
    assert run(capsys, "exercise", SCALE, "--folder", tmp_path, "--reset")[0] == 0


@pytest.mark.parametrize("option", [["--predict", "scores"], ["--answer"], ["--reset"], ["--verbose"]])
def test_an_option_without_a_number_is_refused(capsys, option):
    status, out, err = run(capsys, "exercise", *option)
    assert (status, out, "say which exercise, 1 to 10" in err) == (2, "", True)


def test_bad_inputs_are_named(tmp_path, capsys):
    for number in (0, 11):
        status, _, err = run(capsys, "exercise", number, "--folder", tmp_path)
        assert (status, f"exercises are 1 to 10, got {number}" in err) == (2, True)
    solved(tmp_path, SCALE)
    status, _, err = run(capsys, "exercise", SCALE, "--folder", tmp_path, "--predict", "score")
    assert (status, "no step's name is 'score', or ends with it: did you mean scores?" in err) == (2, True)
    status, _, err = run(capsys, "exercise", SCALE, "--folder", tmp_path, "--predict", "*.scores")
    assert (status, "no step's name is '*.scores'" in err) == (2, True)
    status, _, err = run(capsys, "exercise", SCALE, "--folder", tmp_path, "--predict", "")
    assert (status, "no step's name is ''" in err) == (2, True)
    (tmp_path / "file").write_text("")
    status, _, err = run(capsys, "exercise", SCALE, "--folder", tmp_path / "file")
    assert (status, str(Path("file") / "5") in err) == (2, True)


def test_without_a_number_they_are_listed(capsys):
    status, out, _ = run(capsys, "exercise")
    assert status == 0
    assert [line[4:] for line in out.splitlines()[:10]] == [exercise.title for exercise in EXERCISES]

"""The exercises: a copy is graded, minibert itself stays as it is."""

import sys
from pathlib import Path

import pytest

import minibert
from minibert.study.exercises import EXERCISES, PACKAGE, SOURCE, changed, grade, initial, start

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


def test_a_prediction_may_be_a_whole_name(tmp_path):
    solved(tmp_path, SCALE)
    assert grade(tmp_path, SCALE, "distilbert.transformer.layer.0.attention.scores").ok
    assert not grade(tmp_path, SCALE, "classifier").ok  # a step, but not the first


def test_work_is_kept_until_it_is_reset(tmp_path):
    copy = solved(tmp_path, SCALE)
    before = copy.read_bytes()
    assert start(tmp_path, SCALE).read_bytes() == before
    grade(tmp_path, SCALE, "scores")
    assert copy.read_bytes() == before
    assert list(copy.parent.iterdir()) == [copy]  # no bytecode either


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


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        ("return (attention_mask == 0)[:, None, None, :] * torch.finfo(dtype).min", "bools (B, 1, S, S)|4-D|of (2"),
        ("return None", "additive_mask|NoneType"),
    ],
)
def test_a_wrong_additive_mask_is_told_what_is_wrong(tmp_path, body, fault):
    copy = start(tmp_path, MINE)
    text = copy.read_text("utf-8").replace('raise NotImplementedError("write additive_mask here")', body)
    copy.write_text(text, "utf-8")
    result = grade(tmp_path, MINE, "none")
    assert not result.ok
    assert result.faults
    assert any(part in result.faults[0] for part in fault.split("|"))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("def additive_mask(:\n", "line 1: SyntaxError"),
        ("import torch\n1 / 0\n", "line 2: ZeroDivisionError"),
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
    status, _, err = run(capsys, "exercise", 11, "--folder", tmp_path)
    assert (status, "exercises are 1 to 10, got 11" in err) == (2, True)
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

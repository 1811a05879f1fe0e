"""scripts/lesson.py runs from top to bottom, cell by cell, and each cell shows something."""

import ast
import re
from pathlib import Path

import pytest

LESSON = Path(__file__).parent.parent / "scripts" / "lesson.py"


def cells():
    """The code cells, in order; the text above each is its markdown."""
    parts = re.split(r"^# %%(.*)\n", LESSON.read_text("utf-8"), flags=re.MULTILINE)
    for kind, text in zip(parts[1::2], parts[2::2], strict=True):
        if kind.strip() == "[markdown]":
            assert all(line.startswith("#") for line in text.splitlines() if line), text
        else:
            yield text


def show(cell, names):
    """Run a cell and return its last value, as a notebook does."""
    *body, last = ast.parse(cell).body
    exec(compile(ast.Module(body, []), str(LESSON), "exec"), names)
    assert isinstance(last, ast.Expr), f"this cell shows nothing:\n{cell}"
    return eval(compile(ast.Expression(last.value), str(LESSON), "eval"), names)


@pytest.fixture(scope="module")
def lesson():
    """What the cells show, and the names that they leave behind."""
    pytest.importorskip("matplotlib")
    names = {}
    return [show(cell, names) for cell in cells()], names


def test_every_cell_runs_and_shows_something(lesson):
    shown, _ = lesson
    assert len(shown) > 15
    images = [value._repr_png_() for value in shown if hasattr(value, "_repr_png_")]
    assert len(images) == 5
    assert all(image.startswith(b"\x89PNG") for image in images)
    pages = [value._repr_html_() or "" for value in shown if hasattr(value, "_repr_html_")]
    assert sum("<table>" in page for page in pages) >= 8
    assert all(repr(value) for value in shown)


def test_what_its_text_claims_is_so(lesson):
    shown, names = lesson
    of = {type(value).__name__: value for value in shown}
    assert names["tokens"][0].count("[PAD]") == 5
    assert (names["with_mask"][0] - names["alone"][0]).abs().max() < 1e-5
    assert len(of["Flips"].flipped) == 5  # half of ten
    assert of["PadMass"].share.mean() > 0.4 > 0.39 > of["PadMass"].even > 0.38
    assert of["Renormalisation"].error[0].max() < 1e-6 < of["Renormalisation"].error[1:].min()
    both, cls_hides, others_hide, neither = of["LeakRoutes"].moved.amax(dim=1).tolist()
    assert neither == 0
    assert all(0.25 < part / both < 0.42 for part in (cls_hides, others_hide))  # about a third
    assert of["PadInvariance"].bit_equal
    restored = names["patching"].restored
    assert restored[0].argmax() == 2
    assert restored[-1].argmax() == 0
    assert min(restored[0, 2], restored[-1, 0]) > 0.99

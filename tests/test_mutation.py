"""scripts/mutation.py changes the source as it says, and leaves out what it says."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[1] / "scripts"
SOURCE = '''
"""A docstring with 1 + 1."""
import warnings
LIMIT: int = -3

def double(x: "a < b", *, times: float = 2.0) -> int | None:
    """Text."""
    if x < 0 and not times:
        raise ValueError(f"x must be at least {0 + 0}, got {x}")
    assert x == x
    for i in zip(x, [True], strict=True):
        if i:
            continue
        x.append(key(i, name="a" + "b"))
    warnings.warn("1", stacklevel=2)
    x[0] = 1
    x += 1
    return x @ times if x else None
'''


@pytest.fixture
def source_changes(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import source_changes

    return source_changes


def test_each_change_is_made_once_and_texts_and_types_are_left_alone(source_changes):
    found = source_changes.find_mutants("minibert/a.py", SOURCE.encode())
    assert [(m.line, m.old, m.new) for m in found] == [
        (4, "-3", "(-2)"),
        (6, "2.0", "3.0"),
        (8, "x < 0 and not times", "(not (x < 0 and (not times)))"),
        (8, "x < 0 and not times", "(x < 0 or not times)"),
        (8, "x < 0", "(x <= 0)"),
        (8, "0", "1"),
        (8, "not times", "(times)"),
        (9, 'raise ValueError(f"x must be at least {0 + 0}, got {x}")', "pass"),
        (11, "True", "False"),
        (12, "i", "(not (i))"),
        (13, "continue", "break"),
        (14, 'x.append(key(i, name="a" + "b"))', "pass"),
        (14, 'key(i, name="a" + "b")', "(key(i))"),
        (15, 'warnings.warn("1", stacklevel=2)', "pass"),
        (16, "x[0] = 1", "pass"),
        (16, "0", "1"),
        (16, "1", "2"),
        (17, "x += 1", "x -= 1"),
        (17, "x += 1", "pass"),
        (17, "1", "2"),
        (18, "return x @ times if x else None", "return None"),
        (18, "x", "(not (x))"),
        (18, "x @ times", "(x * times)"),
    ]
    assert [found[0].within, *{m.within for m in found[1:]}] == ["LIMIT", "double"]
    for mutant in found:
        ast.parse(mutant.apply(SOURCE.encode()))
        assert mutant.names() == {"a.py", f"a.py:{mutant.line}"}
    assert str(found[0]) == "minibert/a.py:4: `-3` -> `(-2)`"


def test_letters_of_several_bytes_do_not_shift_a_change(source_changes):
    (mutant,) = source_changes.find_mutants("a.py", 'é, x = "東京", 1\n'.encode())
    assert mutant.apply('é, x = "東京", 1\n'.encode()).decode() == 'é, x = "東京", 2\n'


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--sample", "0"], "--sample 0: it must be 1 to "),
        (["--only", "nothing.py"], "no mutants at nothing.py: name a file under minibert/, or file:line"),
    ],
)
def test_a_bad_call_is_refused(arguments, says):
    pytest.importorskip("coverage")
    done = subprocess.run([sys.executable, SCRIPTS / "mutation.py", *arguments], capture_output=True, text=True)
    assert done.returncode == 2
    assert says in done.stderr

"""No assertion of these tests is true whatever the code does, such as `assert [a == b for a, b in pairs]`."""

import ast
from pathlib import Path

import pytest

ALWAYS_TRUE = (  # a display or a comprehension with something in it, a generator, a constant, a function
    ast.Tuple,
    ast.List,
    ast.Set,
    ast.Dict,
    ast.ListComp,
    ast.SetComp,
    ast.DictComp,
    ast.GeneratorExp,
    ast.JoinedStr,
    ast.Constant,
    ast.Lambda,
)


def empty_assertions(source):
    """The lines of the assertions that cannot fail, or fail only by what is empty."""
    tests = (node.test for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Assert))
    return [test.lineno for test in tests if isinstance(test, ALWAYS_TRUE)]


@pytest.mark.parametrize(
    "assertion", ["[a == b for a, b in x]", "(a, 'why')", "(a for a in x)", "{1: 2}", "f'{a}'", "1"]
)
def test_an_assertion_that_cannot_fail_is_found(assertion):
    assert empty_assertions(f"\nassert {assertion}, 'message'") == [2]


def test_other_assertions_are_left_alone():
    assert empty_assertions("assert all(a == b for a, b in x)\nassert [a] == b\nassert not (a, b)[0]\nassert a") == []


@pytest.mark.parametrize("path", sorted(Path(__file__).parent.glob("*.py")), ids=lambda path: path.stem)
def test_every_assertion_can_fail(path):
    assert empty_assertions(path.read_text("utf-8")) == []

"""The small changes that scripts/mutation.py makes in a source: what is changed, and what is left out.

Changed: a comparison, an arithmetic or a boolean operator becomes another, a number grows by one, True becomes False, a
condition is negated, a statement or a keyword argument is left out, a function returns None, break becomes continue.

Left out: texts for people, which no test should repeat (docstrings, messages, strings, f-strings, what is raised or
logged); how a plot looks (`fontsize=8`); type hints; assertions (`assert`, `zip(strict=True)`); what only a GPU would
show (`device=`); other operators beside a str in quotes, which raise an error wherever they run.
"""

import ast
import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

LEFT_OUT = (
    "strict stacklevel device alpha edgecolor fontsize layout linewidth shrink zorder".split()
)  # keyword arguments
OTHER = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.And: ast.Or, ast.Or: ast.And,
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv, ast.Pow: ast.Mult, ast.MatMult: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd,
    ast.BitXor: ast.BitAnd, ast.LShift: ast.RShift, ast.RShift: ast.LShift,
}  # fmt: skip


@dataclass(frozen=True)
class Mutant:
    """One change: `old`, from byte `start` to byte `end` of a file, becomes `new`."""

    file: str
    line: int
    column: int
    start: int
    end: int
    old: str
    new: str
    reach: tuple[int, int]  # lines of the statement: what runs them runs the mutant
    within: str  # the function, the class or the constant

    def names(self) -> set[str]:
        """What --only may say of it."""
        file = self.file.removeprefix("minibert/")
        return {file, f"{file}:{self.line}"}

    def apply(self, source: bytes) -> bytes:
        """The changed source."""
        return source[: self.start] + self.new.encode() + source[self.end :]

    def __str__(self) -> str:
        old, new = (" ".join(text.split()) for text in (self.old, self.new))
        return f"{self.file}:{self.line}: `{old[:70]}` -> `{new[:70]}`"


def is_text(node: ast.AST) -> bool:
    """Whether it is a str in quotes, with or without values inside."""
    return isinstance(node, ast.JoinedStr) or isinstance(getattr(node, "value", None), str)


def changes(node: Any) -> Iterator[tuple[Any, str]]:
    """What to replace at this node (the node, or a part), and by which text."""

    def changed(part: Any, **fields: Any) -> tuple[Any, str]:
        other = copy.copy(part)
        vars(other).update(fields)
        text = ast.unparse(other)
        return part, text if isinstance(part, ast.stmt | ast.Constant) else f"({text})"

    def negated(test: Any) -> tuple[Any, str]:
        return test, f"(not ({ast.unparse(test)}))"

    match node:
        case ast.Compare(ops=ops):
            for i, op in enumerate(ops):
                yield changed(node, ops=[*ops[:i], OTHER[type(op)](), *ops[i + 1 :]])
        case ast.BinOp(left=left, right=right) if is_text(left) or is_text(right):
            return  # a str or a path: with another operator no call would return
        case ast.BinOp(op=op) | ast.BoolOp(op=op):
            yield changed(node, op=OTHER[type(op)]())
        case ast.AugAssign(op=op):
            yield changed(node, op=OTHER[type(op)]())
            yield node, "pass"
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as value)):
            yield node, f"({1 - value})"
        case ast.UnaryOp(op=ast.Not() | ast.USub(), operand=operand):
            yield node, f"({ast.unparse(operand)})"
        case ast.Constant(value=bool() as value):
            yield node, str(not value)
        case ast.Constant(value=int() | float() as value):
            yield node, repr(value + 1)
        case ast.If(test=test) | ast.While(test=test) | ast.IfExp(test=test):
            if not isinstance(test, ast.Compare | ast.UnaryOp):  # those are negated by another operator
                yield negated(test)
        case ast.comprehension(ifs=tests):
            yield from map(negated, tests)
        case ast.Call(keywords=keywords):
            for keyword in keywords:
                if keyword.arg and keyword.arg not in LEFT_OUT:
                    yield changed(node, keywords=[other for other in keywords if other is not keyword])
        case ast.Return(value=ast.expr() as value) if ast.unparse(value) not in ("None", "False"):
            yield node, "return None"
        case ast.Expr(value=ast.Call()) | ast.Raise() | ast.Delete():
            yield node, "pass"
        case ast.Assign(targets=[ast.Attribute() | ast.Subscript()]):
            yield node, "pass"
        case ast.Break():
            yield node, "continue"
        case ast.Continue():
            yield node, "break"


def visit(node: ast.AST, reach: tuple[int, int], within: str) -> Iterator[tuple[Any, str, tuple[int, int], str]]:
    """All changes in a tree, each with the lines of its statement and the name of its function, class or constant."""
    if isinstance(node, ast.stmt):  # of a statement with a body, its head
        body = getattr(node, "body", None)
        reach = node.lineno, max(node.lineno, body[0].lineno - 1) if body else node.end_lineno or 0
    if isinstance(node, ast.ExceptHandler):
        reach = node.lineno, node.lineno
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        within = node.name
    if isinstance(node, ast.Assign | ast.AnnAssign) and not within:
        within = ast.unparse(node.targets[0] if isinstance(node, ast.Assign) else node.target)
    if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
        return
    if isinstance(node, ast.Call) and ast.unparse(node.func).startswith(("warnings.", "logger.", "cast", "TypeVar")):
        return
    yield from ((part, text, reach, within) for part, text in changes(node))
    if isinstance(node, ast.Raise | ast.Assert | ast.JoinedStr) or getattr(node, "name", "") in ("__repr__", "__str__"):
        return
    if isinstance(node, ast.keyword) and node.arg in LEFT_OUT:
        return
    if isinstance(node, ast.UnaryOp) and isinstance(node.operand, ast.Constant):  # a negative number
        return
    for name, value in ast.iter_fields(node):
        if name not in ("annotation", "returns"):
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    yield from visit(child, reach, within)


def find_mutants(file: str, source: bytes) -> list[Mutant]:
    """All mutants of a file, in the order of its lines."""
    starts, found = [0], []
    for line in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    for part, text, reach, within in visit(ast.parse(source), (1, 1), ""):
        column = part.col_offset
        start, end = starts[part.lineno - 1] + column, starts[part.end_lineno - 1] + part.end_col_offset
        old = source[start:end].decode()
        found.append(Mutant(file, part.lineno, column, start, end, old, text, reach, within))
    return list(dict.fromkeys(found))

"""Read or replace any value in a model's forward pass, by name.

Every value in the formulas of `model.py` is a step: a submodule that returns its input. So its name is its path in
the model, PyTorch's own forward hooks reach it, and a model without hooks runs as if there were no steps. Names may
be shell patterns: `*.attention.probs`, `distilbert.transformer.layer.[01].*`. A submodule that returns several values
(an attention, a block) stands for the first, which is the one that the next module gets.

Hooks belong to the model: two threads that capture or edit one model see each other's. Of nested `with` blocks the
inner one acts later: a capture inside an edit sees the edited value, a capture around an edit sees the value before.
"""

import difflib
import warnings
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import partial
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from .report import Table, dtype_name, table

Edit = Tensor | Callable[[Tensor], Tensor]
Hook = Callable[[nn.Module, Any, Any], Any]
Target = TypeVar("Target")
Destination = str | torch.device | torch.dtype | Callable[[Tensor], Tensor]
LIMIT = 8 * 2**30  # bytes a capture may hold unless told otherwise


class Steps(dict[str, Any]):
    """Captured values by name, in order of execution; printed are their names and shapes, not their numbers."""

    def __repr__(self) -> str:
        return f"{len(self)} captured values\n{self._table()}"

    def _repr_html_(self) -> str:
        return self._table().html()

    def _table(self) -> Table:
        rows = (
            (name, tuple(value.shape), dtype_name(value.dtype)) if isinstance(value, Tensor) else (name, value, "")
            for name, value in self.items()
        )
        return table(("step", "shape", "dtype"), rows)


class Hooks(Generic[Target]):
    """Forward hooks for a `with` block. Ctrl-C while the block is entered or left removes them too.

    `contextlib.contextmanager` does not: Ctrl-C just before the block leaves its generator suspended in the traceback,
    and the hooks on the model.

    Args:
        hooks: modules, and the hook for each.
        make_target: makes what `with … as` gives, anew for each block.
    """

    def __init__(self, hooks: Sequence[tuple[nn.Module, Hook]], make_target: Callable[[], Target]) -> None:
        self.hooks, self.make_target = hooks, make_target
        self.target = make_target()

    def __enter__(self) -> Target:
        try:
            self.target = self.make_target()
            for module, hook in self.hooks:
                module.register_forward_hook(hook)
            return self.target
        except BaseException:
            self._remove()
            raise

    def __exit__(self, *error: object) -> None:
        try:
            self._remove()
        except BaseException:
            self._remove()
            raise

    def _remove(self) -> None:
        # Not by the handles of PyTorch: Ctrl-C may come after a registration and before its handle is stored.
        for module, hook in self.hooks:
            for key in [key for key, known in module._forward_hooks.items() if known is hook]:
                module._forward_hooks.pop(key, None)


class Capture(Hooks[Steps]):
    """What `capture` returns; printed, it says how to use it."""

    def __init__(self, model: nn.Module, patterns: Sequence[str], to: Destination | None, limit: int) -> None:
        self.model, self.to, self.limit = model, to, limit
        self.names = matching_names(model, patterns or ("*",))
        super().__init__([(model.get_submodule(name), partial(self._store, name)) for name in self.names], Steps)

    def __repr__(self) -> str:
        return (
            f"a capture of {len(self.names)} values of {type(self.model).__name__}, from {self.names[0]} to "
            f"{self.names[-1]}. Use it around a forward pass:\n"
            f"    with capture(model, …) as steps:\n        model(**inputs)\n    steps[{self.names[0]!r}]"
        )

    def _store(self, name: str, module: nn.Module, inputs: object, output: object) -> None:
        value = output[0] if isinstance(output, tuple) else output
        if not isinstance(value, Tensor):
            return  # a whole model returns a dataclass, whose parts have names of their own
        steps = self.target
        steps.pop(name, None)  # so that the order is that of the last forward
        steps[name] = value if self.to is None else _send(value, self.to)
        if (held := sum(getattr(kept, "nbytes", 0) for kept in steps.values())) > self.limit:
            steps.clear()
            raise ValueError(
                f"capture holds {held:,} bytes at {name}, more than limit={self.limit:,}: name fewer steps, reduce the "
                f"values with to=, or raise limit="
            )


def capture(model: nn.Module, *patterns: str, to: Destination | None = None, limit: int = LIMIT) -> Capture:
    """Collect values while the model runs.

        with capture(model, "*.attention.probs") as steps:
            model(**inputs)

    Args:
        model: any model, with or without a head.
        patterns: names of steps or submodules, or shell patterns; none means all of them.
        to: what to do with each value at once, so that a long batch is never held whole: move it to a device, cast it
            to a dtype, or apply a function such as `lambda probs: probs.mean(dim=1)`.
        limit: bytes that the collected values may take. Each value counts, also where it is a view of another.

    Returns:
        A context manager. It gives a dict from name to value, filled in order of execution; a second forward replaces
        the first one's values. The tensors keep their graph unless the forward runs under `torch.no_grad`.

    Raises:
        ValueError: a pattern that fits nothing; during the forward, more than `limit` bytes.
    """
    return Capture(model, patterns, to, limit)


class Edits(Hooks[None]):
    """What `edit` returns."""

    def __init__(self, model: nn.Module, edits: Mapping[str, Edit]) -> None:
        self.patterns, self.idle = list(edits), set(edits)
        super().__init__(
            [
                (model.get_submodule(name), partial(self._replace, pattern, name, change))
                for pattern, change in edits.items()
                for name in matching_names(model, (pattern,))
            ],
            lambda: None,
        )

    def __enter__(self) -> None:
        self.idle = set(self.patterns)
        return super().__enter__()

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        if self.idle and error[0] is None:
            warnings.warn(
                f"the edit of {', '.join(sorted(self.idle))} changed nothing: no such step ran in the with block. "
                "There is no mask step without an attention mask; a packed or compiled model runs no hooks",
                stacklevel=2,
            )

    def _replace(
        self, pattern: str, name: str, change: Edit, module: nn.Module, inputs: object, output: object
    ) -> object:
        self.idle.discard(pattern)
        value = output[0] if isinstance(output, tuple) else output
        if not isinstance(value, Tensor):
            raise ValueError(f"{name} returns a {type(value).__name__}, not a tensor: edit a step inside it")
        # A copy, since a function may change it in place: layers share the mask, and the old value may be captured.
        new = change(value.clone()) if callable(change) else change
        if not isinstance(new, Tensor):
            raise ValueError(f"the edit of {name} gives a {type(new).__name__}: return the new value, a tensor")
        if not _fits(name, value.shape, new.shape):
            raise ValueError(f"the edit of {name} gives shape {tuple(new.shape)}, the value has {tuple(value.shape)}")
        new = new.to(value)
        return (new, *output[1:]) if isinstance(output, tuple) else new


def edit(model: nn.Module, edits: Mapping[str, Edit]) -> Edits:
    """Replace values while the model runs, in a `with` block; all later values are computed from the new ones.

    Args:
        model: any model, with or without a head.
        edits: from a name or shell pattern to the new value, or to a function from the value to the new value. The new
            value is cast to the old one's dtype and device. A mask (B, 1, Q, S) may become (B, H, S, S), one for each
            head or query; any other value keeps its shape.

    Returns:
        A context manager. At its end it warns of a pattern of which no step ran in the block.

    Raises:
        ValueError: a pattern that fits nothing; during the forward, a new value of another shape.
    """
    return Edits(model, edits)


def check_module(model: object) -> None:
    """Refuse what is not a module, such as a packed model.

    Raises:
        ValueError: it has no steps.
    """
    if not isinstance(model, nn.Module):
        raise ValueError(f"{type(model).__name__} has no steps to look into: pass the model itself")


def check_eval(model: nn.Module) -> None:
    """Refuse a model in training mode.

    Raises:
        ValueError: the model is in training mode, or is none.
    """
    check_module(model)
    if model.training:
        raise ValueError("the model is in training mode, where dropout changes every value: call model.eval() first")


def matching_names(model: nn.Module, patterns: Sequence[str]) -> list[str]:
    """Return the names of steps and submodules that fit any of the patterns, in the model's order.

    Raises:
        ValueError: a pattern that fits nothing, with the names that are most like it.
    """
    check_module(model)
    names = [name for name, _ in model.named_modules() if name]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ValueError(f"no step or submodule of {type(model).__name__} fits {pattern!r}{_hint(pattern, names)}")
    return [name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)]


def _hint(pattern: str, names: Sequence[str]) -> str:
    """Name what a pattern that fits nothing may have meant: whole names, or other last parts of the same pattern."""
    front, dot, last = pattern.rpartition(".")
    lasts = dict.fromkeys(name.rpartition(".")[2] for name in names)
    ends = [front + dot + end for end in difflib.get_close_matches(last, lasts)]
    fitting = [end for end in ends if any(fnmatchcase(name, end) for name in names)]
    near = fitting or difflib.get_close_matches(pattern, names)
    return f": did you mean {' or '.join(near)}?" if near else ""


def _send(value: Tensor, to: Destination) -> Tensor:
    if isinstance(to, str | torch.device | torch.dtype):  # a torch.device is callable too
        return value.to(to)
    return to(value)


def _fits(name: str, old: torch.Size, new: torch.Size) -> bool:
    if name.endswith("attention.mask") and len(new) == 4:  # the axes of heads and of queries may have been 1
        return (old[0], old[3]) == (new[0], new[3]) and old[1] in (1, new[1]) and old[2] in (1, new[2])
    return old == new

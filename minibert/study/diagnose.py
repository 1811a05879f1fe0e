"""Somebody's numbers for a checkpoint are not the right ones: which step differs first, and which mistake gives them?

Each mistake of the catalogue is made in a copy of the model (see `mistakes.py`), and the copy's numbers are compared
with those given. How near is near enough is measured: the model runs in float32 and in float64, and what rounding does
to it is what rounding may have done to them.
"""

import copy
import difflib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ..heads import DistilBertForMultipleChoice
from .audit import errors
from .compare import OUTPUTS, real_positions
from .mistakes import catalogue, mistaken
from .models import DTYPES, Model
from .report import Report, table
from .rows import real_part
from .steps import capture, check_eval

INPUTS = ("input_ids", "attention_mask", "position_ids", "token_type_ids")
ROUNDING = 8  # times what rounding did to the model's own value may be rounding in theirs
LEAST_EPS = 8  # times the dtype's eps is always rounding: the model's own may have been small by luck
VISIBLE = 3  # times that: a mistake that changes values by less cannot be told from rounding


@dataclass
class GivenValue(Report):
    """A value that was given, beside the model's.

    An error is |theirs - the model's| / max(1, |the model's|), the greatest of all numbers.

    Args:
        name: of the step or submodule, or of what the model returns.
        shape: of the value.
        error: of the numbers that real tokens read: the mask, masked scores and probabilities of their queries count
            for all keys, also padded ones; scores for real keys.
        error_padded: of the other numbers; None where there are none, as in logits of a whole text.
        tolerance: what rounding may do.
        result: "OK", "DIFF", or "PADDING": the value differs, but only where nobody should read it.
    """

    name: str
    shape: tuple[int, ...]
    error: float
    error_padded: float | None
    tolerance: float
    result: str

    def parts(self) -> list[str]:
        """Return a line."""
        return [f"{self.name}: {self.result}, error {_cell(self.error)}"]


@dataclass
class Diagnosis(Report):
    """What `diagnose` found.

    Args:
        verdict: "right"; "right at real tokens"; "mistake"; or "unknown": the values are wrong, and no mistake of the
            catalogue gives them.
        step: name of the first value that differs; None where none does, or where only outputs are given, which do not
            say where it went wrong.
        mistakes: names of the mistakes that give these very values; of several, this input cannot say which it is.
        unseen: names of the mistakes that would give the right values here, and so can neither be found nor ruled out.
        tried: how many mistakes the catalogue has for this model.
        given: the values, in order of execution.
        apart: inputs for which several `mistakes` give different values; where there are none, inputs that show more of
            those `unseen`. None where such inputs are not needed, or not known.
        apart_step: a step whose value would tell apart more of them; None where it is not needed, or not known.
    """

    verdict: str
    step: str | None
    mistakes: list[str]
    unseen: list[str]
    tried: int
    given: list[GivenValue]
    apart: dict[str, Tensor] | None
    apart_step: str | None

    def parts(self) -> Iterator[str]:
        """Yield the values beside the model's, what is wrong with them, and what would say more."""
        yield table(
            ("value", "shape", "result", "error at real", "at padded", "tolerance"),
            [
                (value.name, " x ".join(map(str, value.shape)), value.result, *map(_cell, _numbers(value)))
                for value in self.given
            ],
        )
        yield ""
        yield self._result()
        for name in self.mistakes:
            yield f"   {name}"
        if self.unseen and not self.mistakes:
            yield f"These of {self.tried} mistakes do not show in these values: {', '.join(self.unseen)}."
        if self.apart:
            yield "An input that tells them apart:" if self.mistakes else "An input that shows more of them:"
            for name, value in self.apart.items():
                yield f"   {name} = {value.tolist()}"
        if self.apart_step:
            subject = "With it, the value" if self.apart else "The value"
            yield f"{subject} of {self.apart_step} tells more of them apart."

    def _result(self) -> str:
        if self.verdict == "right":
            return "Right: what is given is what the model computes, to rounding."
        if self.verdict == "right at real tokens":
            return "Right at real tokens, to rounding; at padding it differs, where nobody should read it."
        where = f"Wrong, first at {self.step}." if self.step else "Wrong."
        if self.verdict == "unknown":
            return f"{where} Unknown: none of {self.tried} mistakes gives these numbers."
        if len(self.mistakes) == 1:
            return f"{where} This mistake gives these very numbers:"
        return f"{where} Each of these mistakes gives these very numbers:"


@torch.no_grad()
def diagnose(
    model: Model,
    inputs: Mapping[str, Tensor],
    theirs: Any,
    *,
    tolerance: float | None = None,
) -> Diagnosis:
    """Find the first wrong step in another implementation's values, and the mistakes that give these very values.

    It does not guess: one mistake that is not in the catalogue, or two at once, are "unknown". All values must fit, so
    that more of them, and the first of a forward pass above all, say more than logits alone.

    Args:
        model: right, with the weights that they loaded, in eval mode. It runs twice for each mistake, about 120 times,
            and all its values are held in memory: a small batch shows as much as a large one.
        inputs: what both models got: input_ids and, where it was passed, attention_mask.
        theirs: the logits (of a model without head the last hidden states); or a mapping from names to values: those of
            steps and submodules (with or without `distilbert.`), and of what the model returns. Tensors, arrays or
            lists, in the shapes that the model has, computed in float32; or in half precision, if their dtype says so.
        tolerance: the greatest |theirs - the model's| / max(1, |the model's|) that is the same number; None measures
            the rounding. For numbers that were printed with 4 decimals 5e-5.

    Raises:
        ValueError: a model in training mode; values of unknown names or other shapes; a tolerance that is negative or
            not finite.
    """
    check_eval(model)
    if tolerance is not None and not 0 <= tolerance < float("inf"):
        raise ValueError(f"tolerance must be a finite number, at least 0, got {tolerance}")
    dtype = coarsest_dtype(theirs)
    low = model if model.dtype == dtype else copy.deepcopy(model).to(dtype)
    pair = Pair(low, copy.deepcopy(model).double(), tolerance)
    right = pair.run(inputs)
    given = Run(read_values(model, theirs, right.values), {})
    names, real = list(given.values), real_positions(inputs).flatten(0, -2)

    runs = {name: pair.mistaken(name).run(inputs, names) for name in catalogue(model)}
    mistakes, unseen = judge(right, runs, given, names, real)
    differing, differing_at_real = different(right, given, names), different(right, given, names, real)
    if mistakes:
        verdict = "mistake"
    elif differing:
        verdict = "unknown" if differing_at_real else "right at real tokens"
    else:
        verdict = "right"
    alike = mistakes if mistakes else ["", *unseen] if verdict.startswith("right") else []
    apart, apart_step = tell_apart(pair, alike, names) if alike else (None, None)
    return Diagnosis(
        verdict=verdict,
        step=differing[0] if differing and any(name not in OUTPUTS for name in names) else None,
        mistakes=mistakes,
        unseen=unseen,
        tried=len(catalogue(model)),
        given=[
            GivenValue(
                name,
                tuple(given.values[name].shape),
                greatest_error(right, given, name, real) or 0.0,
                greatest_error(right, given, name, real, at_padded=True),
                right.tolerance[name],
                "OK" if name not in differing else "DIFF" if name in differing_at_real else "PADDING",
            )
            for name in names
        ],
        apart=apart,
        apart_step=apart_step,
    )


class Run(NamedTuple):
    """The values of a forward pass by name, in order of execution, and how much of each may be rounding."""

    values: dict[str, Tensor]
    tolerance: dict[str, float]


class Pair(NamedTuple):
    """One model in the precision of the values given, and in float64."""

    low: Any
    exact: Any
    tolerance: float | None

    def mistaken(self, name: str) -> "Pair":
        """Make a mistake in both; "" is none."""
        return Pair(mistaken(self.low, name), mistaken(self.exact, name), self.tolerance) if name else self

    def run(self, inputs: Mapping[str, Tensor], names: Sequence[str] = ("*",)) -> Run:
        """Run both, and measure the rounding of some values, or all, by the difference."""
        values, exact = read_run(self.low, inputs, names), read_run(self.exact, inputs, names)
        tolerance = {}
        for name, value in values.items():
            limits = torch.finfo(value.dtype)
            least = limits.min  # what a mask adds in this dtype; in float64 it is another number
            rounding = errors(value.clamp(min=least), exact[name].clamp(min=least)).max().item()
            measured = max(ROUNDING * rounding, LEAST_EPS * limits.eps)
            tolerance[name] = measured if self.tolerance is None else self.tolerance
        return Run(values, tolerance)


def judge(
    right: Run, runs: Mapping[str, Run], given: Run, names: Sequence[str], real: Tensor
) -> tuple[list[str], list[str]]:
    """Return the names of the mistakes that give the values, and of those that do not show in them.

    Args:
        right: without a mistake.
        runs: with each mistake.
        given: what the values are.
        names: of the values.
        real: (B, S) bools. Where no mistake gives all the numbers, it is enough to give those at real positions:
            implementations may differ in what they compute at padding.
    """
    unseen = [name for name, wrong in runs.items() if not different(wrong, right, names, times=VISIBLE)]
    if not different(right, given, names):
        return [], unseen
    for where in (None, real):
        fitting = [
            name
            for name, wrong in runs.items()
            if different(wrong, right, names, where, times=VISIBLE) and not different(wrong, given, names, where)
        ]
        if fitting:
            return fitting, unseen
    return [], unseen


def read_run(model: Any, inputs: Mapping[str, Tensor], names: Sequence[str] = ("*",)) -> dict[str, Tensor]:
    """Return the values of some steps and submodules where the model has them, and what it returns."""
    there = {name for name, _ in model.named_modules()}
    steps = [name for name in names if name == "*" or name in there]
    values: dict[str, Tensor] = {}
    with ExitStack() as hooks:
        if steps:
            values = hooks.enter_context(capture(model, *steps))
        output = model(**inputs)
    return values | {name: getattr(output, name) for name in OUTPUTS if getattr(output, name, None) is not None}


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a file.

    Raises:
        OSError: there is no such file, or it is a folder.
        ValueError: it is not a safetensors file.
    """
    path.open("rb").close()  # an error that names the path
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path}: not a valid safetensors file ({error})") from None


def coarsest_dtype(theirs: Any) -> torch.dtype:
    """Return float32, or the half precision that a value has.

    Raises:
        ValueError: a value of another kind, such as float8 or complex, which the model cannot compute in.
    """
    values = theirs.values() if isinstance(theirs, Mapping) else [theirs]
    tensors = [value for value in values if isinstance(value, Tensor)]
    dtypes = [tensor.dtype for tensor in tensors if tensor.is_floating_point() or tensor.is_complex()]
    if unknown := [dtype for dtype in dtypes if dtype not in DTYPES]:
        fitting = ", ".join(map(str, reversed(DTYPES)))
        raise ValueError(f"a value has the dtype {unknown[0]}: give it as one of {fitting}")
    return max([torch.float32, *dtypes], key=lambda dtype: torch.finfo(dtype).eps)


def read_values(model: Model, theirs: Any, right: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Check what is given and return it under the model's names, in order of execution."""
    outputs = [name for name in OUTPUTS if name in right]
    if not isinstance(theirs, Mapping):
        if len(outputs) > 1:
            raise ValueError(f"{type(model).__name__} returns {' and '.join(outputs)}: give a mapping with these names")
        theirs = {outputs[0]: theirs}
    if not theirs:
        raise ValueError("no value is given")
    given = {}
    for name, value in theirs.items():
        path = name if name in right else model.encoder_prefix + name.removeprefix("distilbert.")
        if path not in right:
            short = {known.removeprefix(model.encoder_prefix): known for known in right}
            near = [short[each] for each in difflib.get_close_matches(name.removeprefix("distilbert."), short)]
            hint = f": did you mean {' or '.join(near)}?" if near else ""
            raise ValueError(f"{type(model).__name__} computes no {name!r} for these inputs{hint}")
        if path in given:
            raise ValueError(f"{path} is given twice, once as {name}")
        try:
            given[path] = torch.as_tensor(value).detach().to(right[path].device)
        except (TypeError, ValueError, RuntimeError):
            kind = type(value).__name__
            raise ValueError(f"{name} is not a tensor, an array or a list of numbers, but a {kind}") from None
        shape, expected = given[path].shape, right[path].shape
        if shape != expected and not (path.endswith(".mask") and len(shape) == 4):  # masks may be repeated or not
            raise ValueError(f"{name} has shape {tuple(shape)}, but the model's has {tuple(expected)}")
    return {name: given[name] for name in right if name in given}


def different(
    first: Run, second: Run, names: Sequence[str], where: Tensor | None = None, times: float = 1
) -> list[str]:
    """Return the names of values that differ by more than so many times what rounding may do.

    Args:
        first: values, and their tolerance.
        second: other values; without a tolerance they are those given.
        names: which values to compare.
        where: (B, S) bools, the real tokens: compare what they read; None is all.
        times: the tolerance.
    """
    return [
        name
        for name in names
        if not (greatest_error(first, second, name, where) or 0.0)
        <= times * max(run.tolerance.get(name, 0.0) for run in (first, second))
    ]


def greatest_error(
    first: Run, second: Run, name: str, real: Tensor | None = None, at_padded: bool = False
) -> float | None:
    """Return the greatest error of all numbers of a value, or of those that real tokens read, or of the others.

    Returns:
        Infinity where one of the runs lacks the value or has it in another shape; None where there are no such numbers.
    """
    ours, theirs = first.values.get(name), second.values.get(name)
    if ours is None or theirs is None:
        return float("inf")
    try:
        error = errors(theirs, ours)
    except RuntimeError:  # shapes that do not fit
        return float("inf")
    if real is not None:
        error, part = torch.broadcast_tensors(error, read_part(name, error, real))
        error = error[~part if at_padded else part]
    return error.max().item() if error.numel() else None


def read_part(name: str, value: Tensor, real: Tensor) -> Tensor:
    """Say which numbers of a value real tokens read; see `real_part`.

    What a padded key has is not read before the mask. From the mask on it is: that is where padding leaks.
    """
    if value.ndim == 4 and name.rpartition(".")[2] in ("mask", "masked_scores", "probs", "dropout"):
        return torch.ones_like(value, dtype=torch.bool) if value.shape[2] == 1 else real[:, None, :, None]
    return real_part(name, value, real)


def tell_apart(pair: Pair, alike: Sequence[str], names: Sequence[str]) -> tuple[dict[str, Tensor] | None, str | None]:
    """Find inputs for which mistakes give different values; and a step that tells apart what is then left.

    Args:
        pair: the right model.
        alike: names of the mistakes, "" for none.
        names: of the values that are compared.
    """
    best, found = 1, None
    runs: dict[str, Run] = {}
    for inputs in examples(pair.low):
        tried = {name: pair.mistaken(name).run(inputs) for name in alike}
        if (groups := count_groups(tried, names)) > best or not runs:
            best, found, runs = max(groups, best), inputs if groups > best else found, tried
    steps = [step for step in runs[alike[0]].values if step not in names]
    if best == len(alike):
        return found, None
    return found, next((step for step in steps if count_groups(runs, [*names, step]) > best), None)


def examples(model: Any) -> Iterator[dict[str, Tensor]]:
    """Yield small inputs on which much shows: random ids padded to several lengths, with a mask and without."""
    config, generator = model.config, torch.Generator().manual_seed(0)
    length = min(8, config.max_position_embeddings)
    real = torch.arange(length) < torch.tensor([length, (length + 1) // 2, 1])[:, None]
    ids = torch.randint(config.vocab_size, real.shape, generator=generator).masked_fill(~real, config.pad_token_id)
    inputs = {"input_ids": ids, "attention_mask": real.long()}
    if isinstance(model, DistilBertForMultipleChoice):  # one question, whose choices are the rows
        inputs = {name: value[None] for name, value in inputs.items()}
    inputs = {name: value.to(model.device) for name, value in inputs.items()}
    yield inputs
    yield {"input_ids": inputs["input_ids"]}


def count_groups(runs: Mapping[str, Run], names: Sequence[str]) -> int:
    """Say into how many groups the values divide the runs: two that differ by rounding are in one."""
    groups: list[Run] = []
    for run in runs.values():
        if all(different(run, other, names, times=VISIBLE) for other in groups):
            groups.append(run)
    return len(groups)


def _numbers(value: GivenValue) -> tuple[float, float | None, float]:
    return value.error, value.error_padded, value.tolerance


def _cell(error: float | None) -> str:
    return "" if error is None else f"{error:.1e}" if error else "0"

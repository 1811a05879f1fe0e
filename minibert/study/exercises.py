"""Ten exercises: change a copy of `mask.py` or `model.py`, predict the first step that differs, and see.

A copy lies in a folder of its own and takes the place of the original while it is graded; minibert itself never
changes. It is run on the demo's weights and compared with the oracle, the papers' formulas in NumPy (float64).
"""

import difflib
import sys
import tomllib
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module, invalidate_caches
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from .. import DEMO
from ..tokenizer import DistilBertTokenizer
from .compare import Comparison, compare
from .report import Report, table
from .walk import SENTENCES

SOURCE = Path(__file__).parent.parent
PACKAGE = "minibert_exercise"  # the name under which a copy is imported, with the rest of minibert around it


@dataclass(frozen=True)
class Exercise:
    """One change to the model, and what comes of it. The fields are explained in `exercises.toml`."""

    title: str
    task: str
    file: str
    edits: list[tuple[str, str]]
    first: str
    hint: str
    answer: str
    made: bool = False


EXERCISES = [
    Exercise(**fields) for fields in tomllib.loads((SOURCE / "study/exercises.toml").read_text("utf-8"))["exercise"]
]


def exercise_file(folder: Path, number: int) -> Path:
    """Return where the copy of an exercise is, or will be.

    Raises:
        ValueError: another number than those of EXERCISES.
    """
    if not 1 <= number <= len(EXERCISES):
        raise ValueError(f"exercises are 1 to {len(EXERCISES)}, got {number}")
    return folder / str(number) / EXERCISES[number - 1].file


def start(folder: Path, number: int, reset: bool = False) -> Path:
    """Make the copy of an exercise where there is none yet, or anew, and return its path.

    Args:
        folder: where copies are kept, each in a folder named by its number.
        number: from 1.
        reset: make it anew; what the student wrote there is lost.

    Raises:
        OSError: the folder cannot be written to.
        ValueError: another number than those of EXERCISES.
    """
    copy = exercise_file(folder, number)
    if reset or not copy.exists():
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(initial(number), encoding="utf-8")
    return copy


def read_copy(copy: Path) -> str:
    """Return the text of a copy.

    Raises:
        OSError: there is none.
        ValueError: it is not UTF-8.
    """
    try:
        return copy.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{copy} is not UTF-8 ({error.reason}): save it as UTF-8, or reset it") from None


def initial(number: int) -> str:
    """Return the text that a copy starts with."""
    exercise = EXERCISES[number - 1]
    text = (SOURCE / exercise.file).read_text("utf-8")
    return changed(text, exercise) if exercise.made else text


def changed(text: str, exercise: Exercise) -> str:
    """Return a copy's text with the change that the exercise asks for."""
    for old, new in exercise.edits:
        text = text.replace(old, new)
    return text


@dataclass
class Grade(Report):
    """What a prediction is worth.

    Args:
        prediction: as given.
        first: name of the first step of the copy that differs; "none" where no step does.
        asked: the end of the name of the step that differs first if the copy is changed as the exercise asks.
        faults: what else is wrong with a function that the student wrote.
        comparison: of the copy and the oracle.
    """

    prediction: str
    first: str
    asked: str
    faults: list[str]
    comparison: Comparison

    @property
    def change_is_right(self) -> bool:
        """Whether the copy differs where the exercise says."""
        return is_called(self.first, self.asked) and not self.faults

    @property
    def ok(self) -> bool:
        """Whether the change and the prediction are right."""
        return self.change_is_right and is_called(self.first, self.prediction)

    def parts(self) -> Iterator[str]:
        """Return the first step that differs, how much the results move, and the verdict."""
        differing = [step for step in self.comparison.steps if step.result != "OK"]
        if differing:
            header = ("first step that differs", "result", "error at real", "error at padded")
            errors = (differing[0].error_real, differing[0].error_padded)
            yield table(header, [(self.first, differing[0].result, *("" if x is None else f"{x:.2g}" for x in errors))])
            for name, end in (("probabilities", ".probs"), ("logits", "logits")):
                largest = max((step.error_real or 0.0 for step in differing if step.name.endswith(end)), default=0.0)
                yield f"At real tokens the {name} differ by {largest:.2g} at most."
        else:
            yield "No step differs."
        yield from self.faults
        if not is_called(self.first, self.asked):
            yield "This is not the change that the exercise asks for: that one first differs elsewhere."
        elif not self.faults:
            yield f"Your prediction, {self.prediction}, is {'right' if self.ok else 'not right'}."


def is_called(name: str, short: str) -> bool:
    """Whether a step's name is the given one, or ends with it."""
    return name == short or name.endswith(f".{short}")


def grade(folder: Path, number: int, prediction: str) -> Grade:
    """Run the copy of an exercise and compare it with the oracle, and its first difference with the prediction.

    Args:
        folder: where copies are kept.
        number: from 1.
        prediction: the name of the first step that differs, or its end, such as "scores"; "none" for no step.

    Raises:
        OSError: there is no copy.
        ValueError: a prediction that is not a step's name; a copy that is not UTF-8; code in it that fails, with its
            line.
    """
    copy, exercise = exercise_file(folder, number), EXERCISES[number - 1]
    read_copy(copy)  # Python would import the original where there is no copy, and not name a file that is not UTF-8
    with imported(copy) as heads:
        try:
            model = heads.DistilBertForSequenceClassification.from_pretrained(DEMO).double()
            names = [name for name, _ in model.named_modules() if name]
            if prediction != "none" and not any(is_called(name, prediction) for name in names):
                raise ValueError(refusal(prediction, names))
            tokenizer = DistilBertTokenizer.from_pretrained(DEMO)
            inputs = tokenizer(list(SENTENCES), padding=True, return_tensors="pt")
            comparison = compare(model, "oracle", dict(inputs))
            additive_mask = sys.modules[f"{PACKAGE}.mask"].additive_mask
            faults = mask_faults(additive_mask) if number == len(EXERCISES) else []
        except Exception as error:
            raise ValueError(explain(error, copy)) from error
    return Grade(prediction, comparison.first_divergence or "none", exercise.first, faults, comparison)


def refusal(prediction: str, names: Iterable[str]) -> str:
    """Say that a prediction is not the name of a step, and which ends of names are like it."""
    ends = dict.fromkeys(name.rpartition(".")[2] for name in names)
    near = difflib.get_close_matches(prediction.rpartition(".")[2], ends)
    hint = f": did you mean {' or '.join(near)}?" if near else ": `minibert trace` prints the names"
    return f"no step's name is {prediction!r}, or ends with it{hint}"


@contextmanager
def imported(copy: Path) -> Iterator[ModuleType]:
    """Import `heads` of a second minibert, in which the copy takes the place of the file of its name."""
    package = ModuleType(PACKAGE)
    package.__path__ = [str(copy.parent), str(SOURCE)]  # the copy is found first, all else in minibert
    writes_bytecode, sys.dont_write_bytecode = sys.dont_write_bytecode, True  # an old one could hide an edit
    sys.modules[PACKAGE] = package
    invalidate_caches()
    try:
        try:
            heads = import_module(f"{PACKAGE}.heads")
        except Exception as error:
            raise ValueError(explain(error, copy)) from error
        yield heads
    finally:
        sys.dont_write_bytecode = writes_bytecode
        for name in [name for name in sys.modules if name.partition(".")[0] == PACKAGE]:
            del sys.modules[name]


def explain(error: Exception, copy: Path) -> str:
    """Say what went wrong, and in which line of the copy."""
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if Path(frame.filename).resolve() == copy.resolve()
    ]
    if isinstance(error, SyntaxError):
        lines = [error.lineno]
    return f"{copy}, line {lines[-1]}: {type(error).__name__}: {error}" if lines else str(error)


def mask_faults(additive_mask: Callable[[Tensor, torch.dtype], Any]) -> list[str]:
    """Return what is wrong with somebody's `additive_mask`, in the order of a reader's steps."""
    pattern = torch.tensor([[[[True, False], [True, True]]]])
    masks = {
        "numbers (B, S)": torch.tensor([[1, 1, 0], [1, 0, 0]]),
        "bools (B, S)": torch.tensor([[True, True, False]]),
        "bools (B, 1, S, S)": pattern,
        "bools (B, H, S, S)": pattern.expand(2, 4, 2, 2),
    }
    faults = []
    for kind, attention_mask in masks.items():
        for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
            allowed = attention_mask.bool()
            allowed = allowed[:, None, None, :] if allowed.ndim == 2 else allowed
            right = torch.zeros(allowed.shape, dtype=dtype).masked_fill(~allowed, torch.finfo(dtype).min)
            before = attention_mask.clone()
            given = additive_mask(attention_mask, dtype)
            if not isinstance(given, Tensor):
                faults.append(f"{kind}: it returns a {type(given).__name__}, not a tensor")
            elif given.dtype != dtype or given.shape != right.shape:
                faults.append(f"{kind}: {given.dtype} of {tuple(given.shape)}, not {dtype} of {tuple(right.shape)}")
            elif not torch.equal(given, right):
                faults.append(f"{kind}, {dtype}: {given.flatten().tolist()}, not {right.flatten().tolist()}")
            elif not torch.equal(attention_mask, before):
                faults.append(f"{kind}: it changes the attention_mask that it is given")
    return faults[:1]  # the first is enough to go on with

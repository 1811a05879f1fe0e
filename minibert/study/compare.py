"""Compare a model with another that should compute the same, value by value, in order of execution.

The other is a model of transformers, any other PyTorch model with the same names, or the oracle. A model's values are
read through PyTorch's own hooks. Only `compare_checkpoint` imports transformers, and only when it is asked to.
"""

import importlib
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..checkpoint import CheckpointFiles
from ..heads import DistilBertForMultipleChoice
from ..pretrained import PreTrainedModel
from ..tokenizer import DistilBertTokenizer
from . import oracle
from .models import load_checkpoint
from .report import Report, dtype_name, table
from .rows import real_part
from .steps import capture
from .walk import SENTENCES

OUTPUTS = ("last_hidden_state", "logits", "start_logits", "end_logits", "loss")
# transformers has no name for these: they are the inputs of the modules that follow.
FOLLOWED_BY = {
    "LayerNorm": "sum",
    "out_lin": "context",
    "sa_layer_norm": "sa_residual",
    "output_layer_norm": "output_residual",
}
ERROR = "An error is |ours - other's| / max(1, |other's|), the largest of a value's numbers."
AGAINST = ("transformers", "oracle")
# Above rounding, which every layer multiplies (5e-15 and 3e-6 with weights of an ordinary size); below any mistake.
ORACLE_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
RANDOM_BATCHES = ((2, 4), (3, 16), (4, 64))  # (B, S), where the model has as many positions


@dataclass
class ComparedStep(Report):
    """One value of the model beside the other's.

    An error is |ours - theirs| / max(1, |theirs|): absolute for small numbers, relative for large ones; infinite for
    a NaN.

    Args:
        name: path of the step or submodule; or one of what the model returns, such as `logits`.
        result: "OK", "DIFF" (an error above the tolerance), "SHAPE" (another shape), or "MISSING" (the other model
            has the value, this one never computed it).
        shape: of the model's value, of the other's where the model has none.
        equal: dtype and every number are the same.
        error_real: largest error at real positions, for attention between two of them; None where shapes differ.
        error_padded: largest error where padding is involved; None where there is none.
    """

    name: str
    result: str
    shape: tuple[int, ...]
    equal: bool = False
    error_real: float | None = None
    error_padded: float | None = None


@dataclass
class Comparison(Report):
    """What `compare` found.

    Args:
        model: class of the model.
        other: package and class of the other model, or "oracle".
        dtype: of the model.
        shape: of the batch, (B, S) or (B, C, S).
        padded: how many positions of it are padding.
        tolerance: the largest error that counts as OK.
        steps: every value that both models have, in order of execution, and those that are MISSING.
        not_given: names of the model's values that the other does not give.
    """

    model: str
    other: str
    dtype: str
    shape: tuple[int, ...]
    padded: int
    tolerance: float
    steps: list[ComparedStep]
    not_given: list[str]

    @property
    def ok(self) -> bool:
        """Whether nothing differs by more than the tolerance."""
        return self.first_divergence is None

    @property
    def first_divergence(self) -> str | None:
        """Name of the first value that is not OK, if any: later differences may follow from it."""
        return next((step.name for step in self.steps if step.result != "OK"), None)

    @property
    def error_real(self) -> float:
        """Largest error at real positions, over all values."""
        return max((step.error_real for step in self.steps if step.error_real is not None), default=0.0)

    @property
    def error_padded(self) -> float:
        """Largest error at padded positions, over all values."""
        return max((step.error_padded for step in self.steps if step.error_padded is not None), default=0.0)

    @property
    def verdict(self) -> str:
        """The result in a few words."""
        if not self.ok:
            return f"DIFFERENT, first at {self.first_divergence}"
        return "equal bit for bit" if all(step.equal for step in self.steps) else "equal to rounding"

    def to_dict(self) -> dict[str, Any]:
        """Return the fields, and the result."""
        return super().to_dict() | {"ok": self.ok, "first_divergence": self.first_divergence}

    def parts(self) -> list[str]:
        """Return a table of the values, and the result below it."""
        size = " x ".join(map(str, self.shape))
        rows = (
            [
                step.name,
                " x ".join(map(str, step.shape)),
                step.result,
                "yes" if step.equal else "no",
                *(_cell(error) for error in (step.error_real, step.error_padded)),
            ]
            for step in self.steps
        )
        header = ["value", "shape", "result", "equal", "error at real", "error at padded"]
        return [
            f"{self.model} and {self.other}, {self.dtype}, a batch of {size}, {self.padded} padded",
            "",
            table(header, rows),
            "",
            ERROR,
            f"{len(self.steps)} values: {self.verdict} (tolerance {self.tolerance:.2g})",
            self.not_given_line,
        ]

    @property
    def not_given_line(self) -> str:
        """What was not compared, in one line for all layers."""
        any_layer = dict.fromkeys(re.sub(r"\.layer\.\d+\.", ".layer.*.", name) for name in self.not_given)
        return f"Not given by {self.other}: {', '.join(any_layer) or 'nothing is missing'}"


@dataclass
class CheckpointComparison(Report):
    """What `compare_checkpoint` found.

    Args:
        checkpoint: name or folder.
        comparisons: one for each batch and each thing compared with.
    """

    checkpoint: str
    comparisons: list[Comparison]

    @property
    def ok(self) -> bool:
        """Whether nothing differs anywhere."""
        return all(comparison.ok for comparison in self.comparisons)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields, and the result."""
        return super().to_dict() | {"ok": self.ok}

    def parts(self) -> list[str]:
        """Return a line for each comparison, and what was not compared; then the first failed one, value by value."""
        header = ["with", "dtype", "batch", "padded", "values", "error at real", "error at padded", "result"]
        rows = (
            [
                each.other,
                each.dtype,
                " x ".join(map(str, each.shape)),
                each.padded,
                len(each.steps),
                _cell(each.error_real),
                _cell(each.error_padded),
                each.verdict,
            ]
            for each in self.comparisons
        )
        not_given = dict.fromkeys(each.not_given_line for each in self.comparisons)
        failed = next((["", *each.parts()] for each in self.comparisons if not each.ok), [])
        return [self.checkpoint, "", table(header, rows), "", ERROR, *not_given, *failed]


def compare(
    model: PreTrainedModel,
    other: nn.Module | Literal["oracle"],
    batch: Mapping[str, Tensor | None],
    *,
    tolerance: float | None = None,
) -> Comparison:
    """Run two models on one batch and compare every value of the first with the second's.

    Each runs in its own mode, train or eval, from the same state of the random generator: in train mode, two models
    with dropout in the same places drop the same numbers.

    Args:
        model: the one under test, with or without a head; for the oracle in eval mode.
        other: "oracle", the NumPy float64 formulas run on the model's own weights; or a model with the same names: from
            transformers, loaded with `attn_implementation="eager"`, or from minibert. Values that transformers does
            not name are read from the inputs and outputs of its modules. Its scores cannot be read: they never leave
            its attention. A mask that is not a padding mask is added by transformers as given.
        batch: the models' keyword arguments, such as a tokenizer gives; the oracle knows `input_ids`,
            `attention_mask` and `position_ids`.
        tolerance: largest error (see `ComparedStep`) that is OK. None: 0 between models, which is every number equal;
            with the oracle 1e-9 in float64 and 1e-4 in float32.

    Raises:
        ValueError: `other` is another string; with the oracle, train mode, other arguments in the batch, or a dtype
            too coarse to tell a mistake from rounding.
    """
    if isinstance(other, nn.Module):
        with torch.random.fork_rng():
            ours = _run(model, batch)
        theirs = _run_other(other, batch, model.config.n_heads)
        label = f"{type(other).__module__.partition('.')[0]}.{type(other).__name__}"
    elif other == "oracle":
        if tolerance is None and model.dtype not in ORACLE_TOLERANCE:
            raise ValueError(f"{model.dtype} is too coarse for the oracle: compare model.double(), or pass tolerance=")
        ours, theirs, label = _run(model, batch), _run_oracle(model, batch), "oracle"
    else:
        raise ValueError(f"other must be a model or 'oracle', got {other!r}")
    if tolerance is None:
        tolerance = ORACLE_TOLERANCE[model.dtype] if other == "oracle" else 0.0

    known = {*OUTPUTS, *(name for name, _ in model.named_modules())}
    theirs = {name: value for name, value in theirs.items() if name in known}
    real = real_positions(batch)
    return Comparison(
        model=type(model).__name__,
        other=label,
        dtype=dtype_name(model.dtype),
        shape=tuple(real.shape),
        padded=int((~real).sum()),
        tolerance=tolerance,
        steps=[
            _compare_step(name, ours.get(name), theirs[name], real.flatten(0, -2), tolerance)
            for name in _merge(list(ours), list(theirs))
            if name in theirs
        ],
        not_given=[name for name in ours if name not in theirs],
    )


def compare_checkpoint(
    name_or_folder: str | os.PathLike[str], *, revision: str | None = None, against: Sequence[str] = AGAINST
) -> CheckpointComparison:
    """Load a checkpoint and compare every value that it computes with transformers, bit for bit, and with the oracle.

    The class is the one that config.json names in `architectures`, the bare encoder where it names none. The batches
    are random ids, padded to several lengths, and two sentences where the checkpoint has a tokenizer. transformers
    reads the files by itself and computes in float32. For the oracle the model computes in float64, so that rounding
    hides no mistake.

    Args:
        name_or_folder: a folder, or a name on the Hugging Face Hub.
        revision: branch, tag or commit on the Hub.
        against: "transformers", "oracle", or both.

    Raises:
        OSError: a file, the repository, the revision or the network is not there.
        ValueError: the checkpoint is not one of DistilBERT's six; another word in `against`; transformers is not
            installed.
    """
    if unknown := [word for word in against if word not in AGAINST]:
        raise ValueError(f"against must be of {AGAINST}, got {unknown[0]!r}")
    files = CheckpointFiles(name_or_folder, revision=revision)
    model = load_checkpoint(files)
    batches = _checkpoint_batches(model, files)
    comparisons = []
    if "transformers" in against:
        other = _load_transformers(type(model).__name__, name_or_folder, revision)
        comparisons += [compare(model, other, batch) for batch in batches]
    if "oracle" in against:
        comparisons += [compare(model.double(), "oracle", batch) for batch in batches]
    return CheckpointComparison(files.name, comparisons)


def _run(model: nn.Module, batch: Mapping[str, Tensor | None]) -> dict[str, Tensor]:
    """Return every value by name, in order of execution: of modules without parts, then the model's outputs."""
    parts = [name for name, module in model.named_modules() if not any(module.children())]
    with torch.no_grad(), capture(model, *parts) as values:
        output = model(**batch)
    return values | {name: getattr(output, name) for name in OUTPUTS if getattr(output, name, None) is not None}


def _run_other(other: nn.Module, batch: Mapping[str, Tensor | None], n_heads: int) -> dict[str, Tensor]:
    """Do the same for a model that may be from transformers, and name what transformers does not name."""
    unnamed: dict[str, Tensor] = {}
    with ExitStack() as hooks:
        for name, module in other.named_modules():
            hook = partial(_note_unnamed, unnamed, n_heads, name)
            hooks.enter_context(module.register_forward_hook(hook, with_kwargs=True))
        values = _run(other, batch)
    return unnamed | values  # a name of its own comes first


def _note_unnamed(
    values: dict[str, Tensor],
    n_heads: int,
    name: str,
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    output: Any,
) -> None:
    """Name the values around a module of transformers: its inputs, its output by heads, its second output."""

    def split_heads(x: Tensor) -> Tensor:
        return x.unflatten(-1, (n_heads, -1)).transpose(1, 2)  # (B, S, D) -> (B, H, S, E)

    path, _, last = name.rpartition(".")
    if last in FOLLOWED_BY:
        values[f"{path}.{FOLLOWED_BY[last]}"] = split_heads(args[0]) if last == "out_lin" else args[0]
    elif last in ("q_lin", "k_lin", "v_lin"):
        values[f"{path}.{last[0]}"] = split_heads(output)
    elif last == "attention" and isinstance(output[1], Tensor):  # SDPA returns no probabilities, and masks by bools
        mask, probs = kwargs.get("attention_mask"), output[1]
        if mask is not None:  # a padding mask is repeated for each query: one row is enough
            values[f"{name}.mask"] = mask[:, :, :1] if (mask == mask[:, :, :1]).all() else mask
        values[f"{name}.dropout"] = probs
        if not module.training:
            values[f"{name}.probs"] = probs


def _run_oracle(model: PreTrainedModel, batch: Mapping[str, Tensor | None]) -> dict[str, Tensor]:
    if model.training:
        raise ValueError("the oracle has no dropout: call model.eval() first")
    if unknown := sorted(batch.keys() - {"input_ids", "attention_mask", "position_ids"}):
        raise ValueError(f"the oracle knows input_ids, attention_mask and position_ids, not {', '.join(unknown)}")
    ignore = torch.finfo(model.dtype).min
    values = oracle.run(dict(model.named_parameters()), model.config, **batch, ignore=ignore)
    return {name: torch.from_numpy(value) for name, value in values.items()}


def real_positions(batch: Mapping[str, Tensor | None]) -> Tensor:
    """Return (B, S), or (B, C, S): True where a token is real; everywhere, where no padding mask says otherwise."""
    ids, mask, embeds = (batch.get(name) for name in ("input_ids", "attention_mask", "inputs_embeds"))
    shape = ids.shape if ids is not None else embeds.shape[:-1]  # type: ignore[union-attr]  # it has one of them
    return mask.cpu().bool() if mask is not None and mask.shape == shape else torch.ones(shape, dtype=torch.bool)


def _merge(ours: list[str], theirs: list[str]) -> list[str]:
    """Return our names in our order, with names that only the other has at the place where it has them."""
    names, position = list(ours), 0
    for name in theirs:
        if name not in names:
            names.insert(position, name)
        position = names.index(name) + 1
    return names


def _compare_step(name: str, ours: Tensor | None, theirs: Tensor, real: Tensor, tolerance: float) -> ComparedStep:
    if ours is None:
        return ComparedStep(name, "MISSING", tuple(theirs.shape))
    if ours.shape != theirs.shape:
        return ComparedStep(name, "SHAPE", tuple(ours.shape))
    equal = ours.dtype == theirs.dtype and torch.equal(ours, theirs.to(ours.device))
    ours, theirs = ours.cpu().double(), theirs.cpu().double()
    error = (ours - theirs).abs() / theirs.abs().clamp(min=1)
    error = error.masked_fill(error.isnan(), float("inf")).masked_fill(ours == theirs, 0)  # 0 where both are -inf too
    error, real = torch.broadcast_tensors(error, real_part(name, error, real))
    errors = [part.max().item() if part.numel() else None for part in (error[real], error[~real])]
    ok = all(part <= tolerance for part in errors if part is not None)
    return ComparedStep(name, "OK" if ok else "DIFF", tuple(ours.shape), equal, *errors)


def _checkpoint_batches(model: PreTrainedModel, files: CheckpointFiles) -> list[dict[str, Tensor]]:
    """Return random padded batches, the same each time, and two sentences where there is a tokenizer."""
    config, generator = model.config, torch.Generator().manual_seed(0)
    batches = []
    for rows, length in RANDOM_BATCHES:
        length = min(length, config.max_position_embeddings)
        ids = torch.randint(config.vocab_size, (rows, length), generator=generator)
        lengths = torch.linspace(length, 1, rows).long()
        batches.append({"input_ids": ids, "attention_mask": (torch.arange(length) < lengths[:, None]).long()})
    try:
        tokenizer = DistilBertTokenizer.from_files(files)
    except OSError:  # the checkpoint has none
        pass
    else:
        inputs = tokenizer(list(SENTENCES), padding=True, return_tensors="pt")
        batches.append({name: inputs[name] for name in ("input_ids", "attention_mask")})
    if isinstance(model, DistilBertForMultipleChoice):  # one question, whose choices are the rows
        batches = [{name: value[None] for name, value in batch.items()} for batch in batches]
    return batches


def _load_transformers(name: str, name_or_folder: str | os.PathLike[str], revision: str | None) -> nn.Module:
    try:
        transformers = importlib.import_module("transformers")
    except ImportError:
        raise ValueError(
            "to compare with transformers, install it: pip install transformers (the extra test); or compare with the "
            "oracle alone"
        ) from None
    return getattr(transformers, name).from_pretrained(
        name_or_folder, revision=revision or "main", attn_implementation="eager", dtype=torch.float32
    )


def _cell(error: float | None) -> str:
    return "" if error is None else f"{error:.1e}" if error else "0"

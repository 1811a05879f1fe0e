"""Which models there are, and which of their layers, heads, positions and dtypes a caller may ask for."""

from collections.abc import Iterable, Sequence

import torch

from ..checkpoint import CheckpointFiles
from ..heads import (
    DistilBertForMaskedLM,
    DistilBertForMultipleChoice,
    DistilBertForQuestionAnswering,
    DistilBertForSequenceClassification,
    DistilBertForTokenClassification,
    ModelWithHead,
)
from ..model import DistilBertModel
from ..pretrained import PreTrainedModel
from .report import dtype_name

Model = DistilBertModel | ModelWithHead | DistilBertForQuestionAnswering
MODELS: dict[str, type[PreTrainedModel]] = {
    model.__name__: model
    for model in (
        DistilBertModel,
        DistilBertForMaskedLM,
        DistilBertForSequenceClassification,
        DistilBertForTokenClassification,
        DistilBertForQuestionAnswering,
        DistilBertForMultipleChoice,
    )
}
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def load_checkpoint(files: CheckpointFiles) -> PreTrainedModel:
    """Load a checkpoint as the class that its config.json names, the bare encoder where it names none.

    Raises:
        ValueError: config.json names another class; see also `PreTrainedModel.from_files`.
    """
    architectures = (files.read_json("config.json") or {}).get("architectures") or ["DistilBertModel"]
    if architectures not in [[name] for name in MODELS]:
        raise ValueError(f"{files.name}: config.json has architectures {architectures!r}, but not one of {[*MODELS]}")
    return MODELS[architectures[0]].from_files(files)


def encoder_of(model: Model) -> DistilBertModel:
    """Return the model without its head."""
    return model if isinstance(model, DistilBertModel) else model.distilbert


def layer_name(model: PreTrainedModel, layer: int) -> str:
    """Return the path of a layer in the model."""
    return f"{model.encoder_prefix}transformer.layer.{layer}"


def attention_step(model: PreTrainedModel, layer: int, step: str) -> str:
    """Return the path of a step of a layer's attention, such as "probs"."""
    return f"{layer_name(model, layer)}.attention.{step}"


def choose(name: str, numbers: Iterable[int] | None, count: int) -> list[int]:
    """Return the numbers of layers, heads, rows or positions that a caller asks for; all of them for None.

    Args:
        name: what is numbered, for the error.
        numbers: from 0.
        count: how many there are.

    Raises:
        ValueError: no number, or one that is not from 0 to count - 1.
    """
    numbers = list(range(count) if numbers is None else numbers)
    if not numbers or (wrong := [number for number in numbers if number not in range(count)]):
        raise ValueError(f"{name} must be 0 to {count - 1}, got {str(wrong)[1:-1] if numbers else 'none'}")
    return numbers


def check_dtypes(dtypes: Sequence[torch.dtype]) -> None:
    """Refuse a dtype that the model does not compute in.

    Raises:
        ValueError: no dtype, or one that is not in DTYPES.
    """
    if not dtypes or (wrong := [dtype for dtype in dtypes if dtype not in DTYPES]):
        raise ValueError(
            f"dtypes must be some of {', '.join(map(dtype_name, DTYPES))}, got {wrong if dtypes else 'none'}"
        )

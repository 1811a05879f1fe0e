"""What the models return: dataclasses that can also be read as a dict or a tuple, as in transformers.

Without labels `output.logits`, `output["logits"]` and `output[0]` are the same tensor. Fields that are None are not in
the dict, and not in the tuple.
"""

import copy
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn, Self

import torch
from torch import Tensor


class ModelOutput(Mapping[str, Any], dict[str, Any]):  # type: ignore[misc, metaclass]  # Trainer checks for a dict
    """Reads the fields of a dataclass as a dict or a tuple. A mapping as the only argument gives all fields."""

    def __post_init__(self) -> None:
        first, *_ = vars(self).items()
        if isinstance(first[1], Mapping | Iterator):  # accelerate, DataParallel: type(output)({"logits": …}), or pairs
            vars(self).update({first[0]: None} | dict(first[1]))
        # torch.jit.trace reads the inherited dict, and crashes where that is empty.
        if torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
            dict.update(self, self._present())

    def _present(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if value is not None}

    def __getitem__(self, key: str | int | slice) -> Any:
        return self._present()[key] if isinstance(key, str) else self.to_tuple()[key]

    def __setitem__(self, key: str, value: Any) -> None:
        setattr(self, key, value)

    def __iter__(self) -> Iterator[str]:
        return iter(self._present())

    def __len__(self) -> int:
        return len(self._present())

    def copy(self) -> Self:
        """Return an output with the same tensors."""
        return copy.copy(self)

    def __or__(self, other: Any) -> dict[str, Any]:
        return self._present() | other

    def _refuse(self, *_: object, **__: object) -> NoReturn:
        raise TypeError("an output is changed by its attributes only: set the attribute, or change dict(output)")

    # The inherited methods would change the dict that lies hidden in an output, and that nothing reads.
    update = setdefault = pop = popitem = clear = __delitem__ = __ior__ = _refuse

    def to_tuple(self) -> tuple[Any, ...]:
        """Return the fields that are not None, in their order."""
        return tuple(self._present().values())


@dataclass
class EncoderOutput(ModelOutput):
    """What the encoder returns.

    Args:
        last_hidden_state: (B, S, D). The rows of [PAD] are computed like all others, but have no meaning.
        hidden_states: n_layers + 1 of (B, S, D), the embeddings first; None unless asked for.
        attentions: n_layers of (B, H, S, S), the probabilities before dropout; None unless asked for.
    """

    last_hidden_state: Tensor
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


@dataclass
class LogitsOutput(ModelOutput):
    """What every head but question answering returns.

    Args:
        loss: scalar; None without labels.
        logits: (B, L); token classification (B, S, L), masked LM (B, S, V), multiple choice (B, C).
        hidden_states: n_layers + 1 of (B, S, D); None unless asked for.
        attentions: n_layers of (B, H, S, S), before dropout; None unless asked for.
    """

    loss: Tensor | None = None
    logits: Tensor = None  # type: ignore[assignment]  # a default, because that of `loss` stands before it
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


@dataclass
class SpanOutput(ModelOutput):
    """What question answering returns.

    Args:
        loss: scalar; None without start_positions and end_positions.
        start_logits: (B, S), how likely each token is the first of the answer.
        end_logits: (B, S), how likely each token is the last of the answer.
        hidden_states: n_layers + 1 of (B, S, D); None unless asked for.
        attentions: n_layers of (B, H, S, S), before dropout; None unless asked for.
    """

    loss: Tensor | None = None
    start_logits: Tensor = None  # type: ignore[assignment]
    end_logits: Tensor = None  # type: ignore[assignment]
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


for output in (EncoderOutput, LogitsOutput, SpanOutput):  # so that torch.export, torch.func and DDP see the tensors
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch 2.6 calls what it deprecates
        torch.export.register_dataclass(output, serialized_type_name=f"{output.__module__}.{output.__name__}")

"""The sizes and switches of a DistilBERT, read from a checkpoint's config.json."""

import dataclasses
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from .checkpoint import CheckpointFiles

logger = logging.getLogger(__name__)

ALIASES = {"hidden_size": "dim", "num_hidden_layers": "n_layers", "num_attention_heads": "n_heads"}
ACTIVATIONS = ("gelu", "relu")
PROBLEM_TYPES = ("regression", "single_label_classification", "multi_label_classification")
LARGEST_SIZE = 1_000_000  # far above any real checkpoint; a wrong number in a file must not allocate terabytes


@dataclass(frozen=True)
class DistilBertConfig:
    """The sizes and switches of a DistilBERT, named as in config.json; defaults are those of distilbert-base-uncased.

    Args:
        vocab_size: number of tokens V.
        max_position_embeddings: number of positions, the longest input in tokens.
        dim: width D of the hidden states.
        n_layers: number of transformer blocks.
        n_heads: attention heads H per block; divides `dim`.
        hidden_dim: width of the feed-forward layer.
        activation: "gelu" (the exact one, not its tanh approximation) or "relu".
        dropout: after the embeddings and the feed-forward layer, and before the token classifier.
        attention_dropout: on the attention probabilities.
        seq_classif_dropout: before the sequence and multiple-choice classifiers.
        qa_dropout: before the question-answering layer.
        initializer_range: standard deviation of random weights.
        sinusoidal_pos_embds: a new model's position table holds sines (Vaswani et al. 2017, section 3.5), not random
            numbers. It has no effect on a loaded checkpoint.
        pad_token_id: the word embedding of this token is zero in a new model and gets no gradient from the input; None
            if there is no such token.
        tie_word_embeddings: the masked-LM projector shares its weight with the word-embedding table.
        num_labels: number of classes; None means the number of names in `id2label`, or 2 without names.
        id2label: class number to name; None means LABEL_0, LABEL_1, …
        problem_type: the loss of a sequence classifier; None infers it from the labels at each call.

    Raises:
        ValueError: names a field whose value no DistilBERT can have.
    """

    vocab_size: int = 30522
    max_position_embeddings: int = 512
    dim: int = 768
    n_layers: int = 6
    n_heads: int = 12
    hidden_dim: int = 3072
    activation: str = "gelu"
    dropout: float = 0.1
    attention_dropout: float = 0.1
    seq_classif_dropout: float = 0.2
    qa_dropout: float = 0.1
    initializer_range: float = 0.02
    sinusoidal_pos_embds: bool = False
    pad_token_id: int | None = 0
    tie_word_embeddings: bool = True
    num_labels: int = None  # type: ignore[assignment]  # __post_init__ fills in both of these
    id2label: Mapping[int, str] = None  # type: ignore[assignment]
    problem_type: str | None = None

    def __post_init__(self) -> None:
        if self.num_labels is None:
            object.__setattr__(self, "num_labels", 2 if self.id2label is None else len(self.id2label))
        for name in (
            "vocab_size",
            "max_position_embeddings",
            "dim",
            "n_layers",
            "n_heads",
            "hidden_dim",
            "num_labels",
        ):
            size = getattr(self, name)
            if type(size) is not int or not 0 < size <= LARGEST_SIZE:
                raise ValueError(f"{name} must be an integer from 1 to {LARGEST_SIZE}, got {size!r}")
        if self.dim % self.n_heads:
            raise ValueError(f"dim ({self.dim}) must be divisible by n_heads ({self.n_heads})")
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"activation must be one of {ACTIVATIONS}, got {self.activation!r}")
        if self.problem_type not in (None, *PROBLEM_TYPES):
            raise ValueError(f"problem_type must be None or one of {PROBLEM_TYPES}, got {self.problem_type!r}")
        for name in ("dropout", "attention_dropout", "seq_classif_dropout", "qa_dropout"):
            if not (_is_number(probability := getattr(self, name)) and 0 <= probability <= 1):
                raise ValueError(f"{name} must be a probability from 0 to 1, got {probability!r}")
        if not (_is_number(self.initializer_range) and 0 <= self.initializer_range < float("inf")):
            raise ValueError(f"initializer_range must be a number of at least 0, got {self.initializer_range!r}")
        for name in ("sinusoidal_pos_embds", "tie_word_embeddings"):
            if type(getattr(self, name)) is not bool:
                raise ValueError(f"{name} must be true or false, got {getattr(self, name)!r}")
        pad = self.pad_token_id
        if pad is not None and not (type(pad) is int and 0 <= pad < self.vocab_size):
            raise ValueError(
                f"pad_token_id must be a token id below vocab_size ({self.vocab_size}) or None, got {pad!r}"
            )
        if self.id2label is None:
            object.__setattr__(self, "id2label", {i: f"LABEL_{i}" for i in range(self.num_labels)})
        elif sorted(self.id2label) != list(range(self.num_labels)):
            raise ValueError(
                f"id2label must name the classes 0 to {self.num_labels - 1} (num_labels), got {self.id2label}"
            )

    @property
    def label2id(self) -> dict[str, int]:
        """Class name to number: the inverse of `id2label`."""
        return {label: i for i, label in self.id2label.items()}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Self:
        """Read the content of a config.json, old or new; fields that DistilBERT does not have are ignored.

        Raises:
            ValueError: another architecture, or a value that no DistilBERT can have.
        """
        for alias, name in ALIASES.items():
            if alias in content and name in content and content[alias] != content[name]:
                raise ValueError(f"{name} is {content[name]!r} but {alias}, another name for it, is {content[alias]!r}")
        content = {ALIASES.get(name, name): value for name, value in content.items()}
        guess = "distilbert" if "n_layers" in content and "dim" in content else None  # files of 2019 have no model_type
        if (model_type := content.get("model_type", guess)) != "distilbert":
            raise ValueError(f"model_type is {model_type!r}: minibert reads DistilBERT checkpoints only")
        if (labels := content.get("id2label")) is not None:
            if not isinstance(labels, Mapping) or not all(str(i).isdecimal() for i in labels):
                raise ValueError(f"id2label must map class numbers to names, got {labels!r}")
            content["id2label"] = {int(i): str(label) for i, label in labels.items()}  # JSON's keys are strings
            if content.get("num_labels") not in (None, len(labels)):  # old names that fine-tuning in 2020 kept
                logger.warning("id2label names %d classes of %s: ignored", len(labels), content["num_labels"])
                del content["id2label"]
        fields = {field.name for field in dataclasses.fields(cls)}
        return cls(**{name: value for name, value in content.items() if name in fields})

    def to_dict(self) -> dict[str, Any]:
        """Return the content of a config.json that minibert and transformers both read."""
        return {"model_type": "distilbert"} | dataclasses.asdict(self) | {"label2id": self.label2id}

    @classmethod
    def from_files(cls, files: CheckpointFiles) -> Self:
        """Read the config.json among a checkpoint's files.

        Raises:
            OSError: there is no config.json.
            ValueError: it is not the config of a DistilBERT.
        """
        content = files.read_json("config.json")
        if content is None:
            raise OSError(f"{files.name}: no config.json in it{files.hint()}")
        try:
            return cls.from_dict(content)
        except ValueError as error:
            raise ValueError(f"{files.name}: config.json: {error}") from None

    @classmethod
    def from_pretrained(
        cls,
        name_or_folder: str | os.PathLike[str],
        *,
        revision: str | None = None,
        token: str | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
    ) -> Self:
        """Read config.json from a folder or from the Hub; arguments and errors as in `CheckpointFiles`."""
        return cls.from_files(
            CheckpointFiles(
                name_or_folder,
                revision=revision,
                token=token,
                cache_dir=cache_dir,
                local_files_only=local_files_only,
            )
        )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)

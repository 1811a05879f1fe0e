"""The sizes and switches of a DistilBERT, read from a checkpoint's config.json."""

import logging
import os
import sys
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from operator import attrgetter
from pathlib import Path
from typing import Any, ClassVar, Self

from .checkpoint import CheckpointFiles, to_json, write_config

logger = logging.getLogger(__name__)

ALIASES = {"hidden_size": "dim", "num_hidden_layers": "n_layers", "num_attention_heads": "n_heads"}
SIZES = ("vocab_size", "max_position_embeddings", "dim", "n_layers", "n_heads", "hidden_dim")
LABELS = ("num_labels", "id2label", "label2id")
FILE_CHOICES = (
    *("subfolder", "variant", "gguf_file", "state_dict", "key_mapping", "from_tf", "from_flax"),
    *("quantization_config", "load_in_4bit", "load_in_8bit"),
)
WITHOUT_EFFECT = ("trust_remote_code", "force_download")  # no code is run; a file is compared with its hash
CALL_ARGUMENTS = {"output_attentions": False, "output_hidden_states": False, "return_dict": True}  # what models do
ACTIVATIONS = ("gelu", "relu")
PROBLEM_TYPES = ("regression", "single_label_classification", "multi_label_classification")
LARGEST_SIZE = 1_000_000  # far above any real checkpoint; a wrong number in a file must not allocate terabytes
MOST = {  # where the limit is lower
    "n_layers": 1000,  # each layer takes milliseconds to build, even without weights
    "num_labels": 100_000,  # each label gets a name
}
LONGEST_NAME = 1000  # characters of a label; reports and pages show each one several times


@dataclass(init=False)
class DistilBertConfig:
    """The sizes and switches of a DistilBERT, named as in config.json; defaults are those of distilbert-base-uncased.

    `hidden_size`, `num_hidden_layers` and `num_attention_heads` are other names for `dim`, `n_layers` and `n_heads`.
    The sizes are fixed; all other fields can be set, and are checked. A model reads its config when it is built: it
    keeps the layers that it has when a field is set later. Attributes that are not fields can be set, and are not
    saved.

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
        label2id: class name to number, in place of `id2label`.
        problem_type: the loss of a sequence classifier; None infers it from the labels at each call.

    Raises:
        ValueError: names a field whose value no DistilBERT can have, or an argument of the model's call.
    """

    model_type: ClassVar[str] = "distilbert"
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
    num_labels: int = None  # type: ignore[assignment]  # __init__ fills in both of these
    id2label: Mapping[int, str] = None  # type: ignore[assignment]
    problem_type: str | None = None

    hidden_size = property(attrgetter("dim"))
    num_hidden_layers = property(attrgetter("n_layers"))
    num_attention_heads = property(attrgetter("n_heads"))

    def __init__(self, **values: Any) -> None:
        values = rename_aliases(values)
        check_model_type(values.pop("model_type", self.model_type))
        label2id = values.pop("label2id", None)
        if label2id is not None and not (
            isinstance(label2id, Mapping) and all(type(i) is int for i in label2id.values())
        ):
            raise ValueError(f"label2id must map names to class numbers, got {label2id!r:.200}")
        if label2id is not None and values.get("id2label") is None:
            values["id2label"] = {i: label for label, i in label2id.items()}
        for name in CALL_ARGUMENTS.keys() & values.keys():
            check_call_argument(name, values[name])
        names = {field.name for field in fields(self)}
        if unknown := sorted(values.keys() - names):
            message = f"DistilBERT has no {', '.join(unknown)}: the config keeps them without effect"
            warnings.warn(message, stacklevel=callers_level())
        vars(self).update({field.name: field.default for field in fields(self)} | values)
        if self.id2label is not None:
            vars(self)["id2label"] = read_names(self.id2label)
        if self.num_labels is None:
            vars(self)["num_labels"] = 2 if self.id2label is None else len(self.id2label)
        self._check()
        vars(self)["initializer_range"] = float(self.initializer_range)  # transformers refuses 1 in place of 1.0
        if self.id2label is None:
            vars(self)["id2label"] = {i: f"LABEL_{i}" for i in range(self.num_labels)}
        if label2id not in (None, self.label2id):
            raise ValueError(f"label2id must be the inverse of id2label {self.id2label!r:.200}, got {label2id!r:.200}")

    def _check(self) -> None:
        for name in (*SIZES, "num_labels"):
            size = getattr(self, name)
            limit = MOST.get(name, LARGEST_SIZE)
            if type(size) is not int or not 0 < size <= limit:
                raise ValueError(f"{name} must be an integer from 1 to {limit}, got {size!r:.200}")
        if self.dim % self.n_heads:
            raise ValueError(f"dim ({self.dim}) must be divisible by n_heads ({self.n_heads})")
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"activation must be one of {ACTIVATIONS}, got {self.activation!r:.200}")
        if self.problem_type not in (None, *PROBLEM_TYPES):
            raise ValueError(f"problem_type must be None or one of {PROBLEM_TYPES}, got {self.problem_type!r:.200}")
        for name in ("dropout", "attention_dropout", "seq_classif_dropout", "qa_dropout"):
            if not (is_number(probability := getattr(self, name)) and 0 <= probability <= 1):
                raise ValueError(f"{name} must be a probability from 0 to 1, got {probability!r:.200}")
        if not (is_number(self.initializer_range) and 0 <= self.initializer_range <= sys.float_info.max):
            raise ValueError(f"initializer_range must be a number of at least 0, got {self.initializer_range!r:.200}")
        for name in ("sinusoidal_pos_embds", "tie_word_embeddings"):
            if type(getattr(self, name)) is not bool:
                raise ValueError(f"{name} must be true or false, got {getattr(self, name)!r:.200}")
        pad = self.pad_token_id
        if pad is not None and not (type(pad) is int and 0 <= pad < self.vocab_size):
            raise ValueError(
                f"pad_token_id must be a token id below vocab_size ({self.vocab_size}) or None, got {pad!r:.200}"
            )
        if self.id2label is not None and sorted(self.id2label) != list(range(self.num_labels)):
            raise ValueError(
                f"id2label must name the classes 0 to {self.num_labels - 1} (num_labels), got {self.id2label!r:.200}"
            )

    def __setattr__(self, name: str, value: Any) -> None:
        name = ALIASES.get(name, name)
        check_call_argument(name, value)
        if name == "model_type":
            check_model_type(value)
        if name in SIZES:
            raise AttributeError(
                f"{name} cannot be set: dataclasses.replace(config, {name}={value!r:.200}) makes a new config"
            )
        if name in LABELS or name in {field.name for field in fields(self)}:
            vars(self).update(vars(self.changed(**{name: value})))
        else:
            super().__setattr__(name, value)

    def changed(self, **values: Any) -> Self:
        """Return a copy with other values; of `num_labels`, `id2label` and `label2id` one is enough.

        Raises:
            ValueError: as the constructor.
        """
        values = {name: value for name, value in values.items() if name not in LABELS or value is not None}
        if values.get("num_labels") == self.num_labels and not values.keys() & {"id2label", "label2id"}:
            del values["num_labels"]  # the names stay
        if any(name in values for name in LABELS):
            values = {"num_labels": None, "id2label": None} | values
        return replace(self, **rename_aliases(values))

    @property
    def label2id(self) -> dict[str, int]:
        """Class name to number: the inverse of `id2label`."""
        return {label: i for i, label in self.id2label.items()}

    def get(self, name: str, default: Any = None) -> Any:
        """Return a field by either of its names, or another attribute."""
        return getattr(self, name, default)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Self:
        """Read the content of a config.json, old or new; fields that DistilBERT does not have are ignored.

        Raises:
            ValueError: another architecture, or a value that no DistilBERT can have.
        """
        content = rename_aliases(content)
        if {"n_layers", "dim"} <= content.keys():
            content.setdefault("model_type", cls.model_type)  # files of 2019 do not have it
        check_model_type(content.get("model_type"))
        labels = content.get("id2label")
        if isinstance(labels, Mapping) and content.get("num_labels") not in (None, len(labels)):
            logger.warning("id2label names %d classes of %.200r: ignored", len(labels), content["num_labels"])
            content["id2label"] = None  # fine-tuning in 2020 kept the old names
        for name, value in CALL_ARGUMENTS.items():
            if content.get(name, value) not in (value, None):
                logger.warning("config.json asks for %s=%.200r in all calls: ignored", name, content[name])
        return cls(**{field.name: content[field.name] for field in fields(cls) if field.name in content})

    def to_dict(self) -> dict[str, Any]:
        """Return the content of a config.json that minibert and transformers both read."""
        return {"model_type": self.model_type} | asdict(self) | {"label2id": self.label2id}

    def to_json_string(self) -> str:
        """Return the text of a config.json."""
        return to_json(self.to_dict()).decode()

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write config.json into a folder, which is created if missing; weights beside it are left as they are."""
        write_config(Path(folder), self.to_dict())

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
        **values: Any,
    ) -> Self:
        """Read config.json; arguments and errors as in `CheckpointFiles`. Other keywords replace the file's values."""
        files = CheckpointFiles(
            name_or_folder, revision=revision, token=token, cache_dir=cache_dir, local_files_only=local_files_only
        )
        return cls.from_files(files).changed(**without_file_choices(values))


def rename_aliases(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values under the names of the fields."""
    for alias, name in ALIASES.items():
        if alias in values and name in values and values[alias] != values[name]:
            raise ValueError(
                f"{name} is {values[name]!r:.200} but {alias}, another name for it, is {values[alias]!r:.200}"
            )
    return {ALIASES.get(name, name): value for name, value in values.items()}


def without_file_choices(values: Mapping[str, Any]) -> dict[str, Any]:
    """Refuse the keywords of transformers that choose other files or other weights; None and False choose nothing.

    Those that have no effect here are left out.
    """
    for name in FILE_CHOICES:
        if values.get(name):
            raise ValueError(
                f"minibert has no {name}=: pass the folder itself that holds config.json and the other files to load"
            )
    return {name: value for name, value in values.items() if name not in (*FILE_CHOICES, *WITHOUT_EFFECT)}


def check_call_argument(name: str, value: object) -> None:
    """Refuse to ask for other outputs in the config, where transformers takes such arguments too."""
    if CALL_ARGUMENTS.get(name, value) != value and value is not None:
        raise ValueError(f"{name} is an argument of the call: model(…, {name}={value})")


def callers_level() -> int:
    """Return the `stacklevel` with which the function that calls this one warns the caller of minibert."""
    frame, level = sys._getframe(1), 1
    while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] in ("minibert", "dataclasses"):
        frame, level = frame.f_back, level + 1
    return level


def check_model_type(model_type: object) -> None:
    """Refuse the config of another architecture."""
    if model_type != DistilBertConfig.model_type:
        raise ValueError(f"model_type is {model_type!r:.200}: minibert reads DistilBERT checkpoints only")


def read_names(id2label: object) -> dict[int, str]:
    """Return class numbers and names; in JSON the numbers are strings."""
    if not isinstance(id2label, Mapping) or not all(str(i).isdecimal() for i in id2label):
        raise ValueError(f"id2label must map class numbers to names, got {id2label!r:.200}")
    names = {int(i): str(label) for i, label in id2label.items()}
    if len(names) < len(id2label):
        raise ValueError(f"id2label names a class twice: {id2label!r:.200}")
    if long := next((name for name in names.values() if len(name) > LONGEST_NAME), None):
        raise ValueError(f"id2label has a name of {len(long)} characters, {LONGEST_NAME} are the most: {long!r:.200}")
    return names


def is_number(value: object) -> bool:
    """Whether a value is an int or a float; bools are not numbers here."""
    return isinstance(value, int | float) and not isinstance(value, bool)

"""What every model has besides its formulas: random weights, `from_pretrained` and `save_pretrained`."""

import logging
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from .checkpoint import CheckpointFiles, read_tensors, write_checkpoint
from .config import DistilBertConfig

logger = logging.getLogger(__name__)

HEAD_PREFIXES = (
    "vocab_transform.",
    "vocab_layer_norm.",
    "vocab_projector.",
    "pre_classifier.",
    "classifier.",
    "qa_outputs.",
)
WORDS = "embeddings.word_embeddings.weight"
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
PROJECTOR = "vocab_projector.weight"  # of the masked-LM head; usually tied to WORDS, and then not in the file


class PreTrainedModel(nn.Module):
    """A module with a config. Its submodules are named as in the checkpoint, so no table of names is needed."""

    encoder_prefix: ClassVar[str] = "distilbert."  # prefix of the encoder's parameter names
    head_has_labels: ClassVar[bool] = False  # True if the head's width is config.num_labels

    def __init__(self, config: DistilBertConfig) -> None:
        super().__init__()
        self.config = config

    @property
    def device(self) -> torch.device:
        """Device of the parameters."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the parameters."""
        return next(self.parameters()).dtype

    def tie_weights(self) -> None:
        """Share parameters that the checkpoint stores only once; only the masked-LM head has such a pair."""

    @torch.no_grad()
    def init_weights(self, *modules: nn.Module) -> None:
        """Draw random weights from N(0, initializer_range); biases and the embedding of [PAD] are 0, LayerNorm 1 and 0.

        Source: Devlin et al. 2018, who truncate the normal at two standard deviations; transformers does not.
        """
        if self.device.type == "meta":
            return  # a meta tensor has no values
        for part in (part for module in modules for part in module.modules()):
            if isinstance(part, nn.Linear):
                part.weight.normal_(std=self.config.initializer_range)
                part.bias.zero_()
            elif isinstance(part, nn.Embedding):
                part.weight.normal_(std=self.config.initializer_range)
                if part.padding_idx is not None:
                    part.weight[part.padding_idx].zero_()
            elif isinstance(part, nn.LayerNorm):
                part.reset_parameters()

    @classmethod
    def from_pretrained(
        cls,
        name_or_folder: str | os.PathLike[str],
        *,
        revision: str | None = None,
        token: str | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
        new_head: bool = False,
        num_labels: int | None = None,
        id2label: Mapping[int, str] | None = None,
    ) -> Self:
        """Load a config and weights from a folder or from one commit of a Hub repository.

        Strict: the file must hold every tensor of the model, in its shape, and no other tensor. One exception: the
        bare encoder can be loaded from a file that also has a head.

        Args:
            name_or_folder: like the next four arguments, as for `CheckpointFiles`.
            revision: branch, tag or commit.
            token: Hub token.
            cache_dir: cache folder.
            local_files_only: no network.
            dtype: of the parameters, whatever the dtype of the file.
            device: of the parameters; None is the CPU.
            new_head: ignore the file's head, if any, and draw this model's head at random, to be trained.
            num_labels: number of classes of a new head.
            id2label: class names of a new head, or new names for the classes of the file's head.

        Returns:
            The model in eval mode.

        Raises:
            OSError: a file, the repository or the revision does not exist, or the network failed.
            ValueError: the files hold another architecture, or tensors that do not match the model.
        """
        files = CheckpointFiles(
            name_or_folder, revision=revision, token=token, cache_dir=cache_dir, local_files_only=local_files_only
        )
        return cls.from_files(
            files, dtype=dtype, device=device, new_head=new_head, num_labels=num_labels, id2label=id2label
        )

    @classmethod
    def from_files(
        cls,
        files: CheckpointFiles,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
        new_head: bool = False,
        num_labels: int | None = None,
        id2label: Mapping[int, str] | None = None,
    ) -> Self:
        """Load a model from files that a tokenizer can be loaded from too, so that both are of one commit."""
        if dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(map(str, DTYPES))}, got {dtype!r}")
        config = cls._choose_labels(DistilBertConfig.from_files(files), num_labels, id2label, new_head)
        encoder, head = split_encoder_and_head(read_tensors(files), files.name)
        config = resolve_tie(config, encoder, head)
        model = cls.from_tensors(config, encoder, None if new_head else head, files.name)
        return model.to(device=device, dtype=dtype).eval()

    @classmethod
    def _choose_labels(
        cls, config: DistilBertConfig, num_labels: int | None, id2label: Mapping[int, str] | None, new_head: bool
    ) -> DistilBertConfig:
        """Return the config with the labels that the caller asks for; an error if the model cannot have them."""
        labels_given = num_labels is not None or id2label is not None
        if new_head and not cls.encoder_prefix:
            raise ValueError(f"{cls.__name__} has no head: leave out new_head=True")
        if new_head and cls.head_has_labels and not labels_given:
            raise ValueError("new_head=True needs num_labels= or id2label=, the classes of the new head")
        if not labels_given:
            return config
        chosen = replace(config, num_labels=num_labels, id2label=id2label)  # type: ignore[arg-type]
        if new_head:
            return replace(chosen, problem_type=None)  # the stored one belongs to the head that is ignored
        if chosen.num_labels != config.num_labels and not cls.head_has_labels:
            raise ValueError(f"{cls.__name__} has no labels: leave out num_labels= and id2label=")
        if chosen.num_labels != config.num_labels:
            raise ValueError(
                f"the checkpoint has {config.num_labels} labels, not {chosen.num_labels}: pass new_head=True to draw "
                f"a new head at random, and train it"
            )
        return config if id2label is None else chosen

    @classmethod
    def from_tensors(
        cls, config: DistilBertConfig, encoder: Mapping[str, Tensor], head: Mapping[str, Tensor] | None, where: str
    ) -> Self:
        """Build the model around tensors, in their dtype and without copying them.

        Args:
            config: compared with the tensors before memory is allocated.
            encoder: the encoder's tensors, named as in `DistilBertModel`.
            head: the head's tensors, which `DistilBertModel` ignores; None draws them at random.
            where: name of the checkpoint, for errors.

        Raises:
            ValueError: the tensors do not match the config.
        """
        layers = {name.split(".")[2] for name in encoder if name.startswith("transformer.layer.")}
        if len(layers) != config.n_layers:  # checked first: a false n_layers must not build a huge model
            raise ValueError(
                f"{where}: config.json says n_layers={config.n_layers}, the file holds {len(layers)} "
                f"(its tensors: {', '.join(sorted(encoder)[:3])}, …)"
            )
        with torch.device("meta"):  # shapes without memory: the weights come from the file
            model = cls(config)
        tensors = {cls.encoder_prefix + name: tensor for name, tensor in encoder.items()}
        shapes = {name: parameter.shape for name, parameter in model.named_parameters()}  # tied parameters appear once
        if head is None:
            shapes = {name: shape for name, shape in shapes.items() if name.startswith(cls.encoder_prefix)}
        elif cls.encoder_prefix:
            tensors |= head
        check_tensors(tensors, shapes, where)
        model.load_state_dict(tensors, strict=False, assign=True)  # not strict: tied parameters and a new head follow
        if head is None:
            parts = [part for name, part in model.named_children() if f"{name}." != cls.encoder_prefix]
            for part in parts:
                part.to_empty(device="cpu")
            model.init_weights(*parts)
            logger.warning("%s: %s has a new head, drawn at random: train it before use", where, cls.__name__)
        model.tie_weights()
        return model

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write config.json and model.safetensors, which minibert and transformers both read.

        If saving is interrupted, the folder holds either the old checkpoint or the new one.

        Args:
            folder: created if missing; the two files are replaced, others are not touched.

        Raises:
            OSError: the folder cannot be written to.
        """
        config = self.config.to_dict() | {
            "architectures": [type(self).__name__],
            "dtype": str(self.dtype).removeprefix("torch."),
        }
        write_checkpoint(Path(folder), config, {name: p.detach() for name, p in self.named_parameters()})


def split_encoder_and_head(tensors: Mapping[str, Tensor], where: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Split a file's tensors into the encoder's, without the prefix `distilbert.`, and the head's; update old names.

    Raises:
        ValueError: two tensors get the same name.
    """
    encoder: dict[str, Tensor] = {}
    head: dict[str, Tensor] = {}
    for stored_name, tensor in tensors.items():
        name = stored_name.removeprefix("module.")  # written by torch.nn.DataParallel
        if name.endswith("embeddings.position_ids"):  # a buffer of old files: 0, 1, 2, …
            continue
        for old, new in ((".gamma", ".weight"), (".beta", ".bias")):  # TensorFlow's names for a LayerNorm's parameters
            name = name.removesuffix(old) + new if name.endswith(old) else name
        part = head if name.startswith(HEAD_PREFIXES) else encoder
        name = name.removeprefix("distilbert.")  # written by every model with a head
        if name in part:
            raise ValueError(f"{where}: the file holds {name} twice, once as {stored_name}")
        part[name] = tensor
    return encoder, head


def check_tensors(found: Mapping[str, Tensor], expected: Mapping[str, torch.Size], where: str) -> None:
    """Compare names, shapes and dtypes before a tensor is used.

    Raises:
        ValueError: names every tensor that is missing, unexpected, of another shape, or not floating point.
    """
    problems = []
    if missing := sorted(expected.keys() - found.keys()):
        problems.append(f"missing {missing}")
    if unexpected := sorted(found.keys() - expected.keys()):
        problems.append(f"unexpected {unexpected}")
    for name in sorted(found.keys() & expected.keys()):
        tensor = found[name]
        if tensor.shape != expected[name]:
            problems.append(f"{name} is {tuple(tensor.shape)} in the file, config.json says {tuple(expected[name])}")
        elif not tensor.is_floating_point():
            problems.append(f"{name} is {tensor.dtype}, not floating point")
    if any(name.startswith(HEAD_PREFIXES) for name in expected.keys() ^ found.keys()):
        problems.append("the file has another head, or none: new_head=True draws one at random, to be trained")
    if problems:
        raise ValueError(f"{where}: the file and the model do not match: {'; '.join(problems)}")


def resolve_tie(config: DistilBertConfig, encoder: dict[str, Tensor], head: dict[str, Tensor]) -> DistilBertConfig:
    """Decide whether a file's masked-LM projector is tied to the word-embedding table; return the config that says so.

    If they are tied, the file holds one of the two (usually the table), or both with equal values. If the values
    differ, they are not tied, even if config.json says that they are.
    """
    if not config.tie_word_embeddings or PROJECTOR not in head:
        return config
    if not torch.equal(encoder.setdefault(WORDS, head[PROJECTOR]), head[PROJECTOR]):
        return replace(config, tie_word_embeddings=False)
    del head[PROJECTOR]
    return config

"""What every model has besides its formulas: weights drawn at random, loaded from a checkpoint, saved to one."""

import json
import logging
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import ClassVar, Self

import torch
from safetensors.torch import save
from torch import Tensor, nn

from .checkpoint import CheckpointFiles, check_tensors, read_tensors, split_encoder_and_head, write_atomically
from .config import DistilBertConfig

logger = logging.getLogger(__name__)


class PreTrainedModel(nn.Module):
    """A module with a config. Its parts bear the checkpoint's own names, so there is no table of renamings."""

    encoder_prefix: ClassVar[str] = "distilbert."  # what the encoder's parameter names begin with in this model
    head_has_labels: ClassVar[bool] = False  # True where the head's width is config.num_labels

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
        """Make parameters that the checkpoint stores once one in memory; only the masked-LM head has such."""

    @torch.no_grad()
    def init_weights(self, *modules: nn.Module) -> None:
        """Draw fresh weights: N(0, initializer_range), biases 0, LayerNorm 1 and 0, the padding's embedding 0.

        Source: Devlin et al. 2018 draw from this normal truncated at two deviations; transformers does not truncate.
        """
        if self.device.type == "meta":
            return  # there is no memory to draw into
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
        """Load config.json and model.safetensors from a folder or from one commit of a Hub repository.

        Strict: the file must hold every tensor that the model has, in its shape, and no other. One exception: the
        bare encoder may be taken from a file that has a head too.

        Args:
            name_or_folder: as for `CheckpointFiles`.
            revision: branch, tag or commit on the Hub.
            token: Hub token.
            cache_dir: where the Hub's files are kept.
            local_files_only: never use the network.
            dtype: of the parameters, whatever the file holds.
            device: of the parameters; None is the CPU.
            new_head: leave out the file's head, if any, and draw this model's at random, to be trained.
            num_labels: classes of a new head.
            id2label: names of a new head's classes, or other names for those of the file's head.

        Returns:
            The model in eval mode.

        Raises:
            OSError: a file, the repository, the revision or the network is not there.
            ValueError: the files hold another architecture, or tensors that do not match it.
        """
        if not dtype.is_floating_point:
            raise ValueError(f"dtype must be a floating-point torch.dtype, got {dtype}")
        files = CheckpointFiles(
            name_or_folder,
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
        )
        config = DistilBertConfig.from_files(files)
        if num_labels not in (None, config.num_labels) or id2label is not None:
            stored = config
            config = replace(stored, num_labels=num_labels, id2label=id2label)  # type: ignore[arg-type]
            if config.num_labels != stored.num_labels and not new_head:
                raise ValueError(
                    f"{files.name} has {stored.num_labels} labels, not {config.num_labels}: pass new_head=True to draw "
                    f"a new head at random, and train it"
                )
        elif new_head and cls.head_has_labels and num_labels is None:
            raise ValueError("new_head=True needs num_labels= or id2label=: the classes the new head is to tell apart")

        model = cls._from_tensors(config, read_tensors(files), files.name, new_head)
        return model.to(device=device, dtype=dtype).eval()

    @classmethod
    def _from_tensors(cls, config: DistilBertConfig, tensors: Mapping[str, Tensor], where: str, new_head: bool) -> Self:
        encoder, head = split_encoder_and_head(tensors)
        layers = {name.split(".")[2] for name in encoder if name.startswith("transformer.layer.")}
        if len(layers) != config.n_layers:  # before a model is built: so far n_layers is only config.json's word
            raise ValueError(f"{where}: config.json says n_layers={config.n_layers}, the file holds {len(layers)}")
        if (projector := head.pop("vocab_projector.weight", None)) is not None:
            tied = torch.equal(projector, encoder.get("embeddings.word_embeddings.weight", torch.empty(0)))
            config = replace(config, tie_word_embeddings=tied)
            if not tied:
                head["vocab_projector.weight"] = projector

        with torch.device("meta"):  # shapes without memory: nothing is drawn that is about to be replaced
            model = cls(config)
        wanted = {cls.encoder_prefix + name: tensor for name, tensor in encoder.items()}
        if cls.encoder_prefix and not new_head:
            wanted |= head
        shapes = {name: parameter.shape for name, parameter in model.named_parameters()}  # a tied one once
        if new_head:
            shapes = {name: shape for name, shape in shapes.items() if name.startswith(cls.encoder_prefix)}
        check_tensors(wanted, shapes, where)
        model.load_state_dict(wanted, strict=False, assign=True)
        if new_head:
            fresh = [part for name, part in model.named_children() if f"{name}." != cls.encoder_prefix]
            for part in fresh:
                part.to_empty(device="cpu")
            model.init_weights(*fresh)
            logger.warning("%s: %s has a new head, drawn at random: train it before use", where, cls.__name__)
        model.tie_weights()
        return model

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write config.json and model.safetensors, which minibert and transformers both read.

        Args:
            folder: made where missing; files of these names in it are replaced.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        content = self.config.to_dict() | {
            "architectures": [type(self).__name__],
            "dtype": str(self.dtype).removeprefix("torch."),
        }
        tensors = {name: parameter.detach().cpu().contiguous() for name, parameter in self.named_parameters()}
        write_atomically(folder / "model.safetensors", save(tensors, metadata={"format": "pt"}))
        write_atomically(folder / "config.json", (json.dumps(content, indent=2) + "\n").encode())

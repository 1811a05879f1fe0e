"""What every model has besides its formulas: random weights, loading, saving, and what training tools ask for."""

import copy
import logging
import os
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Self, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .checkpoint import CheckpointFiles, read_tensors, write_checkpoint
from .config import LABELS, DistilBertConfig, without_file_choices
from .weights import DTYPES, HEAD_PREFIXES, PROJECTOR, WORDS, compare_tensors, resolve_tie, split_encoder_and_head

logger = logging.getLogger(__name__)


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

    @property
    def base_model(self) -> "PreTrainedModel":
        """The encoder, `DistilBertModel`."""
        return cast(PreTrainedModel, getattr(self, "distilbert", self))

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
                if part.bias is not None:
                    part.bias.zero_()
            elif isinstance(part, nn.Embedding):
                part.weight.normal_(std=self.config.initializer_range)
                if part.padding_idx is not None:
                    part.weight[part.padding_idx].zero_()
            elif isinstance(part, nn.LayerNorm):
                part.reset_parameters()

    # Loading

    @classmethod
    def from_pretrained(
        cls,
        name_or_folder: str | os.PathLike[str],
        *,
        revision: str | None = None,
        token: str | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        dtype: torch.dtype | str = torch.float32,
        torch_dtype: torch.dtype | str | None = None,
        device: torch.device | str | int | None = None,
        device_map: object = None,
        attn_implementation: str | None = None,
        config: DistilBertConfig | None = None,
        new_head: bool = False,
        ignore_mismatched_sizes: bool = False,
        **values: Any,
    ) -> Self:
        """Load a config and weights from a folder or from one commit of a Hub repository.

        Strict: the file must hold every tensor of the model, in its shape, and no other tensor. Exceptions: the bare
        encoder can be loaded from a file that also has a head; and a sequence or token classifier whose labels are
        given (`num_labels`, `id2label`, `label2id` or `config`) gets a new head, with a warning, from a file without
        any classifier.

        Args:
            name_or_folder: like the next four arguments, as for `CheckpointFiles`.
            revision: branch, tag or commit.
            token: Hub token.
            cache_dir: cache folder.
            local_files_only: no network.
            dtype: of the parameters, such as torch.bfloat16 or "bfloat16"; "auto" is the dtype of the file.
            torch_dtype: the old name of `dtype`.
            device: of the parameters; None is the CPU.
            device_map: another name for `device`.
            attn_implementation: "eager" is the only one.
            config: takes the place of the file's config.json.
            new_head: ignore the file's head, if any, and draw this model's head at random, to be trained.
            ignore_mismatched_sizes: draw only those layers of the head at random that have another size in the file.
            values: fields of the config in place of the file's, such as `num_labels=3` or `dropout=0`.

        Returns:
            The model in eval mode.

        Raises:
            OSError: a file, the repository or the revision does not exist, or the network failed.
            ValueError: the files hold another architecture, or tensors that do not match the model; or a keyword of
                transformers chooses other files or weights, such as `subfolder=`.
        """
        if attn_implementation not in (None, "eager"):
            raise ValueError(
                f'attn_implementation must be "eager", got {attn_implementation!r}: for speed use minibert.pack'
            )
        files = CheckpointFiles(
            name_or_folder, revision=revision, token=token, cache_dir=cache_dir, local_files_only=local_files_only
        )
        return cls.from_files(
            files,
            dtype=dtype if torch_dtype is None else torch_dtype,
            device=device if device_map is None else as_device(device_map),
            config=config,
            new_head=new_head,
            ignore_mismatched_sizes=ignore_mismatched_sizes,
            **values,
        )

    @classmethod
    def from_files(
        cls,
        files: CheckpointFiles,
        *,
        dtype: torch.dtype | str = torch.float32,
        device: torch.device | str | int | None = None,
        config: DistilBertConfig | None = None,
        new_head: bool = False,
        ignore_mismatched_sizes: bool = False,
        **values: Any,
    ) -> Self:
        """Load a model from files that a tokenizer can be loaded from too, so that both are of one commit."""
        values = without_file_choices(values)
        wanted = None if dtype == "auto" else as_dtype(dtype)
        if config is not None and not isinstance(config, DistilBertConfig):
            raise ValueError(f"config must be a minibert.DistilBertConfig, got {type(config).__name__}")
        if new_head and not cls.encoder_prefix:
            raise ValueError(f"{cls.__name__} has no head: leave out new_head=True")
        stored, tensors = read_checkpoint(files)
        encoder, head = split_encoder_and_head(tensors, files.name)
        if cls.head_has_labels:
            labels_given = config is not None or any(values.get(name) is not None for name in LABELS)
            if new_head and not labels_given:
                raise ValueError("new_head=True needs num_labels= or id2label=, the classes of the new head")
            new_head = new_head or (labels_given and not any(name.startswith("classifier.") for name in head))
        if new_head:  # the stored labels and problem type belong to the file's head
            stored = replace(stored, num_labels=None, id2label=None, problem_type=None)  # type: ignore[arg-type]
        chosen = (config or stored).changed(**values)
        if config is None and not (cls.head_has_labels or new_head) and chosen.num_labels != stored.num_labels:
            raise ValueError(f"{cls.__name__} has no labels: leave out num_labels= and id2label=")
        chosen = resolve_tie(chosen, encoder, head)
        model = cls.from_tensors(chosen, encoder, None if new_head else head, files.name, ignore_mismatched_sizes)
        return model.to(device=device, dtype=wanted or as_dtype(model.dtype)).eval()

    @classmethod
    def from_tensors(
        cls,
        config: DistilBertConfig,
        encoder: Mapping[str, Tensor],
        head: Mapping[str, Tensor] | None,
        where: str,
        ignore_mismatched_sizes: bool = False,
    ) -> Self:
        """Build the model around tensors, in their dtype and without copying them.

        Args:
            config: compared with the tensors before memory is allocated.
            encoder: the encoder's tensors, named as in `DistilBertModel`.
            head: the head's tensors, which `DistilBertModel` ignores; None draws them at random.
            where: name of the checkpoint, for errors.
            ignore_mismatched_sizes: draw those layers of the head at random whose tensors have another shape.

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
        shapes = {name: parameter.shape for name, parameter in model.named_parameters()}  # tied parameters appear once
        new = {name.split(".")[0] for name in shapes if not name.startswith(cls.encoder_prefix)}  # layers to draw
        if head is not None:
            other_size = {name for name in shapes.keys() & head.keys() if shapes[name] != head[name].shape}
            new = {name.split(".")[0] for name in other_size} if ignore_mismatched_sizes else set()
        tensors = {cls.encoder_prefix + name: tensor for name, tensor in encoder.items()}
        if head is not None and cls.encoder_prefix:
            tensors |= {name: tensor for name, tensor in head.items() if name.split(".")[0] not in new}
        shapes = {name: shape for name, shape in shapes.items() if name.split(".")[0] not in new}
        if problems := compare_tensors(tensors, shapes):
            if any(name.startswith(HEAD_PREFIXES) for name in shapes.keys() ^ tensors.keys()):
                other = ", ".join(sorted({name.split(".")[0] for name in head or ()}))
                found = f"the file's head ({other:.200}) is not one" if other else "the file has no head"
                problems.append(
                    f"{found} for {cls.__name__}: choose a checkpoint that has one, or draw one at random "
                    "with new_head=True, to be trained"
                )
            elif all(problem.startswith(HEAD_PREFIXES) for problem in problems):
                problems.append(
                    "new_head=True draws a new head at random, to be trained; ignore_mismatched_sizes=True draws only "
                    "those layers of the head that have another size"
                )
            raise ValueError(f"{where}: the file and the model do not match: {'; '.join(problems)}")
        model.load_state_dict(tensors, strict=False, assign=True)  # not strict: tied parameters and new layers follow
        for name in [name for name, _ in model.named_children() if name in new]:  # transformers draws in this order
            model.init_weights(model.get_submodule(name).to_empty(device="cpu"))
        if new:
            logger.warning("%s: %s: new %s, drawn at random: train before use", where, cls.__name__, sorted(new))
        model.tie_weights()
        return model

    # Saving

    def save_pretrained(
        self,
        folder: str | os.PathLike[str],
        *,
        is_main_process: bool = True,
        state_dict: Mapping[str, Tensor] | None = None,
        safe_serialization: bool = True,
        push_to_hub: bool = False,
        save_function: object = None,
        max_shard_size: object = None,
    ) -> None:
        """Write config.json and model.safetensors, which minibert and transformers both read.

        If saving is interrupted, the folder holds either the old checkpoint or the new one.

        Args:
            folder: created if missing; the two files are replaced, others are not touched.
            is_main_process: False writes nothing. Sharded parameters (FSDP2) are gathered in any case, so every process
                must call this.
            state_dict: tensors to save in place of the model's own, named as in `model.state_dict()`.
            safe_serialization: must be True.
            push_to_hub: must be False; `huggingface_hub.upload_folder` uploads a folder.
            save_function: ignored; safetensors writes the file.
            max_shard_size: ignored; there is one file.

        Raises:
            OSError: the folder cannot be written to.
            ValueError: tensors that do not match the config: this checkpoint could not be loaded again.
        """
        if not safe_serialization or push_to_hub:
            raise ValueError(
                "save_pretrained writes safetensors into a folder: leave out safe_serialization, push_to_hub"
            )
        tensors = {
            name: tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor.detach()
            for name, tensor in (self.state_dict() if state_dict is None else state_dict).items()
        }
        if not is_main_process:
            return
        encoder, head = split_encoder_and_head(tensors, type(self).__name__)
        config = resolve_tie(self.config, encoder, head)
        tensors = {self.encoder_prefix + name: tensor for name, tensor in encoder.items()} | head
        with torch.device("meta"):
            shapes = {name: parameter.shape for name, parameter in type(self)(config).named_parameters()}
        problems = compare_tensors(tensors, shapes)
        if len({tensor.data_ptr() for tensor in tensors.values()}) < len(tensors):
            problems.append("some tensors share their memory or, on the meta device, have none")
        if problems:
            raise ValueError(f"a checkpoint of this model could not be loaded again: {'; '.join(problems)}")
        content = config.to_dict() | {
            "architectures": [type(self).__name__.removeprefix("FSDP")],  # fully_shard makes a class of that name
            "dtype": str(next(iter(tensors.values())).dtype).removeprefix("torch."),
        }
        write_checkpoint(Path(folder), content, tensors)

    # What tools for training ask for

    def num_parameters(self, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        """Count parameters, tied ones once; `exclude_embeddings` leaves out the word and position tables."""
        tables = [id(part.weight) for part in self.modules() if exclude_embeddings and isinstance(part, nn.Embedding)]
        counted = (p for p in self.parameters() if id(p) not in tables and (p.requires_grad or not only_trainable))
        return sum(parameter.numel() for parameter in counted)

    def get_input_embeddings(self) -> nn.Embedding:
        """Return the word-embedding table."""
        return cast(nn.Embedding, self.base_model.get_submodule("embeddings.word_embeddings"))

    def set_input_embeddings(self, embeddings: nn.Embedding) -> None:
        """Replace the word-embedding table; a tied masked-LM projector follows.

        Raises:
            ValueError: a table of another size.
        """
        size = (self.config.vocab_size, self.config.dim)
        if tuple(embeddings.weight.shape) != size:
            raise ValueError(
                f"the table must be {size}, got {tuple(embeddings.weight.shape)}: use resize_token_embeddings"
            )
        self.base_model.get_submodule("embeddings").word_embeddings = embeddings
        self.tie_weights()

    def get_output_embeddings(self) -> nn.Linear | None:
        """Return the masked-LM projector; None for the other models."""
        return getattr(self, "vocab_projector", None)

    @torch.no_grad()
    def resize_token_embeddings(
        self, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None
    ) -> nn.Embedding:
        """Change vocab_size: add rows to the word table, each the mean of the old rows, or remove the last rows.

        The masked-LM projector gets or loses rows too, with a bias of 0, as in transformers. The
        parameters are new: create the optimizer afterwards.

        Args:
            new_num_tokens: the new vocab_size, such as `len(tokenizer)`; None keeps the present one.
            pad_to_multiple_of: round the size up to a multiple of this number.

        Returns:
            The word-embedding table.

        Raises:
            ValueError: a size below 1 or not above pad_token_id.
        """
        words, projector = self.get_input_embeddings(), self.get_output_embeddings()
        size = words.num_embeddings if new_num_tokens is None else new_num_tokens
        if pad_to_multiple_of is not None:
            size = -(-size // pad_to_multiple_of) * pad_to_multiple_of
        if size == words.num_embeddings:
            return words
        replace(self.config, vocab_size=size)  # checks the size
        tied = projector is not None and projector.weight is words.weight
        words.weight, words.num_embeddings = with_rows(words.weight, size), size
        if projector is not None:
            projector.weight = words.weight if tied else with_rows(projector.weight, size)
            projector.bias, projector.out_features = with_rows(projector.bias, size), size
        config = copy.copy(self.config)  # other models may share the old one
        vars(config)["vocab_size"] = size
        self.config = self.base_model.config = config
        return words

    def gradient_checkpointing_enable(
        self,
        gradient_checkpointing_kwargs: Mapping[str, Any] | None = None,
        every_n_layers: int = 1,
        offload: bool = False,
    ) -> None:
        """Save memory in training: compute each layer once more in the backward pass; the gradients are the same bits.

        Args:
            gradient_checkpointing_kwargs: for `torch.utils.checkpoint.checkpoint`; use_reentrant=False is the default.
            every_n_layers: do so in every n-th layer only.
            offload: must be False.
        """
        if offload:
            raise ValueError("minibert does not offload activations: leave out offload=True")
        self.gradient_checkpointing_disable()
        arguments = {"use_reentrant": False} | dict(gradient_checkpointing_kwargs or {})
        for layer in list(self._layers())[::every_n_layers]:
            layer.forward = partial(checkpoint, layer.forward, **arguments)

    def activation_checkpointing_enable(
        self,
        activation_checkpointing_kwargs: Mapping[str, Any] | None = None,
        every_n_layers: int = 1,
        offload: bool = False,
    ) -> None:
        """The newer name of `gradient_checkpointing_enable`."""
        self.gradient_checkpointing_enable(activation_checkpointing_kwargs, every_n_layers, offload)

    def gradient_checkpointing_disable(self) -> None:
        """Undo `gradient_checkpointing_enable`."""
        for layer in self._layers():
            vars(layer).pop("forward", None)

    def _layers(self) -> nn.ModuleList:
        return cast(nn.ModuleList, self.base_model.get_submodule("transformer.layer"))


def read_checkpoint(files: CheckpointFiles) -> tuple[DistilBertConfig, dict[str, Tensor]]:
    """Read config and weights, both of one checkpoint."""
    return files.read_whole("config.json", lambda: (DistilBertConfig.from_files(files), read_tensors(files)))


def as_dtype(dtype: object) -> torch.dtype:
    """Return a dtype that models can have; strings such as "bfloat16" are understood."""
    found = getattr(torch, dtype.removeprefix("torch."), None) if isinstance(dtype, str) else dtype
    if found not in DTYPES:
        raise ValueError(f'dtype must be "auto" or one of {", ".join(map(str, DTYPES))}, got {dtype!r}')
    return cast(torch.dtype, found)


def as_device(device_map: object) -> torch.device | str | int:
    """Return the one device that a device_map names, such as "cuda:0" or {"": 0}."""
    device = device_map[""] if isinstance(device_map, Mapping) and device_map.keys() == {""} else device_map
    if not isinstance(device, torch.device | str | int) or device in (
        "auto",
        "balanced",
        "balanced_low_0",
        "sequential",
    ):
        raise ValueError(f'device_map must be one device, such as "cuda:0", got {device_map!r}')
    return device


def with_rows(parameter: Tensor, size: int) -> nn.Parameter:
    """Return a parameter with `size` rows: its first ones, then the mean of all its rows; in a bias, zeros."""
    new = parameter.mean(0, dtype=torch.float64).to(parameter.dtype)
    if parameter.ndim == 1:
        new.zero_()
    rows = torch.cat([parameter[:size], new.expand(max(0, size - len(parameter)), *parameter.shape[1:])])
    return nn.Parameter(rows, parameter.requires_grad)


def is_tied(model: Any) -> bool:
    """Whether a masked-LM model's projector shares its weight with the word-embedding table."""
    return model.vocab_projector.weight is model.distilbert.embeddings.word_embeddings.weight


def leave_out_tied(model: nn.Module, state_dict: dict[str, Any], prefix: str, local_metadata: object) -> None:
    """Let state_dict() hold a tied pair once, as a checkpoint does: safetensors refuses shared tensors."""
    if is_tied(model):
        del state_dict[prefix + PROJECTOR]


def fill_in_tied(model: nn.Module, state_dict: dict[str, Any], prefix: str, *_: object) -> None:
    """Let load_state_dict() take a state_dict that holds a tied pair once."""
    words = f"{prefix}distilbert.{WORDS}"
    if is_tied(model) and words in state_dict:
        state_dict.setdefault(prefix + PROJECTOR, state_dict[words])

"""A checkpoint's files: find them in a folder or on the Hub, read their tensors, write them back.

This module knows files and tensors, not models. Nothing that a file says is trusted: a file name must not lead out of
the folder, and only tensors are unpickled. `pretrained.py` compares names and shapes before it uses a tensor.
"""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from .hub import HubRepository

LARGEST_JSON = 100_000_000  # bytes; the largest tokenizer.json of a BERT has 10 million


class CheckpointFiles:
    """The files of one checkpoint: a folder, or one commit of a Hub repository. Each JSON file is read only once.

    Args:
        name_or_folder: an existing folder; otherwise the name of a repository on the Hugging Face Hub, such as
            "owner/model".
        revision: branch, tag or commit on the Hub; None is the default branch.
        token: Hub token; None takes the one stored by `hf auth login`, if any.
        cache_dir: folder that caches the Hub's files; None is huggingface_hub's own cache.
        local_files_only: take the Hub's files from the cache and never use the network.

    Raises:
        OSError: the name looks like a path, but the folder does not exist.
    """

    def __init__(
        self,
        name_or_folder: str | os.PathLike[str],
        *,
        revision: str | None = None,
        token: str | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
    ) -> None:
        self.name = os.fspath(name_or_folder)
        self.folder = Path(self.name) if self.name and Path(self.name).is_dir() else None
        self.repository = HubRepository(self.name, revision, token, cache_dir, local_files_only)
        self._json: dict[str, dict[str, Any]] = {}  # filename to content
        self._versions: dict[str, tuple[int, int]] = {}  # filename to inode and time, of the file that was read
        path_like = not isinstance(name_or_folder, str) or self.name.startswith((".", "/", "~")) or "\\" in self.name
        if self.folder is None and (path_like or self.name.count("/") > 1 or os.path.exists(self.name)):
            raise OSError(f"{self.name}: no such folder (a name on the Hub looks like 'owner/model')")

    def find(self, filename: str) -> Path | None:
        """Find a file in the folder or as `HubRepository.find` does; None if the checkpoint has no such file."""
        if self.folder is None:
            return self.repository.find(filename)
        path = self.folder / filename
        return path if path.is_file() else None

    def read_json(self, filename: str) -> dict[str, Any] | None:
        """Read a JSON object; None if the checkpoint has no such file.

        Raises:
            ValueError: the file is not a JSON object.
        """
        if filename in self._json:
            return self._json[filename]
        path = self.find(filename)
        if path is None:
            return None
        self._versions[filename] = _version(path)
        if path.stat().st_size > LARGEST_JSON:
            raise ValueError(f"{path}: {path.stat().st_size} bytes are too many for a JSON file. {self.discard(path)}")
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:  # a UnicodeDecodeError is a ValueError
            raise ValueError(f"{path}: not valid JSON ({error}). {self.discard(path)}") from None
        if not isinstance(content, dict):
            raise ValueError(f"{path}: expected a JSON object, got {type(content).__name__}")
        self._json[filename] = content
        return content

    def changed(self) -> bool:
        """Whether another process has saved into the folder since config.json was read; if so, forget what was read."""
        read = self._versions.get("config.json")
        if self.folder is None or read is None or read == _version(self.folder / "config.json"):
            return False
        self._json.clear()
        return True

    def hint(self) -> str:
        """Say, after the error that a file is missing, that it may exist on the Hub; empty if that is known."""
        return self.repository.hint() if self.folder is None else ""

    def discard(self, path: Path) -> str:
        """Delete a damaged file if it is in the Hub's cache, never if it is the user's; return what to do next."""
        if self.folder is not None:
            return "Replace it with an intact copy"
        self.repository.discard(path)
        return "It was deleted from the cache: try again to download it once more"


def _version(path: Path) -> tuple[int, int]:
    """Return what differs between a file and one that replaces it later, even if the content is the same."""
    status = path.stat()
    return status.st_ino, status.st_mtime_ns


def read_tensors(files: CheckpointFiles) -> dict[str, Tensor]:
    """Read a checkpoint's weights; the tensors of a safetensors file are mapped from it, not copied into memory.

    The first of these files that exists is read: the one that config.json names in `transformers_weights`,
    model.safetensors, the shards that model.safetensors.index.json names, pytorch_model.bin.

    Raises:
        OSError: none of them exists, or a shard is missing.
        ValueError: a file is damaged.
    """
    config = files.read_json("config.json") or {}
    if (name := config.get("transformers_weights")) is not None:
        return _read_safetensors(files, name)
    if files.find("model.safetensors") is not None:
        return _read_safetensors(files, "model.safetensors")
    if (index := files.read_json("model.safetensors.index.json")) is not None:
        return _read_shards(files, index)
    if (path := files.find("pytorch_model.bin")) is not None:
        return _read_pickle(files, path)
    raise OSError(
        f"{files.name}: no weights in it: neither model.safetensors nor model.safetensors.index.json "
        f"nor pytorch_model.bin{files.hint()}"
    )


def _read_safetensors(files: CheckpointFiles, name: object) -> dict[str, Tensor]:
    if not isinstance(name, str) or not name.endswith(".safetensors") or Path(name).name != name:
        raise ValueError(f"{files.name}: {name!r} is not the name of a safetensors file beside config.json")
    path = files.find(name)
    if path is None:
        raise OSError(f"{files.name}: {name} is missing, though another file of the checkpoint names it{files.hint()}")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path}: not a valid safetensors file ({error!s:.200}). {files.discard(path)}") from None


def _read_shards(files: CheckpointFiles, index: Mapping[str, Any]) -> dict[str, Tensor]:
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f"{files.name}: model.safetensors.index.json has no weight_map")
    tensors: dict[str, Tensor] = {}
    for shard in sorted(set(map(str, weight_map.values()))):
        part = _read_safetensors(files, shard)
        if twice := sorted(tensors.keys() & part.keys()):
            raise ValueError(f"{files.name}: {shard} holds {twice}, and so does another shard")
        tensors |= part
    return tensors


def _read_pickle(files: CheckpointFiles, path: Path) -> dict[str, Tensor]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)  # never runs what the file says
    except Exception as error:  # a damaged or hostile file may raise anything
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{path}: not a file of tensors only ({reason:.200}). {files.discard(path)}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a dict from names to tensors, got {type(content).__name__}")
    for name, tensor in content.items():
        if not (isinstance(name, str) and isinstance(tensor, Tensor) and _is_whole(tensor)):
            raise ValueError(f"{path}: expected a dict from names to dense tensors, but {name!r} is not one")
    return {name: tensor.resolve_neg() for name, tensor in content.items()}  # a view may hold the numbers negated


def _is_whole(tensor: Tensor) -> bool:
    """Whether every number of a tensor is in memory: with strides of 0 a small pickle can describe a huge tensor."""
    dense = tensor.layout == torch.strided and not tensor.is_nested and tensor.device.type == "cpu"
    return dense and tensor.untyped_storage().nbytes() >= tensor.nbytes


def write_checkpoint(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write config.json and model.safetensors so that a crash leaves the old checkpoint or the new, never a mixture.

    Two files cannot be replaced in one step, but one can, and config.json may name the file of the weights (minibert
    and transformers both read `transformers_weights`). So the new weights are written first, under a unique name; then
    a config.json that names them. This is the step that replaces the old checkpoint. The remaining steps bring back the
    usual file names. A killed save may leave a `model-….safetensors` behind: it can be deleted unless config.json names
    it.

    Raises:
        OSError: the folder cannot be written to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder):
        _write_checkpoint(folder, config, tensors)


def _write_checkpoint(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    config_file, weights = folder / "config.json", folder / f"model-{uuid4().hex}.safetensors"
    try:
        save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, weights, {"format": "pt"})
        with weights.open("rb+") as file:
            os.fsync(file.fileno())
        write_atomically(config_file, to_json({**config, "transformers_weights": weights.name}))
        shutil.copymode(config_file, weights)  # safetensors makes its files private
        _link_atomically(folder / "model.safetensors", weights)
        write_atomically(config_file, to_json(config))
    except SafetensorError as error:
        raise OSError(f"{folder}: cannot be written to ({error})") from None
    finally:
        if not config_file.is_file() or weights.name.encode() not in config_file.read_bytes():
            weights.unlink(missing_ok=True)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Let one process at a time save into a folder, where the system has such locks; a killed one gives its lock back.

    They are those of POSIX: Windows has none, and some network file systems do not either.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def to_json(content: Mapping[str, Any]) -> bytes:
    """Return a JSON object as indented UTF-8 text."""
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that a crash leaves the old content or the whole new content."""
    temporary = _temporary_name(path)
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _link_atomically(path: Path, source: Path) -> None:
    """Make `path` another name of the file `source`, or a copy if the file system has no links."""
    temporary = _temporary_name(path)
    try:
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _temporary_name(path: Path) -> Path:
    return path.with_name(f".{path.name}.{uuid4().hex}.tmp")

"""A checkpoint's files: find them in a folder or on the Hub, read their tensors, write them back.

This module knows files and tensors, not models. Nothing that a file says is trusted: a file name must not lead out of
the folder, and of a pickle only tensors are read. `pretrained.py` compares names and shapes before it uses a tensor.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from .hub import HubRepository
from .pickled import read_pickle
from .terminal import visible

T = TypeVar("T")

UNIQUE = "[0-9a-f]" * 32  # what `uuid4` makes, in a pattern of `glob`
LARGEST_TEXT = 100_000_000  # bytes of a JSON file or a vocabulary; the largest tokenizer.json of a BERT has 10 million


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
        self._versions: dict[str, tuple[int, int] | None] = {}  # filename to the file that was found
        path_like = not isinstance(name_or_folder, str) or self.name.startswith((".", "/", "~")) or "\\" in self.name
        if self.folder is None and (path_like or self.name.count("/") > 1 or os.path.exists(self.name)):
            raise OSError(f"{self.name}: no such folder (a name on the Hub looks like 'owner/model')")

    def find(self, filename: str) -> Path | None:
        """Find a file in the folder or as `HubRepository.find` does; None if the checkpoint has no such file."""
        if self.folder is None:
            return self.repository.find(filename)
        path = self.folder / filename
        self._versions.setdefault(filename, _version(path))
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
        text = self.read_bytes(path)
        try:
            content = json.loads(text.decode("utf-8"))
        except (ValueError, RecursionError) as error:  # a UnicodeDecodeError is a ValueError
            raise ValueError(f"{path}: not valid JSON ({error}). {self.discard(path)}") from None
        if not isinstance(content, dict):
            raise ValueError(f"{path}: expected a JSON object, got {type(content).__name__}")
        self._json[filename] = content
        return content

    def read_bytes(self, path: Path) -> bytes:
        """Read a file that was found, and that is not weights: it goes into memory, so it must not be huge."""
        if path.stat().st_size > LARGEST_TEXT:
            raise ValueError(f"{path}: {path.stat().st_size} bytes are too many for a text file. {self.discard(path)}")
        return path.read_bytes()

    def read_whole(self, filename: str, read: Callable[[], T]) -> T:
        """Call a function that reads several files; call it again if another process saved at the same time.

        Args:
            filename: the JSON file that every save of these files replaces, see `write_pair`.
            read: what to call.
        """
        while True:
            try:
                result = read()
            except (OSError, ValueError, RuntimeError):  # such as a file that was replaced before it could be opened
                if not self._changed(filename):
                    raise
            else:
                if not self._changed(filename):
                    return result

    def _changed(self, filename: str) -> bool:
        """Whether a file is another one than when it was looked for; if so, forget what was read."""
        if self.folder is None or filename not in self._versions:
            return False
        if self._versions[filename] == _version(self.folder / filename):
            return False
        self._json.clear()
        self._versions.clear()
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


def _version(path: Path) -> tuple[int, int] | None:
    """Return what differs between a file and one that replaces it later, even if the content is the same."""
    try:
        status = path.stat()
    except OSError:
        return None
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
        reason = visible(f"{error!s:.200}")
        raise ValueError(f"{path}: not a valid safetensors file ({reason}). {files.discard(path)}") from None


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
        return read_pickle(path)
    except Exception as error:  # a damaged or hostile file may raise anything
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{path}: not a file of tensors only ({reason:.200}). {files.discard(path)}") from None


def write_checkpoint(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write config.json and model.safetensors, as `write_pair` does.

    Raises:
        OSError: the folder cannot be written to.
    """

    def write(path: Path) -> None:
        save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, path, {"format": "pt"})

    try:
        write_pair(folder, ("config.json", "model.safetensors"), config, "transformers_weights", write)
    except SafetensorError as error:
        raise OSError(f"{folder}: cannot be written to ({error})") from None


def write_config(folder: Path, config: Mapping[str, Any]) -> None:
    """Write config.json alone. If the old one names the file of the weights, the new one names it too.

    Raises:
        OSError: the folder cannot be written to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder) as alone:
        try:
            old = CheckpointFiles(folder).read_json("config.json") or {}
        except (OSError, ValueError):
            old = {}
        key = "transformers_weights"
        named = {key: old[key]} if key in old else {}
        write_atomically(folder / "config.json", to_json({**config, **named}))
        if alone:
            _delete_leftovers(folder, f".config.json.{UNIQUE}.tmp")


def write_pair(
    folder: Path,
    names: tuple[str, str],
    content: Mapping[str, Any],
    key: str,
    write: Callable[[Path], object],
    outdated: Iterable[str] = (),
) -> None:
    """Write a JSON file and a data file so that a crash leaves the old pair or the new, never a mixture.

    Two files cannot be replaced in one step, but one can, and the JSON file may name the data file. So the new data is
    written first, under a unique name; then a JSON file that names it. This is the step that replaces the old pair. The
    remaining steps bring back the usual names. transformers reads config.json's `transformers_weights` too, but not
    tokenizer_config.json's `vocab_file`. What a killed save leaves behind, the next one deletes.

    Args:
        folder: created if missing.
        names: of the JSON file and the data file.
        content: of the JSON file.
        key: under which the JSON file names the data file, where this has not its usual name.
        write: writes the data file.
        outdated: files to delete, that would be read in place of the new ones.

    Raises:
        OSError: the folder cannot be written to.
        ValueError: as `to_json`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    json_file, usual_file = (folder / name for name in names)
    data_file = folder / f"{usual_file.stem}-minibert-{uuid4().hex}{usual_file.suffix}"
    unfinished = _temporary_name(usual_file) / data_file.name  # alone in a folder: safetensors writes beside it first
    with _locked(folder) as alone:
        try:
            unfinished.parent.mkdir(0o700)
            write(unfinished)
            with unfinished.open("rb+") as file:
                os.fsync(file.fileno())
            if json_file.exists():
                shutil.copymode(json_file, unfinished)
            unfinished.replace(data_file)
            write_atomically(json_file, to_json({**content, key: data_file.name}))
            shutil.copymode(json_file, data_file)  # safetensors makes its files private
            _link_atomically(usual_file, data_file)
            for name in outdated:
                (folder / name).unlink(missing_ok=True)
            write_atomically(json_file, to_json(content))
        finally:
            shutil.rmtree(unfinished.parent, ignore_errors=True)
            if not json_file.is_file() or data_file.name.encode() not in json_file.read_bytes():
                data_file.unlink(missing_ok=True)
        if alone:
            data_files = f"{usual_file.stem}-minibert-{UNIQUE}{usual_file.suffix}"
            _delete_leftovers(folder, data_files, *(f".{name}.{UNIQUE}.tmp" for name in names))


def _delete_leftovers(folder: Path, *patterns: str) -> None:
    """Delete what killed saves have left in a locked folder."""
    for path in (path for pattern in patterns for path in folder.glob(pattern)):
        with suppress(OSError):  # the save has succeeded
            shutil.rmtree(path) if path.is_dir() else path.unlink()


@contextmanager
def _locked(folder: Path) -> Iterator[bool]:
    """Let one process at a time save into a folder; a killed one gives its lock back.

    Yields:
        Whether the folder is locked: some network file systems have no locks.
    """
    try:
        import fcntl
    except ImportError:  # Windows, where a folder cannot be locked
        from filelock import FileLock  # torch and huggingface_hub depend on it

        with FileLock(folder / ".lock"):
            yield True
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            locked = True
        except OSError:
            locked = False
        yield locked
    finally:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_UN)  # a process that was forked meanwhile keeps the folder open
        os.close(descriptor)


def to_json(content: Mapping[str, Any]) -> bytes:
    """Return a JSON object as indented UTF-8 text.

    Raises:
        ValueError: the text is so long that `CheckpointFiles.read_json` would refuse it.
    """
    text = (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()
    if len(text) > LARGEST_TEXT:
        raise ValueError(f"a JSON file of {len(text)} bytes could not be read again: {LARGEST_TEXT} are the most")
    return text


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that a crash leaves the old content or the whole new content; its permissions stay."""
    temporary = _temporary_name(path)
    mode = 0o600 if path.exists() else 0o666  # nobody may read what replaces a private file
    try:
        with open(temporary, "wb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            shutil.copymode(path, temporary)
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

"""A checkpoint's files: find them in a folder or on the Hub, read their tensors, write them back.

This module knows files and tensors, not models. Nothing a file says is trusted: names and shapes are compared
before any of them is used, and nothing is ever unpickled.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

ENCODER_PREFIX = (
    "distilbert."  # every model with a head writes it before the encoder's names; the bare encoder does not
)
HEAD_PREFIXES = (
    "vocab_transform.",
    "vocab_layer_norm.",
    "vocab_projector.",
    "pre_classifier.",
    "classifier.",
    "qa_outputs.",
)


class CheckpointFiles:
    """The files of one checkpoint: those of a folder, or those of one commit of a Hub repository.

    Args:
        name_or_folder: an existing folder, else the name of a repository on the Hugging Face Hub.
        revision: branch, tag or commit on the Hub; None is the default branch.
        token: Hub token; None takes the one stored by `hf auth login`, if any.
        cache_dir: where the Hub's files are kept; None is huggingface_hub's own cache.
        local_files_only: take the Hub's files from the cache and never use the network.

    Raises:
        OSError: the name looks like a path, but there is no such folder.
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
        self.folder = Path(self.name) if Path(self.name).is_dir() else None
        self.revision = revision
        self.token = token
        self.cache_dir = cache_dir
        self.local_files_only = local_files_only
        if self.folder is None and (
            self.name.count("/") > 1 or self.name.startswith((".", "/", "~")) or "\\" in self.name
        ):
            raise OSError(f"{self.name}: no such folder (a name on the Hub looks like 'owner/model')")

    def find(self, filename: str) -> Path | None:
        """Find a file, downloading it where needed; None where the checkpoint has no such file.

        Raises:
            OSError: the repository, the revision or the network is not there.
        """
        if self.folder is not None:
            local = self.folder / filename
            return local if local.is_file() else None
        path = self._download(filename)
        if path is not None:
            self.revision = path.parent.name  # the commit: every further file comes from the same one
        return path

    def read_json(self, filename: str) -> dict[str, Any] | None:
        """Read a JSON object; None where the checkpoint has no such file.

        Raises:
            ValueError: the file is no JSON object.
        """
        path = self.find(filename)
        if path is None:
            return None
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:  # a UnicodeDecodeError is a ValueError
            raise ValueError(f"{path}: not valid JSON ({error})") from None
        if not isinstance(content, dict):
            raise ValueError(f"{path}: expected a JSON object, got {type(content).__name__}")
        return content

    def _download(self, filename: str) -> Path | None:
        # Imported here: 0.35 s that a local folder need not pay.
        from huggingface_hub import _CACHED_NO_EXIST, hf_hub_download, try_to_load_from_cache
        from huggingface_hub.errors import (
            EntryNotFoundError,
            GatedRepoError,
            HfHubHTTPError,
            HFValidationError,
            LocalEntryNotFoundError,
            RepositoryNotFoundError,
            RevisionNotFoundError,
        )

        try:
            path = hf_hub_download(
                self.name,
                filename,
                revision=self.revision,
                token=self.token,
                cache_dir=self.cache_dir,
                local_files_only=self.local_files_only,
            )
        # From the narrower class to the wider: GatedRepoError is a RepositoryNotFoundError, and
        # LocalEntryNotFoundError ("not cached, and the Hub was not reached") is an EntryNotFoundError.
        except GatedRepoError:
            raise OSError(
                f"{self.name}: access to this repository is restricted. Ask for access on its Hub page, "
                f"then log in with `hf auth login` or pass token="
            ) from None
        except RepositoryNotFoundError:
            raise OSError(
                f"{self.name}: no such folder here, and no such repository on the Hub. Check the spelling; "
                f"if it is private, log in with `hf auth login` or pass token="
            ) from None
        except RevisionNotFoundError:
            raise OSError(f"{self.name}: the Hub knows no revision {self.revision!r} of it") from None
        except LocalEntryNotFoundError as error:
            known = try_to_load_from_cache(self.name, filename, cache_dir=self.cache_dir, revision=self.revision)
            if known is _CACHED_NO_EXIST:
                return None
            if error.__cause__ is None:
                raise OSError(
                    f"{self.name}: {filename} is not in the cache, and offline mode forbids the download. "
                    f"Run once online, or pass a folder that holds the files"
                ) from None
            raise OSError(
                f"{self.name}: {filename} is not in the cache and the Hub could not be reached "
                f"({type(error.__cause__).__name__}: {error.__cause__}). Check the network, or pass a folder "
                f"that holds the files"
            ) from None
        except EntryNotFoundError:
            return None
        except HFValidationError:
            raise OSError(f"{self.name!r}: no such folder, and not a valid name on the Hub") from None
        except HfHubHTTPError as error:
            raise OSError(f"{self.name}: the Hub refused {filename} ({error})") from None
        return Path(path)


def read_tensors(files: CheckpointFiles) -> dict[str, Tensor]:
    """Read `model.safetensors`; the tensors are mapped from the file, not copied into memory.

    Raises:
        OSError: there is no such file.
        ValueError: the file is damaged.
    """
    path = files.find("model.safetensors")
    if path is None:
        raise OSError(f"{files.name}: no model.safetensors in it")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path}: not a valid safetensors file ({error}). Delete it and fetch it again") from None


def split_encoder_and_head(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Split a file's tensors into the encoder's, named without `distilbert.`, and a head's."""
    encoder, head = {}, {}
    for name, tensor in tensors.items():
        if name.startswith(HEAD_PREFIXES):
            head[name] = tensor
        elif not name.endswith("embeddings.position_ids"):  # old files hold 0, 1, 2, … as a buffer
            encoder[name.removeprefix(ENCODER_PREFIX)] = tensor
    return encoder, head


def check_tensors(found: Mapping[str, Tensor], expected: Mapping[str, torch.Size], where: str) -> None:
    """Compare names, shapes and kinds before a tensor is used.

    Raises:
        ValueError: naming every tensor that is missing, unexpected, of another shape or not floating point.
    """
    problems = []
    if missing := sorted(expected.keys() - found.keys()):
        problems.append(f"missing {missing}")
    if unexpected := sorted(found.keys() - expected.keys()):
        problems.append(f"unexpected {unexpected}")
    for name in sorted(found.keys() & expected.keys()):
        if found[name].shape != expected[name]:
            problems.append(
                f"{name} is {tuple(found[name].shape)} in the file, config.json says {tuple(expected[name])}"
            )
        elif not found[name].is_floating_point():
            problems.append(f"{name} is {found[name].dtype}, not floating point")
    if problems:
        raise ValueError(f"{where}: the file and the model do not match: {'; '.join(problems)}")


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that a crash leaves the old content or the new, never a part."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)

"""The Hugging Face Hub: the files of one repository, all of one commit, from the network or from the cache.

huggingface_hub does the work. This module turns each of its many errors into one sentence, and waits for an unreachable
Hub only once.
"""

import hashlib
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from .terminal import visible

logger = logging.getLogger(__name__)


class HubRepository:
    """One repository at one commit, that of the first file found; arguments as in `checkpoint.CheckpointFiles`."""

    def __init__(
        self, name: str, revision: str | None, token: str | None, cache_dir: str | Path | None, local_files_only: bool
    ) -> None:
        self.name = name
        self.revision = revision
        self.token = token
        self.cache_dir = cache_dir
        self.local_files_only = local_files_only
        self.commit: str | None = None
        self.failure = "local_files_only=True forbids the download"  # why a file cannot be downloaded
        self.uncached: list[str] = []  # files that are not in the cache, though the repository may have them

    def find(self, filename: str) -> Path | None:
        """Find a file in the cache, or download it; None if the repository has no such file.

        None also if the Hub cannot be reached and the cache holds the commit but not the file: such a cache does not
        know which files the repository has. `hint` then says so.

        Raises:
            OSError: the repository or the revision does not exist, or the network failed.
        """
        # Imported here: the import takes 0.35 s, which a local folder does not need.
        from huggingface_hub import _CACHED_NO_EXIST, errors, hf_hub_download, try_to_load_from_cache

        revision = self.commit or self.revision
        try:
            cached = try_to_load_from_cache(self.name, filename, cache_dir=self.cache_dir, revision=revision)
            if cached is _CACHED_NO_EXIST and (self.commit or self.local_files_only):
                return None  # the Hub has said once that the file does not exist, and a commit does not change
            path = hf_hub_download(
                self.name,
                filename,
                revision=revision,
                token=self.token,
                cache_dir=self.cache_dir,
                local_files_only=self.local_files_only,
            )
        except errors.HFValidationError:
            raise OSError(f"{self.name!r}: no such folder, and not a valid name on the Hub") from None
        # Subclasses first: GatedRepoError is a RepositoryNotFoundError, LocalEntryNotFoundError ("not cached, and the
        # Hub was not reached") is an EntryNotFoundError, and all of them are connection errors.
        except errors.GatedRepoError:
            raise OSError(
                f"{self.name}: access to this repository is restricted. Ask for access on its Hub page, "
                f"then log in with `hf auth login` or pass token="
            ) from None
        except errors.RepositoryNotFoundError:
            raise OSError(
                f"{self.name}: no such folder here, and no such repository on the Hub. Check the spelling; "
                f"if it is private, log in with `hf auth login` or pass token="
            ) from None
        except errors.RevisionNotFoundError:
            raise OSError(
                f"{self.name}: no revision {revision!r} on the Hub. Pass a branch, a tag or a full commit hash"
            ) from None
        except errors.LocalEntryNotFoundError as error:
            return self._find_in_cache(filename, error.__cause__)
        except errors.EntryNotFoundError:
            return None
        except connection_errors() as error:
            return self._find_in_cache(filename, error)
        if path != cached:
            self._check_download(Path(path))
        self.commit = Path(path).parent.name  # the cache's layout is snapshots/<commit>/<filename>
        return Path(path)

    def _find_in_cache(self, filename: str, cause: BaseException | None) -> Path | None:
        """Take a file from the cache because the Hub failed; from now on the network is not used."""
        if self.local_files_only:
            self.uncached.append(filename)
            if self.commit is None:
                raise OSError(f"{self.name}{self.hint()}") from None
            return None
        self.local_files_only = True
        reason = visible(str(cause).partition("\n")[0][:200])
        self.failure = f"the download failed ({type(cause).__name__}: {reason})"
        path = self.find(filename)
        logger.warning("%s: %s: using the cache for %s", self.name, self.failure, filename)
        return path

    def hint(self) -> str:
        """Name the files that were neither cached nor downloaded, and the way out; empty if there are none."""
        if not self.uncached:
            return ""
        return (
            f": {', '.join(dict.fromkeys(self.uncached))} is not in the cache, and {self.failure}. "
            f"Try again when the Hub can be reached, or pass a folder that holds the files"
        )

    def _check_download(self, path: Path) -> None:
        """Compare a file with its hash, because HTTP does not check the content, and `main` may move meanwhile.

        The Hub sends a hash as the ETag, and the cache names the blob after it: the SHA-256 of a large file, git's
        SHA-1 of a small one. Mirrors may send the plain SHA-1. Not checked: files with an ETag of another length, and
        files in a cache without links, which has no blobs.
        """
        blob = path.resolve()
        header = b"blob %d\0" % blob.stat().st_size  # as git hashes it
        sha1 = partial(hashlib.sha1, usedforsecurity=False)
        kinds: dict[int, list[Callable[[], Any]]] = {64: [hashlib.sha256], 40: [partial(sha1, header), sha1]}
        digests = []
        for kind in kinds.get(len(blob.name), []):
            with blob.open("rb") as file:
                digests.append(hashlib.file_digest(file, kind).hexdigest())
        if digests and blob.name not in digests:
            self.discard(path)
            raise OSError(f"{self.name}: {path.name} was damaged during the download: try again")

    def discard(self, path: Path) -> None:
        """Delete a damaged file from the cache, so that the next try downloads it again."""
        path.resolve().unlink(missing_ok=True)  # the blob, if the cache's entry is a link to one
        path.unlink(missing_ok=True)


def connection_errors() -> tuple[type[Exception], ...]:
    """Return what huggingface_hub raises when a connection fails, with any of its HTTP libraries.

    huggingface_hub 0.x uses requests, whose errors are OSErrors. 1.x uses httpx and 2.x uses httpx2, whose errors are
    not OSErrors, and huggingface_hub lets some of them through. Their base class is HTTPError, which is also the base
    of HfHubHTTPError: so it is found without importing the library. hf_xet, which transfers large files, raises
    RuntimeError.
    """
    from huggingface_hub.errors import HfHubHTTPError

    return OSError, RuntimeError, HfHubHTTPError.__bases__[0]

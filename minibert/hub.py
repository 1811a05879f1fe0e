"""The Hugging Face Hub: one repository's files, all of one commit, from the network or from the cache.

huggingface_hub does the work. What is here turns its many errors into one sentence each, and sees to it that an
unreachable Hub is waited for once only.
"""

import hashlib
import logging
from pathlib import Path

logger = logging.getLogger(__name__)


class HubRepository:
    """One repository at one commit: that of the first file found.

    Args:
        name: "owner/model", or "model" for the oldest ones.
        revision: branch, tag or commit; None is the default branch.
        token: None takes the one stored by `hf auth login`, if any.
        cache_dir: where the files are kept; None is huggingface_hub's own cache.
        local_files_only: take the files from the cache and never use the network.
    """

    def __init__(
        self, name: str, revision: str | None, token: str | None, cache_dir: str | Path | None, local_files_only: bool
    ) -> None:
        self.name = name
        self.revision = revision
        self.token = token
        self.cache_dir = cache_dir
        self.local_files_only = local_files_only
        self.commit: str | None = None
        self.failure = "local_files_only=True forbids the download"  # why a file that is not cached cannot be had
        self.uncached: list[str] = []  # files that the repository may have, though the cache does not

    def find(self, filename: str) -> Path | None:
        """Find a file, downloading it where needed; None where the repository has no such file.

        None also where the commit is cached without the file and the Hub is out of reach: caches that were filled file
        by file do not know which files there are. `hint` then says so.

        Raises:
            OSError: the repository, the revision or the network is not there.
        """
        # Imported here: 0.35 s that a local folder need not pay.
        from huggingface_hub import _CACHED_NO_EXIST, errors, hf_hub_download, try_to_load_from_cache

        revision = self.commit or self.revision
        try:
            cached = try_to_load_from_cache(self.name, filename, cache_dir=self.cache_dir, revision=revision)
            if cached is _CACHED_NO_EXIST and (self.commit or self.local_files_only):
                return None  # the Hub said so once, and a commit does not change
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
        # From the narrower class to the wider: GatedRepoError is a RepositoryNotFoundError, LocalEntryNotFoundError
        # ("not cached, and the Hub was not reached") an EntryNotFoundError, and all of them are connection errors.
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
                f"{self.name}: it has no revision {revision!r} on the Hub. Pass a branch, a tag or a whole commit hash"
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
        """The Hub failed: nothing waits for it again, and what is cached has to do."""
        if self.local_files_only:
            self.uncached.append(filename)
            if self.commit is None:
                raise OSError(f"{self.name}{self.hint()}") from None
            return None
        self.local_files_only = True
        reason = str(cause).partition("\n")[0]
        self.failure = f"the download failed ({type(cause).__name__}: {reason})"
        path = self.find(filename)
        logger.warning("%s: %s: using the cache for %s", self.name, self.failure, filename)
        return path

    def hint(self) -> str:
        """Say which files were not to be had, and the way out; nothing where all is known."""
        if not self.uncached:
            return ""
        return (
            f": {', '.join(dict.fromkeys(self.uncached))} is not in the cache, and {self.failure}. "
            f"Try again when the Hub is within reach, or pass a folder that holds the files"
        )

    def _check_download(self, path: Path) -> None:
        """Compare a large file with its SHA-256, since plain HTTP has no check of its own.

        The Hub gives it as the file's ETag, after which the cache names its blobs. Small files have shorter ETags,
        and a cache without links has no blobs: they go unchecked.
        """
        blob = path.resolve()
        if len(blob.name) != 64:
            return
        with blob.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != blob.name:
            self.discard(path)
            raise OSError(f"{self.name}: {path.name} was damaged on its way from the Hub: try again")

    def discard(self, path: Path) -> None:
        """Delete a damaged file from the cache, so that the next try downloads it anew."""
        path.resolve().unlink(missing_ok=True)  # the blob that the cache's entry is a link to
        path.unlink(missing_ok=True)


def connection_errors() -> tuple[type[Exception], ...]:
    """Return what huggingface_hub raises when a connection fails, whatever library is under it.

    0.x uses requests, whose errors are OSErrors. 1.x uses httpx and 2.x httpx2: theirs are not, and some get through.
    HfHubHTTPError derives from its library's HTTPError, the base of them all, which is how to find that without
    knowing the library. hf_xet, which moves large files, raises RuntimeError.
    """
    from huggingface_hub.errors import HfHubHTTPError

    return OSError, RuntimeError, HfHubHTTPError.__bases__[0]

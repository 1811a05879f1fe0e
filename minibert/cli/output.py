"""What the commands print and write: text that cannot control a terminal, JSON, and whole files."""

import json
import os
from pathlib import Path
from typing import Any

from ..checkpoint import write_atomically
from ..terminal import visible

ERROR_LENGTH = 500  # characters


def shorten(message: str) -> str:
    """Leave out the middle of a long error; its start names the value, its end the way out."""
    if len(message) <= ERROR_LENGTH:
        return message
    return f"{message[: ERROR_LENGTH // 2]} ... {message[-ERROR_LENGTH // 2 :]}"


def say(text: str) -> None:
    """Print lines, with their control characters escaped."""
    print("\n".join(map(visible, text.split("\n"))))


def to_json(value: Any) -> str:
    """Return JSON on one line; NaN and infinity, which JSON does not have, become null."""
    return json.dumps(json.loads(json.dumps(value, default=vars), parse_constant=lambda constant: None))


def check_output_file(path: Path) -> None:
    """Check before any work that a file can be written.

    Raises:
        ValueError: it is a folder, or its folder does not exist.
        OSError: the file or its folder is read-only.
    """
    if path.is_dir() or not path.parent.is_dir():
        raise ValueError(f"{path}: give the name of a file, in a folder that exists")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise OSError(f"{path}: permission denied")


def write_file(path: Path, data: bytes) -> None:
    """Write a file whole or not at all, with the permissions it had; a device or a pipe is written directly.

    Raises:
        OSError: it cannot be written; a file that was there before is unchanged.
    """
    try:
        if path.exists() and not path.is_file():
            path.write_bytes(data)
        else:
            write_atomically(Path(os.path.realpath(path)), data)  # a link stays a link
    except OSError as error:
        raise OSError(f"{path}: cannot be written ({error.strerror})") from None

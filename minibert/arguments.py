"""What the commands take: a checkpoint, and texts from the arguments, a file or standard input."""

import argparse
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from . import DEMO


def add_text_options(command: argparse.ArgumentParser, truncate: bool = False) -> None:
    """Add what says where texts come from, and for commands that can cut them, whether they may."""
    command.add_argument("texts", nargs="*", metavar="TEXT", help="texts, or - for one a line on standard input")
    command.add_argument("--file", type=Path, help="a UTF-8 file with one text a line")
    if truncate:
        command.add_argument("--truncate", action="store_true", help="cut texts that are too long for the model")


def add_common_options(command: argparse.ArgumentParser, example: str | None = None) -> None:
    """Add what every command takes; one that the demo's head is not for has an example in place of a default."""
    default = "default: the demo" if example is None else f"such as {example}"
    command.add_argument("--model", help=f"a folder, or a name on the Hugging Face Hub; {default}")
    command.add_argument("--revision", help="branch, tag or commit on the Hub")
    command.add_argument("--json", action="store_true", help="print JSON, one object a line")
    command.set_defaults(model=DEMO if example is None else None, example=example)


def read_texts(options: argparse.Namespace) -> Iterator[str]:
    """Give each text, from the arguments or line by line from a file.

    Raises:
        ValueError: no source of texts, or two; while reading, a text that is empty or not UTF-8.
    """
    if (options.file is not None) == bool(options.texts):
        raise ValueError("give texts, or --file FILE, or - for standard input")
    if options.file is not None or options.texts == ["-"]:
        named = read_lines(options.file)
    else:
        named = ((f"text {number}", text) for number, text in enumerate(options.texts, 1))
    return (text for _, text in refuse_empty(named))


def read_context(options: argparse.Namespace) -> str:
    """Return the text to find answers in, from the arguments or all of a file.

    Raises:
        ValueError: no source for it, or two; not UTF-8.
    """
    if (options.context is None) == (options.file is None):
        raise ValueError("give a context, or --file FILE, or - for standard input")
    if options.context not in (None, "-"):
        return options.context
    return "\n".join(line for _, line in read_lines(options.file))


def refuse_empty(named: Iterable[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """Pass texts on with their names, up to an empty one."""
    for name, text in named:
        if not text.strip():
            raise ValueError(f"{name} is empty")
        yield name, text


def read_lines(path: Path | None) -> Iterator[tuple[str, str]]:
    """Give each line of a UTF-8 file, or of standard input, with a name for it; show progress on a terminal."""
    from huggingface_hub.utils import tqdm  # type: ignore[attr-defined]  # slow to import: only long inputs need it

    with sys.stdin.buffer if path is None else path.open("rb") as file:
        # disable=None: silent unless it writes to a terminal
        lines = tqdm(file, unit=" texts", disable=None)  # type: ignore[no-untyped-call]
        for number, line in enumerate(lines, 1):
            where = f"{'standard input' if path is None else path}, line {number},"
            try:
                yield where, line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
            except UnicodeDecodeError as error:
                raise ValueError(f"{where} is not UTF-8 ({error.reason})") from None

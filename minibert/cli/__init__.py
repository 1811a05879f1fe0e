"""The command line: `minibert`, `python -m minibert`."""

import argparse
import io
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module

from ..terminal import visible
from .arguments import build_parser
from .output import shorten

ERRORS = (ValueError, TypeError, OSError, KeyboardInterrupt, SystemExit)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: without the name of the program; None means those of this process.

    Returns:
        Exit status: 0 for success, 1 if a check failed, 2 for a bad input, with one line on standard error.
    """
    try:
        status = run(sys.argv[1:] if arguments is None else arguments)
    except ERRORS as error:
        status = report(error)
    try:
        if sys.stdout is not None:
            sys.stdout.flush()  # only now does a full disk or a closed pipe refuse a short output
    except ERRORS as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python would flush it again at exit
        status = status or report(error)
    return status


def run(arguments: list[str]) -> int:
    """Run the command that the arguments name, and return the exit status."""
    # huggingface_hub logs each of its retries otherwise; the error at the end says all that the user needs.
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # an ASCII terminal shows é as \xe9
    no_command = not arguments or (arguments[0].startswith("-") and arguments[0] not in ("-h", "--help", "--version"))
    options = build_parser().parse_args(["walk", *arguments] if no_command else arguments)
    if sys.stdout is None:
        raise OSError("standard output is closed, so the results cannot be printed")
    if no_command and options.texts:
        raise ValueError(f"the command comes first, as in `minibert classify --json TEXT`: {options.texts[0]!r} …")
    if options.model is None:
        raise ValueError(f"give --model, a folder or a name on the Hugging Face Hub, such as {options.example}")
    module, function = options.command.split(".")
    # Imported here: a command imports only what it runs.
    run_command: Callable[[argparse.Namespace], int] = getattr(import_module(f".{module}", __package__), function)
    return run_command(options)


def report(error: BaseException) -> int:
    """Print an error on one line of standard error, and return the exit status."""
    if isinstance(error, SystemExit):  # of argparse: --help, --version, or an error that it has printed
        return int(error.code or 0)
    if isinstance(error, KeyboardInterrupt):
        return 130
    if isinstance(error, BrokenPipeError):  # as in `minibert classify … | head`: nobody reads any further
        return 0
    with suppress(OSError, AttributeError):  # standard error is full, or closed and then None
        sys.stderr.write(f"minibert: error: {shorten(visible(' '.join(str(error).split())))}\n")
    return 2

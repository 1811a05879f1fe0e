"""The command line: `minibert`, `python -m minibert`."""

import argparse
import os
import sys
from collections.abc import Callable
from importlib import import_module

from .arguments import build_parser


def main(arguments: list[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: without the program's name; None takes the process's own.

    Returns:
        Exit status: 0; 1 where a check failed; 2 for a bad input, said on one line.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    # For the user one sentence is enough: without this the client also logs each of its retries.
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    no_command = not arguments or (arguments[0].startswith("-") and arguments[0] not in ("-h", "--help", "--version"))
    options = build_parser().parse_args(["walk", *arguments] if no_command else arguments)
    try:
        if no_command and options.texts:
            raise ValueError(f"the command comes first, as in `minibert classify --json TEXT`: {options.texts[0]!r} …")
        if options.model is None:
            raise ValueError(f"give --model, a folder or a name on the Hugging Face Hub, such as {options.example}")
        module, function = options.command.split(".")
        # Imported now: the other commands' modules are slow to import, and not needed.
        run: Callable[[argparse.Namespace], int] = getattr(import_module(f".{module}", __package__), function)
        return run(options)
    except (ValueError, TypeError, OSError) as error:
        if isinstance(error, BrokenPipeError):  # `minibert classify … | head`: the reader has had enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        print(f"minibert: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130

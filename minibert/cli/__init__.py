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
        arguments: without the name of the program; None means those of this process.

    Returns:
        Exit status: 0 for success, 1 if a check failed, 2 for a bad input, with one line on standard error.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    # huggingface_hub logs each of its retries otherwise; the error at the end says all that the user needs.
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    no_command = not arguments or (arguments[0].startswith("-") and arguments[0] not in ("-h", "--help", "--version"))
    options = build_parser().parse_args(["walk", *arguments] if no_command else arguments)
    try:
        if no_command and options.texts:
            raise ValueError(f"the command comes first, as in `minibert classify --json TEXT`: {options.texts[0]!r} …")
        if options.model is None:
            raise ValueError(f"give --model, a folder or a name on the Hugging Face Hub, such as {options.example}")
        module, function = options.command.split(".")
        # Imported here: a command imports only what it runs.
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

"""The options of the commands, and reading texts from the arguments, a file or standard input."""

import argparse
import sys
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from .. import DEMO, __version__
from ..terminal import visible
from .output import shorten

LONGEST = 4 * 2**20  # bytes of a text; the whole of War and Peace has 3 million
EXERCISES_FOLDER = Path("minibert-exercises")


class Parser(argparse.ArgumentParser):
    """argparse's parser, which repeats a bad argument with its control characters, however long it is."""

    def error(self, message: str) -> NoReturn:
        """Print the usage and the error, and exit with status 2."""
        super().error(shorten(visible(message)))


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands; each sets `command` to the module and function in this package that run it."""
    parser = Parser(prog="minibert", description="DistilBERT by hand: run it and look inside.")
    parser.add_argument("--version", action="version", version=f"minibert {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    add_study_commands(commands)

    command = commands.add_parser("classify", help="label texts")
    command.set_defaults(command="texts.run_classify")
    add_text_options(command, truncate=True)
    add_common_options(command)

    command = commands.add_parser("tag", help="find entities in texts, such as names of people and places")
    command.set_defaults(command="texts.run_tag")
    add_text_options(command)
    add_common_options(command, example="dslim/distilbert-NER")

    command = commands.add_parser("fill", help="find the likeliest tokens for each [MASK]")
    command.add_argument("--top-k", type=int, default=5, metavar="K", help="number of tokens; default: 5")
    command.set_defaults(command="texts.run_fill")
    add_text_options(command, truncate=True)
    add_common_options(command, example="distilbert-base-uncased")

    command = commands.add_parser("answer", help="find the answer to a question in a text of any length")
    command.add_argument("question", metavar="QUESTION")
    command.add_argument("context", nargs="?", metavar="CONTEXT", help="the text, or - for all of standard input")
    command.add_argument("--file", type=Path, help="a UTF-8 file with the text")
    command.add_argument("--top-k", type=int, default=1, metavar="K", help="number of answers; default: 1")
    command.add_argument("--max-answer-length", type=int, default=15, metavar="N", help="in tokens; default: 15")
    command.add_argument("--no-answer", action="store_true", help="allow no answer; for models of SQuAD 2")
    command.set_defaults(command="texts.run_answer")
    add_common_options(command, example="distilbert-base-cased-distilled-squad")

    command = commands.add_parser("embed", help="turn each text into a vector")
    command.add_argument(
        "--pooling", choices=("mean", "cls"), default="mean", help="the mean over all tokens (default), or [CLS] alone"
    )
    command.add_argument("--out", type=Path, metavar="FILE.npy", help="write all vectors as one array (texts, dim)")
    command.set_defaults(command="texts.run_embed")
    add_text_options(command, truncate=True)
    add_common_options(command)
    return parser


def add_study_commands(commands: Any) -> None:
    """Add the commands that look inside to a parser's subparsers."""
    command = commands.add_parser(
        "walk", help="what padding does to a sentence, and how the mask undoes it (the default)"
    )
    add_sentences(command)
    command.set_defaults(command="study.run_walk")
    add_common_options(command)

    command = commands.add_parser("trace", help="every value of one forward pass, in order, and one query in full")
    add_sentences(command)
    command.add_argument("--layer", type=int, default=0, metavar="N", help="the layer to look into; default: 0")
    command.add_argument(
        "--head",
        type=int,
        metavar="N",
        help="its head; default: the one whose scores, with no mask added, give [PAD] most",
    )
    command.add_argument("--row", type=int, metavar="N", help="the text, from 0; default: the shortest, as in walk")
    command.add_argument(
        "--query", type=int, default=0, metavar="N", help="the token, from 0; default: 0, which is [CLS]"
    )
    command.set_defaults(command="study.run_trace")
    add_common_options(command)

    command = commands.add_parser("view", help="attention as an HTML page, with the mask and without")
    add_sentences(command)
    command.add_argument("-o", "--out", type=Path, default=Path("attention.html"), metavar="FILE", help="the page")
    command.add_argument("--length", type=int, metavar="N", help="pad or cut to so many tokens; default: pad")
    command.add_argument("--layers", type=numbers, metavar="N,N", help="only these layers, such as 0,5")
    command.add_argument("--heads", type=numbers, metavar="N,N", help="only these heads of each")
    command.set_defaults(command="study.run_view")
    add_common_options(command)

    command = commands.add_parser("lab", help="an HTML page that runs the model, to change its mask bit by bit")
    add_sentences(command)
    command.add_argument("-o", "--out", type=Path, default=Path("lab.html"), metavar="FILE", help="the page")
    command.add_argument("--open", action="store_true", help="open the page in the browser")
    command.set_defaults(command="study.run_lab")
    add_common_options(command)

    command = commands.add_parser("padding", help="what padding takes, moves and costs, with the mask and without")
    add_sentences(command)
    command.set_defaults(command="study.run_padding")
    add_common_options(command)

    command = commands.add_parser("masks", help="the ways to mask, beside one another, in four dtypes")
    command.add_argument("--json", action="store_true", help="print JSON")
    command.set_defaults(command="study.run_masks", model="")

    command = commands.add_parser(
        "compare", help="this model against transformers and against the oracle, step by step"
    )
    command.add_argument("checkpoint", nargs="?", metavar="CHECKPOINT", help="the same as --model")
    command.add_argument("--against", choices=("transformers", "oracle"), help="only this one; default: both")
    command.set_defaults(command="study.run_compare")
    add_common_options(command)

    command = commands.add_parser(
        "diagnose", help="another implementation's values: which is wrong first, and which known mistake gives them"
    )
    command.add_argument(
        "values",
        type=Path,
        metavar="FILE.safetensors",
        help="logits, or values by the names of steps; also input_ids and attention_mask, as your model got them",
    )
    add_sentences(command)
    command.add_argument(
        "--tolerance", type=float, metavar="X", help="for rounded numbers; default: float32's rounding"
    )
    command.set_defaults(command="study.run_diagnose")
    add_common_options(command)

    command = commands.add_parser("exercise", help="ten exercises: change a copy of the model, predict what differs")
    command.add_argument("number", nargs="?", type=int, metavar="N", help="1 to 10; none lists them")
    command.add_argument("--predict", metavar="STEP", help="the first step that differs, such as scores; or none")
    command.add_argument("--answer", action="store_true", help="show the answer")
    command.add_argument("--reset", action="store_true", help="make the copy anew; what you changed in it is lost")
    command.add_argument("-v", "--verbose", action="store_true", help="show every value of the comparison")
    command.add_argument(
        "--folder", type=Path, default=EXERCISES_FOLDER, help=f"for the copies; default: {EXERCISES_FOLDER}"
    )
    command.set_defaults(command="study.run_exercise", model="")


def add_sentences(command: argparse.ArgumentParser) -> None:
    """Add the sentences that a command runs on."""
    help_text = "sentences, or - for one per line of standard input; default: the two of the walk"
    command.add_argument("texts", nargs="*", metavar="TEXT", help=help_text)
    command.set_defaults(file=None)  # read_texts reads it


def numbers(text: str) -> list[int]:
    """Parse numbers separated by commas."""
    try:
        return [int(number) for number in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of numbers, such as 0,5") from None


def add_text_options(command: argparse.ArgumentParser, truncate: bool = False) -> None:
    """Add the sources of texts, and for a command that can cut texts, --truncate."""
    command.add_argument("texts", nargs="*", metavar="TEXT", help="texts, or - for one per line of standard input")
    command.add_argument("--file", type=Path, help="a UTF-8 file with one text per line")
    if truncate:
        command.add_argument("--truncate", action="store_true", help="cut texts that are too long")


def add_common_options(command: argparse.ArgumentParser, example: str | None = None) -> None:
    """Add the options of every command; `example` is a checkpoint for a command that the demo has no head for."""
    default = "default: the demo" if example is None else f"such as {example}"
    command.add_argument("--model", help=f"a folder, or a name on the Hugging Face Hub; {default}")
    command.add_argument("--revision", help="branch, tag or commit on the Hub")
    command.add_argument("--json", action="store_true", help="print JSON, one object per line")
    command.set_defaults(model=DEMO if example is None else None, example=example)


def read_texts(options: argparse.Namespace) -> Iterator[str]:
    """Yield each text: the arguments, or the lines of a file.

    Raises:
        ValueError: there is no source of texts, or more than one. While texts are read: a text is empty, or not UTF-8.
    """
    if (options.file is not None) == bool(options.texts):
        raise ValueError("give texts, or --file FILE, or - for standard input")
    if options.file is not None or options.texts == ["-"]:
        named = read_lines(options.file)
    else:
        named = ((f"text {number}", text) for number, text in enumerate(options.texts, 1))
    return (text for _, text in refuse_empty(named))


def read_context(options: argparse.Namespace) -> str:
    """Return the text to find answers in: an argument, or a whole file.

    Raises:
        ValueError: there is no source for it, or more than one; it is too long, or not UTF-8.
    """
    if (options.context is None) == (options.file is None):
        raise ValueError("give a context, or --file FILE, or - for standard input")
    if options.context not in (None, "-"):
        return options.context
    with open_input(options.file) as file:
        return decode(file.read(LONGEST + 1), "standard input" if options.file is None else str(options.file))


def refuse_empty(named: Iterable[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """Yield texts with their names, and refuse an empty one."""
    for name, text in named:
        if not text.strip():
            raise ValueError(f"{name} is empty")
        yield name, text


def read_lines(path: Path | None) -> Iterator[tuple[str, str]]:
    """Yield each line of a UTF-8 file or of standard input, with a name for errors; show progress on a terminal."""
    from huggingface_hub.utils import tqdm  # type: ignore[attr-defined]  # slow to import

    with open_input(path) as file:
        lines = iter(partial(file.readline, LONGEST + 1), b"")
        disable = True if sys.stderr is None else None  # None: show nothing if standard error is not a terminal
        for number, line in enumerate(tqdm(lines, unit=" texts", disable=disable), 1):  # type: ignore[no-untyped-call]
            where = f"{'standard input' if path is None else path}, line {number},"
            yield where, decode(line, where).rstrip("\r\n")


def open_input(path: Path | None) -> BinaryIO:
    """Open a file, or standard input.

    Raises:
        ValueError: standard input is closed.
    """
    if path is not None:
        return path.open("rb")
    if sys.stdin is None:
        raise ValueError("standard input is closed")
    return sys.stdin.buffer


def decode(data: bytes, where: str) -> str:
    """Decode a text.

    Raises:
        ValueError: it has more than LONGEST bytes, or is not UTF-8.
    """
    if len(data) > LONGEST:
        raise ValueError(f"{where} has more than {LONGEST >> 20} MiB: split it")
    try:
        return data.decode("utf-8-sig")  # some editors begin a file with a byte order mark
    except UnicodeDecodeError as error:
        raise ValueError(f"{where} is not UTF-8 ({error.reason})") from None

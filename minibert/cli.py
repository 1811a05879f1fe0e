"""The command line: `minibert`, `python -m minibert`."""

import argparse
import json
import os
import sys
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from itertools import tee
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from .arguments import add_common_options, add_text_options, read_context, read_texts, refuse_empty
from .pipeline import Embedder, MaskFiller, Pipeline, QuestionAnswerer, TextClassifier, TokenClassifier
from .study.commands import add_study_commands

Result = TypeVar("Result")


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
        return options.command(options)
    except (ValueError, TypeError, OSError) as error:
        if isinstance(error, BrokenPipeError):  # `minibert classify … | head`: the reader has had enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        print(f"minibert: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands; each sets `command`, a function of the parsed options."""
    parser = argparse.ArgumentParser(prog="minibert", description="DistilBERT by hand: run it and look inside.")
    parser.add_argument("--version", action="version", version=f"minibert {version('minibert')}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    add_study_commands(commands)

    command = commands.add_parser("classify", help="label texts")
    command.set_defaults(command=run_classify)
    add_text_options(command, truncate=True)
    add_common_options(command)

    command = commands.add_parser("tag", help="find names and the like in texts, long ones in overlapping windows")
    command.set_defaults(command=run_tag)
    add_text_options(command)
    add_common_options(command, example="dslim/distilbert-NER")

    command = commands.add_parser("fill", help="the likeliest tokens for each [MASK] in texts")
    command.add_argument("--top-k", type=int, default=5, metavar="K", help="how many tokens; default: 5")
    command.set_defaults(command=run_fill)
    add_text_options(command, truncate=True)
    add_common_options(command, example="distilbert-base-uncased")

    command = commands.add_parser("answer", help="the best answers to a question that stand in a text of any length")
    command.add_argument("question", metavar="QUESTION")
    command.add_argument("context", nargs="?", metavar="CONTEXT", help="the text, or - for all of standard input")
    command.add_argument("--file", type=Path, help="a UTF-8 file that holds the text")
    command.add_argument("--top-k", type=int, default=1, metavar="K", help="how many answers; default: 1")
    command.add_argument("--max-answer-length", type=int, default=15, metavar="N", help="in tokens; default: 15")
    command.add_argument("--no-answer", action="store_true", help="let there be none; for models trained so (SQuAD 2)")
    command.set_defaults(command=run_answer)
    add_common_options(command, example="distilbert-base-cased-distilled-squad")

    command = commands.add_parser("embed", help="a vector for each text")
    command.add_argument(
        "--pooling", choices=("mean", "cls"), default="mean", help="the mean over all tokens (the default), or [CLS]"
    )
    command.add_argument("--out", type=Path, metavar="FILE.npy", help="write one array (texts, dim), print nothing")
    command.set_defaults(command=run_embed)
    add_text_options(command, truncate=True)
    add_common_options(command)
    return parser


def run_classify(options: argparse.Namespace) -> int:
    """Print a label and its score for each text, a line each, as soon as its batches are done."""
    texts = read_texts(options)
    classifier = TextClassifier(options.model, revision=options.revision, truncation=options.truncate)
    for text, best in with_results(texts, classifier):
        record = {"text": text, "label": best.label, "score": best.score}
        show(options, record, [f"{best.label}\t{best.score:.4f}\t{text}"])
    return 0


def run_tag(options: argparse.Namespace) -> int:
    """Print each text and its entities, a line each."""
    texts = read_texts(options)
    tagger = TokenClassifier(options.model, revision=options.revision)
    for text, entities in with_results(texts, tagger):
        lines = [f"  {entity.label}\t{entity.score:.4f}\t{entity.text}" for entity in entities]
        show(options, {"text": text, "entities": entities}, [text, *lines])
    return 0


def run_fill(options: argparse.Namespace) -> int:
    """Print each text and the likeliest tokens for each [MASK], a line each, with the number of the [MASK]."""
    texts = read_texts(options)
    filler = MaskFiller(options.model, revision=options.revision, top_k=options.top_k, truncation=options.truncate)
    for text, masks in with_results(texts, filler):
        lines = [f"  {i}\t{best.score:.4f}\t{best.token}" for i, ranked in enumerate(masks, 1) for best in ranked]
        show(options, {"text": text, "masks": masks}, [text, *lines])
    return 0


def run_answer(options: argparse.Namespace) -> int:
    """Print the best answers, a line each."""
    named = [("the question", options.question), ("the context", read_context(options))]
    question, context = (text for _, text in refuse_empty(named))
    answerer = QuestionAnswerer(
        options.model,
        revision=options.revision,
        top_k=options.top_k,
        max_answer_length=options.max_answer_length,
        handle_impossible_answer=options.no_answer,
    )
    (answers,) = answerer([(question, context)])
    lines = [f"{answer.score:.4f}\t{answer.text or '(no answer)'}\t{answer.start}-{answer.end}" for answer in answers]
    show(options, {"question": question, "answers": answers}, lines)
    return 0


def run_embed(options: argparse.Namespace) -> int:
    """Print a vector for each text, a line each, or write all of them as one array."""
    texts = read_texts(options)
    if options.out is not None and (options.out.suffix != ".npy" or not options.out.parent.is_dir()):
        raise ValueError(f"--out {options.out}: give a file that ends in .npy, in a folder that exists")
    embedder = Embedder(options.model, revision=options.revision, pooling=options.pooling, truncation=options.truncate)
    if options.out is not None:
        vectors = [vector.numpy() for vector in embedder(texts)]
        np.save(options.out, np.array(vectors, np.float32).reshape(-1, embedder.model.config.dim))
        return 0
    for text, vector in with_results(texts, embedder):
        numbers = vector.tolist()
        show(options, {"text": text, "embedding": numbers}, [" ".join(f"{x:.6g}" for x in numbers)])
    return 0


def with_results(texts: Iterator[str], pipeline: Pipeline[str, Result]) -> Iterator[tuple[str, Result]]:
    """Give each text with its result."""
    texts, copies = tee(texts)
    # The result first: for it the pipeline reads ahead, and its text is then there without waiting for another.
    return ((text, result) for result, text in zip(pipeline(copies), texts, strict=True))


def show(options: argparse.Namespace, record: dict[str, Any], lines: Iterable[str]) -> None:
    """Print a result, as JSON on one line or as lines to read."""
    print(json.dumps(record, default=vars) if options.json else "\n".join(lines))

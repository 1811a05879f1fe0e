"""The commands that run a pipeline on texts: classify, tag, fill, answer, embed."""

import argparse
import io
from collections.abc import Iterable, Iterator
from itertools import tee
from typing import Any, TypeVar

import numpy as np

from ..pipeline import Embedder, MaskFiller, Pipeline, QuestionAnswerer, TextClassifier, TokenClassifier
from ..terminal import visible
from .arguments import read_context, read_texts, refuse_empty
from .output import check_output_file, to_json, write_file

Result = TypeVar("Result")


def run_classify(options: argparse.Namespace) -> int:
    """Print a line for each text, with its label and score, as soon as its batch is done."""
    texts = read_texts(options)
    classifier = TextClassifier(options.model, revision=options.revision, truncation=options.truncate)
    for text, best in with_results(texts, classifier):
        record = {"text": text, "label": best.label, "score": best.score}
        show(options, record, [(best.label, f"{best.score:.4f}", text)])
    return 0


def run_tag(options: argparse.Namespace) -> int:
    """Print each text, and below it a line for each of its entities."""
    texts = read_texts(options)
    tagger = TokenClassifier(options.model, revision=options.revision)
    for text, entities in with_results(texts, tagger):
        lines = [(f"  {entity.label}", f"{entity.score:.4f}", entity.text) for entity in entities]
        show(options, {"text": text, "entities": entities}, [(text,), *lines])
    return 0


def run_fill(options: argparse.Namespace) -> int:
    """Print each text, and below it the likeliest tokens, a line each, with the number of the [MASK]."""
    texts = read_texts(options)
    filler = MaskFiller(options.model, revision=options.revision, top_k=options.top_k, truncation=options.truncate)
    for text, masks in with_results(texts, filler):
        lines = [(f"  {i}", f"{best.score:.4f}", best.token) for i, ranked in enumerate(masks, 1) for best in ranked]
        show(options, {"text": text, "masks": masks}, [(text,), *lines])
    return 0


def run_answer(options: argparse.Namespace) -> int:
    """Print a line for each of the best answers."""
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
    lines = [(f"{best.score:.4f}", best.text or "(no answer)", f"{best.start}-{best.end}") for best in answers]
    show(options, {"question": question, "answers": answers}, lines)
    return 0


def run_embed(options: argparse.Namespace) -> int:
    """Print a line for each text, its vector, or write all vectors as one array."""
    texts = read_texts(options)
    if options.out is not None:
        if options.out.suffix != ".npy":
            raise ValueError(f"--out {options.out}: give a file that ends in .npy")
        check_output_file(options.out)
    embedder = Embedder(options.model, revision=options.revision, pooling=options.pooling, truncation=options.truncate)
    if options.out is not None:
        vectors = [vector.numpy() for vector in embedder(texts)]
        file = io.BytesIO()
        np.save(file, np.array(vectors, np.float32).reshape(-1, embedder.model.config.dim))
        write_file(options.out, file.getvalue())
        return 0
    for text, vector in with_results(texts, embedder):
        numbers = vector.tolist()
        show(options, {"text": text, "embedding": numbers}, [(" ".join(f"{x:.6g}" for x in numbers),)])
    return 0


def with_results(texts: Iterator[str], pipeline: Pipeline[str, Result]) -> Iterator[tuple[str, Result]]:
    """Yield each text with its result."""
    texts, copies = tee(texts)
    # The result comes first in zip: the pipeline has then read its text, and no further text must be waited for.
    return ((text, result) for result, text in zip(pipeline(copies), texts, strict=True))


def show(options: argparse.Namespace, record: dict[str, Any], lines: Iterable[tuple[str, ...]]) -> None:
    """Print a result: as JSON on one line, or as lines of columns with tabs between them."""
    print(to_json(record) if options.json else "\n".join("\t".join(map(visible, columns)) for columns in lines))

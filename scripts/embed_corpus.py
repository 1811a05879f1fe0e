#!/usr/bin/env python3
"""Turn each line of a corpus that is larger than memory into a vector; see classify_corpus.py, whose options these are.

    python scripts/embed_corpus.py reviews.jsonl -o vectors --workers 2

FOLDER/000002-000000.npy holds the vectors of the third input, float32 (lines, dim); numpy.load(file, mmap_mode="r")
reads it without loading it. FOLDER/000002-000000.jsonl has a line for each row: {"line": 1, "id": "a7"}. A bad line has
a row of NaN, and its line says why: {"line": 2, "id": "a8", "error": "the text is empty"}.
"""

import argparse
import sys
from typing import BinaryIO

import corpus
import numpy as np
from numpy.lib.format import write_array_header_1_0

from minibert.pipeline import Embedder, OneRowPipeline


def load(options: argparse.Namespace) -> Embedder:
    """Make the embedder."""
    return Embedder(options.model, pooling=options.pooling, **corpus.pipeline_settings(options))


def write_vectors(
    folder: corpus.Folder,
    name: str,
    results: corpus.Results,
    pipeline: OneRowPipeline[object],
    options: argparse.Namespace,
) -> None:
    """Write a vector and a line for each line of the shard. The file of vectors is complete last."""
    dim = pipeline.model.config.dim
    missing = np.full(dim, np.nan, "<f4")
    with folder.new_file(f"{name}.npy") as vectors, folder.new_file(f"{name}.jsonl") as lines:
        count = 0
        write_header(vectors, 0, dim)
        for line, vector in results:
            if vector is not None and not vector.isfinite().all():
                raise ValueError(f"the model's result is not a number: line {line.number} of {name}")
            count += 1
            vectors.write((missing if vector is None else vector.numpy().astype("<f4", copy=False)).tobytes())
            lines.write(corpus.to_record(line, {}, options))
        vectors.seek(0)
        write_header(vectors, count, dim)  # NumPy leaves room in it for any number


def write_header(file: BinaryIO, count: int, dim: int) -> None:
    """Write the beginning of a .npy file: float32, (count, dim)."""
    write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (count, dim)})


def main() -> int:
    """Run the command line, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--pooling", choices=("mean", "cls"), default="mean", help="the mean over all tokens (default), or [CLS] alone"
    )
    return corpus.main(corpus.Task(load, ("pooling",), ".npy", write_vectors), parser)


if __name__ == "__main__":
    sys.exit(main())

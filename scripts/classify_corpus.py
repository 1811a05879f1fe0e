#!/usr/bin/env python3
"""Classify a corpus that is larger than memory: a line of JSON for each line of the inputs, in their order.

    python scripts/classify_corpus.py reviews.jsonl -o labels
    python scripts/classify_corpus.py 's3://bucket/part-*.csv.gz' -o s3://bucket/labels --column body --id-column id
    python scripts/classify_corpus.py big.txt -o labels --lines-per-shard 100000 --workers 4
    torchrun --nproc-per-node 4 scripts/classify_corpus.py *.parquet -o labels
    RANK=$SLURM_ARRAY_TASK_ID WORLD_SIZE=$SLURM_ARRAY_TASK_COUNT python scripts/classify_corpus.py …   # ids from 0

FOLDER/000002-000000.jsonl holds the results of the third input. With --lines-per-shard there are 000002-000001.jsonl
and so on, and every process reads each input. `cat FOLDER/*.jsonl` has the inputs' order. A result is

    {"line": 1, "id": "a7", "label": "POSITIVE", "score": 0.98}

where "line" counts within the input (rows, without the header, of CSV, TSV and parquet), and "id" is there with
--id-column. A bad line (empty, not UTF-8, not JSON, without the column, too long) does not stop a job of hours. It has
its line too: {"line": 2, "id": "a8", "error": "the text is empty"}. "truncated": true marks a text that was cut. In CSV
an opening quotation mark without its closing one takes the rows up to the next mark, at most 4 MiB, into one error.
Where every line has an error, the status is 2.

After a crash of any kind the same command does what is missing. FOLDER/manifest.json holds what the results depend on;
a run that differs from it is refused. The number of processes and of threads, --batch-tokens and crashes change no byte
of the results. Where this machine cannot promise that, the script says so.
"""

import argparse
import sys

import corpus

from minibert.pipeline import OneRowPipeline, TextClassifier


def load(options: argparse.Namespace) -> TextClassifier:
    """Make the classifier."""
    return TextClassifier(options.model, **corpus.pipeline_settings(options))


def write_labels(
    folder: corpus.Folder,
    name: str,
    results: corpus.Results,
    pipeline: OneRowPipeline[object],
    options: argparse.Namespace,
) -> None:
    """Write a line for each line of the shard."""
    with folder.new_file(f"{name}.jsonl") as file:
        for line, result in results:
            scores = {"scores": result.scores} if result and options.scores else {}
            record = {"label": result.label, "score": result.score} | scores if result else {}
            file.write(corpus.to_record(line, record, options))


def main() -> int:
    """Run the command line, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scores", action="store_true", help="write the score of each label too")
    return corpus.main(corpus.Task(load, ("scores",), ".jsonl", write_labels), parser)


if __name__ == "__main__":
    sys.exit(main())

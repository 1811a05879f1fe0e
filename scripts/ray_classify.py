#!/usr/bin/env python3
"""Classify files on a Ray cluster: a line of JSON for each row, with the row's columns, a label and its score.

    python scripts/ray_classify.py reviews.txt -o labels --actors 2
    python scripts/ray_classify.py 'part-*.parquet' -o labels --column body --actors 4 --cpus 2
    RAY_ADDRESS=auto python scripts/ray_classify.py 's3://bucket/*.csv' -o s3://bucket/labels --actors 100

FOLDER/000002.jsonl holds the results of the third input, in the order of its rows. Without RAY_ADDRESS the actors run
on this machine. Each gets the model from this process, once. If an actor or a process dies, Ray runs its rows again: no
row is lost, and none is there twice. A row that the classifier refuses ends the run, with an error that shows it.

Columns are written as Ray reads them: in CSV 007 becomes the number 7, and dates are written in another form. A column
named path is lost. NaN in a column ends the run. A text file is held in memory as a whole.

After a crash of this process the same command does the inputs that are missing. FOLDER/manifest.json holds what the
results depend on; a run that differs from it is refused. This process writes all results. Where it cannot keep up with
the actors, use scripts/classify_corpus.py, whose processes write their own.
"""

import argparse
import json
import logging
import os
import sys
from collections import Counter
from collections.abc import Iterator
from itertools import groupby
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # or Ray reports each run to its makers
try:
    import ray
    import ray.data
except ImportError:
    print("ray_classify.py: error: it needs ray: pip install 'ray[data]' (the extra ray)", file=sys.stderr)
    sys.exit(2)

import corpus

from minibert import DEMO
from minibert.pipeline import TextClassifier

SETTINGS: dict[str, Any] = {"include_paths": True, "partitioning": None, "file_extensions": None}  # every path is read
READERS = {
    "text": lambda paths: ray.data.read_binary_files(paths, **SETTINGS).flat_map(split_lines),
    "jsonl": lambda paths: ray.data.read_json(paths, **SETTINGS),
    "csv": lambda paths: ray.data.read_csv(paths, **SETTINGS),
    "parquet": lambda paths: ray.data.read_parquet(paths, **SETTINGS),
}
BLOCK = 1024  # rows: the most that an actor takes at once, and has to do again


def split_lines(file: dict[str, Any]) -> list[dict[str, str]]:
    """Return a row for each line of a text file. Ray's read_text would also split at U+2028 and others."""
    try:
        lines = file["bytes"].decode("utf-8-sig").split("\n")
    except ValueError as error:
        raise ValueError(f"{file['path']}: {error}") from None
    if not lines[-1]:
        lines.pop()
    return [{"path": file["path"], "text": line.removesuffix("\r")} for line in lines]


class Actor:
    """A process with the classifier."""

    def __init__(self, classifier: Any) -> None:
        self.classifier = ray.get(classifier)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Add the columns label and score."""
        return self.classifier(batch)


def classify(
    paths: list[str], file_format: str, classifier: TextClassifier, actors: int, cpus: int
) -> Iterator[dict[str, Any]]:
    """Yield the rows of all files in order, each with the columns path, label and score.

    Args:
        paths: local, or at addresses that Ray reads.
        file_format: one of READERS.
        classifier: is sent to each actor.
        actors: number of processes.
        cpus: of each process; Ray sets the number of torch's threads to it.

    Raises:
        RuntimeError: a file cannot be read, or the classifier refuses a row.
    """
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.raise_original_map_exception = True
    rows = READERS[file_format](paths).repartition(target_num_rows_per_block=BLOCK)
    pool = ray.data.ActorPoolStrategy(size=actors)
    arguments = (ray.put(classifier),)
    rows = rows.map_batches(Actor, fn_constructor_args=arguments, compute=pool, num_cpus=cpus, batch_size=None)
    try:
        for batch in rows.iter_batches(batch_size=BLOCK, batch_format="pyarrow"):
            yield from batch.to_pylist()
    except ray.exceptions.RayError as error:
        message = str(getattr(error, "cause", error)).partition("\n")[0]  # below it stands Ray's advice
        raise RuntimeError(message) from None  # not an OSError: that would be one of the file that is written


def start_ray(n_cpus: int) -> None:
    """Start a cluster on this machine, or connect to the one at RAY_ADDRESS.

    Raises:
        ValueError: it has fewer CPUs.
    """
    if not ray.is_initialized():
        n_local = None if "RAY_ADDRESS" in os.environ else n_cpus
        ray.init(num_cpus=n_local, include_dashboard=False, log_to_driver=False, logging_level=logging.WARNING)
    if n_cpus > (available := ray.cluster_resources().get("CPU", 0)):
        raise ValueError(f"the actors need {n_cpus} CPUs, one of them to read; the cluster has {available:g}")


def run(options: argparse.Namespace) -> None:
    """Classify the inputs that are not complete."""
    inputs = corpus.find_inputs(options.inputs, None)
    file_format, *others = sorted({each["format"] for each in inputs})
    if others or file_format not in READERS:
        raise ValueError(f"give inputs of one format, {', '.join(READERS)}: got {', '.join([file_format, *others])}")
    paths = Counter(without_protocol(each["address"]) for each in inputs)
    if twice := [path for path, count in paths.items() if count > 1]:
        raise ValueError(f"{twice[0]}: is given twice")
    classifier = TextClassifier(
        options.model, revision=options.revision, truncation=options.truncate, text_column=options.column
    )
    if reason := classifier.model.difference:
        corpus.report(options, f"--actors and --cpus may change the last bits of a result: {reason}")
    folder = corpus.Folder(options.out)
    arguments = {"column": options.column, "truncate": options.truncate}
    folder.claim(corpus.describe(classifier, arguments, inputs) | {"ray": ray.__version__})
    names = {without_protocol(each["address"]): f"{i:06}.jsonl" for i, each in enumerate(inputs)}
    missing = {path: name for path, name in names.items() if not folder.has(name)}
    if not missing:
        return
    start_ray(options.actors * options.cpus + 1)
    addresses = [each["address"].removeprefix("file://") for each in inputs]
    addresses = [address for address in addresses if without_protocol(address) in missing]
    rows = classify(addresses, file_format, classifier, options.actors, options.cpus)
    for path, group in groupby(rows, lambda row: without_protocol(row.pop("path"))):
        if path not in missing:
            raise RuntimeError(f"{path}: Ray gave rows of it, but it is not one of the files {', '.join(missing)}")
        with folder.new_file(missing.pop(path)) as file:
            for row in group:
                file.write(to_json_line(row, path))
    for name in missing.values():  # these inputs have no rows
        with folder.new_file(name):
            pass


def without_protocol(address: str) -> str:
    """Return a path as Ray gives it for a row: Ray leaves out s3://, but not https://."""
    return address if address.startswith("/") else address.split("://", 1)[-1]


def to_json_line(row: dict[str, Any], path: str) -> bytes:
    """Return a line of JSON.

    Raises:
        ValueError: it has NaN or an infinity.
    """
    try:
        return json.dumps(row, default=str, allow_nan=False).encode() + b"\n"
    except ValueError:
        raise ValueError(f"{path}: JSON has neither NaN nor infinity: {row}") from None


def main(arguments: list[str] | None = None) -> int:
    """Run the script, and return its exit status: 0, or 2 after an error, which is printed on one line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("inputs", nargs="+", metavar="INPUT", help="a file, a pattern, or an address that Ray reads")
    parser.add_argument("-o", "--out", required=True, metavar="FOLDER", help="folder of the results, or its address")
    parser.add_argument("--model", default=DEMO, help="a folder, or a name on the Hugging Face Hub; default: the demo")
    parser.add_argument("--revision", help="branch, tag or commit on the Hub")
    parser.add_argument("--column", default="text", metavar="NAME", help="the column of texts; default: text")
    parser.add_argument("--truncate", action="store_true", help="cut texts that are too long")
    parser.add_argument("--actors", type=corpus.positive, default=1, metavar="N", help="processes; default: 1")
    parser.add_argument("--cpus", type=corpus.positive, default=1, metavar="N", help="of each process; default: 1")
    options = parser.parse_args(arguments)
    options.script = "ray_classify.py"
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # errors are printed here, on one line
    try:
        run(options)
    except KeyboardInterrupt:
        return 130
    except corpus.ERRORS as error:
        corpus.report(options, f"error: {error}")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

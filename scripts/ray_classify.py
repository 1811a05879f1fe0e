#!/usr/bin/env python3
"""Classify files on a Ray cluster: a line of JSON for each row, with the row's columns, a label and its score.

    python scripts/ray_classify.py reviews.txt -o labels
    python scripts/ray_classify.py part-*.parquet -o labels --column body --actors 8
    RAY_ADDRESS=auto python scripts/ray_classify.py s3://bucket/part-1.csv -o labels --actors 100

The inputs are all .txt (a text on each line), .jsonl, .csv or .parquet. FOLDER/reviews.jsonl holds the results of
reviews.txt, in the order of its rows, and is there as soon as all of them are. Without RAY_ADDRESS the actors run on
this machine. Each actor gets the model once. If an actor or a process dies, Ray runs its rows again; a row that the
classifier refuses ends the whole run. In both cases no row is lost, and none is there twice.
"""

import argparse
import json
import logging
import os
import sys
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # or Ray reports each run to its makers
try:
    import ray
    import ray.data
except ImportError:
    print("ray_classify.py: error: it needs ray: pip install 'ray[data]' (the extra ray)", file=sys.stderr)
    sys.exit(2)

from minibert import DEMO
from minibert.cli.output import shorten
from minibert.pipeline import TextClassifier
from minibert.terminal import visible

READERS = {
    ".txt": ray.data.read_text,
    ".jsonl": ray.data.read_json,
    ".csv": ray.data.read_csv,
    ".parquet": ray.data.read_parquet,
}
BLOCK = 1024  # rows: what an actor takes at once, and what is lost with it


class Classify:
    """An actor: a process with the classifier."""

    def __init__(self, classifier: Any) -> None:
        self.classifier = ray.get(classifier)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Add the columns label and score."""
        return self.classifier(batch)


def classify(inputs: list[str], classifier: TextClassifier, actors: int, cpus: int) -> Iterable[dict[str, Any]]:
    """Yield the rows of all inputs in order, each with the columns path, label and score.

    Args:
        inputs: files of one format, local or at addresses that Ray reads.
        classifier: is sent to each actor.
        actors: number of processes.
        cpus: of each process; Ray sets the number of torch's threads to it.
    """
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.raise_original_map_exception = True
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # errors are printed by main
    suffix = Path(inputs[0]).suffix
    options = {"drop_empty_lines": False} if suffix == ".txt" else {}
    rows = (
        READERS[suffix](inputs, include_paths=True, **options)
        .repartition(target_num_rows_per_block=BLOCK)
        .map_batches(
            Classify,
            fn_constructor_args=(ray.put(classifier),),
            compute=ray.data.ActorPoolStrategy(size=actors),
            num_cpus=cpus,
            batch_size=None,
        )
    )
    for batch in rows.iter_batches(batch_size=BLOCK, batch_format="pyarrow"):
        yield from batch.to_pylist()


def plan_outputs(inputs: list[str], folder: Path) -> dict[str, Path]:
    """Return the file of results for each input's name without its suffix.

    Raises:
        ValueError: the inputs are not of one format, or two have the same name; a file of results is there already.
    """
    suffixes = sorted({Path(path).suffix for path in inputs})
    if len(suffixes) > 1 or suffixes[0] not in READERS:
        raise ValueError(f"give inputs of one format, {', '.join(READERS)}: got {', '.join(map(repr, suffixes))}")
    outputs = {Path(path).stem: folder / f"{Path(path).stem}.jsonl" for path in inputs}
    if len(outputs) < len(inputs):
        raise ValueError("two inputs have the same name: classify them in two runs, into two folders")
    for path in outputs.values():
        if path.exists():
            raise ValueError(f"{path} is there already: leave its input out, or give another folder")
    return outputs


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write a line of JSON for each row; the file gets its name when it is complete."""
    part = path.with_suffix(".part")
    with part.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps({name: row[name] for name in row if name != "path"}, default=str) + "\n")
    part.rename(path)


def run(options: argparse.Namespace) -> None:
    """Classify the inputs that the options name."""
    outputs = plan_outputs(options.inputs, options.out)
    options.out.mkdir(parents=True, exist_ok=True)
    classifier = TextClassifier(
        options.model, revision=options.revision, truncation=options.truncate, text_column=options.column
    )
    n_cpus = options.actors * options.cpus + 1  # one more for reading
    if not ray.is_initialized():
        n_local = None if "RAY_ADDRESS" in os.environ else n_cpus
        ray.init(num_cpus=n_local, include_dashboard=False, log_to_driver=False, logging_level=logging.WARNING)
    if n_cpus > (available := ray.cluster_resources().get("CPU", 0)):
        raise ValueError(f"the actors need {n_cpus} CPUs, one of them to read; the cluster has {available:g}")
    rows = classify(options.inputs, classifier, options.actors, options.cpus)
    for path, group in groupby(rows, lambda row: row["path"]):
        write_rows(outputs.pop(Path(path).stem), group)
    for path in outputs.values():
        write_rows(path, [])  # its input has no rows


def main(arguments: list[str] | None = None) -> int:
    """Run the script, and return its exit status: 0, or 2 after an error, which is printed on one line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("inputs", nargs="+", metavar="INPUT", help="a file, or an address that Ray reads")
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="FOLDER", help="for the results")
    parser.add_argument("--model", default=DEMO, help="a folder, or a name on the Hugging Face Hub; default: the demo")
    parser.add_argument("--revision", help="branch, tag or commit on the Hub")
    parser.add_argument("--column", default="text", metavar="NAME", help="the column of texts; default: text")
    parser.add_argument("--truncate", action="store_true", help="cut texts that are too long")
    parser.add_argument("--actors", type=int, default=1, metavar="N", help="processes; default: 1")
    parser.add_argument("--cpus", type=int, default=1, metavar="N", help="of each process; default: 1")
    try:
        run(parser.parse_args(arguments))
    except (OSError, TypeError, ValueError, ray.exceptions.RayError) as error:
        message = str(getattr(error, "cause", error)).partition("\n")[0]  # Ray adds its own advice to ours
        print(f"ray_classify.py: error: {shorten(visible(message))}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

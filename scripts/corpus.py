"""What classify_corpus.py and embed_corpus.py share: a pipeline on a corpus that is larger than memory.

The inputs are split into shards. The results of a shard go into a file of their own, which gets its name when the shard
is complete. So a killed run leaves complete shards, and the same command does what is missing. The processes do not
talk to each other: each takes every n-th shard, and a shard is done when its file exists. manifest.json holds all that
the results depend on. Each process compares it with its own before it writes.

A shard starts with a new batch. So its batches do not depend on the process that runs it, or on earlier runs.
"""

import argparse
import hashlib
import json
import logging
import os
import shutil
import sys
import tempfile
import threading
import time
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from multiprocessing import active_children, connection, get_context, parent_process
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast
from uuid import uuid4

import fsspec
import torch
from corpus_inputs import FORMATS, InputError, Line, errors_of, split_shards
from corpus_inputs import find_inputs as find_inputs  # ray_classify.py takes it from here
from fsspec.implementations.local import LocalFileSystem

from minibert import DEMO, __version__
from minibert.checkpoint import to_json
from minibert.cli.output import shorten
from minibert.pipeline import OneRowPipeline, plan_batches
from minibert.terminal import visible
from minibert.tokenizer import BatchEncoding

MANIFEST = "manifest.json"
PROBE_LENGTHS = (1, 2, 3, 7, 16, 33, 128)  # tokens
PROGRESS = 60  # seconds
ERRORS = (OSError, ValueError, TypeError, ImportError, RuntimeError, AssertionError)  # also those of fsspec and torch

Results = Iterator[tuple[Line, Any]]  # a line with an error has the result None


class Task(NamedTuple):
    """What one of the scripts does.

    Args:
        load: makes the pipeline from the options.
        arguments: the names of its own options that the results depend on.
        suffix: of the file whose existence says that a shard is complete.
        write: writes the files of a shard: (folder, name without suffix, results, pipeline, options).
    """

    load: Callable[[argparse.Namespace], OneRowPipeline[Any]]
    arguments: tuple[str, ...]
    suffix: str
    write: Callable[["Folder", str, Results, OneRowPipeline[Any], argparse.Namespace], None]


# From lines to results


def run_lines(pipeline: OneRowPipeline[Any], lines: Iterable[Line], counts: Counter[str]) -> Results:
    """Yield each line with its result, in order, and count lines, errors and tokens."""

    def encode() -> Iterator[tuple[Line, BatchEncoding | None]]:
        for line in lines:
            try:
                yield encode_line(pipeline, line) if line.error is None else (line, None)
            except ValueError as error:
                yield line._replace(text=None, error=str(error)), None  # such a text may be long

    for batch in plan_batches(encode(), pipeline.batch_tokens, n_tokens):
        rows = [encoding.input_ids[0] for _, encoding in batch if encoding is not None]
        counts.update(lines=len(batch), errors=len(batch) - len(rows), tokens=sum(map(len, rows)))
        outputs = iter(pipeline.forward(rows) if rows else ())
        for line, encoding in batch:
            yield line, encoding and pipeline.read(cast(str, line.text), encoding, [next(outputs).cpu()])


def encode_line(pipeline: OneRowPipeline[Any], line: Line) -> tuple[Line, BatchEncoding]:
    """Return the line and its row of ids.

    Raises:
        ValueError: the text has no tokens, or too many.
    """
    text = cast(str, line.text)
    encoding = pipeline.encode(text)
    length = n_tokens((line, encoding))
    if length <= 2:
        raise ValueError("the text has no tokens")
    if length == pipeline.max_length and pipeline.truncation:
        line = line._replace(truncated=len(pipeline.tokenizer([text]).input_ids[0]) > length)
    return line, encoding


def n_tokens(encoded: tuple[Line, BatchEncoding | None]) -> int:
    """Count the tokens of a line; one with an error counts as one token, so that batches of errors end too."""
    encoding = encoded[1]
    return 1 if encoding is None else len(encoding.input_ids[0])


def to_record(line: Line, result: Mapping[str, Any], options: argparse.Namespace) -> bytes:
    """Return a line of JSON: the number, the id if asked for, then the result or the error."""
    record: dict[str, Any] = {"line": line.number}
    if options.id_column is not None:
        record["id"] = line.id
    if line.truncated:
        record["truncated"] = True
    record |= result if line.error is None else {"error": line.error}
    try:
        return json.dumps(record, allow_nan=False).encode() + b"\n"
    except ValueError:
        raise ValueError(f"the model's result is not a number: {record}") from None


# The folder of results


class Folder:
    """The folder of results, on a disk or at an address of fsspec. A file in it is complete or not there.

    Raises:
        OSError: it cannot be made.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        with errors_of(address):
            self.files, self.path = fsspec.url_to_fs(address)
            self.files.makedirs(self.path, exist_ok=True)
        self.is_local = isinstance(self.files, LocalFileSystem)

    def has(self, name: str) -> bool:
        """Whether a file is there, and so complete."""
        return bool(self.files.exists(f"{self.path}/{name}"))

    @contextmanager
    def new_file(self, name: str, replace: bool = True) -> Iterator[BinaryIO]:
        """Give a file on the local disk to write; when the block ends without an error, it becomes `name`.

        For a folder at an address the file has no name on the local disk, so that nothing is left of a killed run.

        Args:
            name: in the folder.
            replace: False keeps a file that is there already.

        Raises:
            OSError: it cannot be written.
        """
        path = f"{self.path}/{name}"
        staged = f"{self.path}/.{name}.{uuid4().hex}.tmp"
        try:
            try:
                with open(staged, "xb+") if self.is_local else tempfile.TemporaryFile() as file:
                    yield file
                    file.flush()
                    os.fsync(file.fileno())
                    if not self.is_local and (replace or not self.has(name)):
                        file.seek(0)
                        with self.files.open(staged, "wb") as remote:
                            shutil.copyfileobj(file, remote, 2**20)
                        self.files.mv(staged, path)
            except OSError as error:
                raise OSError(f"{path}: cannot be written ({error.strerror or error})") from None
            if self.is_local:
                with suppress(FileNotFoundError, FileExistsError):  # another run has just completed the same file
                    (os.replace if replace else link)(staged, path)
                if not self.has(name):
                    raise OSError(f"{path}: {Path(staged).name}, which should become it, was removed")
                self.remove_leftovers(name)
        finally:
            if self.is_local:
                Path(staged).unlink(missing_ok=True)

    def remove_leftovers(self, name: str) -> None:
        """Remove what killed runs have left of a file that is complete now."""
        for left in Path(self.path).glob(f".{name}.*.tmp") if self.is_local else ():
            left.unlink(missing_ok=True)

    def claim(self, manifest: Mapping[str, Any]) -> None:
        """Write the manifest, or compare it with the one of an earlier run.

        Raises:
            ValueError: they differ, or there are files without a manifest.
        """
        if not self.has(MANIFEST):
            names = [Path(path).name for path in self.files.find(self.path, maxdepth=1)]
            others = [name for name in names if not name.startswith(".")]
            if others and not self.has(MANIFEST):
                raise ValueError(f"{self.address}: has {others[0]}, but no {MANIFEST}. Give a new or an empty folder")
            with self.new_file(MANIFEST, replace=False) as file:
                file.write(to_json(manifest))
        try:
            earlier = json.loads(self.files.cat_file(f"{self.path}/{MANIFEST}"))
        except ValueError as error:
            raise ValueError(f"{self.address}/{MANIFEST}: not valid JSON ({error})") from None
        self.remove_leftovers(MANIFEST)
        if found := list(differences(earlier, json.loads(to_json(manifest)))):
            raise ValueError(
                f"{self.address}: was begun with other settings. Use the same ones, or another folder: "
                f"{'; '.join(found)}"
            )


def link(staged: str, path: str) -> None:
    """Give a file its name unless the name is taken. Without hard links, two runs in the same moment may both pass."""
    try:
        os.link(staged, path)
    except (FileNotFoundError, FileExistsError):
        raise
    except OSError:  # as on exFAT, and on some network shares
        if not os.path.exists(path):
            os.replace(staged, path)


def differences(earlier: Any, now: Any, name: str = "") -> Iterator[str]:
    """Say in words which values of two JSON objects differ."""
    if isinstance(earlier, dict) and isinstance(now, dict):
        for key in earlier | now:
            yield from differences(earlier.get(key), now.get(key), f"{name}.{key}" if name else key)
    elif earlier != now:
        yield f"{name} was {earlier!r:.80}, now {now!r:.80}"


def describe(
    pipeline: OneRowPipeline[Any], arguments: Mapping[str, Any], inputs: list[dict[str, Any]]
) -> dict[str, Any]:
    """Return all that the results depend on."""
    model = pipeline.model
    weights = hashlib.sha256()
    for name, tensor in model.plain.state_dict().items():
        weights.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        weights.update(tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return {
        "minibert": __version__,
        "torch": str(torch.__version__),
        "unicode": unicodedata.unidata_version,  # the tokenizer reads Python's tables
        "weights": weights.hexdigest(),
        "config": digest(repr(model.config)),
        "tokenizer": digest(repr(pipeline.tokenizer.__getstate__())),
        "kernels": model.kernels,
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "device": model.device.type,
        "batch_invariant": model.batch_invariant,
        "probe": probe(pipeline) if model.batch_invariant else None,
        "arguments": dict(arguments),
        "inputs": {f"{i:06}": each for i, each in enumerate(inputs)},
    }


def probe(pipeline: OneRowPipeline[Any]) -> str:
    """Return a hash of the outputs for fixed ids. A machine that gives other bits is found out."""
    size = pipeline.model.config.vocab_size
    rows = [[31 * i % size for i in range(min(n, pipeline.max_length))] for n in PROBE_LENGTHS]
    return hashlib.sha256(b"".join(output.numpy().tobytes() for output in pipeline.forward(rows))).hexdigest()


def digest(text: str) -> str:
    """Return the SHA-256 of a text."""
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()


# From the command line to processes


def main(task: Task, parser: argparse.ArgumentParser) -> int:
    """Run one of the scripts, and return its exit status: 0, or 2 after an error, which is printed on one line."""
    add_options(parser)
    options = parser.parse_args()
    options.script = parser.prog
    try:
        counts = run_all(task, options)
    except KeyboardInterrupt:
        return 130
    except BrokenProcessPool:
        report(options, "error: a worker was killed. Run the same command again: it does what is missing")
        return 2
    except ERRORS as error:
        report(options, f"error: {error}")
        return 2
    rank, world, _ = place_in_world()
    report(options, f"done{f', rank {rank} of {world}' if world > 1 else ''}: {show(counts)}")
    return 2 if counts["unreadable inputs"] or only_errors(counts) else 0


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that both scripts have."""
    parser.add_argument("inputs", nargs="+", metavar="INPUT", help="a file, a pattern, or an address of fsspec")
    parser.add_argument("-o", "--out", required=True, metavar="FOLDER", help="folder of the results, or its address")
    parser.add_argument("--model", default=DEMO, help="a folder, or a name on the Hugging Face Hub; default: the demo")
    parser.add_argument("--revision", help="branch, tag or commit on the Hub")
    parser.add_argument("--device", help="where the model runs, such as cuda; default: the CPU")
    parser.add_argument("--format", choices=sorted(set(FORMATS.values())), help="default: what the names end in")
    parser.add_argument("--column", default="text", metavar="NAME", help="the column of texts; default: text")
    parser.add_argument("--id-column", metavar="NAME", help="a column that the results repeat, as id")
    parser.add_argument("--truncate", action="store_true", help="cut texts that are too long, and mark them")
    parser.add_argument("--batch-tokens", type=positive, default=1024, metavar="N", help="default: 1024")
    parser.add_argument(
        "--lines-per-shard", type=positive, metavar="N", help="split each input; default: an input is one shard"
    )
    parser.add_argument("--workers", type=positive, default=1, metavar="N", help="processes; default: 1")
    parser.add_argument("--threads", type=positive, metavar="N", help="of each process; default: the cores, shared out")


def positive(text: str) -> int:
    """Parse a number from 1 on."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 on")
    return int(text)


def pipeline_settings(options: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments that each pipeline takes."""
    return {
        "revision": options.revision,
        "device": options.device,
        "batch_tokens": options.batch_tokens,
        "truncation": options.truncate,
    }


def run_all(task: Task, options: argparse.Namespace) -> Counter[str]:
    """Find the inputs, and run the processes that this one stands for; return what they did."""
    rank, world, local_world = place_in_world()
    inputs, n = find_inputs(options.inputs, options.format), options.workers
    if options.id_column is not None and any(each["format"] == "text" for each in inputs):
        raise ValueError("--id-column: plain text has no columns")
    if rank == 0 and options.lines_per_shard is None and len(inputs) < world * n:
        report(options, f"{world * n} processes for {len(inputs)} shards: --lines-per-shard splits the inputs further")
    if n == 1:
        return run_rank(task, options, inputs, rank, world, local_world)
    with ProcessPoolExecutor(n, get_context("spawn"), watch_parent) as pool:
        places = [(rank * n + i, world * n, local_world * n) for i in range(n)]
        futures = [pool.submit(run_rank, task, options, inputs, *place) for place in places]
        try:
            return sum((future.result() for future in as_completed(futures)), Counter())
        except KeyboardInterrupt:
            for worker in active_children():
                worker.terminate()
            raise
        except ERRORS as error:
            if not isinstance(error, BrokenProcessPool):
                report(options, f"a process has failed, the others go on: {error}")
            raise


def place_in_world() -> tuple[int, int, int]:
    """Return RANK, WORLD_SIZE and LOCAL_WORLD_SIZE, as torchrun sets them; without them 0, 1, 1."""
    defaults = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
    given = {name: os.environ.get(name, default) for name, default in defaults.items()}
    if ("RANK" in os.environ) != ("WORLD_SIZE" in os.environ):
        raise ValueError(f"{given}: give both RANK and WORLD_SIZE, or neither")
    if not all(value.isdecimal() for value in given.values()) or int(given["RANK"]) >= int(given["WORLD_SIZE"]):
        raise ValueError(f"{given}: RANK counts from 0 to WORLD_SIZE - 1")
    return int(given["RANK"]), int(given["WORLD_SIZE"]), max(1, int(given["LOCAL_WORLD_SIZE"]))


def watch_parent() -> None:
    """End this process when its parent ends, however that happens."""

    def watch() -> None:
        if (parent := parent_process()) is not None:
            connection.wait([parent.sentinel])
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def run_rank(
    task: Task, options: argparse.Namespace, inputs: list[dict[str, Any]], rank: int, world: int, local_world: int
) -> Counter[str]:
    """Be one of `world` processes, `local_world` of them on this machine: run its shards that are not complete."""
    logging.getLogger("minibert").setLevel(logging.ERROR)  # a text that is cut is marked in the results
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch.set_num_threads(options.threads or max(1, cores // local_world))
    folder, pipeline = Folder(options.out), task.load(options)
    names = ("column", "id_column", "truncate", "lines_per_shard", *task.arguments)
    folder.claim(describe(pipeline, {name: getattr(options, name) for name in names}, inputs))
    if rank == 0 and (reason := pipeline.model.difference):
        report(options, f"--batch-tokens and --threads may change the last bits of a result: {reason}")

    def wanted(number: int, name: str) -> bool:
        return number % world == rank and not folder.has(name + task.suffix)

    total: Counter[str] = Counter()
    for i, source in enumerate(inputs):
        try:
            for name, lines in split_shards(i, source, options, wanted):
                counts = Counter(shards=1)
                results = run_lines(pipeline, lines, counts)
                where = f"{name} in process {rank}"
                task.write(folder, name, with_progress(results, counts, where, options), pipeline, options)
                total += counts
        except InputError as error:
            report(options, f"error: {error}")
            total["unreadable inputs"] += 1
    return total


def with_progress(results: Results, counts: Counter[str], where: str, options: argparse.Namespace) -> Results:
    """Yield the same, and report every minute and at the end."""
    began = shown = time.monotonic()
    for result in results:
        yield result
        if time.monotonic() - shown > PROGRESS:
            shown = time.monotonic()
            report(options, f"{where}, so far: {show(counts)}")
    report(options, f"{where}: {show(counts)} in {time.monotonic() - began:.1f} s, {peak_memory()}")
    if only_errors(counts):
        report(options, f"{where}: every line has an error: is --column right?")


def only_errors(counts: Counter[str]) -> bool:
    """Whether there are lines, and none of them has a result."""
    return 0 < counts["lines"] == counts["errors"]


def show(counts: Counter[str]) -> str:
    """Write counts out."""
    return ", ".join(f"{name} {value:,}" for name, value in counts.items() if value) or "nothing was missing"


def peak_memory() -> str:
    """Say how much memory this process had at most."""
    try:
        import resource
    except ImportError:  # not on Windows
        return "peak memory unknown"
    return f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10} MiB"


def report(options: argparse.Namespace, message: str) -> None:
    """Print one line on standard error."""
    print(f"{options.script}: {shorten(visible(message))}", file=sys.stderr, flush=True)

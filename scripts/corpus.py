"""What classify_corpus.py and embed_corpus.py share: a pipeline on a corpus that is larger than memory.

The inputs are split into shards. The results of a shard go into a file of their own, which gets its name when the shard
is complete. So a killed run leaves complete shards, and the same command does what is missing. The processes do not
talk to each other: each takes every n-th shard, and a shard is done when its file exists. manifest.json holds all that
the results depend on. Each process compares it with its own before it writes.

A shard starts with a new batch. So its batches do not depend on the process that runs it, or on earlier runs.
"""

import argparse
import csv
import hashlib
import io
import json
import logging
import os
import sys
import tempfile
import threading
import time
import unicodedata
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from itertools import chain, count, islice
from multiprocessing import connection, get_context, parent_process
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast
from uuid import uuid4

import fsspec
import torch
from fsspec.implementations.local import LocalFileSystem
from fsspec.utils import infer_compression

from minibert import DEMO, __version__
from minibert.checkpoint import to_json
from minibert.cli.output import shorten, visible
from minibert.pipeline import OneRowPipeline, plan_batches
from minibert.tokenizer import BatchEncoding

MANIFEST = "manifest.json"
FORMATS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".tsv": "tsv", ".txt": "text", ".parquet": "parquet"}
LONGEST = 4 * 2**20  # bytes of a line, as on minibert's command line
EMPTY, TOO_LONG = "the line is empty", f"the line has more than {LONGEST >> 20} MiB"
PROBE_LENGTHS = (1, 2, 3, 7, 16, 33, 128)  # tokens
PROGRESS = 60  # seconds
ERRORS = (OSError, ValueError, TypeError, ImportError, RuntimeError, AssertionError)  # also those of fsspec and torch


class InputError(Exception):
    """One of the inputs cannot be read; the others may be."""


class Line(NamedTuple):
    """A line of an input, or a row of CSV, TSV or parquet.

    Args:
        number: within its input, from 1; a header is not counted.
        id: what its id column holds, if there is one.
        text: None if there is an error.
        error: why there is no result, in words.
        truncated: whether the text was cut.
    """

    number: int
    id: str | int | None = None
    text: str | None = None
    error: str | None = None
    truncated: bool = False


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


# From addresses to lines


def find_inputs(addresses: Iterable[str], given_format: str | None) -> list[dict[str, Any]]:
    """Find each file, and the files of each pattern such as "s3://bucket/*.jsonl", sorted by name.

    Returns:
        For each file its address, its format, its size in bytes, and a mark that changes when the file does.

    Raises:
        OSError: there is no such file.
        ValueError: it is a folder; its format is unknown; pyarrow is missing.
    """
    inputs = []
    for address in addresses:
        files, path = fsspec.url_to_fs(address)
        is_pattern = not files.isfile(path) and any(character in path for character in "*?[")
        found = files.glob(path, detail=True) if is_pattern else {path: files.info(path)}
        if not found:
            raise OSError(f"{address}: no file matches")
        for name, info in sorted(found.items()):
            if info["type"] != "file":
                raise ValueError(f"{name}: not a file. Of a folder give the files, such as {name}/*.jsonl")
            changed = next((info[key] for key in ("ETag", "mtime", "LastModified", "created") if key in info), None)
            full = address if "::" in address else files.unstrip_protocol(name)
            known_format = given_format or guess_format(full)
            inputs.append({"address": full, "format": known_format, "bytes": info["size"], "changed": str(changed)})
    if any(each["format"] == "parquet" for each in inputs):
        import_parquet()
    return inputs


def guess_format(address: str) -> str:
    """Return the format that a file's name tells; a suffix such as .gz does not count."""
    name = Path(address.split("::")[0])
    suffix = (name.with_suffix("") if infer_compression(name.name) else name).suffix
    if suffix not in FORMATS:
        raise ValueError(f"{address}: the name does not tell the format. Give --format")
    return FORMATS[suffix]


def import_parquet() -> Any:
    """Return pyarrow's module."""
    try:
        import pyarrow.parquet
    except ImportError:
        raise ValueError("parquet needs pyarrow: pip install pyarrow (the extra parquet)") from None
    return pyarrow.parquet


def read_rows(source: Mapping[str, Any], columns: list[str]) -> Iterator[Any]:
    """Yield the rows of an input, not yet parsed: bytes of text or JSON, else a dict, or an error for a bad row.

    Raises:
        InputError: the file cannot be read, or not to its end; it has no such column.
    """
    number = 0
    address, kind = source["address"], source["format"]
    try:
        for row in read_parquet(address, columns) if kind == "parquet" else read_lines(address, kind, columns):
            number += 1
            yield row
    except Exception as error:  # each format, compression and file system has its own
        raise InputError(f"{address}: after row {number}: {error or type(error).__name__}") from None


def read_lines(address: str, kind: str, columns: list[str]) -> Iterator[Any]:
    """Yield the lines of a text or JSONL file as bytes, or the rows of a CSV or TSV file as `read_csv` does."""
    with fsspec.open(address, "rb", compression="infer") as file, io.BufferedReader(file, 2**20) as buffered:
        lines = split_lines(buffered)
        yield from lines if kind in ("text", "jsonl") else read_csv(lines, kind, columns)


def split_lines(file: BinaryIO) -> Iterator[bytes]:
    """Yield each line; of one that is too long, LONGEST + 1 bytes."""
    mark = b"\xef\xbb\xbf"  # of the byte order, with which some editors begin a file
    while line := file.readline(LONGEST + 1):
        rest = line
        while len(rest) > LONGEST and not rest.endswith(b"\n"):
            rest = file.readline(LONGEST + 1)
        yield line.removeprefix(mark)
        mark = b""


def read_csv(lines: Iterator[bytes], kind: str, columns: list[str]) -> Iterator[dict[str, str] | ValueError]:
    """Yield a dict for each row, or an error. In CSV a field in quotes may hold newlines; TSV has no quotes."""
    too_long = False

    def decode() -> Iterator[str]:
        nonlocal too_long
        for line in lines:
            too_long |= len(line) > LONGEST
            yield line.decode("utf-8", "surrogateescape")  # the tokenizer refuses what is not UTF-8

    csv.field_size_limit(LONGEST)
    style: dict[str, Any] = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if kind == "tsv" else {}
    rows = csv.reader(decode(), strict=True, **style)
    header = next(rows, columns)  # an empty file has no rows
    check_columns(columns, header)
    while True:
        too_long = False
        try:
            row = next(rows)
            if too_long or len(row) != len(header):
                wrong = f"{len(row)} fields, but the header has {len(header)}" if row else EMPTY
                yield ValueError(TOO_LONG if too_long else wrong)
            else:
                yield dict(zip(header, row, strict=True))
        except csv.Error as error:
            yield ValueError(f"not a row of {kind.upper()} ({error})")
        except StopIteration:
            return


def read_parquet(address: str, columns: list[str]) -> Iterator[dict[str, Any]]:
    """Yield a dict for each row, with these columns."""
    with fsspec.open(address, "rb") as file:
        table = import_parquet().ParquetFile(file)
        check_columns(columns, table.schema_arrow.names)
        for batch in table.iter_batches(1024, columns=columns):
            yield from batch.to_pylist()


def check_columns(columns: list[str], header: list[str]) -> None:
    """Refuse a header without the columns that are read."""
    for column in columns:
        if column not in header:
            raise ValueError(f"no column {column!r} in {header}")


def parse(number: int, row: Any, options: argparse.Namespace, kind: str) -> Line:
    """Turn a row into a line; what is wrong with the row becomes the line's error."""
    line = Line(number)
    try:
        if isinstance(row, ValueError):
            raise row
        if isinstance(row, bytes):
            if len(row) > LONGEST or not row.strip():
                raise ValueError(EMPTY if not row.strip() else TOO_LONG)
            content = row.decode().rstrip("\r\n")
            row = {options.column: content} if kind == "text" else json.loads(content)
        if not isinstance(row, dict):
            raise ValueError(f"expected a JSON object, got {type(row).__name__}")
        if options.id_column is not None:
            identity = get(row, options.id_column)
            if not isinstance(identity, str | int | None):
                raise ValueError(f"{options.id_column!r} is neither a string nor an integer")
            line = line._replace(id=identity)
        text = get(row, options.column)
        if not isinstance(text, str):
            raise ValueError(f"{options.column!r} is not a string")
        if not text.strip():
            raise ValueError("the text is empty")
        return line._replace(text=text)
    except (ValueError, RecursionError) as error:
        prefix = "not JSON: " if isinstance(error, json.JSONDecodeError | RecursionError) else ""
        return line._replace(error=shorten(f"{prefix}{error}"))


def get(row: Mapping[str, Any], column: str) -> Any:
    """Return a value of a row."""
    if column not in row:
        raise ValueError(f"no {column!r} in {list(row)}")
    return row[column]


def split_shards(
    number: int, source: Mapping[str, Any], options: argparse.Namespace, wanted: Callable[[int, str], bool]
) -> Iterator[tuple[str, Iterator[Line]]]:
    """Yield the name and the lines of each shard of an input that is wanted; the others are read past.

    Args:
        number: of the input, from 0.
        source: one of `find_inputs`.
        options: without `lines_per_shard` an input is one shard, and is not opened unless this shard is wanted.
        wanted: takes the number that says whose shard it is, and the shard's name.
    """
    if options.lines_per_shard is None and not wanted(number, f"{number:06}-000000"):
        return
    columns = [name for name in dict.fromkeys((options.column, options.id_column)) if name is not None]
    rows = enumerate(read_rows(source, columns), 1)
    for i in count():
        shard: Iterator[tuple[int, Any]] = islice(rows, options.lines_per_shard)
        if i > 0:
            if (first := next(shard, None)) is None:
                return
            shard = chain([first], shard)
        name = f"{number:06}-{i:06}"
        if wanted(number + i, name):
            yield name, (parse(n, row, options, source["format"]) for n, row in shard)
        deque(shard, maxlen=0)


# From lines to results


def run_lines(pipeline: OneRowPipeline[Any], lines: Iterable[Line], counts: Counter[str]) -> Results:
    """Yield each line with its result, in order, and count lines, errors and tokens."""

    def encode() -> Iterator[tuple[Line, BatchEncoding | None]]:
        for line in lines:
            try:
                yield encode_line(pipeline, line) if line.error is None else (line, None)
            except ValueError as error:
                yield line._replace(error=str(error)), None

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
    return json.dumps(record, allow_nan=False).encode() + b"\n"


# The folder of results


class Folder:
    """The folder of results, on a disk or at an address of fsspec. A file in it is complete or not there.

    Raises:
        OSError: it cannot be made.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self.files, self.path = fsspec.url_to_fs(address)
        self.is_local = isinstance(self.files, LocalFileSystem)
        self.files.makedirs(self.path, exist_ok=True)

    def has(self, name: str) -> bool:
        """Whether a file is there, and so complete."""
        return bool(self.files.exists(f"{self.path}/{name}"))

    @contextmanager
    def new_file(self, name: str, replace: bool = True) -> Iterator[BinaryIO]:
        """Give a file on the local disk to write; when the block ends without an error, it becomes `name`.

        Args:
            name: in the folder.
            replace: False keeps a file that is there already.

        Raises:
            OSError: it cannot be written.
        """
        path = f"{self.path}/{name}"
        staged = Path(self.path if self.is_local else tempfile.gettempdir(), f".{name}.{uuid4().hex}.tmp")
        try:
            try:
                with staged.open("xb+") as file:
                    yield file
                    file.flush()
                    os.fsync(file.fileno())
            except OSError as error:
                raise OSError(f"{path}: cannot be written ({error.strerror or error})") from None
            if self.is_local:
                with suppress(FileNotFoundError, FileExistsError):  # another run has just completed the same file
                    (os.replace if replace else os.link)(staged, path)
                self.remove_leftovers(name)
            elif replace or not self.has(name):
                self.files.put_file(str(staged), f"{self.path}/{staged.name}")
                self.files.mv(f"{self.path}/{staged.name}", path)
        finally:
            staged.unlink(missing_ok=True)

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
    report(options, f"done: {show(counts)}")
    return 2 if counts["unreadable inputs"] else 0


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
            return sum((future.result() for future in futures), Counter())
        except KeyboardInterrupt:
            os._exit(130)  # the workers end with this process: see `watch_parent`


def place_in_world() -> tuple[int, int, int]:
    """Return RANK, WORLD_SIZE and LOCAL_WORLD_SIZE, as torchrun sets them; without them 0, 1, 1."""
    defaults = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
    given = {name: os.environ.get(name, default) for name, default in defaults.items()}
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

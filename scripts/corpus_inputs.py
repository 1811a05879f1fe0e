"""From the addresses of a corpus to its lines, for classify_corpus.py and embed_corpus.py.

A file is read from its beginning and never held in memory. Each of its lines, or rows of CSV, TSV or parquet, becomes
one `Line`: with a text, or with the error that says why there is none.
"""

import argparse
import csv
import io
import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain, count, islice
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Self

import fsspec
from fsspec.utils import infer_compression

from minibert.cli.arguments import LONGEST  # bytes of a line, or of a row of CSV over several lines
from minibert.cli.output import shorten

FORMATS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".tsv": "tsv", ".txt": "text", ".parquet": "parquet"}
MARKS = ("etag", "mtime", "lastmodified", "last_modified", "updated", "created")
EMPTY, TOO_LONG = "the line is empty", f"the line has more than {LONGEST >> 20} MiB"

csv.field_size_limit(LONGEST)


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


@contextmanager
def errors_of(address: str) -> Iterator[None]:
    """Turn the errors that a library of fsspec has for itself, such as those of wrong credentials, into OSErrors."""
    try:
        yield
    except (OSError, ValueError, ImportError):
        raise
    except Exception as error:
        raise OSError(f"{address}: {str(error) or type(error).__name__}") from None


def find_inputs(addresses: Iterable[str], given_format: str | None) -> list[dict[str, Any]]:
    """Find each file, and the files of each pattern such as "s3://bucket/*.jsonl", sorted by name.

    Returns:
        For each file its address, its format, its size in bytes, and a mark that changes when the file does.

    Raises:
        OSError: there is no such file.
        ValueError: it is a folder or a .zip; its format is unknown; pyarrow is missing.
    """
    inputs = []
    for address in addresses:
        with errors_of(address):
            files, path = fsspec.url_to_fs(address)
            is_pattern = not files.isfile(path) and any(character in path for character in "*?[")
            if is_pattern and "::" in address:
                raise ValueError(f"{address}: a chain of addresses takes no pattern. Name each file")
            found = files.glob(path, detail=True) if is_pattern else {path: files.info(path)}
            links = [name for name, info in found.items() if info.get("islink")]
            found |= {name: files.info(name) for name in links}  # a listing describes the link, not its file
        if not found:
            raise OSError(f"{address}: no file matches")
        for name, info in sorted(found.items()):
            if info["type"] != "file":
                raise ValueError(f"{name}: not a file. Of a folder give the files, such as {name}/*.jsonl")
            marks = {key.lower(): value for key, value in info.items()}  # each file system has its own
            changed = next((marks[key] for key in MARKS if key in marks), None)
            full = address if "::" in address else files.unstrip_protocol(name)
            if infer_compression(name) == "zip":
                raise ValueError(f"{full}: a zip may hold several files. Name one: zip://NAME::{full}")
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
        raise InputError(f"{address}: after row {number}: {str(error) or type(error).__name__}") from None


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


class CsvReader:
    """The rows of a CSV or TSV file, of at most LONGEST bytes each; TSV has no quotes.

    After a csv.Error it goes on with the next line.

    Args:
        lines: as `split_lines` yields them. What is not UTF-8 becomes a lone surrogate, which the tokenizer refuses.
        kind: "csv" or "tsv".
    """

    def __init__(self, lines: Iterator[bytes], kind: str) -> None:
        style: dict[str, Any] = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if kind == "tsv" else {}
        self._reader = csv.reader(map(self._decode, lines), strict=True, **style)
        self.line_number = 0  # of the last line read
        self._size = 0  # bytes of the row so far

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> list[str]:
        self._size = 0
        try:
            return next(self._reader)
        except csv.Error as error:
            ends = str(error).startswith("new-line character")  # what csv advises then cannot be done here
            raise csv.Error(r"lines must end in \n or \r\n, not in \r alone") if ends else error from None

    def _decode(self, line: bytes) -> str:
        self.line_number += 1
        self._size += len(line)
        if len(line) > LONGEST:
            raise csv.Error(TOO_LONG)
        if self._size > LONGEST:
            raise csv.Error(f"the row has more than {LONGEST >> 20} MiB: is a quotation mark not closed?")
        return line.decode("utf-8", "surrogateescape")


def read_csv(lines: Iterator[bytes], kind: str, columns: list[str]) -> Iterator[dict[str, str] | ValueError]:
    """Yield a dict for each row, or an error. In CSV a field in quotes may hold newlines.

    So an opening quotation mark without a closing one takes the rows up to the next mark (at most 4 MiB) as one error.
    """
    rows = CsvReader(lines, kind)
    header = next(rows, columns)  # an empty file has no rows
    check_columns(columns, header)
    while True:
        try:
            row = next(rows)
            if len(row) != len(header):
                yield ValueError(f"{len(row)} fields, but the header has {len(header)}" if row else EMPTY)
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

"""What finetune.py trains on: lines of files, their labels as numbers, batches of rows; and the scores of a model.

Shapes: B rows of a batch, T tokens of all its rows, L labels.
"""

import csv
import hashlib
import json
import math
import random
from argparse import Namespace
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from corpus_inputs import TOO_LONG, CsvReader, split_lines
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from minibert import DistilBertTokenizer
from minibert.cli.arguments import LONGEST
from minibert.cli.output import shorten
from minibert.heads import IGNORE

SHOWN = 5  # bad lines that an error names


class Row(NamedTuple):
    """A line of a file as numbers: its ids, and the classes of its text (1,), its tokens (S,), or none for masked LM.

    A token that is not labelled has the class -100.
    """

    ids: "array[int]"
    labels: "array[int]"


@dataclass(frozen=True)
class Columns:
    """The names of the columns to read, and what a row has: labels of the text, labels of its words, or none."""

    text: str
    pair: str | None
    label: str | None
    words: bool

    @property
    def names(self) -> list[str]:
        """Return the names that are not None."""
        return [name for name in (self.text, self.pair, self.label) if name is not None]


class Line(NamedTuple):
    """A line of a file, tokenized; its labels are names, and None for a token that is not labelled."""

    number: int
    ids: "array[int]"
    labels: list[str | None]
    cut: bool


def read_file(
    path: Path, columns: Columns, tokenizer: DistilBertTokenizer, max_length: int, skip_bad: bool
) -> tuple[list[Line], list[str]]:
    """Read and tokenize a .jsonl, .csv or .tsv file.

    Returns:
        Its good lines, and remarks for the user: how many lines were left out, and how many texts were cut.

    Raises:
        OSError: the file cannot be read.
        ValueError: no such column; no good line; bad lines, without `skip_bad`.
    """
    good: list[Line] = []
    bad: list[str] = []
    for number, content in read_lines(path, columns):
        try:
            good.append(encode(number, content, columns, tokenizer, max_length))
        except ValueError as error:
            bad.append(shorten(f"line {number}: {error}"))
    shown = "; ".join(bad[:SHOWN]) + f"; and {len(bad) - SHOWN} more" * (len(bad) > SHOWN)
    if bad and not skip_bad:
        raise ValueError(f"{path}: {len(bad)} bad lines: {shown}. Mend them, or leave them out with --skip-bad")
    if not good:
        raise ValueError(f"{path}: no rows to read in it{': ' if bad else ''}{shown}")
    n_cut = sum(line.cut for line in good)
    remarks = [f"{path}: {len(bad)} bad lines left out: {shown}"] if bad else []
    remarks += [f"{path}: {n_cut} of {len(good)} texts cut to {max_length} tokens"] if n_cut else []
    return good, remarks


def read_lines(path: Path, columns: Columns) -> Iterator[tuple[int, Any]]:
    """Yield the number of each line that is not empty, from 1, and its columns as a dict, or an error."""
    with path.open("rb") as file:
        if path.suffix == ".jsonl":
            for number, line in enumerate(split_lines(file), 1):
                try:
                    if len(line) > LONGEST:
                        yield number, ValueError(TOO_LONG)
                    elif line.strip():
                        # A byte that is not UTF-8 becomes a lone surrogate, which `encode` refuses.
                        yield number, json.loads(line.decode("utf-8", "surrogateescape"))
                except (ValueError, RecursionError) as error:
                    yield number, ValueError(f"not JSON ({error})")
            return
        if path.suffix not in (".csv", ".tsv"):
            raise ValueError(f"{path}: the name must end in .jsonl, .csv or .tsv")
        reader = CsvReader(split_lines(file), path.suffix[1:])
        try:
            header = next(reader)
        except StopIteration:
            raise ValueError(f"{path}: empty: the first line must name the columns") from None
        except csv.Error as error:
            raise ValueError(f"{path}: line 1: {error}") from None
        for name in columns.names:
            if header.count(name) != 1:
                how = "no column" if name not in header else "more than one column"
                raise ValueError(f"{path}: {how} {name!r} among {header}: see --text, --pair, --label")
        number = reader.line_number + 1
        while True:
            try:
                if fields := next(reader):
                    yield number, dict(zip(header, fields, strict=True))
            except StopIteration:
                return
            except (csv.Error, ValueError) as error:
                if reader.line_number > number:  # all these lines are one row: skipping it would lose good ones
                    raise ValueError(
                        f"{path}: lines {number} to {reader.line_number} are one bad row: is a quotation mark not "
                        f"closed?"
                    ) from None
                yield number, ValueError(str(error) if isinstance(error, csv.Error) else f"not {len(header)} columns")
            number = reader.line_number + 1


def encode(number: int, content: Any, columns: Columns, tokenizer: DistilBertTokenizer, max_length: int) -> Line:
    """Tokenize a line, and cut it to `max_length` tokens.

    Raises:
        ValueError: says what is wrong with the line.
    """
    if isinstance(content, ValueError):
        raise content
    if not isinstance(content, dict):
        raise ValueError("not a JSON object")
    if missing := [name for name in columns.names if name not in content]:
        raise ValueError(f"no {missing[0]!r}, only {', '.join(map(repr, content))}")
    read = read_words if columns.words else read_text
    texts = [[read(name, content[name])] for name in (columns.text, columns.pair) if name is not None]
    encoding = tokenizer(*texts, is_split_into_words=columns.words)
    cut = len(encoding.input_ids[0]) > max_length
    if cut:
        encoding = tokenizer(*texts, is_split_into_words=columns.words, truncation=True, max_length=max_length)
    ids, words = array("i", encoding.input_ids[0]), encoding.word_ids(0)
    if set(words) == {None}:
        raise ValueError("the text has no tokens")
    if columns.label is None:
        return Line(number, ids, [], cut)
    if not columns.words:
        return Line(number, ids, [read_label(content[columns.label])], cut)
    given = content[columns.label]
    names = given.split() if isinstance(given, str) else given
    if not isinstance(names, list) or len(names) != len(texts[0][0]):
        raise ValueError(f"{len(texts[0][0])} words need as many labels, got {names!r}"[:200])
    labels = list(map(read_label, names))
    firsts = zip(words, [None, *words], strict=False)  # a word's first token has its label, its other tokens have none
    return Line(number, ids, [None if w is None or w == before else labels[w] for w, before in firsts], cut)


def read_text(name: str, value: object) -> str:
    """Return a value that is a str."""
    if not isinstance(value, str):
        raise ValueError(f"{name!r} must be a text, got {value!r}"[:200])
    return value


def read_words(name: str, value: object) -> list[str]:
    """Return a list of words, which may also be given with spaces between them."""
    words = value.split() if isinstance(value, str) else value
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise ValueError(f"{name!r} must be a list of words, or words with spaces between them, got {value!r}"[:200])
    return words


def read_label(value: object) -> str:
    """Return the name of a label: a str that is not empty, or an integer or a bool of JSON."""
    name = value.strip() if isinstance(value, str) else str(value) if isinstance(value, int) else ""
    if not name or name.encode("utf-8", "ignore").decode() != name:  # a lone surrogate: a byte that is not UTF-8
        raise ValueError(f"the label must be a text that is not empty, or an integer, got {value!r}"[:200])
    return name


def find_labels(lines: Sequence[Line]) -> list[str]:
    """Return the names of all labels, sorted; numbers by their value."""
    names = {label for line in lines for label in line.labels if label is not None}
    return sorted(names, key=lambda name: (int(name) if name.isdecimal() else -1, name))


def number_labels(lines: Sequence[Line], labels: Sequence[str], path: Path) -> list[Row]:
    """Return the lines as numbers.

    Raises:
        ValueError: a label that is not among `labels`.
    """
    numbers = {name: i for i, name in enumerate(labels)}
    for line in lines:
        if unknown := [name for name in line.labels if name is not None and name not in numbers]:
            raise ValueError(
                f"{path}: line {line.number}: no text of the training file, as far as it is not cut, has the label "
                f"{unknown[0]!r}; its labels are {', '.join(labels)}"[:300]
            )
    return [
        Row(line.ids, array("i", [IGNORE if name is None else numbers[name] for name in line.labels])) for line in lines
    ]


def hash_rows(rows: Sequence[Row]) -> str:
    """Return the SHA-256 of all ids and labels, which tells other data, another vocabulary and another order."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(f"{len(row.ids)} {len(row.labels)} ".encode() + row.ids.tobytes() + row.labels.tobytes())
    return digest.hexdigest()


def seed_of(*parts: object) -> int:
    """Return a seed of 63 bits that depends on the parts alone, such as (seed, step, micro-batch)."""
    return random.Random(repr(parts)).getrandbits(63)


def plan_epoch(rows: Sequence[Row], epoch: int, args: Namespace) -> list[list[list[Row]]]:
    """Return the steps of an epoch. Each is a list of --micro-batches lists of rows; the last step may have fewer.

    The order of the rows depends on the seed and the epoch alone.
    """
    generator = torch.Generator().manual_seed(seed_of(args.seed, "order", epoch))
    batches = split([rows[i] for i in torch.randperm(len(rows), generator=generator).tolist()], args)
    return [batches[i : i + args.micro_batches] for i in range(0, len(batches), args.micro_batches)]


def split(rows: Sequence[Row], args: Namespace) -> list[list[Row]]:
    """Split rows, in order, into batches of at most --batch-rows rows and --batch-tokens tokens.

    Padding counts where the model runs on it. A row with more tokens is a batch of its own.
    """
    batches: list[list[Row]] = []
    for row in rows:
        lengths = [len(row.ids) for row in [*(batches[-1] if batches else []), row]]
        n_tokens = max(lengths) * len(lengths) if args.padded else sum(lengths)
        if not batches or len(lengths) > args.batch_rows or n_tokens > args.batch_tokens:
            batches.append([])
        batches[-1].append(row)
    return batches


class Batch(NamedTuple):
    """Ids and mask (B, S); labels (B,) or (B, S), -100 for a token that is not labelled."""

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor


def make_batch(rows: Sequence[Row], tokenizer: DistilBertTokenizer, hide: float, predict: bool) -> Batch:
    """Pad rows.

    Args:
        rows: at least one.
        tokenizer: knows [MASK], [PAD] and the special tokens.
        hide: share of the tokens to replace by [MASK], drawn with torch's generator; never a special token.
        predict: the labels are the tokens that are hidden, or chosen to be another token or to stay.
    """
    ids = [torch.tensor(row.ids, dtype=torch.int64) for row in rows]
    labels = [torch.tensor(row.labels, dtype=torch.int64) for row in rows]
    flat = torch.cat(ids)  # (T,): what is drawn does not depend on padding
    if hide:
        chosen = (torch.rand(flat.shape) < hide) & ~torch.isin(flat, torch.tensor(tokenizer.all_special_ids))
        hidden = chosen
        if predict:  # 80% become [MASK], 10% any token, 10% stay: Devlin et al. 2018, section 3.1
            fate, other = torch.rand(flat.shape), torch.randint(len(tokenizer), flat.shape)
            labels = list(flat.masked_fill(~chosen, IGNORE).split(list(map(len, ids))))
            hidden, flat = chosen & (fate < 0.8), torch.where(chosen & (fate >= 0.9), other, flat)
        ids = list(flat.masked_fill(hidden, tokenizer.mask_token_id).split(list(map(len, ids))))
    return Batch(
        pad_sequence(ids, batch_first=True, padding_value=tokenizer.pad_token_id or 0),
        pad_sequence([torch.ones_like(row) for row in ids], batch_first=True),
        torch.cat(labels) if len(labels[0]) == 1 else pad_sequence(labels, batch_first=True, padding_value=IGNORE),
    )


def find_scores(totals: Tensor, labels: Sequence[str]) -> dict[str, Any]:
    """Return the mean loss and the accuracy; with L labels also F1 and what it comes from.

    Args:
        totals: the sum of the losses, the number of labels, the number of right ones, and L * L counts: row: the label
            in the file, column: the label that the model gives.
        labels: the names of the L labels.

    Raises:
        FloatingPointError: the loss is not a finite number.
    """
    loss, n, right = totals[:3].tolist()
    if not math.isfinite(loss):
        raise FloatingPointError(f"the loss of --eval is {loss}: the checkpoint before is kept")
    found: dict[str, Any] = {"eval_loss": loss / max(n, 1), "accuracy": right / max(n, 1)}
    if labels:
        confusion = totals[3:].view(len(labels), len(labels))
        f1 = (2 * confusion.diag() / (confusion.sum(0) + confusion.sum(1)).clamp(min=1)).tolist()
        found["f1"] = sum(f1) / len(f1)  # macro: the mean over the labels; 0 for a label that never occurs
        found["f1_by_label"] = dict(zip(labels, f1, strict=True))
        found["confusion"] = confusion.long().tolist()
    return found


def plot_metrics(file: Path, picture: Path) -> None:
    """Draw the loss of each step, and the loss and the scores of each evaluation.

    Raises:
        ImportError: matplotlib is not installed.
    """
    from minibert.study.plots import new_figure

    lines = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    left, right = (figure := new_figure(8, 3)).subplots(1, 2)
    for axes, name, style in (
        (left, "loss", "-"),
        (left, "eval_loss", "o-"),
        (right, "accuracy", "o-"),
        (right, "f1", "o-"),
    ):
        points = [(line["step"], line[name]) for line in lines if name in line]
        if points:
            axes.plot(*zip(*points, strict=True), style, label=name)
    left.set(xlabel="step", ylabel="loss")
    right.set(xlabel="step", ylim=(0, 1))
    for axes in (left, right):
        if axes.lines:
            axes.legend()
    figure.savefig(picture)

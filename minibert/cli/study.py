"""The commands that look inside: walk, trace, view, lab, padding, masks, compare, diagnose, exercise."""

import argparse
import json
import shlex
import webbrowser
from collections.abc import Callable, Sequence
from pathlib import Path
from textwrap import fill, indent
from typing import Any

import torch

from .. import DEMO
from ..checkpoint import CheckpointFiles
from ..heads import DistilBertForSequenceClassification
from ..study.compare import compare_checkpoint
from ..study.diagnose import INPUTS, diagnose, read_safetensors
from ..study.exercises import EXERCISES, grade, initial, read_copy, start
from ..study.lab import attention_lab
from ..study.leak import check_pad_invariance, leak_routes, renormalisation
from ..study.masks import compare_masks
from ..study.models import load_checkpoint
from ..study.padding import left_padding, pad_mass, padding_cost, padding_drift, precision_ladder
from ..study.page import attention_page
from ..study.report import Report, plain, table
from ..study.trace import trace
from ..study.walk import SENTENCES, walk
from ..terminal import visible
from ..tokenizer import DistilBertTokenizer
from .arguments import EXERCISES_FOLDER, read_texts
from .output import check_output_file, say, write_file

# The logits of SENTENCES in the order of walk.RUNS, as the note that this project grew from prints them.
PUBLISHED = {
    "distilbert-base-uncased-finetuned-sst-2-english": {
        "alone": [[-4.3232, 4.6906]],
        "alone, mask": [[-4.3232, 4.6906]],
        "padded": [[-4.1957, 4.5675], [3.9803, -3.2120]],
        "padded, mask": [[-4.3232, 4.6906], [3.9803, -3.2120]],
    }
}


def load(
    options: argparse.Namespace,
    texts: Sequence[str],
    load_model: Callable[[CheckpointFiles], Any] = load_checkpoint,
) -> tuple[Any, DistilBertTokenizer]:
    """Load the model that the options name, by default with the head that it has, and its tokenizer.

    Raises:
        ValueError: a text has more tokens than the model takes.
    """
    files = CheckpointFiles(options.model, revision=options.revision)
    model, tokenizer = load_model(files), DistilBertTokenizer.from_files(files)
    positions = model.config.max_position_embeddings
    for number, text in enumerate(texts, 1):
        if (length := len(tokenizer.encode(text))) > positions:
            raise ValueError(f"sentence {number} has {length} tokens, but the model takes {positions}: shorten it")
    return model, tokenizer


def run_walk(options: argparse.Namespace) -> int:
    """Print the walk; for the official checkpoint also compare its logits with the published ones."""
    texts = sentences(options)
    model, tokenizer = load(options, texts, DistilBertForSequenceClassification.from_files)
    result = walk(model, tokenizer, texts)
    name = Path(options.model).name
    published = None if options.texts else PUBLISHED.get(name)
    agree = published is None or all(
        torch.allclose(result.logits[run], torch.tensor(logits), rtol=0, atol=6e-5) for run, logits in published.items()
    )
    if options.json:
        print(json.dumps({"model": str(options.model), **result.to_dict(), "published": published, "agree": agree}))
        return 0 if agree else 1
    config = model.config
    say(f"minibert walk: {visible(name)}, {config.n_layers} layers of {config.n_heads} heads, dim {config.dim}\n")
    say(str(result))
    if published is not None:
        print("\nPublished logits of this checkpoint, beside these")
        rows = [
            (run, " ".join(f"{x:.4f}" for x in theirs), " ".join(f"{x:.4f}" for x in ours))
            for run, logits in published.items()
            for theirs, ours in zip(logits, result.logits[run].tolist(), strict=True)
        ]
        print(indent(table(("run", "published", "here"), rows), "   "))
        print("   They agree to 4 decimals." if agree else "   They do NOT agree to 4 decimals.")
    return 0 if agree else 1


def run_trace(options: argparse.Namespace) -> int:
    """Print the trace."""
    texts = sentences(options)
    model, tokenizer = load(options, texts)
    inputs = tokenizer(texts, padding=True, return_tensors="pt")
    tokens = [tokenizer.convert_ids_to_tokens(row) for row in inputs.input_ids.tolist()]
    show(options, {"trace": trace(model, inputs, tokens, options.layer, options.head, options.row, options.query)})
    return 0


def run_view(options: argparse.Namespace) -> int:
    """Write the page, and say how large it is."""
    check_output_file(options.out)
    texts = sentences(options)
    model, tokenizer = load(options, [] if options.length else texts)  # --length cuts longer texts
    choice = {"length": options.length, "layers": options.layers, "heads": options.heads}
    page = attention_page(model, tokenizer, texts, title=f"Attention: {Path(options.model).name}", **choice)
    data = page.encode()
    write_file(options.out, data)
    report = {"file": str(options.out), "bytes": len(data)}
    say(json.dumps(report) if options.json else f"{visible(str(options.out))}: {len(data) / 1e6:.2f} MB")
    return 0


def run_lab(options: argparse.Namespace) -> int:
    """Write the laboratory, and say where it is."""
    check_output_file(options.out)
    texts = sentences(options)
    model, tokenizer = load(options, texts, DistilBertForSequenceClassification.from_files)
    page = attention_lab(model, tokenizer, texts, title=f"Attention laboratory: {Path(options.model).name}")
    data = page.encode()
    write_file(options.out, data)
    address = options.out.resolve().as_uri()
    say(json.dumps({"file": str(options.out), "bytes": len(data), "address": address}) if options.json else address)
    if options.open:
        webbrowser.open(address)
    return 0


def run_padding(options: argparse.Namespace) -> int:
    """Print what the sentences' padding takes, moves and costs."""
    texts = sentences(options)
    model, tokenizer = load(options, texts)
    inputs = tokenizer(texts, padding=True, return_tensors="pt")
    lengths = inputs.attention_mask.sum(1).tolist()
    positions = model.config.max_position_embeddings
    show(
        options,
        {
            "Attention that real tokens give to padding": pad_mass(model, inputs, mask=False),
            "The same with the mask": pad_mass(model, inputs),
            "How far each padded sentence is from the same sentence alone, without the mask": padding_drift(
                model, tokenizer, texts, False
            ),
            "The same distance with the mask": padding_drift(model, tokenizer, texts),
            "Other ids in the padded slots, with the mask": check_pad_invariance(model, inputs),
            "In layer 0 the mask only renormalises": renormalisation(model, inputs),
            "How padding reaches [CLS]: the mask in the rows of some queries only": leak_routes(model, inputs),
            "Drift in each precision: what shrinks with it is rounding": precision_ladder(model, inputs),
            "Padding on the left": left_padding(model, tokenizer, texts),
            "Share of the computation": padding_cost(lengths, max_length=positions, config=model.config),
        },
    )
    return 0


def run_masks(options: argparse.Namespace) -> int:
    """Print the ways to mask."""
    show(options, {"masks": compare_masks()})
    return 0


def run_compare(options: argparse.Namespace) -> int:
    """Print the comparison; exit status 1 on a difference."""
    against = [options.against] if options.against else ["transformers", "oracle"]
    if options.checkpoint is not None and options.model is not DEMO:
        raise ValueError(f"two checkpoints, {options.checkpoint} and --model {options.model}: give one")
    checkpoint = options.model if options.checkpoint is None else options.checkpoint
    result = compare_checkpoint(checkpoint, revision=options.revision, against=against)
    show(options, {"compare": result})
    return 0 if result.ok else 1


def run_exercise(options: argparse.Namespace) -> int:
    """Print an exercise, or grade its copy; exit status 1 where the change or the prediction is not right."""
    if options.number is None:
        if options.predict is not None or options.answer or options.reset or options.verbose:
            raise ValueError(f"say which exercise, 1 to {len(EXERCISES)}, as in `minibert exercise 5 --predict STEP`")
        print(*(f"{number:>2}  {exercise.title}" for number, exercise in enumerate(EXERCISES, 1)), sep="\n")
        print("\nminibert exercise N makes a copy to change, and says what to do; minibert itself stays as it is.")
        return 0
    copy = start(options.folder, options.number, options.reset)
    exercise = EXERCISES[options.number - 1]
    print(f"Exercise {options.number} of {len(EXERCISES)}: {exercise.title}\n\n{paragraph(exercise.task)}\n")
    is_unchanged = read_copy(copy) == initial(options.number) and not exercise.made
    if options.predict is None or is_unchanged:
        verb = "Read" if exercise.made and exercise.first != "none" else "Change"
        say(f"{verb} {visible(str(copy))}, and predict the first step that differs from the papers' formulas:")
        folder = "" if options.folder == EXERCISES_FOLDER else f" --folder {shlex.quote(str(options.folder))}"
        say(f"    minibert exercise {options.number}{folder} --predict STEP")
        print("STEP is a name or its end, such as ffn.lin1 or layer.1.attention.q; or none.")
        if options.predict is not None:
            print("\nThe copy is unchanged so far: change it first.")
        if options.answer:
            print(f"\nAnswer: {exercise.first}\n{paragraph(exercise.answer)}")
        return 0 if options.predict is None else 1
    result = grade(options.folder, options.number, options.predict)
    say(str(result))
    if options.verbose:
        say(f"\n{result.comparison}")
    if result.ok or options.answer:
        print(f"\n{paragraph(exercise.answer)}")
    else:
        print(f"\nHint: {paragraph(exercise.hint)}\n--answer shows the answer, --reset starts again.")
    return 0 if result.ok else 1


def paragraph(text: str) -> str:
    """Break a text into lines of at most 100 characters."""
    return fill(text, 100, break_on_hyphens=False)


def run_diagnose(options: argparse.Namespace) -> int:
    """Print what is wrong with the values in a file; exit status 1 where something is."""
    values = read_safetensors(options.values)
    inputs = {name: values.pop(name) for name in INPUTS if name in values}
    if inputs and "input_ids" not in inputs:
        raise ValueError(f"{options.values} holds {' and '.join(inputs)}, but not input_ids: give both, or neither")
    if inputs and options.texts:
        raise ValueError(f"{options.values} holds {' and '.join(inputs)}: give no texts, or a file without them")
    texts = sentences(options)
    model, tokenizer = load(options, [] if inputs else texts)
    inputs = inputs or tokenizer(texts, padding=True, return_tensors="pt")
    result = diagnose(model, inputs, values, tolerance=options.tolerance)
    show(options, {"diagnose": result})
    return 0 if result.verdict.startswith("right") else 1


def sentences(options: argparse.Namespace) -> list[str]:
    """Return the sentences to work on.

    Raises:
        ValueError: there are none, or see `read_texts`.
    """
    if not options.texts:
        return list(SENTENCES)
    texts = list(read_texts(options))
    if not texts:
        raise ValueError("standard input is empty: give at least one sentence")
    return texts


def show(options: argparse.Namespace, reports: dict[str, Report]) -> None:
    """Print reports: as JSON, or as tables, each under its title where there are several."""
    if options.json:
        values = plain(reports)
        print(json.dumps(values if len(values) > 1 else next(iter(values.values()))))
    elif len(reports) == 1:
        say(str(*reports.values()))
    else:
        say("\n\n".join(f"{title}\n{indent(str(report), '   ')}" for title, report in reports.items()))

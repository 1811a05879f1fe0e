"""The commands that look inside: walk, trace, view, padding, masks, compare."""

import argparse
import json
from pathlib import Path
from textwrap import indent
from typing import Any

import torch

from .. import DEMO
from ..arguments import add_common_options, read_texts
from ..checkpoint import CheckpointFiles
from ..heads import DistilBertForSequenceClassification
from ..tokenizer import DistilBertTokenizer
from .compare import compare_checkpoint, load_checkpoint
from .masks import check_pad_invariance, compare_masks, renormalisation
from .padding import left_padding, pad_mass, padding_cost, padding_drift, precision_ladder
from .page import attention_page
from .report import Report, plain, table
from .trace import trace
from .walk import SENTENCES, walk

# The logits of SENTENCES in the order of walk.RUNS, as the note that this project grew from prints them.
PUBLISHED = {
    "distilbert-base-uncased-finetuned-sst-2-english": {
        "alone": [[-4.3232, 4.6906]],
        "alone, mask": [[-4.3232, 4.6906]],
        "padded": [[-4.1957, 4.5675], [3.9803, -3.2120]],
        "padded, mask": [[-4.3232, 4.6906], [3.9803, -3.2120]],
    }
}


def add_study_commands(commands: Any) -> None:
    """Add the commands to a parser's subparsers; each sets `command`, a function of the parsed options."""
    command = commands.add_parser(
        "walk", help="what padding does to a sentence, and how the mask undoes it (the default)"
    )
    add_sentences(command)
    command.set_defaults(command=run_walk)
    add_common_options(command)

    command = commands.add_parser("trace", help="every value of one forward pass, in order, and one query in full")
    add_sentences(command)
    for name in ("layer", "head", "row", "query"):
        command.add_argument(f"--{name}", type=int, default=0, metavar="N", help=f"the {name} to look into; default: 0")
    command.set_defaults(command=run_trace)
    add_common_options(command)

    command = commands.add_parser("view", help="attention as an HTML page, with the mask and without")
    add_sentences(command)
    command.add_argument("-o", "--out", type=Path, default=Path("attention.html"), metavar="FILE", help="the page")
    command.add_argument("--length", type=int, metavar="N", help="pad or cut to so many tokens; default: pad")
    command.add_argument("--layers", type=numbers, metavar="N,N", help="only these layers, such as 0,5")
    command.add_argument("--heads", type=numbers, metavar="N,N", help="only these heads of each")
    command.set_defaults(command=run_view)
    add_common_options(command)

    command = commands.add_parser("padding", help="what padding takes, moves and costs, with the mask and without")
    add_sentences(command)
    command.set_defaults(command=run_padding)
    add_common_options(command)

    command = commands.add_parser("masks", help="the ways to mask, beside one another, in four dtypes")
    command.add_argument("--json", action="store_true", help="print JSON")
    command.set_defaults(command=run_masks, model="")

    command = commands.add_parser(
        "compare", help="this model against transformers and against the oracle, step by step"
    )
    command.add_argument("checkpoint", nargs="?", metavar="CHECKPOINT", help="the same as --model")
    command.add_argument("--against", choices=("transformers", "oracle"), help="only this one; default: both")
    command.set_defaults(command=run_compare)
    add_common_options(command)


def load(options: argparse.Namespace) -> tuple[Any, DistilBertTokenizer]:
    """Load the model that the options name, with the head that it has, and its tokenizer."""
    files = CheckpointFiles(options.model, revision=options.revision)
    return load_checkpoint(files), DistilBertTokenizer.from_files(files)


def run_walk(options: argparse.Namespace) -> int:
    """Print the walk; for the official checkpoint also hold its logits against the published ones."""
    texts = sentences(options)
    files = CheckpointFiles(options.model, revision=options.revision)
    model = DistilBertForSequenceClassification.from_files(files)
    tokenizer = DistilBertTokenizer.from_files(files)
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
    print(f"minibert walk: {name}, {config.n_layers} layers of {config.n_heads} heads, dim {config.dim}\n")
    print(result)
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
    model, tokenizer = load(options)
    inputs = tokenizer(sentences(options), padding=True, return_tensors="pt")
    tokens = [tokenizer.convert_ids_to_tokens(row) for row in inputs.input_ids.tolist()]
    show(options, {"trace": trace(model, inputs, tokens, options.layer, options.head, options.row, options.query)})
    return 0


def run_view(options: argparse.Namespace) -> int:
    """Write the page, and say how large it is."""
    texts = sentences(options)
    model, tokenizer = load(options)
    choice = {"length": options.length, "layers": options.layers, "heads": options.heads}
    page = attention_page(model, tokenizer, texts, title=f"Attention: {Path(options.model).name}", **choice)
    written = options.out.write_bytes(page.encode())
    report = {"file": str(options.out), "bytes": written}
    print(json.dumps(report) if options.json else f"{options.out}: {written / 1e6:.2f} MB")
    return 0


def run_padding(options: argparse.Namespace) -> int:
    """Print what the sentences' padding takes, moves and costs."""
    texts = sentences(options)
    model, tokenizer = load(options)
    inputs = tokenizer(texts, padding=True, return_tensors="pt")
    lengths = inputs.attention_mask.sum(1).tolist()
    positions = model.config.max_position_embeddings
    show(
        options,
        {
            "Attention that real tokens give to padding": pad_mass(model, inputs, mask=False),
            "The same with the mask": pad_mass(model, inputs),
            "Drift of each sentence from itself alone, without the mask": padding_drift(model, tokenizer, texts, False),
            "Drift with the mask": padding_drift(model, tokenizer, texts),
            "Other ids in the padded slots, with the mask": check_pad_invariance(model, inputs),
            "At layer 0 the mask only renormalises": renormalisation(model, inputs),
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
    result = compare_checkpoint(options.checkpoint or options.model, revision=options.revision, against=against)
    show(options, {"compare": result})
    return 0 if result.ok else 1


def add_sentences(command: argparse.ArgumentParser) -> None:
    """Add the sentences that a command works on."""
    help_text = "sentences, in place of the walk's two, or - for one a line on standard input"
    command.add_argument("texts", nargs="*", metavar="TEXT", help=help_text)
    command.set_defaults(file=None)  # what read_texts looks for


def numbers(text: str) -> list[int]:
    """Read numbers with commas between them."""
    return [int(number) for number in text.split(",")]


def sentences(options: argparse.Namespace) -> list[str]:
    """Return the sentences to work on.

    Raises:
        ValueError: see `read_texts`.
    """
    return list(read_texts(options)) if options.texts else list(SENTENCES)


def show(options: argparse.Namespace, reports: dict[str, Report]) -> None:
    """Print reports: as JSON, or as tables, each under its title where there are several."""
    if options.json:
        values = plain(reports)
        print(json.dumps(values if len(values) > 1 else next(iter(values.values()))))
    elif len(reports) == 1:
        print(*reports.values())
    else:
        print("\n\n".join(f"{title}\n{indent(str(report), '   ')}" for title, report in reports.items()))

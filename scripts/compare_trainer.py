#!/usr/bin/env python3
"""Compare finetune.py with transformers' Trainer: the accuracy after equal trainings, and the time of a step.

    python scripts/compare_trainer.py FOLDER                # FOLDER holds rt-polarity.pos and rt-polarity.neg
    python scripts/compare_trainer.py FOLDER --seeds 0      # the time alone

Accuracy: both train a classifier of the demo's sizes on nine tenths of the reviews, from the same random weights, with
SETTINGS, once for each seed. Time: a step from rows of ids to changed weights. After each step of Trainer, finetune.py
takes the same step, with padding and without; ratios are medians over the steps. Needs the extra ecosystem.
"""

import argparse
import json
import statistics
import sys
import time
from array import array
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import finetune
import torch
import train_demo_model
from finetune_data import Row
from finetune_setup import parse

from minibert import DEMO, DistilBertConfig, DistilBertForSequenceClassification, DistilBertTokenizer, PackedForTraining

try:
    from transformers import (
        AutoModelForSequenceClassification,
        DataCollatorWithPadding,
        Trainer,
        TrainerCallback,
        TrainingArguments,
    )
except ImportError:
    sys.exit("compare_trainer.py: it needs transformers and accelerate (the extra ecosystem)")

SETTINGS = {"epochs": 3, "batch-rows": 64, "learning-rate": 1e-3, "weight-decay": 0.05, "warmup": 0.1, "clip": 1.0}
DEMO_SIZES = DistilBertConfig.from_pretrained(DEMO)
TIMED = {"the demo's sizes": (64, 40, DEMO_SIZES), "distilbert-base": (16, 10, DistilBertConfig())}  # rows, steps
QUIET = {"report_to": "none", "save_strategy": "no", "logging_strategy": "no", "disable_tqdm": True, "use_cpu": True}
Example = dict[str, Any]
tokenizer = DistilBertTokenizer.from_pretrained(DEMO)


def read(folder: Path) -> list[list[Example]]:
    """Return the held-out reviews and the others, with their ids, and labels as numbers."""
    parts = []
    for texts in train_demo_model.read(folder):
        ids = tokenizer([text for text, _ in texts], truncation=True).input_ids
        numbers = [int(name == "POSITIVE") for _, name in texts]
        columns = zip(texts, numbers, ids, strict=True)
        parts.append([{"text": text, "label": label, "input_ids": row} for (text, _), label, row in columns])
    return parts


def make_trainer(model: Any, train: list[Example], out: Path, **others: Any) -> Trainer:
    """Return a Trainer with SETTINGS, and with others."""
    epochs, rows, rate, decay, warmup, clip = SETTINGS.values()
    settings: dict[str, Any] = {"num_train_epochs": epochs, "per_device_train_batch_size": rows, "max_grad_norm": clip}
    settings |= {"learning_rate": rate, "weight_decay": decay, "warmup_steps": warmup, "output_dir": str(out)}
    collator = DataCollatorWithPadding(tokenizer)  # type: ignore[arg-type]
    return Trainer(model, TrainingArguments(**settings | QUIET | others), collator, train)


def train_both(train: list[Example], held_out: list[Example], seed: int, work: Path) -> tuple[float, float]:
    """Train from the same random weights; return the accuracies of finetune.py and of Trainer."""
    start, out = work / f"start-{seed}", work / f"out-{seed}"
    torch.manual_seed(seed)
    DistilBertForSequenceClassification(DEMO_SIZES).save_pretrained(start)
    tokenizer.save_pretrained(start)
    command = ["sequence", f"--model={start}", f"--out={out}", "--batch-tokens=99999", f"--seed={seed}", "--device=cpu"]
    for option, examples in (("--train", train), ("--eval", held_out)):
        file = work / f"{option[2:]}.jsonl"
        rows = ({"text": row["text"], "label": DEMO_SIZES.id2label[row["label"]]} for row in examples)
        file.write_text("\n".join(map(json.dumps, rows)), "utf-8")
        command.append(f"{option}={file}")
    if status := finetune.main(command + [f"--{name}={value}" for name, value in SETTINGS.items()]):
        sys.exit(status)
    torch.use_deterministic_algorithms(False)  # finetune.py has switched it on, Trainer does not
    metrics = map(json.loads, (out / "metrics.jsonl").read_text("utf-8").splitlines())
    ours = [line["accuracy"] for line in metrics if "accuracy" in line][-1]

    trainer = make_trainer(AutoModelForSequenceClassification.from_pretrained(start), train, out, seed=seed)
    trainer.train()
    guesses = cast(Any, trainer).predict(held_out).predictions.argmax(-1).tolist()
    return ours, statistics.fmean(guess == row["label"] for guess, row in zip(guesses, held_out, strict=True))


def make_step(model: Any) -> Callable[[list[Example]], None]:
    """Return a function that takes a step as finetune.py does."""
    args = parse(None, ["sequence", "--model=", "--train=", "-o=", "--device=cpu"])
    optimizer = torch.optim.AdamW(model.parameters(), SETTINGS["learning-rate"], fused=True)

    def step(examples: list[Example]) -> None:
        rows = [Row(array("i", row["input_ids"]), array("i", [row["label"]])) for row in examples]
        finetune.accumulate(model, [rows], 0, args, tokenizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), SETTINGS["clip"])
        optimizer.step()
        optimizer.zero_grad()

    return step


class InTurns(TrainerCallback):
    """Times each step of a Trainer, and after it the same step of others."""

    def __init__(self, trainer: Trainer, others: dict[str, Callable[[list[Example]], None]]) -> None:
        self.others = others
        self.batches: list[list[Example]] = []
        self.seconds: dict[str, list[float]] = {name: [] for name in ("Trainer", *others)}
        self.collate, trainer.data_collator = trainer.data_collator, self.keep
        trainer.add_callback(self)
        self.begin = time.perf_counter()

    def keep(self, rows: list[Example]) -> Any:
        """Collate a batch, and keep its rows for the others."""
        self.batches.append(rows)
        return self.collate(rows)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Stop the clock of Trainer, and let the others take the step."""
        self.seconds["Trainer"].append(time.perf_counter() - self.begin)
        torch.use_deterministic_algorithms(True)  # as finetune.py has it
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        for name, step in self.others.items():
            begin = time.perf_counter()
            step(self.batches[state.global_step - 1])
            self.seconds[name].append(time.perf_counter() - begin)
        torch.use_deterministic_algorithms(False)
        self.begin = time.perf_counter()


def compare_time(train: list[Example], n_rows: int, n_steps: int, config: DistilBertConfig, work: Path) -> None:
    """Print the time of a step of each, and its ratio to that of Trainer."""
    padded, plain = (DistilBertForSequenceClassification(config).train() for _ in range(2))
    padded.save_pretrained(work)
    theirs = AutoModelForSequenceClassification.from_pretrained(work)
    trainer = make_trainer(theirs, train, work, max_steps=n_steps, per_device_train_batch_size=n_rows)
    ours = {"finetune.py, padded": make_step(padded), "finetune.py, packed": make_step(PackedForTraining(plain))}
    turns = InTurns(trainer, ours)
    trainer.train()
    for name, seconds in turns.seconds.items():
        pairs = list(zip(turns.seconds["Trainer"], seconds, strict=True))[2:]  # two steps warm up
        milliseconds, ratio = statistics.median(seconds[2:]) * 1e3, statistics.median(a / b for a, b in pairs)
        print(f"  {name:20} {milliseconds:6.0f} ms, Trainer / this {ratio:.2f}", flush=True)


def main() -> None:
    """Compare the times, then the accuracies."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="holds rt-polarity.pos and rt-polarity.neg")
    parser.add_argument("--seeds", type=int, default=5, metavar="N", help="default: 5")
    args = parser.parse_args()
    try:
        held_out, train = read(args.folder)
    except OSError as error:
        parser.error(str(error))
    print(f"{torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    with TemporaryDirectory() as work:
        for name, (n_rows, n_steps, config) in TIMED.items():
            print(f"{name}, {n_rows} rows, ms for a step:", flush=True)
            compare_time(train, n_rows, n_steps, config, Path(work))
        found = []
        for seed in range(args.seeds):
            found.append(train_both(train, held_out, seed, Path(work)))
            print(f"seed {seed}: finetune.py {found[-1][0]:.1%}, Trainer {found[-1][1]:.1%}", flush=True)
    if len(found) > 1:
        share = statistics.fmean(row["label"] for row in held_out)
        for name, values in zip(("finetune.py", "Trainer"), zip(*found, strict=True), strict=True):
            print(f"{name}: mean {statistics.fmean(values):.1%}, standard deviation {statistics.stdev(values):.1%}")
        print(f"always the more frequent label: {max(share, 1 - share):.1%}; {len(held_out)} reviews")


if __name__ == "__main__":
    main()

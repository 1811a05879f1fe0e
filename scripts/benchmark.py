#!/usr/bin/env python3
"""Time a DistilBERT classifier on the CPU: minibert beside transformers, ONNX Runtime, CTranslate2, OpenVINO and torch.

Each system has a process of its own and only one is active at a time; they take turns in an order drawn anew for each
round, so that whatever else the machine does hits all alike. What counts are ratios within a round. All have the same
random weights of distilbert-base's shape, with a head on [CLS]. "over ideal" is the time over that of the real tokens'
arithmetic in all layers (of the last, `packed` leaves out what [CLS] does not need: 14% of the whole) at the speed of a
large matrix product in the same round. "alone or in the batch" is the largest difference between a text's logits when
it runs alone and when it runs in the batch.

    pip install ".[bench]"
    python scripts/benchmark.py                                        # all systems and batches: 30 to 45 minutes
    python scripts/benchmark.py --batches short tail --rounds 3 --systems packed transformers-sdpa ctranslate2
    python scripts/benchmark.py --lengths lengths.txt --plot results.svg
    python scripts/benchmark.py --save                                 # keeps the results of this kind of CPU
    python scripts/benchmark.py --show .github/benchmarks/amd-avx512.json   # again, without measuring; also --plot
    python scripts/benchmark.py --table .github/benchmarks/amd-avx512.json  # the README's table
    python scripts/benchmark.py --start-up --throughput --batches
"""

import argparse
import json
import multiprocessing
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

os.environ.update(
    KMP_BLOCKTIME="1",  # idle threads sleep
    TOKENIZERS_PARALLELISM="false",
    HF_HUB_OFFLINE="1",
    TRANSFORMERS_VERBOSITY="error",
    HF_HUB_DISABLE_PROGRESS_BARS="1",
)

import numpy as np
import torch
from systems import SPEED_OF_LIGHT, SYSTEMS
from torch import Tensor

from minibert import DistilBertConfig, DistilBertForSequenceClassification, DistilBertTokenizer, pack

CONFIG = DistilBertConfig()
RESULTS = Path(__file__).parent.parent / ".github" / "benchmarks"  # a file for each kind of CPU
SECONDS = 0.2  # a system runs a small batch again and again for so long, and its median counts
Results = dict[str, Any]  # what --json writes


def draw_lengths(mean: float, sigma: float, longest: int, seed: int, count: int = 32) -> list[int]:
    """Draw lengths from a log-normal distribution with this mean, clipped to 5 … longest."""
    drawn = np.exp(np.random.default_rng(seed).normal(np.log(mean) - sigma**2 / 2, sigma, count))
    return [int(length) for length in drawn.clip(5, longest).round()]


SHORT_SIZES = (1, 2, 4, 8, 16, 64)
BATCHES: dict[str, list[int]] = {
    "1 x 16": [16],
    "1 x 128": [128],
    "32 x 128": [128] * 32,
    "short": draw_lengths(25, 0.45, 64, 0),  # 32 texts, like the sentences of SST-2
    "short, uneven": draw_lengths(25, 0.45, 64, 3),
    "tail": draw_lengths(90, 0.9, 512, 8),  # 32 texts, a few of them long, like reviews
    "heavy tail": draw_lengths(90, 0.9, 512, 3),
    **{f"{count} short": draw_lengths(25, 0.45, 64, 0, count) for count in SHORT_SIZES},
}
MAIN = tuple(BATCHES)[:7]
BY_PADDING = MAIN[2:]
BY_SIZE = (*(f"{count} short" for count in SHORT_SIZES[:-1]), "short", "64 short")
IN_TABLE = {  # the README's rows
    "transformers-sdpa": "transformers, sdpa",
    "transformers-compile": "transformers, torch.compile",
    "onnxruntime": "ONNX Runtime",
    "openvino": "OpenVINO",
    "ctranslate2": "CTranslate2",
    "minibert-eager": "minibert, eager",
    "packed-int8": "`pack(model, int8=True)`",
}


def make_batch(lengths: list[int]) -> tuple[Tensor, Tensor]:
    """Return random ids and the mask, (B, S), padded on the right with 0."""
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    ids = torch.randint(1000, CONFIG.vocab_size, mask.shape, generator=torch.Generator().manual_seed(0))
    return ids * mask, mask


def padding_ratio(lengths: list[int]) -> float:
    """Slots of the padded batch over its real tokens."""
    return len(lengths) * max(lengths) / sum(lengths)


def flops(lengths: list[int]) -> float:
    """Count the multiplications and additions that the real tokens need, in linear layers and attention."""
    linear = 2 * sum(lengths) * (4 * CONFIG.dim**2 + 2 * CONFIG.dim * CONFIG.hidden_dim)
    attention = 4 * CONFIG.dim * sum(length**2 for length in lengths)
    return CONFIG.n_layers * (linear + attention)


def serve(pipe: Connection, name: str, folder: Path, threads: int) -> None:
    """Be a system's process: build it, then time each batch that comes through the pipe."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(threads)
    try:
        with torch.no_grad():
            run = SYSTEMS[name](folder)
    except Exception as error:  # a peer may fail in its own way: the others go on without it
        pipe.send(f"{type(error).__name__}: {error}"[:200])
        return
    pipe.send(None)
    with torch.no_grad():
        while (task := pipe.recv()) is not None:
            lengths, alone = task
            ids, mask = make_batch(lengths)
            if alone:  # each text without its padding
                rows = zip(ids, lengths, strict=True)
                pipe.send(np.concatenate([run(row[None, :n], torch.ones(1, n, dtype=torch.long)) for row, n in rows]))
                continue
            run(ids[:1], mask[:1])  # wakes the process up
            times: list[float] = []
            while sum(times) < SECONDS:
                begin = time.perf_counter()
                logits = run(ids, mask)
                times.append(time.perf_counter() - begin)
            pipe.send((statistics.median(times), np.asarray(logits)))


@dataclass
class System:
    """A running process, and what it measured.

    Args:
        name: see `SYSTEMS`.
        process: its own.
        pipe: to it.
        seconds: of each batch, round by round.
        logits: of each batch.
        drift: of each batch, the largest difference of a text's logits alone and in the batch.
    """

    name: str
    process: Any
    pipe: Connection
    seconds: dict[str, list[float]] = field(default_factory=dict)
    logits: dict[str, Any] = field(default_factory=dict)
    drift: dict[str, float] = field(default_factory=dict)

    @classmethod
    def start(cls, name: str, folder: Path, threads: int) -> "System | None":
        """Start a process and wait for it; None, and a note, if the system cannot run here."""
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=serve, args=(theirs, name, folder, threads), daemon=True)
        process.start()
        theirs.close()
        try:
            problem = ours.recv()
        except EOFError:
            problem = "its process died"
        if problem is not None:
            print(f"skipped {name}: {problem}", flush=True)
            return None
        return cls(name, process, ours)

    def warm(self, batch: str, lengths: list[int]) -> None:
        """Run one batch, and its texts one by one, for their logits."""
        self.pipe.send((lengths, False))
        _, self.logits[batch] = self.pipe.recv()
        if self.name != SPEED_OF_LIGHT:
            self.pipe.send((lengths, True))
            self.drift[batch] = float(np.abs(self.pipe.recv() - self.logits[batch]).max())

    def measure(self, batch: str, lengths: list[int]) -> None:
        """Time one batch."""
        self.pipe.send((lengths, False))
        seconds, _ = self.pipe.recv()
        self.seconds.setdefault(batch, []).append(seconds)


def run_systems(names: list[str], batches: dict[str, list[int]], folder: Path, args: argparse.Namespace) -> Results:
    """Measure, and return what `report` prints; with --save the file has each round as soon as it is done."""
    systems = [system for name in names if (system := System.start(name, folder, args.threads))]
    machine = describe_machine(folder, args.threads)
    for round_number in range(args.rounds + 1):
        for batch, lengths in batches.items():
            for system in random.sample(systems, len(systems)):
                if round_number == 0:
                    system.warm(batch, lengths)
                else:
                    system.measure(batch, lengths)
        print(f"round {round_number} of {args.rounds}" if round_number else "warm", flush=True)
        results = collect(systems, batches, machine)
        if args.save and round_number:
            results = save(results)
    for system in systems:
        system.pipe.send(None)
    return results


def collect(systems: list[System], batches: dict[str, list[int]], machine: dict[str, Any]) -> Results:
    """Return what the systems have measured so far."""
    eager = next((system.logits for system in systems if system.name == "minibert-eager"), {})
    return {
        "machine": machine,
        "batches": batches,
        "systems": {
            system.name: {
                "seconds": system.seconds,
                "distance": {b: float(np.abs(system.logits[b] - x).max()) for b, x in eager.items()},
                "drift": system.drift,
            }
            for system in systems
        },
    }


def describe_machine(folder: Path, n_threads: int) -> dict[str, Any]:
    """Return what the results hold for: CPU, instruction set, versions, and the kernels that `pack` chose."""
    model = DistilBertForSequenceClassification.from_pretrained(folder)
    fast = pack(model)
    return {
        "cpu": cpu_name(),
        "isa": torch.backends.cpu.get_cpu_capability(),
        "threads": n_threads,
        "platform": platform.platform(),
        "torch": torch.__version__,
        "kernels": fast.kernels,
        "batch_invariant": fast.batch_invariant,
        "int8 kernels": pack(model, int8=True).kernels,
    }


def cpu_name() -> str:
    """Return the CPU's vendor, family and name, such as "AuthenticAMD, family 26, AMD EPYC"."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    facts = dict(reversed([[part.strip() for part in line.split(":", 1)] for line in lines if ":" in line]))
    return f"{facts.get('vendor_id')}, family {facts.get('cpu family')}, {facts.get('model name')}"


def kind_of_cpu(machine: dict[str, Any]) -> str:
    """Return the name of the results file: "amd-avx512"."""
    vendors = {"AuthenticAMD": "amd", "GenuineIntel": "intel"}
    vendor = machine["cpu"].split(",")[0]
    return f"{vendors.get(vendor, vendor)}-{machine['isa']}".lower()


def ratios(numerator: list[float], denominator: list[float]) -> list[float]:
    """Return the ratios of two systems' times in the same rounds."""
    return [a / b for a, b in zip(numerator, denominator, strict=True)]


def summary(values: list[float]) -> str:
    """Median, least and greatest."""
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def report(results: Results) -> None:
    """Print a table for each batch: median time, times over that of `packed`, over ideal, differences in logits."""
    print(", ".join(f"{name}: {value}" for name, value in results["machine"].items()))
    systems = dict(results["systems"])
    light, packed_seconds = systems.pop(SPEED_OF_LIGHT, None), systems.get("packed", {}).get("seconds")
    has_eager = any(system["distance"] for system in systems.values())
    for batch, lengths in results["batches"].items():
        print(f"\n{batch}: {len(lengths)} x {max(lengths)}, padded / real tokens {padding_ratio(lengths):.2f}")
        if light:
            speed = [2 * 2048**3 / seconds for seconds in light["seconds"][batch]]
            print(f"{SPEED_OF_LIGHT}: {statistics.median(speed) / 1e9:.0f} GFLOP/s")
        eager = ["from eager"] if has_eager else []
        heads = ["system", "ms", "time / packed, paired (min to max)", "over ideal", *eager, "alone or in the batch"]
        print(f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
        for name, system in systems.items():
            times = system["seconds"][batch]
            against = summary(ratios(times, packed_seconds[batch])) if packed_seconds else ""
            over = f"{statistics.median(ratios(times, [flops(lengths) / s for s in speed])):.2f}" if light else ""
            distance = [f"{system['distance'][batch]:.1e}" if system["distance"] else ""] if has_eager else []
            drift = f"{system['drift'][batch]:.1e}"
            print(f"| {' | '.join([name, f'{statistics.median(times) * 1e3:.1f}', against, over, *distance, drift])} |")


def print_table(results: Results) -> None:
    """Print the README's table: median time over that of `packed`, a column for each batch."""
    systems, batches = results["systems"], [batch for batch in MAIN if batch in results["batches"]]
    padding = [f"*{padding_ratio(results['batches'][batch]):.1f}*" for batch in batches]
    rows = [["time over that of `pack`", *batches], ["---"] * (len(batches) + 1), ["*padded / real tokens*", *padding]]
    for name, title in IN_TABLE.items():
        if name in systems:
            pairs = [(systems[name]["seconds"][batch], systems["packed"]["seconds"][batch]) for batch in batches]
            rows.append([title, *(f"{statistics.median(ratios(*pair)):.2f}" for pair in pairs)])
    print("\n".join(f"| {' | '.join(row)} |" for row in rows))


def save_plot(results: Results, path: Path) -> None:
    """Draw the time over that of `packed`, against the padding ratio and against the batch size."""
    from matplotlib import pyplot

    batches, systems = results["batches"], results["systems"]
    padding: dict[str, float] = {batch: padding_ratio(lengths) for batch, lengths in batches.items()}
    sizes: dict[str, float] = {batch: len(lengths) for batch, lengths in batches.items()}
    figure, panels = pyplot.subplots(1, 2, figsize=(11, 4.5), sharey=True)
    for axes, order, places in zip(panels, (BY_PADDING, BY_SIZE), (padding, sizes), strict=True):
        drawn = [batch for batch in order if batch in batches]
        axes.set_prop_cycle(color=["black", *map(pyplot.colormaps["tab20"], range(20))])
        for name, system in systems.items():
            if name != SPEED_OF_LIGHT:
                paired = [ratios(system["seconds"][b], systems["packed"]["seconds"][b]) for b in drawn]
                style = "o--" if "int8" in name else "o-"
                axes.plot([places[b] for b in drawn], list(map(statistics.median, paired)), style, ms=3, label=name)
    panels[0].set(xlabel="padded tokens / real tokens", ylabel="time / time of packed", yscale="log")
    panels[0].set_yticks([0.5, 1, 2, 4, 8], ["0.5", "1", "2", "4", "8"])
    panels[1].set(xlabel="texts in the batch, as in short", xscale="log")
    ticks = [sizes[batch] for batch in BY_SIZE if batch in sizes]
    panels[1].set_xticks(ticks, list(map(str, ticks)))
    panels[1].minorticks_off()
    panels[1].legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path, bbox_inches="tight")


def save_checkpoint(folder: Path) -> None:
    """Write a classifier of distilbert-base's shape with random weights, and a vocabulary of made-up words."""
    torch.manual_seed(0)
    DistilBertForSequenceClassification(CONFIG).save_pretrained(folder)
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = special + [f"w{i}" for i in range(CONFIG.vocab_size - len(special))]
    DistilBertTokenizer({word: i for i, word in enumerate(words)}, model_max_length=512).save_pretrained(folder)


CLASSIFIERS = {
    "minibert": "from minibert.pipeline import TextClassifier; run = TextClassifier({folder!r}, truncation=True)",
    "transformers": "from transformers import pipeline; "
    "run = pipeline('text-classification', {folder!r}, batch_size=32, device='cpu')",
}


def time_start_up(folder: Path, rounds: int) -> None:
    """Time cold processes, from the start to the first result."""
    times: dict[str, list[float]] = {name: [] for name in CLASSIFIERS}
    for _ in range(rounds):
        for name, code in CLASSIFIERS.items():
            begin = time.perf_counter()
            command = [sys.executable, "-W", "ignore", "-c", code.format(folder=str(folder)) + "; list(run(['w1 w2']))"]
            subprocess.run(command, check=True, capture_output=True)
            times[name].append(time.perf_counter() - begin)
    print("\ncold process to first result: " + ", ".join(f"{n} {statistics.median(t):.2f} s" for n, t in times.items()))
    print(f"transformers / minibert: {summary(ratios(times['transformers'], times['minibert']))}")


THROUGHPUT = """
import random, time
rng = random.Random(0)
texts = [" ".join(f"w{{rng.randrange(9999)}}" for _ in range(min(62, int(rng.lognormvariate(3, .45)))))
         for _ in range({count})]
begin = time.perf_counter()
list(run(texts))
print(sum(len(text.split()) + 2 for text in texts) / (time.perf_counter() - begin))
"""


def time_throughput(folder: Path, count: int, rounds: int) -> None:
    """Time a corpus of sentences, tokenizer included, in words and special tokens a second."""
    speeds: dict[str, list[float]] = {name: [] for name in CLASSIFIERS}
    for _ in range(rounds):
        for name in random.sample(list(CLASSIFIERS), len(CLASSIFIERS)):
            script = CLASSIFIERS[name].format(folder=str(folder)) + THROUGHPUT.format(count=count)
            command = [sys.executable, "-W", "ignore", "-c", script]
            speeds[name].append(float(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    medians = (f"{name} {statistics.median(each):,.0f}" for name, each in speeds.items())
    print(f"\n{count} sentences, tokens/s: {', '.join(medians)}")
    print(f"minibert / transformers: {summary(ratios(speeds['minibert'], speeds['transformers']))}")


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--systems", nargs="*", choices=SYSTEMS, default=list(SYSTEMS), metavar="SYSTEM")
    parser.add_argument("--batches", nargs="*", choices=BATCHES, default=list(BATCHES), metavar="BATCH")
    parser.add_argument("--lengths", type=Path, help="file of numbers: one more batch, with rows of these lengths")
    parser.add_argument("--rounds", type=int, default=9, help="how often each system runs each batch")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of each system")
    parser.add_argument("--save", action="store_true", help="keep each round, with earlier results of this kind of CPU")
    parser.add_argument("--show", type=Path, metavar="JSON", help="show what an earlier run wrote, and measure nothing")
    parser.add_argument("--table", type=Path, metavar="JSON", help="the same as the README's table")
    parser.add_argument("--plot", type=Path, help="write a picture here (needs matplotlib)")
    parser.add_argument("--start-up", action="store_true", help="also time cold processes")
    parser.add_argument("--throughput", type=int, nargs="?", const=2000, help="also time a corpus of sentences")
    args = parser.parse_args()
    if args.plot and not args.show and not {"packed", *BY_PADDING} <= {*args.systems, *args.batches}:
        parser.error(f"--plot needs the system packed and the batches {' '.join(BY_PADDING)}")
    return args


def main() -> None:
    """Measure and print."""
    args = parse_arguments()
    batches = {name: BATCHES[name] for name in args.batches}
    if args.lengths:
        batches[args.lengths.stem] = [int(number) for number in args.lengths.read_text().split()]
    if args.table:
        print_table(json.loads(args.table.read_text()))
        return
    if args.show:
        show(json.loads(args.show.read_text()), args.plot)
        return
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory)
        save_checkpoint(folder)
        if batches:
            show(run_systems(args.systems, batches, folder, args), args.plot)
        if args.start_up:
            time_start_up(folder, args.rounds)
        if args.throughput:
            time_throughput(folder, args.throughput, min(args.rounds, 3))


def save(results: Results) -> Results:
    """Write the results of this kind of CPU; keep what the same systems measured on other batches of this machine."""
    file = RESULTS / f"{kind_of_cpu(results['machine'])}.json"
    file.parent.mkdir(exist_ok=True)
    if file.exists():
        old = json.loads(file.read_text())
        if old["machine"] == results["machine"] and old["systems"].keys() == results["systems"].keys():
            for name, system in results["systems"].items():
                results["systems"][name] = {key: old["systems"][name][key] | values for key, values in system.items()}
            measured = old["batches"] | results["batches"]
            order = [name for name in BATCHES if name in measured] + [name for name in measured if name not in BATCHES]
            results["batches"] = {name: measured[name] for name in order}
    file.write_text(json.dumps(results, indent=1) + "\n")
    return results


def show(results: Results, plot: Path | None) -> None:
    """Print the tables and draw the picture."""
    report(results)
    if plot:
        save_plot(results, plot)


if __name__ == "__main__":
    main()

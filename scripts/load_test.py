#!/usr/bin/env python3
"""Put minibert under load on the demo checkpoint: does memory grow, do threads and processes give other results?

    python scripts/load_test.py                            # all of it, some minutes on one core
    python scripts/load_test.py --calls 1000 --words 10000 # a short run

Status 1 if memory grew or a result differed. The first fifth of the calls fills tables and pools; growth is counted
after it, so a short run may call the filling of a table growth.
"""

import argparse
import multiprocessing
import os
import random
import resource
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from tokenizer_speed import made_up_texts

from minibert import DEMO
from minibert.pipeline import TextClassifier
from minibert.study.report import table

STEPS = 10  # how often memory is read
GROWTH = 16.0  # MiB that are not yet called growth: what the allocator keeps
CLOSE = 1e-5  # the last bits of a score may depend on where its tensors lie in memory

Labelled = list[tuple[str, float]]


def memory() -> float:
    """Return the resident memory of this process in MiB; where the system does not say, the most it ever had."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def classify(classifier: TextClassifier, texts: list[str]) -> Labelled:
    """Classify each text in a call of its own."""
    return [(result.label, result.score) for text in texts for result in classifier([text])]


def agree(found: Labelled, expected: Labelled) -> bool:
    """Whether the labels are equal, and the scores to rounding."""
    return all(a == c and abs(b - d) <= CLOSE for (a, b), (c, d) in zip(found, expected, strict=True))


def watch(title: str, count: int, work: Callable[[int], object]) -> bool:
    """Do the work in steps, print memory after each, and return whether it grew."""
    sizes, begin = [], time.monotonic()
    for step in range(STEPS):
        work(count // STEPS)
        sizes.append(memory())
        print(f"{title}: {count // STEPS * (step + 1):>9,} done, {sizes[-1]:.1f} MiB", flush=True)
    seconds, growth = time.monotonic() - begin, sizes[-1] - sizes[STEPS // 5 - 1]
    print(f"{title}: {count / seconds:,.0f} a second; memory grew by {growth:.1f} MiB after the first fifth\n")
    return growth > GROWTH


def distinct_texts(words_in_text: int = 100) -> Iterator[str]:
    """Yield texts of which no two share a word."""
    number = 0
    while True:
        yield " ".join(f"{i:x}z" for i in range(number, number + words_in_text))
        number += words_in_text


def in_process(texts: list[str]) -> tuple[Labelled, float, float]:
    """Load the demo in a spawned process and classify; also return the seconds that this took, and the memory."""
    begin = time.monotonic()
    torch.set_num_threads(1)
    labelled = classify(TextClassifier(DEMO), texts)
    return labelled, time.monotonic() - begin, memory()


def main() -> int:
    """Run the four loads and print their figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=100_000, help="default: 100,000")
    parser.add_argument("--words", type=int, default=1_000_000, help="distinct ones; default: 1,000,000")
    parser.add_argument("--threads", type=int, default=32, help="default: 32")
    parser.add_argument("--processes", type=int, default=4, help="default: 4")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6), help="default: another one each time")
    options = parser.parse_args()
    if options.calls < STEPS or options.words < 1000 or options.threads < 1 or options.processes < 1:
        parser.error(f"at least {STEPS} calls, 1000 words, 1 thread and 1 process")
    print(f"seed {options.seed}")
    torch.set_num_threads(1)
    classifier, failed = TextClassifier(DEMO), []
    texts, seeds = distinct_texts(), iter(range(options.seed, sys.maxsize))

    def tokenize(count: int) -> None:
        for _ in range(count // 100):
            classifier.tokenizer(next(texts))

    def call(count: int) -> None:
        for text in made_up_texts(classifier.tokenizer, count, next(seeds)):
            classify(classifier, [text])

    # The words first: they fill the tokenizer's tables, which the calls would otherwise do little by little.
    if watch("distinct words", options.words, tokenize):
        failed.append("memory grew with the words")
    if watch("calls", options.calls, call):
        failed.append("memory grew with the calls")

    sample = made_up_texts(classifier.tokenizer, 100, options.seed)
    expected = classify(classifier, sample)
    begin = time.monotonic()
    with ThreadPoolExecutor(options.threads) as pool:
        by_thread = list(pool.map(classify, [classifier] * options.threads, [sample] * options.threads))
    seconds = time.monotonic() - begin
    rows = [("threads, one classifier", options.threads, sum(agree(found, expected) for found in by_thread))]
    with multiprocessing.get_context("spawn").Pool(options.processes) as processes:
        answers = processes.map(in_process, [sample] * options.processes, chunksize=1)
    rows.append(("spawned processes", options.processes, sum(agree(found, expected) for found, *_ in answers)))
    print(table(("at once", "number", "with the results of one thread"), rows))
    print(f"threads: {options.threads * len(sample) / seconds:,.0f} calls a second")
    print(f"processes: {max(s for _, s, _ in answers):.1f} s at most, {max(m for *_, m in answers):.0f} MiB at most")
    failed += [f"{kind} gave other results" for kind, number, right in rows if right < number]
    print(*(f"FAILED: {reason}" for reason in failed), sep="\n", end="\n" if failed else "")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())

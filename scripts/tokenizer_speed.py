#!/usr/bin/env python3
"""Time minibert's tokenizer beside one thread of the Rust library `tokenizers`, on ordinary English.

The two take turns, a few hundred texts each time, so that other work of the machine slows both equally; what counts is
the ratio of their times. "cold" begins with a new tokenizer, whose tables are empty, "warm" repeats the texts with it.
Rust is timed with and without the offsets that it computes by default.

    python scripts/tokenizer_speed.py --checkpoint distilbert-base-uncased --text reviews.txt
"""

import argparse
import os
import random
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from minibert import DEMO
from minibert.tokenizer import DistilBertTokenizer

CHUNK = 250  # texts in one turn


def made_up_texts(tokenizer: DistilBertTokenizer, count: int, seed: int = 0) -> list[str]:
    """Make sentences of about twenty words with the frequencies of Zipf's law, some of them compounds."""
    rng = random.Random(seed)
    words = [token for token in tokenizer.vocab if token.isascii() and token.isalpha() and len(token) > 1]
    weights = [1 / (i + 1) for i in range(len(words))]
    texts = []
    for _ in range(count):
        chosen = rng.choices(words, weights, k=rng.randint(8, 30))
        chosen = ["".join(rng.sample(words, 2)) if rng.random() < 0.05 else word for word in chosen]
        texts.append(
            " ".join(word + rng.choices(["", ",", "'s", "-"], [30, 2, 1, 1])[0] for word in chosen).capitalize() + "."
        )
    return texts


def paired_seconds(
    ours: Callable[[list[str]], Any], theirs: Callable[[list[str]], Any], texts: list[str]
) -> tuple[float, float]:
    """Let the two take turns, and add up the time of each."""
    totals = [0.0, 0.0]
    for start in range(0, len(texts), CHUNK):
        for i, tokenize in enumerate((ours, theirs)):
            begin = time.perf_counter()
            tokenize(texts[start : start + CHUNK])
            totals[i] += time.perf_counter() - begin
    return totals[0], totals[1]


def main() -> int:
    """Print a line for each comparison; exit status 1 if minibert is slower in any of them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", default=DEMO, help="folder or Hub name of the vocabulary; default: the demo")
    parser.add_argument("--text", type=Path, help="UTF-8 file with a text a line; default: made-up sentences")
    parser.add_argument("--count", type=int, default=5000, help="number of texts at most")
    parser.add_argument("--repeat", type=int, default=5, help="measurements, of which the median is shown")
    args = parser.parse_args()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    try:
        from tokenizers import BertWordPieceTokenizer
    except ImportError:
        print("skipped: the package `tokenizers` is not installed (pip install tokenizers)")
        return 0

    tokenizer = DistilBertTokenizer.from_pretrained(args.checkpoint)
    if args.text is None:
        texts = made_up_texts(tokenizer, args.count)
    else:
        texts = args.text.read_text(encoding="utf-8").splitlines()[: args.count]
    rust = BertWordPieceTokenizer(
        tokenizer.vocab,
        lowercase=tokenizer.do_lower_case,
        strip_accents=tokenizer.strip_accents,
        handle_chinese_chars=tokenizer.tokenize_chinese_chars,
    )._tokenizer
    ids = tokenizer(texts)["input_ids"]
    differing = [
        text for text, ours, theirs in zip(texts, ids, rust.encode_batch(texts), strict=True) if ours != theirs.ids
    ]
    if differing:
        print(f"the ids of {len(differing)} texts differ, beginning with {differing[0]!r}")
        return 1
    print(f"{len(texts)} texts of {sum(map(len, ids)) / len(ids):.1f} tokens; median of {args.repeat}")

    slower = False
    for name, theirs in (("ids", rust.encode_batch_fast), ("ids and offsets", rust.encode_batch)):
        times: dict[str, list[tuple[float, float]]] = {"cold": [], "warm": []}
        for _ in range(args.repeat):
            tokenizer = DistilBertTokenizer.from_pretrained(args.checkpoint)
            tokenizer("")  # the first call makes the empty tables
            for state in times:
                times[state].append(paired_seconds(tokenizer, theirs, texts))
        for state, pairs in times.items():
            ratio = statistics.median(rust_time / our_time for our_time, rust_time in pairs)
            speeds = [len(texts) / statistics.median(column) for column in zip(*pairs, strict=True)]
            print(
                f"{state}, Rust computing {name}: {speeds[0]:,.0f} texts/s against {speeds[1]:,.0f}, "
                f"{ratio:.2f} times as fast"
            )
            slower |= ratio < 1
    return int(slower)


if __name__ == "__main__":
    sys.exit(main())

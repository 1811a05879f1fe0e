#!/usr/bin/env python3
"""Try to find a text whose bits depend on its batch, where `pack(model).batch_invariant` says that there is none.

Models of several shapes, with each head, run random texts of 1 to 512 tokens in batches of 1 to 64, with 1 to 8
threads, padded and as rows, and each text alone, from a copy at another address. Every result is compared to the bit.

    python scripts/same_bits.py --minutes 5
"""

import argparse
import random
import sys
import time

import torch
from torch import Tensor

import minibert
from minibert import DistilBertConfig, DistilBertModel, pack
from minibert.trial import at_offset

HEADS = [name for name in minibert.__all__ if name.startswith("DistilBertFor")] + ["DistilBertModel"]
THREADS = (1, 2, 3, 4, 8)
SHAPES = [  # dim, heads, hidden_dim, layers
    (768, 12, 3072, 2),
    (64, 4, 192, 3),
    (64, 1, 128, 2),
    (32, 4, 65, 2),
    (48, 2, 100, 2),
    (15, 3, 25, 2),
    (64, 4, 1536, 1),  # more than 1,024 inputs
]


def make(head: str, shape: tuple[int, int, int, int], int8: bool) -> minibert.packed.PackedModel:
    """A packed model with random weights."""
    dim, n_heads, hidden_dim, n_layers = shape
    config = DistilBertConfig(vocab_size=500, dim=dim, n_heads=n_heads, hidden_dim=hidden_dim, n_layers=n_layers)
    return pack(getattr(minibert, head)(config).eval(), int8=int8)


def results(fast: minibert.packed.PackedModel, rows: list[list[int]]) -> list[Tensor]:
    """One tensor for each row."""
    return [torch.cat([x.flatten() for x in vars(output).values() if x is not None]) for output in fast.rows(rows)]


def check(fast: minibert.packed.PackedModel, dice: random.Random) -> tuple[int, list[str]]:
    """Run one batch in several ways; return how many comparisons were made, and what differed."""
    longest, count = dice.choice((4, 16, 40, 128, 512)), dice.randint(1, 64)
    lengths = [dice.randint(1, longest) for _ in range(count if longest < 512 else min(count, 12))]
    rows = [[dice.randrange(500) for _ in range(length)] for length in lengths]
    torch.set_num_threads(dice.choice(THREADS))
    together, made, wrong = results(fast, rows), 0, []
    for i in dice.sample(range(len(rows)), min(len(rows), 8)):
        torch.set_num_threads(dice.choice(THREADS))
        others = dice.choices(rows, k=dice.randint(0, 3))
        ways = {"alone": results(fast, [rows[i]])[0], "with others": results(fast, [*others, rows[i]])[-1]}
        if isinstance(fast.model, DistilBertModel):  # a padded batch of word embeddings at another address
            table = fast.encoder.embeddings.word_embeddings.weight.detach()
            n, padding = lengths[i], [0] * min(3, 512 - lengths[i])
            embeds = at_offset(table[torch.tensor([rows[i] + padding])], dice.choice((0, 1, 4, 8)))
            mask = torch.tensor([[1] * n + padding])
            ways["padded embeddings"] = fast(None, mask, inputs_embeds=embeds).last_hidden_state[0, :n].flatten()
        for way, tensor in ways.items():
            made += 1
            if not torch.equal(tensor, together[i]):
                wrong.append(f"{fast}: a text of {lengths[i]} tokens, {way}, in a batch of {lengths}"[:300])
    return made, wrong


def main() -> int:
    """Search for so long, and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    dice, end, total, refused = random.Random(args.seed), time.time() + 60 * args.minutes, 0, set()
    torch.manual_seed(args.seed)
    problems: list[str] = []
    print(f"{torch.backends.cpu.get_cpu_capability()}, torch {torch.__version__}, seed {args.seed}")
    while time.time() < end:
        int8 = dice.random() < 0.3 and minibert.kernels.int8_limit() > 0
        fast = make(dice.choice(HEADS), dice.choice(SHAPES), int8)
        if not fast.batch_invariant:
            refused.add(f"{fast}: {fast.difference}")
            continue
        for _ in range(4):
            made, wrong = check(fast, dice)
            total += made
            problems += wrong
    print(*sorted(refused), *problems, sep="\n")
    print(f"{total} comparisons, {len(problems)} differences; {len(refused)} kinds of model claim nothing")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())

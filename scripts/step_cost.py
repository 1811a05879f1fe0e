"""Measure what the named steps cost when no hook is set: their number x the time of one call, over one forward.

The model has the shape of distilbert-base. Run: .venv/bin/python scripts/step_cost.py
"""

import statistics
import time

import torch

from minibert import DistilBertConfig, DistilBertModel
from minibert.model import Step


def main() -> None:
    """Measure both in turn, so that other work on the machine slows down both, and print the medians."""
    model = DistilBertModel(DistilBertConfig(vocab_size=1000)).eval()
    steps = sum(isinstance(module, Step) for module in model.modules())
    step, value = Step(), torch.zeros(1)
    ids = torch.randint(1, 1000, (1, 16))
    mask = torch.ones_like(ids)
    calls, forwards = [], []
    with torch.no_grad():
        for _ in range(20):
            start = time.perf_counter()
            for _ in range(1000):
                step(value)
            calls.append((time.perf_counter() - start) / 1000)
            start = time.perf_counter()
            model(ids, mask)
            forwards.append(time.perf_counter() - start)
    call, forward = statistics.median(calls), statistics.median(forwards)
    print(f"{steps} steps x {call * 1e6:.2f} us = {steps * call * 1e3:.3f} ms")
    print(f"one forward, 1 sentence of 16 tokens: {forward * 1e3:.1f} ms")
    print(f"steps take {steps * call / forward:.2%} of it")


if __name__ == "__main__":
    main()

"""Search one target with atheris: python -m tests.fuzz.engine TARGET SECONDS SEED FOLDER.

Prints each find once, and at the end a line of JSON with figures. libFuzzer writes its own lines to stderr; if the
process dies or hangs, libFuzzer writes the input into the folder.
"""

import importlib
import json
import logging
import os
import random
import resource
import sys
import time
import traceback
import warnings
from pathlib import Path

import atheris

MOST_SECONDS = 2.0  # of CPU time for one input
MOST_MEGABYTES = 200  # by which one input may raise the peak of memory
MOST_FINDS = 30  # that are printed
LONGEST_LITERAL = 1000


class Search:
    """Runs inputs, keeps count, and prints each find once."""

    def __init__(self, name, tools, target):
        self.name, self.tools, self.target = name, tools, target
        self.executions = self.accepted = 0
        self.finds = {}  # what tells finds apart -> how often it was found

    def run(self, data):
        """None, or a find: what tells it from others, and its text."""
        value = self.target.make(self.tools.Source(data))
        seconds, megabytes = time.process_time(), peak()
        try:
            self.accepted += bool(self.target.check(value))
        except Exception as error:
            last = traceback.extract_tb(error.__traceback__)
            own = [frame for frame in last if f"{os.sep}minibert{os.sep}" in frame.filename] or last
            where = f"{Path(own[-1].filename).name}:{own[-1].lineno}"
            return (type(error).__name__, where, last[-1].lineno), f"{type(error).__name__} at {where}: {error}"[:600]
        if (seconds := time.process_time() - seconds) > MOST_SECONDS:
            return ("seconds",), f"takes {seconds:.1f} s"
        if (megabytes := peak() - megabytes) > MOST_MEGABYTES:
            return ("megabytes",), f"takes {megabytes:.0f} MB"
        return None

    def __call__(self, data):
        """Run one input of libFuzzer's."""
        self.executions += 1
        found = self.run(data)
        if found is None:
            return
        key, text = found
        self.finds[key] = self.finds.get(key, 0) + 1
        if self.finds[key] == 1 and len(self.finds) <= MOST_FINDS:
            data = self.shorten(data, key)
            value, imports = repr(self.target.make(self.tools.Source(data))), "from math import inf, nan\n"
            if len(value) > LONGEST_LITERAL:
                value = f"{self.name}.make(Source(bytes.fromhex({data.hex()!r})))"
                imports = "from tests.fuzz.tools import Source\n"
            print(f"\n# {text}\n{imports}from tests.fuzz import {self.name}\n{self.name}.check({value})", flush=True)

    def shorten(self, data, key):
        """Leave out stretches of the input while the find stays the same."""
        size, end = len(data) // 2, time.monotonic() + 10
        while size and time.monotonic() < end:
            for start in range(0, len(data), size):
                shorter = data[:start] + data[start + size :]
                if time.monotonic() < end and (found := self.run(shorter)) and found[0] == key:
                    data = shorter
                    break
            else:
                size //= 2
        return data


def peak():
    """The most memory that this process has held, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main():
    """Search until the time is over."""
    name, seconds, seed, folder = sys.argv[1], float(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
    with atheris.instrument_imports(include=["minibert"]):
        tools = importlib.import_module("tests.fuzz.tools")
        target = importlib.import_module(f"tests.fuzz.{name}")
    logging.disable()
    warnings.simplefilter("ignore")
    rng = random.Random(seed)
    inputs = [rng.randbytes(rng.choice([16, 64, 256, 1024])) for _ in range(200)]
    corpus = folder / "corpus"
    corpus.mkdir()
    for i, data in enumerate(inputs):
        (corpus / str(i)).write_bytes(data)
    search = Search(name, tools, target)
    for data in inputs[:20]:
        search.run(data)  # imports and first calls take time and memory that no input is to blame for
    search.accepted = 0
    end = time.monotonic() + seconds

    def test_one(data):
        search(data)
        if time.monotonic() > end:
            figures = {"inputs": search.executions, "accepted": search.accepted, "finds": len(search.finds)}
            print(json.dumps(figures), flush=True)
            os._exit(0)

    options = ["-max_len=2048", "-len_control=0", "-timeout=60", "-report_slow_units=1000", "-rss_limit_mb=6000"]
    atheris.Setup([sys.argv[0], str(corpus), *options, f"-seed={seed}", f"-artifact_prefix={folder}{os.sep}"], test_one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()

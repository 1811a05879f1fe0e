#!/usr/bin/env python3
"""Search for inputs that minibert reads wrongly, crashes on, or refuses without a clear error.

Each target (tests/fuzz/) makes inputs from random bytes, and an oracle judges what minibert makes of them. atheris
changes the bytes, and keeps those that reach new code of minibert. A find is an error that is not a refusal by minibert
with a message of one line; a difference from the oracle; more than 2 s of CPU time or 200 MB for one input; a crash or
a hang of the process. Each find is printed once, as lines of Python that repeat it.

    pip install -e '.[test,fuzz]'
    python scripts/fuzz.py config --minutes 2     # one target
    python scripts/fuzz.py --all                  # every target 10 minutes, two at once
    python scripts/fuzz.py text masks --seed 7

Exit status 1 if something was found.
"""

import argparse
import importlib.util
import json
import os
import random
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.fuzz import TARGETS  # noqa: E402

HEADER = f"{'target':10} {'minutes':>7} {'inputs':>9} {'inputs/s':>9} {'accepted':>9} {'coverage':>9} {'finds':>6}"


def search(target: str, minutes: float, seed: int) -> dict[str, Any]:
    """Search one target in a process of its own; print its finds, and return figures."""
    # Threads that spin while they wait would count as CPU time.
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive", "HF_HUB_OFFLINE": "1"}
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "tests.fuzz.engine", target, str(minutes * 60), str(seed), folder]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, errors="replace")
        *finds, last = done.stdout.splitlines() or [""]
        died = {path.name: path.read_bytes() for path in Path(folder).glob("*-*")}  # crash-…, timeout-…, oom-…
    if done.returncode == 0:
        figures = json.loads(last)
    else:
        finds += [last, done.stderr[-2000:]]
        figures = {"inputs": 0, "accepted": 0, "finds": 1}
    print("\n".join(finds), flush=True)
    for name, data in died.items():
        print(f"\n# the process died: {name}\nfrom tests.fuzz.tools import Source\nfrom tests.fuzz import {target}")
        print(f"{target}.check({target}.make(Source(bytes.fromhex({data.hex()!r}))))", flush=True)
    covered = re.findall(r"\bcov: (\d+)", done.stderr)
    return figures | {"coverage": int(covered[-1]) if covered else 0}


def main() -> int:
    """Search the targets, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"{', '.join(TARGETS)}")
    parser.add_argument("--all", action="store_true", help="every target")
    parser.add_argument("--minutes", type=float, default=10.0, help="for each target (default: 10)")
    parser.add_argument("--together", type=int, default=2, help="processes at once (default: 2)")
    parser.add_argument("--seed", type=int, default=random.randrange(2**31), help="default: another one each time")
    args = parser.parse_args()
    targets = list(TARGETS) if args.all else args.targets
    if unknown := set(targets) - set(TARGETS):
        parser.error(f"there is no target {', '.join(sorted(unknown))}: choose from {', '.join(TARGETS)}")
    if not targets:
        parser.error(f"name a target ({', '.join(TARGETS)}) or pass --all")
    if not 0 < args.minutes < 10_000 or args.together < 1 or not 0 < args.seed < 2**31:
        parser.error("--minutes and --together must be above 0, and --seed from 1 to 2147483647")
    for package in ("atheris", "transformers"):
        if importlib.util.find_spec(package) is None:
            parser.error(f"{package} is not installed: pip install -e '.[test,fuzz]'")
    print(f"seed {args.seed}", flush=True)
    with ThreadPoolExecutor(args.together) as pool:
        rows = list(pool.map(lambda target: search(target, args.minutes, args.seed), targets))
    print(f"\n{HEADER}")
    for target, row in zip(targets, rows, strict=True):
        rate = row["inputs"] / (args.minutes * 60)
        share = row["accepted"] / max(1, row["inputs"])
        print(
            f"{target:10} {args.minutes:7g} {row['inputs']:9,} {rate:9.1f} {share:9.0%} {row['coverage']:9,} "
            f"{row['finds']:6}"
        )
    return 1 if any(row["finds"] for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())

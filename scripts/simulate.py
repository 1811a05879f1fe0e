#!/usr/bin/env python3
"""Run the tests that depend on the processor as on other kinds of CPU, as far as this one can play them.

A CPU can leave instructions out, but cannot add any: AVX-512 is not simulated on a CPU with AVX2 alone. MKL may ignore
its variable on an AMD CPU. So each run first prints what took effect.

    python scripts/simulate.py                          # each kind once, 5 minutes on 2 cores
    python scripts/simulate.py --all                    # each kind with 1, 2 and 3 threads
    python scripts/simulate.py --kinds avx2 -- -x -q    # what follows -- goes to pytest
"""

import argparse
import os
import re
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TESTS = ["packed", "pipeline", "parity", "cli", "readme"]
KINDS = {  # what the environment says; MINIBERT_WITHOUT is read by tests/conftest.py
    "avx2": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"},
    "sse": {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2"},
    "without-mkl": {"MINIBERT_WITHOUT": "mkl"},
    "without-onednn": {"MINIBERT_WITHOUT": "mkldnn"},
    "without-both": {"MINIBERT_WITHOUT": "mkl,mkldnn"},
}
THREADS = {"avx2": 2, "sse": 1, "without-mkl": 2, "without-onednn": 1, "without-both": 3}  # of the short run
PROBE = """
import torch
a, linear = torch.ones(64, 64), torch.ones(64, 64)
a @ linear
packed = torch.ops.mkldnn._reorder_linear_weight(linear, 64)
torch.ops.mkldnn._linear_pointwise(a, packed, None, "none", [], "")
print("torch:", torch.backends.cpu.get_cpu_capability())
"""


def describe(environment: dict[str, str]) -> str:
    """Return the instructions that torch, oneDNN and MKL take in this environment, in their own words."""
    verbose = environment | {"ONEDNN_VERBOSE": "1", "MKL_VERBOSE": "1"}
    printed = subprocess.run([sys.executable, "-c", PROBE], env=verbose, capture_output=True, text=True).stdout
    found = {
        "torch": re.search(r"^torch: (.*)$", printed, re.MULTILINE),
        "oneDNN": re.search(r"cpu,isa:(.*)$", printed, re.MULTILINE),
        "MKL": re.search(r"^MKL_VERBOSE .* 64 architecture (.*?),? Lnx", printed, re.MULTILINE),
    }
    return "; ".join(f"{name}: {match[1] if match else 'says nothing'}" for name, match in found.items())


def run(kind: str, threads: int, arguments: list[str]) -> int:
    """Run the tests as on this kind of CPU, and return pytest's status."""
    environment = os.environ | KINDS[kind] | {"MINIBERT_THREADS": str(threads), "OMP_WAIT_POLICY": "passive"}
    environment.pop("MINIBERT_REQUIRE", None)  # that is for the machine as it is
    print(f"--- {kind}, {threads} threads: {describe(environment)}", flush=True)
    command = [sys.executable, "-m", "pytest", *(arguments or ["-q", "-p", "no:cacheprovider"])]
    tests = [f"tests/test_{name}.py" for name in TESTS]
    begin = time.monotonic()
    status = subprocess.run([*command, *tests], env=environment, cwd=ROOT).returncode
    print(f"--- {kind}, {threads} threads: {time.monotonic() - begin:.0f} s, exit status {status}\n", flush=True)
    return status


def main() -> int:
    """Run the kinds in turn; exit status 1 if the tests failed on any."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--all", action="store_true", help="each with 1, 2 and 3 threads")
    parser.add_argument("pytest", nargs="*", metavar="-- PYTEST")
    args = parser.parse_args()
    runs = [(kind, threads) for kind in args.kinds for threads in ((1, 2, 3) if args.all else (THREADS[kind],))]
    failed = [f"{kind} with {threads} threads" for kind, threads in runs if run(kind, threads, args.pytest) != 0]
    print(f"{len(runs)} runs; failed: {', '.join(failed) or 'none'}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

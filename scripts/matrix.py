#!/usr/bin/env python3
"""Run the tests on other versions of Python and of the dependencies, each in a fresh environment that is then deleted.

"oldest" is the lowest version of each dependency that pyproject.toml allows, "tested" those of scripts/constraints.txt,
"newest" what the package index has today. Tests that compare with transformers are left out. An environment takes
several GB and minutes where the index has torch with CUDA only.

    python scripts/matrix.py                                        # all three on this Python
    python scripts/matrix.py --pythons python3.12 python3.13 --versions newest
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DEPENDENCIES = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
CONSTRAINTS = ROOT / "scripts" / "constraints.txt"
REPORT = """
from importlib.metadata import version
import platform
names = ("torch", "numpy", "safetensors", "huggingface_hub")
print("Python", platform.python_version(), *(f"{name} {version(name)}" for name in names), sep=", ")
"""
VERSIONS = {
    "oldest": [dependency.replace(">=", "==") for dependency in DEPENDENCIES],
    "tested": [*DEPENDENCIES, "--constraint", str(CONSTRAINTS)],
    "newest": ["--upgrade", *DEPENDENCIES],
}


def try_out(interpreter: str, versions: str, folder: Path) -> str:
    """Install minibert and run its tests; return a line that says what was run and how it ended."""

    def python(*command: str | Path, **options: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run([folder / "venv" / "bin" / "python", *command], text=True, **options)  # type: ignore[call-overload]

    subprocess.run([interpreter, "-m", "venv", folder / "venv"], check=True)
    pip = ("-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    for requirements in (VERSIONS[versions], ["--no-deps", str(ROOT)], ["pytest", "hypothesis"]):
        if python(*pip, *requirements).returncode != 0:
            return f"{interpreter}, {versions}: not run, since pip cannot install {' '.join(requirements)}"
    for name in ("tests", "scripts", "README.md", "pyproject.toml", ".github", ".ci"):  # away from the source
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, folder / name)
    described = python("-c", REPORT, capture_output=True).stdout.strip()
    tests = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not reference", "tests")
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    done = python(*tests, cwd=folder, env=environment, stdout=subprocess.PIPE)
    failed = re.findall(r"^(?:FAILED|ERROR) .*", done.stdout, re.MULTILINE)
    last = done.stdout.strip().splitlines()[-1] if done.stdout.strip() else f"exit status {done.returncode}"
    return "\n   ".join([f"{described}: {last}", *(line[:300] for line in failed)])


def main() -> None:
    """Try each version on each Python, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pythons", nargs="+", default=[sys.executable], metavar="PYTHON")
    parser.add_argument("--versions", nargs="+", choices=VERSIONS, default=list(VERSIONS))
    args = parser.parse_args()
    for interpreter in args.pythons:
        for versions in args.versions:
            with tempfile.TemporaryDirectory() as folder:
                print(try_out(interpreter, versions, Path(folder)), flush=True)


if __name__ == "__main__":
    main()

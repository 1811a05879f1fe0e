"""The targets of scripts/fuzz.py, each with a few random inputs and without atheris."""

import importlib
import random
import subprocess
import sys
from pathlib import Path

import pytest

from .fuzz import TARGETS

SCRIPT = Path(__file__).parents[1] / "scripts" / "fuzz.py"


@pytest.mark.reference
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", TARGETS)
def test_some_inputs_are_accepted_and_none_is_a_find(name):
    pytest.importorskip("transformers")
    target, tools = (importlib.import_module(f"tests.fuzz.{part}") for part in (name, "tools"))
    rng = random.Random(0)
    accepted = [
        target.check(target.make(tools.Source(rng.randbytes(200)))) for _ in range(5 if name == "packed" else 25)
    ]
    assert True in accepted


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing"], "there is no target nothing: choose from config, "),
        ([], "name a target"),
        (["config", "--minutes", "0"], "must be above 0"),
    ],
)
def test_what_the_script_refuses(arguments, message):
    run = subprocess.run([sys.executable, SCRIPT, *arguments], capture_output=True, text=True)
    assert (run.returncode, run.stdout) == (2, "")
    assert message in run.stderr

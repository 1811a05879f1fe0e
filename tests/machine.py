"""What a machine may lack: tried once, and a test that needs it is skipped there with the reason.

    @needs("int8")
    def test_...

`MINIBERT_REQUIRE=batch_invariant,int8` makes such a skip a failure: for a machine that should have them.
"""

import os
from functools import cache

import pytest
import torch

from minibert import pack

from .models import model


def _batch_invariant() -> None:
    pack(model(dim=64, hidden_dim=192), batch_invariant=True)


def _base_invariant() -> None:
    pack(model(dim=768, n_heads=12, n_layers=1, hidden_dim=3072), batch_invariant=True)


def _int8() -> None:
    pack(model(dim=64, hidden_dim=192), int8=True)


def _mkl() -> None:
    if not torch.backends.mkl.is_available():
        raise ValueError("torch.backends.mkl.is_available() is False")


def _onednn() -> None:
    if not (torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled):
        raise ValueError("torch.backends.mkldnn is not available, or not enabled")


def _gpu() -> None:
    if not torch.cuda.is_available():
        raise ValueError("torch.cuda.is_available() is False")


TRIALS = {
    "batch_invariant": _batch_invariant,
    "int8": _int8,
    "mkl": _mkl,
    "onednn": _onednn,
    "base_invariant": _base_invariant,  # batch_invariant at distilbert-base's sizes, which torch 2.6 does not have
    "gpu": _gpu,
}


needs_outputs_in_graphs = pytest.mark.skipif(
    torch.__version__.startswith("2.6."), reason="torch 2.6 cannot trace how an output is built"
)


def needs(*names):
    """Mark a test that needs some of TRIALS; the hook in conftest.py acts on it."""
    return pytest.mark.needs(*checked(names))


def checked(names):
    """The names, all of which must be in TRIALS."""
    if unknown := [name for name in names if name not in TRIALS]:
        raise ValueError(f"{unknown} is unknown: a machine may lack {', '.join(TRIALS)}")
    return names


@cache
def what_is_lacking(name):
    """Why this machine lacks something, in the words of the error that says so; None if it does not."""
    try:
        TRIALS[name]()
    except ValueError as error:
        return str(error)
    return None


def required():
    """The names in MINIBERT_REQUIRE."""
    return checked([name.strip() for name in os.environ.get("MINIBERT_REQUIRE", "").split(",") if name.strip()])


def skip_or_fail(item):
    """Skip a test that needs what this machine lacks, or fail it where that is required."""
    for mark in item.iter_markers("needs"):
        for name in mark.args:
            if reason := what_is_lacking(name):
                if name in required():
                    pytest.fail(f"MINIBERT_REQUIRE has {name}, but: {reason}", pytrace=False)
                pytest.skip(f"no {name} here: {reason}")

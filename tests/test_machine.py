"""A test that needs what the machine lacks is skipped with the reason, and fails where MINIBERT_REQUIRE names it."""

from types import SimpleNamespace

import pytest

from . import machine


@pytest.fixture
def item(monkeypatch):
    """A test that needs what no machine has."""

    def refuse():
        raise ValueError("no CPU has it")

    monkeypatch.setitem(machine.TRIALS, "magic", refuse)
    monkeypatch.delenv("MINIBERT_REQUIRE", raising=False)
    machine.what_is_lacking.cache_clear()
    return SimpleNamespace(iter_markers=lambda name: [machine.needs("magic").mark])


def test_what_the_machine_lacks_is_skipped_in_the_words_of_the_error(item):
    with pytest.raises(pytest.skip.Exception, match="no magic here: no CPU has it"):
        machine.skip_or_fail(item)


def test_what_is_required_fails(item, monkeypatch):
    monkeypatch.setenv("MINIBERT_REQUIRE", "onednn, magic")
    with pytest.raises(pytest.fail.Exception, match="MINIBERT_REQUIRE has magic, but: no CPU has it"):
        machine.skip_or_fail(item)


def test_what_the_machine_has_runs(item, monkeypatch):
    monkeypatch.setitem(machine.TRIALS, "magic", lambda: None)
    machine.skip_or_fail(item)
    assert machine.what_is_lacking("magic") is None


def test_an_unknown_word_is_refused(monkeypatch):
    with pytest.raises(ValueError, match=r"\['speed'\] is unknown: a machine may lack batch_invariant, int8, mkl"):
        machine.needs("int8", "speed")
    monkeypatch.setenv("MINIBERT_REQUIRE", "int9")
    with pytest.raises(ValueError, match=r"\['int9'\] is unknown"):
        machine.required()

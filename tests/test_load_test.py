"""scripts/load_test.py: its words are distinct, and it tells growth and other results from none."""

import itertools
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[1] / "scripts"


@pytest.fixture
def load_test(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return pytest.importorskip("load_test")


def test_no_word_comes_twice(load_test):
    texts = itertools.islice(load_test.distinct_texts(), 50)
    words = [word for text in texts for word in text.split()]
    assert len(set(words)) == len(words) == 5000


@pytest.mark.parametrize(
    ("sizes", "grew"),
    [
        ([9, 500, *[500] * 8], False),  # the first fifth does not count
        ([9, 9, *[9 + 16] * 8], False),
        ([9, 9, *[9] * 7, 9 + 17], True),
        ([9, 9, *range(19, 90, 10)], True),
    ],
)
def test_memory_that_grows_after_the_first_fifth_is_growth(load_test, monkeypatch, capsys, sizes, grew):
    done, left = [], iter(sizes)
    monkeypatch.setattr(load_test, "memory", lambda: next(left))
    assert load_test.watch("calls", 100, done.append) == grew
    assert done == [10] * 10
    assert "calls:       100 done" in capsys.readouterr().out


def test_memory_is_that_of_this_process(load_test):
    before = load_test.memory()
    kept = bytearray(50 * 2**20)
    assert 40 < load_test.memory() - before < 100
    assert len(kept) == 50 * 2**20


def test_labels_are_equal_and_scores_to_rounding(load_test):
    expected = [("no", 0.5), ("yes", 0.9)]
    assert load_test.agree([("no", 0.5 + 1e-7), ("yes", 0.9)], expected)
    assert not load_test.agree([("no", 0.5 + 1e-4), ("yes", 0.9)], expected)
    assert not load_test.agree([("yes", 0.5), ("yes", 0.9)], expected)
    assert not load_test.agree([("no", float("nan")), ("yes", 0.9)], expected)
    with pytest.raises(ValueError, match="is longer"):
        load_test.agree(expected[:1], expected)


def test_a_short_run_prints_its_figures_and_a_bad_number_is_refused():
    script = [sys.executable, SCRIPTS / "load_test.py", "--seed", "0"]
    small = ["--calls", "10", "--words", "1000", "--threads", "2", "--processes", "1"]
    run = subprocess.run([*script, *small], capture_output=True, text=True)
    assert "threads, one classifier       2                               2" in run.stdout
    assert "gave other results" not in run.stdout
    assert run.returncode == ("FAILED" in run.stdout)
    bad = subprocess.run([*script, "--calls", "0"], capture_output=True, text=True)
    assert bad.returncode == 2
    assert "at least 10 calls, 1000 words, 1 thread and 1 process" in bad.stderr

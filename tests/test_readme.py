"""The README shows what the commands and the library really print."""

import doctest
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).parent.parent / "README.md"
NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?")


def same(shown, printed):
    """Equal word for word; numbers to 2%, and below 1e-5 any: those are rounding, which differs between processors."""
    numbers = zip(NUMBER.findall(shown), NUMBER.findall(printed), strict=False)
    close = all(abs(float(a) - float(b)) <= max(0.02 * abs(float(b)), 1e-5) for a, b in numbers)
    return close and NUMBER.sub("#", shown).split() == NUMBER.sub("#", printed).split()


class Checker(doctest.OutputChecker):
    def check_output(self, want, got, flags):
        return super().check_output(want, got, flags) or same(want, got)


def test_numbers_may_differ_by_rounding_and_words_not_at_all():
    assert same("moved by 0.3280, -1.00 2e-07", "moved by 0.3281,  -1.01 5e-06")
    assert not same("moved by 0.3280", "moved by 0.3400")
    assert not same("moved by 0.3280", "stays 0.3280")
    assert not same("1 2", "1")


def test_the_lesson_is_what_the_command_prints(tmp_path):
    shown = re.search(r"^```\n(minibert walk: .*?)^```$", README.read_text("utf-8"), re.DOTALL | re.MULTILINE)[1]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "minibert"], capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=60
    )
    assert same(shown, done.stdout)


def test_every_example_prints_what_is_shown():
    blocks = "\n".join(re.findall(r"^```python\n(.*?)^```$", README.read_text("utf-8"), re.DOTALL | re.MULTILINE))
    examples = doctest.DocTestParser().get_doctest(blocks, {}, "README", str(README), 0)
    assert len(examples.examples) > 20
    runner = doctest.DocTestRunner(Checker(), verbose=False)
    report = []
    runner.run(examples, out=report.append)
    if runner.failures:
        pytest.fail("".join(report))

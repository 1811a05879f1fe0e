"""Runs scripts/classify_corpus.py in child processes that are killed, or that run at the same time.

Run by test_corpus.py in a process of its own, which forks (so that torch is imported once):
python corpus_runs.py every-step | random-times | together INPUTS CHECKPOINT OUT. It leaves the folders OUT/0, OUT/1, …
"""

import contextlib
import io
import itertools
import os
import random
import runpy
import signal
import sys
import time
from pathlib import Path

from killed_saves import kill_at_step

SCRIPTS = Path(__file__).parents[1] / "scripts"


def run(*arguments):
    """Run the script in this process, and return its exit status."""
    sys.argv = [str(SCRIPTS / "classify_corpus.py"), *arguments]
    with contextlib.redirect_stderr(io.StringIO()):
        try:
            runpy.run_path(sys.argv[0], run_name="__main__")
        except SystemExit as error:
            return error.code


def fork(action):
    """Run an action in a child process, which ends with the status that it returns."""
    if not (child := os.fork()):
        os._exit(action())
    return child


def every_step(out, *arguments):
    for step in itertools.count():
        folder = os.path.join(out, str(step))

        def killed(step=step, folder=folder):
            kill_at_step(step, folder)
            return run(*arguments, "-o", folder)

        if os.waitpid(fork(killed), 0)[1] == 0:  # the run was not killed
            break
        assert run(*arguments, "-o", folder) == 0


def random_times(out, *arguments):
    began = time.monotonic()
    assert run(*arguments, "-o", os.path.join(out, "whole")) == 0
    seconds = time.monotonic() - began
    for attempt in range(6):
        folder = os.path.join(out, str(attempt))
        for _ in range(3):
            child = fork(lambda folder=folder: run(*arguments, "-o", folder))
            time.sleep(random.uniform(0, seconds))
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        assert run(*arguments, "-o", folder) == 0


def together(out, *arguments):
    """Start equal runs and different ones in one folder at the same moment; print the statuses."""
    for attempt, options in enumerate([[]] * 3 + [["--scores"]] * 3):
        folder = os.path.join(out, str(attempt))
        children = [
            fork(lambda more=more, folder=folder: run(*arguments, *more, "-o", folder)) for more in ([], options)
        ]
        print(*(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children))


if __name__ == "__main__":
    sys.path.insert(0, str(SCRIPTS))
    how, inputs, checkpoint, out = sys.argv[1:]
    common = [inputs, "--model", checkpoint, "--threads", "1", "--lines-per-shard", "20", "--id-column", "id"]
    assert run(*common, "-o", os.path.join(out, "warm")) == 0  # what is tried once in a process is tried now
    {"every-step": every_step, "random-times": random_times, "together": together}[how](out, *common)

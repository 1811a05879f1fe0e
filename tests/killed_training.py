"""Trains into OUT/whole, and again into OUT/0, OUT/1, …, where each run is killed at one file operation and resumed.

OUT/steps is killed after every step of 2 epochs, and resumed each time; OUT/epochs is not killed. Run by
test_finetune.py in a process of its own, which forks (so that torch is imported once):
python -m tests.killed_training OUT ARGUMENTS…
"""

import itertools
import os
import signal
import sys
from functools import partial
from pathlib import Path

import torch

from .finetuning import module
from .killed_saves import kill_at_step


def kill_at_second_step():
    """Kill this process when it has logged two steps: the second one is lost, as its checkpoint is not yet written."""
    checkpoints, count = module("finetune_state").Checkpoints, itertools.count()
    log = checkpoints.log

    def log_and_die(self, **values):
        log(self, **values)
        if "loss" in values and next(count) == 1:
            os.kill(os.getpid(), signal.SIGKILL)

    checkpoints.log = log_and_die


def train(arguments, folder, prepare=lambda: None):
    """Train in a child process, which first calls `prepare`; return whether it was killed."""
    if not (child := os.fork()):
        prepare()
        os._exit(module().main([*arguments, "--out", str(folder), "--resume"]))
    status = os.waitpid(child, 0)[1]
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        sys.exit(f"{folder}: exit status {os.WEXITSTATUS(status)}")
    return os.WIFSIGNALED(status)


def main(out, arguments):
    torch.set_num_threads(1)  # a forked process must not use the threads of its parent
    module()
    torch.optim.AdamW([torch.zeros(1)])  # imports torch's compiler, once for all children
    train(arguments, out / "whole")
    n = 0
    while train(arguments, out / str(n), partial(kill_at_step, n, out / str(n))):
        train(arguments, out / str(n))
        n += 1
    n_kills, arguments = 0, [*arguments, "--epochs", "2", "--checkpoint-every", "1"]
    train(arguments, out / "epochs")
    while train(arguments, out / "steps", kill_at_second_step):
        n_kills += 1
    print(n, n_kills)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])

"""Saves one checkpoint over copies of another and kills each save, at every step of it or at random times.

Run by test_save.py in a process of its own, which forks (so that torch is imported once):
python killed_saves.py every-step | random-times model | tokenizer OLD NEW OUT. It leaves the folders OUT/0, OUT/1, …
"""

import itertools
import os
import random
import shutil
import signal
import sys
import time

from minibert import DistilBertForSequenceClassification, DistilBertTokenizer

OPERATIONS = ("open", "os.rename", "os.remove", "os.mkdir", "os.link", "os.truncate")
KINDS = {"model": DistilBertForSequenceClassification, "tokenizer": DistilBertTokenizer}


def kill_at_step(step, folder):
    """Kill this process just before its nth file operation in `folder`; Python reports each one to an audit hook."""
    steps = itertools.count()

    def hook(event, arguments):
        if event in OPERATIONS and str(folder) in str(arguments[0]) and next(steps) == step:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def every_step(kind, old, new, out):
    made = kind.from_pretrained(new)
    for step in itertools.count():
        folder = os.path.join(out, str(step))
        shutil.copytree(old, folder)
        if not (child := os.fork()):
            kill_at_step(step, folder)
            made.save_pretrained(folder)
            os._exit(0)
        if os.waitpid(child, 0)[1] == 0:  # the save was not killed
            break


def random_times(kind, old, new, out):
    both = [kind.from_pretrained(source) for source in (new, old)]
    for attempt in range(40):
        folder = os.path.join(out, str(attempt))
        shutil.copytree(old, folder)
        if not (child := os.fork()):
            for made in both * 50:  # more saves than it can finish before the kill
                made.save_pretrained(folder)
            os._exit(0)
        time.sleep(random.uniform(0, 0.05))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


if __name__ == "__main__":
    how, kind, *folders = sys.argv[1:]
    {"every-step": every_step, "random-times": random_times}[how](KINDS[kind], *folders)

"""Trains in several processes, which are forked so that torch is imported once: python -m tests.forked_training OUT …

The other arguments are those of scripts/finetune.py. It leaves in OUT the gradients of one step in 1, 2 and 4
processes, and the folders two (2 processes), mixed (2, killed after a step, then 1), fsdp (2, killed, then 2), four.
"""

import os
import random
import signal
import socket
import sys
from argparse import Namespace
from functools import partial
from pathlib import Path

import torch
from torch import distributed

from minibert import DistilBertTokenizer, PackedForTraining

from .command_line import WORDS
from .finetuning import module
from .killed_training import kill_at_second_step
from .models import model

WORLDS = (1, 2, 4)


def in_processes(world, do):
    """Call `do` in so many forked processes, as torchrun would start them; return how they ended."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    children = []
    for rank in range(world):
        if not (child := os.fork()):
            place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "MASTER_PORT": port}
            os.environ.update({name: str(value) for name, value in place.items()}, MASTER_ADDR="127.0.0.1")
            os._exit(do())
        children.append(child)
    return [os.waitpid(child, 0)[1] for child in children]


def gradients_of_a_step(rows_in_a_batch=2):
    """The mean loss and the float64 gradients of a step with 11 rows of several lengths; the last batch is smaller."""
    torch.manual_seed(0)
    made = model("DistilBertForTokenClassification", num_labels=3).double()
    generator = random.Random(0)
    row = module("finetune_data").Row
    lengths = [generator.randint(3, 12) for _ in range(11)]
    rows = [row([generator.randrange(5, 50) for _ in range(n)], [-100, *[1] * (n - 2), 2]) for n in lengths]
    batches = [rows[i : i + rows_in_a_batch] for i in range(0, len(rows), rows_in_a_batch)]
    args = Namespace(task="token", seed=0, mask=0, fsdp=False, device="cpu", dtype="float64")
    tokenizer = DistilBertTokenizer({word: i for i, word in enumerate(WORDS)})
    loss = module().accumulate(PackedForTraining(made), batches, 0, args, tokenizer)
    return [torch.tensor(loss), *(weight.grad for weight in made.parameters())]


def save_gradients(out):
    distributed.init_process_group("gloo")
    torch.save(gradients_of_a_step(), out / f"{distributed.get_world_size()}-{distributed.get_rank()}.pt")
    distributed.destroy_process_group()
    return 0


def train(arguments, folder, prepare=lambda: None):
    prepare()
    return module().main([*arguments, "--out", str(folder), "--resume"])


def main(out, arguments):
    torch.set_num_threads(1)  # a forked process must not use the threads of its parent
    module()
    torch.optim.AdamW([torch.zeros(1)])  # imports torch's compiler, once for all children
    ended = [in_processes(world, partial(save_gradients, out)) for world in WORLDS]
    ended.append(in_processes(2, partial(train, arguments, out / "two")))
    killed = in_processes(2, partial(train, arguments, out / "mixed", kill_at_second_step))
    ended.append(in_processes(1, partial(train, arguments, out / "mixed")))
    killed += in_processes(2, partial(train, [*arguments, "--fsdp"], out / "fsdp", kill_at_second_step))
    ended.append(in_processes(2, partial(train, [*arguments, "--fsdp"], out / "fsdp")))
    ended.append(in_processes(4, partial(train, [*arguments, "--micro-batches", "4"], out / "four")))
    return any(map(any, ended)) or set(killed) != {signal.SIGKILL}


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))

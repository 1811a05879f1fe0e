"""DDP and FSDP2 in two processes on this machine: they end in the weights of one process."""

import socket

import torch
from torch import distributed, multiprocessing, nn
from torch.distributed.fsdp import fully_shard

from minibert import DistilBertForSequenceClassification, DistilBertTokenizer

from .small_data import reviews

STEPS, ROWS = 3, 8


def batch(folder, step, rank=0, world=1):
    """This process's share of a step's rows."""
    rows = reviews(ROWS, seed=step)[rank::world]
    inputs = DistilBertTokenizer.from_pretrained(folder)(
        [row["text"] for row in rows], padding=True, return_tensors="pt"
    )
    return dict(inputs) | {"labels": torch.tensor([row["label"] for row in rows])}


def train(model, folder, rank=0, world=1):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(STEPS):
        model(**batch(folder, step, rank, world)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def distribute(rank, port, folder, out):
    """What each process runs: a training with DDP, and one with FSDP2."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    for kind in ("ddp", "fsdp2"):
        model = DistilBertForSequenceClassification.from_pretrained(folder)  # eval mode: no dropout, which is random
        if kind == "ddp":
            train(nn.parallel.DistributedDataParallel(model), folder, rank, 2)
        else:
            mesh = distributed.device_mesh.init_device_mesh("cpu", (2,))
            for layer in model.distilbert.transformer.layer:
                fully_shard(layer, mesh=mesh)
            fully_shard(model, mesh=mesh)
            assert model.classifier.weight.to_local().numel() < model.classifier.weight.numel()  # each holds a part
            train(model, folder, rank, 2)
        model.save_pretrained(f"{out}/{kind}", is_main_process=rank == 0)
        distributed.barrier()
    distributed.destroy_process_group()


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def test_ddp_and_fsdp2_in_two_processes_save_the_weights_of_one_process(classifier, tmp_path):
    multiprocessing.spawn(distribute, (free_port(), classifier, str(tmp_path)), nprocs=2)
    alone = DistilBertForSequenceClassification.from_pretrained(classifier)
    before = alone.classifier.weight.clone()
    train(alone, classifier)
    assert (alone.classifier.weight - before).abs().max() > 1e-3
    for kind in ("ddp", "fsdp2"):
        together = DistilBertForSequenceClassification.from_pretrained(tmp_path / kind)
        for name, parameter in alone.named_parameters():
            torch.testing.assert_close(together.get_parameter(name), parameter, rtol=0, atol=1e-5)

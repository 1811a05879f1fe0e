"""What a training goes on from: a checkpoint in one file, which one rename replaces, and the metrics up to it."""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, Self

import torch
from finetune_setup import processes, say
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, distributed, nn
from torch.distributed.tensor import DTensor, distribute_tensor

CHECKPOINT, METRICS = "checkpoint.safetensors", "metrics.jsonl"
TEMPORARY = f".{CHECKPOINT}.tmp"
MOMENTS = ("exp_avg", "exp_avg_sq")  # AdamW's, in torch's names


@dataclass
class Place:
    """How far a training is. Beside the weights and the optimizer, nothing else changes from step to step."""

    epoch: int = 0  # whole epochs that are done
    step: int = 0  # steps of the next epoch that are done
    n_steps: int = 0  # all steps that are done
    n_rows: int = 0  # all rows that these steps had
    best: float | None = None  # the best score of an evaluation
    best_epoch: int = 0
    waited: int = 0  # epochs since then
    metrics: int = 0  # size of metrics.jsonl in bytes


class Checkpoints:
    """The checkpoint and the metrics in a folder: all processes read them, that of rank 0 writes them.

    Args:
        folder: of the results.
        resume: go on from its checkpoint, if there is one.

    Raises:
        ValueError: the folder has files, but not those that `resume` needs.
    """

    model: nn.Module
    average: nn.Module
    optimizer: torch.optim.Optimizer
    about: dict[str, Any]
    metrics: BinaryIO | None = None

    def __init__(self, folder: Path, resume: bool) -> None:
        self.folder = folder
        found = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
        self.exists = resume and CHECKPOINT in found
        if resume and not self.exists and found - {METRICS, TEMPORARY}:  # a kill at the start leaves these two at most
            raise ValueError(f"{folder}: --resume needs {CHECKPOINT} in it, but found other files: give another --out")
        if found and not resume:
            raise ValueError(f"{folder}: not empty: go on in it with --resume, or give another --out")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.metrics is not None:
            self.metrics.close()

    def open(
        self,
        model: nn.Module,
        average: nn.Module,
        optimizer: torch.optim.Optimizer,
        same: Mapping[str, str],
        machine: str,
    ) -> Place:
        """Read the checkpoint into the model, or write the first one.

        Args:
            model: with its first weights.
            average: the model of averaged weights, or `model` itself.
            optimizer: AdamW over the model's parameters.
            same: what must be the same to resume, by name.
            machine: what the last bits of the weights depend on.

        Raises:
            OSError: the folder cannot be written to.
            ValueError: the checkpoint is damaged, or was made with other arguments or data; or another process trains
                into this folder.
        """
        self.model, self.average, self.optimizer = model, average, optimizer
        self.about = {"same": dict(same), "machine": machine}
        place = Place()
        if self.exists:
            tensors, saved = read_checkpoint(self.folder / CHECKPOINT)
            self._check(saved)
            place = Place(**saved["place"])
            self._restore(tensors, place.n_steps)
        if distributed.is_initialized():
            distributed.barrier()  # all have read before one writes
        if processes()[0] == 0:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.metrics = (self.folder / METRICS).open("ab", buffering=0)
            lock(self.metrics, self.folder)
            if os.fstat(self.metrics.fileno()).st_size < place.metrics:
                raise ValueError(f"{self.folder / METRICS}: shorter than it was: put it back, or give another --out")
            self.metrics.truncate(place.metrics)  # the steps after the checkpoint come again
        if not self.exists:
            self.save(place)
        return place

    def log(self, **values: Any) -> None:
        """Append a line to the metrics."""
        if self.metrics is not None:
            self.metrics.write((json.dumps(values) + "\n").encode())

    def check(self, place: Place) -> dict[str, Tensor]:
        """Return what a checkpoint holds. Every process must call this.

        Raises:
            FloatingPointError: a weight is not a finite number.
        """
        tensors = self._collect()
        if wrong := [name for name, tensor in tensors.items() if not tensor.isfinite().all()]:
            raise FloatingPointError(
                f"step {place.n_steps}: not finite: {wrong[0]}. {self.folder} keeps what was before"
            )
        return tensors

    def save(self, place: Place) -> None:
        """Write a checkpoint. Every process must call this.

        Raises:
            OSError: it cannot be written, such as on a full disk; the one before is kept.
            FloatingPointError: a weight is not a finite number; the one before is kept.
        """
        tensors = self.check(place)
        if self.metrics is None:
            return
        os.fsync(self.metrics.fileno())
        place.metrics = os.fstat(self.metrics.fileno()).st_size
        write_checkpoint(self.folder / CHECKPOINT, tensors, self.about | {"place": asdict(place)})

    def _check(self, saved: Mapping[str, Any]) -> None:
        for name, value in self.about["same"].items():
            if saved["same"].get(name) != value:
                raise ValueError(
                    f"--resume: {name} is {value}, but was {saved['same'].get(name)} when {self.folder} was begun: "
                    f"give the same again, or another --out"
                )
        if saved["machine"] != self.about["machine"]:
            begun = f"begun on {saved['machine']:.200}"
            say(f"{begun}, now {self.about['machine']}: the last bits of the weights may differ")

    def _collect(self) -> dict[str, Tensor]:
        """Return weights, averaged weights and the optimizer's moments; what processes hold in parts is gathered."""
        tensors = {f"weight.{name}": whole(weight) for name, weight in self.model.named_parameters()}
        if self.average is not self.model:
            tensors |= {f"average.{name}": whole(weight) for name, weight in self.average.named_parameters()}
        for name, weight in self.model.named_parameters():
            state = self.optimizer.state.get(weight, {})  # empty before the first step
            tensors |= {f"{moment}.{name}": whole(state[moment]) for moment in MOMENTS if moment in state}
        return tensors

    @torch.no_grad()
    def _restore(self, tensors: Mapping[str, Tensor], n_steps: int) -> None:
        """Copy what `_collect` has returned back, into memory that torch allocates: its addresses are multiples of 64.

        In a mapped file a tensor has any address; on some CPUs the last bits of a matrix product depend on it.
        """
        expected = {name: tensor.shape for name, tensor in self._collect().items()}
        if n_steps:
            weights = dict(self.model.named_parameters())
            expected |= {f"{moment}.{name}": weight.shape for moment in MOMENTS for name, weight in weights.items()}
        if {name: tensor.shape for name, tensor in tensors.items()} != expected:
            raise ValueError(f"{self.folder / CHECKPOINT}: its tensors are not those of this model: start anew")
        for name, weight in self.model.named_parameters():
            weight.copy_(like(weight, tensors[f"weight.{name}"]))
            if n_steps:
                state = {moment: like(weight, tensors[f"{moment}.{name}"]) for moment in MOMENTS}
                self.optimizer.state[weight] = {"step": torch.tensor(float(n_steps), device=weight.device), **state}
        if self.average is not self.model:
            for name, weight in self.average.named_parameters():
                weight.copy_(like(weight, tensors[f"average.{name}"]))


def whole(tensor: Tensor) -> Tensor:
    """Return all of a tensor of which each process holds a part, on the CPU. Every process must call this."""
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().cpu()


def like(weight: Tensor, tensor: Tensor) -> Tensor:
    """Return a copy of a whole tensor, divided among the processes as `weight` is."""
    copy = torch.empty(tensor.shape, dtype=weight.dtype, device=weight.device).copy_(tensor)
    return distribute_tensor(copy, weight.device_mesh, weight.placements) if isinstance(weight, DTensor) else copy


def write_checkpoint(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """Write a file whole or not at all, and bring it to the disk.

    Raises:
        OSError: it cannot be written; the file that was there before is unchanged.
    """
    folder = path.with_name(TEMPORARY)  # of its own: safetensors begins with a file beside the one that it is given
    temporary = folder / path.name
    try:
        shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed
        folder.mkdir()
        save_file(
            {name: tensor.contiguous() for name, tensor in tensors.items()}, temporary, {"about": json.dumps(about)}
        )
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except (SafetensorError, OSError) as error:
        raise OSError(f"{path}: cannot be written ({error}); what was there before is kept") from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors of a checkpoint, and what it says of itself.

    Raises:
        ValueError: the file is damaged, or not a checkpoint of this script.
    """
    try:
        with safe_open(path, "pt") as file:
            about = json.loads(file.metadata()["about"])
            place = asdict(Place(**about["place"]))
            best = place.pop("best")
            if not (all(type(value) is int for value in place.values()) and isinstance(best, int | float | None)):
                raise ValueError(f"its place is {about['place']!r:.200}")
            if not (isinstance(about["same"], dict) and isinstance(about["machine"], str)):
                raise ValueError("it does not say how it was made")
            return {name: file.get_tensor(name) for name in file.keys()}, about  # noqa: SIM118 - it is not a dict
    except (SafetensorError, TypeError, KeyError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not a checkpoint of finetune.py ({error}): train anew into another --out") from None


def lock(file: BinaryIO, folder: Path) -> None:
    """Keep a file for this process as long as it is open, where the system has such locks (Windows has none).

    Raises:
        ValueError: another process has it.
    """
    try:
        import fcntl
    except ImportError:
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise ValueError(f"{folder}: another process is training into it: wait for its end") from None


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file, as `sha256sum` prints it."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

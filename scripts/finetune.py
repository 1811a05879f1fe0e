#!/usr/bin/env python3
"""Fine-tune a DistilBERT on a file of texts: one plain loop, in one process or in many.

    python scripts/finetune.py sequence --model distilbert-base-uncased --train train.tsv --eval dev.tsv -o out
    python scripts/finetune.py token --model distilbert-base-cased --train ner.jsonl --text words --label tags -o out
    python scripts/finetune.py masked-lm --model distilbert-base-uncased --train texts.csv --text body -o out
    python scripts/finetune.py sequence --config sizes.json --tokenizer minibert/demo --train train.tsv -o out  # fresh
    torchrun --nproc-per-node 2 scripts/finetune.py sequence --model distilbert-base-uncased --train train.tsv -o out

A step adds up the gradients of --micro-batches batches, which the processes share, and divides by the number of labels
in all of them. OUT gets the model with the best evaluation (without --eval: the last one), for minibert and for
transformers; metrics.jsonl; and checkpoint.safetensors, from which the same command with --resume goes on.

Nothing random is carried from step to step: the order of rows depends on (seed, epoch), dropout and masks on (seed,
step, micro-batch). So, on one machine with the same number of threads, the weights are the same bits after any kills
and resumes, and with 2 processes or one (and 2 micro-batches). With more processes the sums have another order: the
weights are close.
"""

import copy
import math
import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from finetune_data import Batch, Row, find_scores, make_batch, plan_epoch, plot_metrics, seed_of, split
from finetune_setup import MASKED_LM, describe, load_data, load_model, parse, processes, say, shard, start_processes
from finetune_state import METRICS, Checkpoints, hash_file, whole
from torch import Tensor, distributed, nn
from tqdm import tqdm  # type: ignore[import-untyped]

from minibert import DistilBertTokenizer, PackedForTraining
from minibert.cli.output import shorten
from minibert.heads import IGNORE
from minibert.terminal import visible


def train(args: Namespace, checkpoints: Checkpoints) -> None:
    """Train, from the start or from a checkpoint, until the epochs or the patience are over."""
    device, (rank, _) = start_processes(args), processes()
    tokenizer, config, rows, eval_rows = load_data(args)
    model = load_model(args, config, device)
    average = copy.deepcopy(model) if args.average else model  # what is evaluated, and saved as the result
    if args.fsdp:
        shard(model, average)
    module, average_module = (each if args.padded else PackedForTraining(each) for each in (model, average))
    weights = list(model.parameters())
    groups: list[dict[str, Any]] = [
        {"params": [weight for weight in weights if weight.ndim > 1]},
        {"params": [weight for weight in weights if weight.ndim == 1], "weight_decay": 0.0},  # biases and LayerNorm
    ]
    optimizer = torch.optim.AdamW(groups, args.learning_rate, weight_decay=args.weight_decay, fused=True)
    place = checkpoints.open(model, average, optimizer, *describe(args, model.config, rows, eval_rows))
    if rank == 0:
        tokenizer.save_pretrained(args.out)

    names = list(config.id2label.values()) if args.label else []
    n_rows = args.epochs * len(rows)
    bar = tqdm(total=n_rows, initial=place.n_rows, unit=" rows", disable=None if rank == 0 else True)
    while place.epoch < args.epochs and place.waited != args.patience:
        module.train()
        steps = plan_epoch(rows, place.epoch, args)
        for step in steps[place.step :]:
            size = sum(map(len, step))
            progress = (place.n_rows + size / 2) / n_rows  # in the middle of the step: never 0, never 1
            factor = progress / args.warmup if progress < args.warmup else (1 - progress) / (1 - args.warmup)
            for group in optimizer.param_groups:
                group["lr"] = rate = args.learning_rate * factor
            loss = accumulate(module, step, place.n_steps, args, tokenizer)
            norm = whole(nn.utils.clip_grad_norm_(weights, args.clip)).item()
            if not math.isfinite(loss + norm):
                raise FloatingPointError(
                    f"step {place.n_steps + 1}: the loss is {loss}, the norm of its gradient is {norm}: the checkpoint "
                    f"before is kept. Try a lower --learning-rate, with another --out"
                )
            optimizer.step()
            optimizer.zero_grad()
            if average is not model:
                with torch.no_grad():
                    for kept, new in zip(average.parameters(), weights, strict=True):
                        kept.lerp_(new, 1 - args.average)
            place.step, place.n_steps, place.n_rows = place.step + 1, place.n_steps + 1, place.n_rows + size
            checkpoints.log(step=place.n_steps, epoch=place.epoch + 1, loss=loss, norm=norm, learning_rate=rate)
            bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
            bar.update(size)
            if place.n_steps % args.checkpoint_every == 0:
                checkpoints.save(place)
        place.epoch, place.step, place.waited = place.epoch + 1, 0, place.waited + 1
        score = float(place.epoch)  # without an evaluation the last weights are the best
        if eval_rows:
            found = evaluate(average_module, eval_rows, names, args, tokenizer)
            checkpoints.log(step=place.n_steps, epoch=place.epoch, **found)
            shown = (f"{name} {value:.4f}" for name, value in found.items() if isinstance(value, float))
            say(f"epoch {place.epoch}: {', '.join(shown)}")
            score = -found["eval_loss"] if args.best_by == "loss" else found[args.best_by]
        if place.best is None or score > place.best:
            place.best, place.best_epoch, place.waited = score, place.epoch, 0
            checkpoints.check(place)  # before the best model is replaced
            average.save_pretrained(args.out, is_main_process=rank == 0)
        checkpoints.save(place)
    bar.close()
    if rank == 0:
        say(f"{args.out}: model of epoch {place.best_epoch}, SHA-256 {hash_file(args.out / 'model.safetensors')}")
    if args.plot and rank == 0:
        plot_metrics(args.out / METRICS, args.out / "metrics.png")


def accumulate(
    module: nn.Module, step: Sequence[Sequence[Row]], n_steps: int, args: Namespace, tokenizer: DistilBertTokenizer
) -> float:
    """Add up the gradients of a step's micro-batches in all processes, and divide by the number of their labels.

    Returns:
        The mean loss of all labels.
    """
    totals = torch.zeros(2, dtype=torch.float64)  # the sum of the losses, and the number of labels
    for i, rows, weight in share(step):
        torch.manual_seed(seed_of(args.seed, "step", n_steps, i))
        logits, labels = run(module, make_batch(rows, tokenizer, args.mask, args.task == MASKED_LM), args)
        loss = weight * F.cross_entropy(logits, labels, reduction="sum")
        loss.backward()
        totals += torch.tensor([loss.item(), weight * len(labels)])
    gradients = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
    add_up([totals] if args.fsdp else [totals, *gradients])
    n_labels = max(totals[1].item(), 1)
    for gradient in gradients:
        gradient.div_(n_labels / processes()[1] if args.fsdp else n_labels)  # FSDP2 itself has taken their mean
    return totals[0].item() / n_labels


@torch.no_grad()
def evaluate(
    module: nn.Module, rows: Sequence[Row], names: Sequence[str], args: Namespace, tokenizer: DistilBertTokenizer
) -> dict[str, Any]:
    """Return the loss and the scores; each row is counted once, in one of the processes."""
    module.eval()
    predict = args.task == MASKED_LM
    totals = torch.zeros(3 + len(names) ** 2, dtype=torch.float64)  # loss, labels, right ones, pairs of label and guess
    for i, part, weight in share(split(sorted(rows, key=lambda row: len(row.ids)), args)):
        torch.manual_seed(seed_of(args.seed, "evaluation", i))
        logits, labels = run(module, make_batch(part, tokenizer, args.mask if predict else 0, predict), args)
        loss, guesses = F.cross_entropy(logits, labels, reduction="sum"), logits.argmax(-1)
        pairs = (labels * len(names) + guesses).bincount(minlength=len(names) ** 2) if names else labels[:0]
        counts = torch.tensor([loss.item(), len(labels), (guesses == labels).sum().item()])
        totals += weight * torch.cat([counts, pairs.cpu()])
    add_up([totals])
    return find_scores(totals, names)


def run(module: nn.Module, batch: Batch, args: Namespace) -> tuple[Tensor, Tensor]:
    """Return the logits (N, L) and the labels (N,) of the N texts or tokens of a batch that are labelled."""
    input_ids, attention_mask, labels = (tensor.to(args.device) for tensor in batch)
    with torch.autocast(args.device, torch.bfloat16, enabled=args.dtype == "bfloat16"):
        logits = module(input_ids, attention_mask, labels=labels).logits
    labelled = labels != IGNORE
    if logits.shape[:-1] == labels.shape:  # a packed masked LM has already left out the tokens without a label
        logits = logits[labelled]
    return logits.to(torch.promote_types(logits.dtype, torch.float32)), labels[labelled]


def share(batches: Sequence[Sequence[Row]]) -> Iterator[tuple[int, Sequence[Row], int]]:
    """Yield this process's batches, each with its number and the weight 1.

    All processes must run equally often (FSDP2), so that one without a last batch gets another's with the weight 0.
    """
    rank, world = processes()
    for i in range(rank, -(-len(batches) // world) * world, world):
        yield i, batches[min(i, len(batches) - 1)], int(i < len(batches))


def add_up(tensors: Sequence[Tensor]) -> None:
    """Replace each tensor by the sum of those of all processes."""
    if distributed.is_initialized():
        for work in [distributed.all_reduce(tensor, async_op=True) for tensor in tensors]:
            work.wait()


def main(argv: Sequence[str] | None = None) -> int:
    """Train as the arguments say; return the exit status: 2 for a bad input, 1 for a loss that is not a number."""
    args = parse(__doc__, argv)
    try:
        with Checkpoints(args.out, args.resume) as checkpoints:
            train(args, checkpoints)
    except (OSError, ValueError, ImportError, FloatingPointError) as error:
        print(f"finetune.py: {visible(shorten(str(error)))}", file=sys.stderr)
        return 1 if isinstance(error, FloatingPointError) else 2
    except KeyboardInterrupt:
        print(f"finetune.py: interrupted: the same command with --resume goes on in {args.out}", file=sys.stderr)
        return 130
    finally:
        if distributed.is_initialized():
            distributed.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main())

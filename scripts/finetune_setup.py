"""What finetune.py starts from: its arguments, the processes, the tokenizer, the rows and the model."""

import hashlib
import json
import math
import os
import sys
from argparse import ArgumentParser, ArgumentTypeError, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from finetune_data import Columns, Row, find_labels, hash_rows, number_labels, read_file, seed_of
from torch import distributed
from torch.distributed.fsdp import fully_shard
from tqdm import tqdm  # type: ignore[import-untyped]

from minibert import (
    DistilBertConfig,
    DistilBertForMaskedLM,
    DistilBertForSequenceClassification,
    DistilBertForTokenClassification,
    DistilBertTokenizer,
)
from minibert.checkpoint import CheckpointFiles
from minibert.config import ALIASES
from minibert.heads import ModelWithHead
from minibert.terminal import visible

SEQUENCE, TOKEN, MASKED_LM = "sequence", "token", "masked-lm"
TASKS: dict[str, type[ModelWithHead]] = {
    SEQUENCE: DistilBertForSequenceClassification,
    TOKEN: DistilBertForTokenClassification,
    MASKED_LM: DistilBertForMaskedLM,
}
MOST_WEIGHTS = 10**9  # that --config may ask for; AdamW takes 16 bytes for each, and a file may name any size
MOST_LABELS = 1000  # of --eval: the confusions of L labels are L * L numbers in each line of the metrics
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}
# A resumed run may have other values of these: they change no bit of the weights, or `describe` says more about them.
FREE = {"out", "resume", "train", "eval", "checkpoint_every", "plot", "device", "threads", "fsdp"}


def parse(description: str | None, argv: Sequence[str] | None) -> Namespace:
    """Read the command line; a bad argument ends the program with status 2."""
    parser = ArgumentParser(prog="finetune.py", description=description, formatter_class=RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("task", choices=TASKS)
    add("-o", "--out", type=Path, required=True, metavar="FOLDER", help="new or empty; with --resume, as it was left")
    add("--resume", action="store_true", help="go on from the checkpoint in OUT, if there is one")

    add = parser.add_argument_group("data: .jsonl, or .csv or .tsv whose first line names the columns").add_argument
    add("--train", type=Path, required=True, metavar="FILE")
    add("--eval", type=Path, metavar="FILE", help="evaluate on it after each epoch")
    add("--text", default="text", metavar="COLUMN", help="default: text")
    add("--pair", metavar="COLUMN", help="the second text of each row")
    add("--label", default="label", metavar="COLUMN", help="default: label; masked-lm has none")
    add("--skip-bad", action="store_true", help="leave out lines that cannot be read, and say which")

    add = parser.add_argument_group("model").add_argument
    add("--model", metavar="CHECKPOINT", help="a folder, or a name on the Hugging Face Hub")
    add(
        "--config", type=Path, metavar="FILE", help="in place of --model: random weights, of the sizes in a config.json"
    )
    add("--tokenizer", metavar="CHECKPOINT", help="default: that of --model; --config needs one")
    add("--set", nargs="+", default=[], type=setting, metavar="NAME=VALUE", help="fields of the config to change")
    add(
        "--new-head",
        action="store_true",
        help="draw the head at random even if the checkpoint has one for these labels",
    )
    add("--max-length", type=number(int, 3), default=512, metavar="N", help="cut texts to N tokens; default: 512")

    add = parser.add_argument_group("training").add_argument
    add("--epochs", type=number(int, 1), default=3, metavar="N", help="default: 3")
    add("--batch-rows", type=number(int, 1), default=32, metavar="N", help="most rows of a micro-batch; default: 32")
    add(
        "--batch-tokens",
        type=number(int, 1),
        default=4096,
        metavar="N",
        help="most tokens of a micro-batch; default: 4096",
    )
    add("--micro-batches", type=number(int, 1), metavar="N", help="batches of a step; default: one for each process")
    add("--learning-rate", type=number(float, 0), default=5e-5, metavar="X", help="the highest one; default: 5e-5")
    add("--warmup", type=number(float, 0, 0.99), default=0.1, metavar="X", help="share of the rows; default: 0.1")
    add(
        "--weight-decay",
        type=number(float, 0),
        default=0.01,
        metavar="X",
        help="default: 0.01; none on biases and LayerNorm",
    )
    add(
        "--clip",
        type=number(float, 0, math.inf),
        default=1.0,
        metavar="X",
        help="largest norm of a gradient; default: 1; inf: any",
    )
    add("--padded", action="store_true", help="run the padding too, which takes longer; --fsdp does so")
    add(
        "--mask",
        type=number(float, 0, 0.99),
        metavar="X",
        help="share of tokens to hide; default: masked-lm 0.15, else 0",
    )
    add(
        "--average",
        type=number(float, 0, 0.9999),
        default=0.0,
        metavar="X",
        help="keep a running average of the weights, such as 0.99",
    )
    add("--patience", type=number(int, 1), metavar="N", help="stop after N evaluations that are not the best")
    add("--best-by", choices=("accuracy", "f1", "loss"), help="default: accuracy")
    add("--seed", type=int, default=0, metavar="N", help="default: 0")

    add = parser.add_argument_group("machine").add_argument
    add(
        "--device",
        default="cuda" if torch.cuda.is_available() else "cpu",
        choices=("cpu", "cuda"),
        help="default: cuda if there is one",
    )
    add("--dtype", choices=DTYPES, help="bfloat16 is autocast over float32 weights, the default on cuda; else float32")
    add("--threads", type=number(int, 1), metavar="N", help="of a process on the CPU; default: torch's choice")
    add("--fsdp", action="store_true", help="under torchrun: divide the weights among the processes (FSDP2)")
    add(
        "--checkpoint-every",
        type=number(int, 1),
        default=500,
        metavar="N",
        help="steps; default: 500, and after each epoch",
    )
    add("--plot", action="store_true", help="draw metrics.png at the end (the extra plot)")
    args = parser.parse_args(argv)
    try:
        complete(args)
    except ValueError as error:
        parser.error(str(error))
    return args


def complete(args: Namespace) -> None:
    """Fill in what depends on other arguments, and refuse what contradicts itself."""
    masked_lm = args.task == MASKED_LM
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if (args.model is None) == (args.config is None):
        raise ValueError("give either --model or --config")
    if args.config is not None and args.tokenizer is None:
        raise ValueError("--config needs --tokenizer, a checkpoint whose vocabulary to use")
    if args.pair is not None and args.task != SEQUENCE:
        raise ValueError(f"--pair is for {SEQUENCE}")
    if args.fsdp and "WORLD_SIZE" not in os.environ:
        raise ValueError("--fsdp needs torchrun: torchrun --nproc-per-node 2 scripts/finetune.py …")
    if args.eval is None and args.patience is not None:
        raise ValueError("--patience needs --eval")
    if masked_lm and args.best_by == "f1":
        raise ValueError(f"{MASKED_LM} has no f1: --best-by accuracy or loss")
    if masked_lm and args.mask == 0:
        raise ValueError(f"--mask 0 leaves {MASKED_LM} nothing to predict")
    args.label = None if masked_lm else args.label
    args.padded = args.padded or args.fsdp  # FSDP2 gathers a layer's weights when the layer itself is called
    args.best_by = args.best_by or "accuracy"
    args.micro_batches = args.micro_batches or world
    if args.micro_batches < world:
        raise ValueError(
            f"--micro-batches {args.micro_batches} cannot be shared by {world} processes: give {world} or more"
        )
    args.mask = (0.15 if masked_lm else 0.0) if args.mask is None else args.mask
    args.dtype = args.dtype or ("bfloat16" if args.device == "cuda" else "float32")
    if args.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: torch finds no GPU with CUDA here")
    if args.plot:
        from minibert.study.plots import new_figure

        new_figure(1, 1)  # an ImportError now, not after the training


def number(kind: type, low: float, high: float = sys.float_info.max) -> Callable[[str], Any]:
    """Return a type for argparse: a number from `low` to `high`."""

    def convert(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high:
            most = f" and at most {high:g}" if high < sys.float_info.max else ""
            name = "an integer" if kind is int else "a number"
            raise ArgumentTypeError(f"must be {name} of at least {low:g}{most}, got {text!r}")
        return value

    return convert


def setting(text: str) -> tuple[str, Any]:
    """Read NAME=VALUE; a value that is not JSON is a text."""
    name, equals, value = text.partition("=")
    if not equals:
        raise ArgumentTypeError(f"must be NAME=VALUE, such as dropout=0.2, got {text!r}")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def start_processes(args: Namespace) -> torch.device:
    """Join the other processes of torchrun, and return this one's device."""
    device = torch.device(args.device)
    if args.device == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        if device.index >= torch.cuda.device_count():
            raise ValueError(f"there are {torch.cuda.device_count()} GPUs, too few for process {device.index}")
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what deterministic algorithms need there
        torch.cuda.set_device(device)
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # it costs time
    if "WORLD_SIZE" in os.environ:
        distributed.init_process_group("cpu:gloo,cuda:nccl" if args.device == "cuda" else "gloo")
    return device


def processes() -> tuple[int, int]:
    """Return this process's rank, and the number of processes."""
    return (distributed.get_rank(), distributed.get_world_size()) if distributed.is_initialized() else (0, 1)


def say(text: str) -> None:
    """Print a line on standard error, beside the progress bar, once for all processes."""
    if processes()[0] == 0:
        tqdm.write(visible(text), file=sys.stderr)


def describe(
    args: Namespace, config: DistilBertConfig, rows: Sequence[Row], eval_rows: Sequence[Row]
) -> tuple[dict[str, str], str]:
    """Return what must be the same when a training is resumed, by name; and what else the last bits depend on."""
    options = {f"--{name.replace('_', '-')}": str(value) for name, value in vars(args).items() if name not in FREE}
    hashes = {
        "the hash of the config and its labels": hashlib.sha256(config.to_json_string().encode()).hexdigest(),
        "the hash of the rows of --train": hash_rows(rows),
        "the hash of the rows of --eval": hash_rows(eval_rows),
    }
    chip = torch.cuda.get_device_name() if args.device == "cuda" else torch.backends.cpu.get_cpu_capability()
    return options | hashes, f"torch {torch.__version__}, {chip}, {torch.get_num_threads()} threads"


def load_data(args: Namespace) -> tuple[DistilBertTokenizer, DistilBertConfig, list[Row], list[Row]]:
    """Return the tokenizer, the config with the labels that were found, and the rows of --train and of --eval.

    Raises:
        OSError: a file cannot be read.
        ValueError: see `load_config`, `read_file`; fewer than two labels, or with --eval too many; a label that only
            --eval has.
    """
    tokenizer = DistilBertTokenizer.from_pretrained(args.tokenizer or args.model)
    config = load_config(args, tokenizer)
    if args.mask and tokenizer.mask_token_id is None:
        raise ValueError("--mask: the vocabulary of the tokenizer has no [MASK]")
    columns = Columns(args.text, args.pair, args.label, args.task == TOKEN)
    limit = min(args.max_length, config.max_position_embeddings, tokenizer.model_max_length or args.max_length)
    if limit < (least := 5 if args.pair else 3):  # [CLS] a [SEP], or [CLS] a [SEP] b [SEP]
        raise ValueError(f"texts would be cut to {limit} tokens, but {least} are the fewest: see --max-length")
    files = []
    for path in filter(None, (args.train, args.eval)):
        lines, remarks = read_file(path, columns, tokenizer, limit, args.skip_bad)
        files.append((lines, path))
        for remark in remarks:
            say(remark)
    labels = find_labels(files[0][0])
    if args.label is not None:
        if len(labels) < 2:
            raise ValueError(f"{args.train}: all rows have the label {', '.join(labels)}: there is nothing to learn")
        if args.eval and len(labels) > MOST_LABELS:
            raise ValueError(
                f"{args.train}: {len(labels)} labels, but an evaluation counts the confusions of {MOST_LABELS} at "
                f"most: train without --eval, or see --label"
            )
        if set(labels) == set(config.id2label.values()):
            labels = [config.id2label[i] for i in range(len(labels))]  # in the order of the checkpoint's head
        else:
            args.new_head = args.config is None
        config = config.changed(id2label=dict(enumerate(labels)))
    if args.task == SEQUENCE:
        config = config.changed(problem_type="single_label_classification")
    rows, *more = (number_labels(lines, labels, path) for lines, path in files)
    return tokenizer, config, rows, more[0] if more else []


def load_config(args: Namespace, tokenizer: DistilBertTokenizer) -> DistilBertConfig:
    """Return the config of --model or --config, changed by --set.

    Raises:
        OSError: no such file.
        ValueError: a field or a value that a config cannot have; a vocabulary smaller than the tokenizer's.
    """
    if args.config is None:
        config = DistilBertConfig.from_pretrained(args.model)
    else:
        try:
            content = json.loads(args.config.read_text("utf-8"))
            fitting = {"model_type": "distilbert", "vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
            config = DistilBertConfig.from_dict(fitting | content)
        except (TypeError, ValueError, RecursionError) as error:
            raise ValueError(f"{args.config}: not a config ({error})") from None
    known = {field.name for field in fields(config)} | ALIASES.keys()
    if unknown := [name for name, _ in args.set if name not in known]:
        raise ValueError(f"--set: a config has no field {unknown[0]!r}")
    config = config.changed(**dict(args.set))
    if config.vocab_size < len(tokenizer):
        raise ValueError(f"the tokenizer has {len(tokenizer)} tokens, but vocab_size is {config.vocab_size}")
    return config


def load_model(args: Namespace, config: DistilBertConfig, device: torch.device) -> ModelWithHead:
    """Return the model with its first weights: those of the checkpoint, or random ones from the seed.

    Raises:
        OSError, ValueError: as `from_pretrained` of the model; --config asks for too many weights.
    """
    if args.config is not None:
        with torch.device("meta"):  # shapes without memory
            n_weights = sum(weight.numel() for weight in TASKS[args.task](config).parameters())
        if n_weights > MOST_WEIGHTS:
            raise ValueError(f"{args.config}: a model of {n_weights:,} weights, {MOST_WEIGHTS:,} are the most")
    torch.manual_seed(seed_of(args.seed, "weights"))
    if args.config is not None:
        model = TASKS[args.task](config)
    else:
        try:
            model = TASKS[args.task].from_files(CheckpointFiles(args.model), config=config, new_head=args.new_head)
        except ValueError as error:
            raise ValueError(str(error).replace("new_head=True", "--new-head")) from None
    model.to(device, torch.float64 if args.dtype == "float64" else torch.float32)
    for weight in model.parameters():  # in memory of their own: see `Checkpoints._restore`
        weight.data = weight.detach().clone()
    return model


def shard(*models: ModelWithHead) -> None:
    """Divide the weights of models among the processes, layer by layer (FSDP2)."""
    for model in set(models):
        for part in (*model.distilbert.transformer.layer, model):
            fully_shard(part)

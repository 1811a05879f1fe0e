#!/usr/bin/env python3
"""Time a DistilBERT classifier on the CPU: minibert beside transformers, ONNX Runtime, CTranslate2, OpenVINO and torch.

Each system has a process of its own and only one is active at a time; they take turns in an order drawn anew for each
round, so that whatever else the machine does hits all alike. What counts are ratios within a round. All have the same
random weights of distilbert-base's shape, with a head on [CLS]. "over ideal" is the time over that of the real tokens'
arithmetic in all layers (of the last, `packed` leaves out what [CLS] does not need: 14% of the whole) at the speed of a
large matrix product in the same round. "alone or in the batch" is the largest difference between a text's logits when
it runs alone and when it runs in the batch.

    pip install "minibert[bench]"
    python scripts/benchmark.py                                        # all systems and batches: 45 minutes
    python scripts/benchmark.py --batches D F --rounds 3 --systems packed transformers-sdpa ctranslate2
    python scripts/benchmark.py --lengths lengths.txt --json results.json --plot results.svg
    python scripts/benchmark.py --show results.json --plot results.svg # again, without measuring
    python scripts/benchmark.py --start-up --throughput --batches
"""

import argparse
import json
import multiprocessing
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, cast

os.environ.update(
    KMP_BLOCKTIME="1",  # idle threads sleep
    TOKENIZERS_PARALLELISM="false",
    HF_HUB_OFFLINE="1",
    TRANSFORMERS_VERBOSITY="error",
    HF_HUB_DISABLE_PROGRESS_BARS="1",
)

import numpy as np
import torch
from torch import Tensor, nn

import minibert
from minibert import DistilBertConfig, DistilBertForSequenceClassification, DistilBertTokenizer, kernels
from minibert.model import TransformerBlock

CONFIG = DistilBertConfig()
SECONDS = 0.2  # a system runs a small batch again and again for so long, and its median counts
SPEED_OF_LIGHT = "sgemm"
Run = Callable[[Tensor, Tensor], Any]
Results = dict[str, Any]  # what --json writes


def minibert_eager(folder: Path) -> Run:
    """The model of the book."""
    model = DistilBertForSequenceClassification.from_pretrained(folder)
    return lambda ids, mask: model(ids, mask).logits


def packed(folder: Path, int8: bool = False) -> Run:
    """The fast path."""
    fast = minibert.pack(DistilBertForSequenceClassification.from_pretrained(folder), int8=int8)
    return lambda ids, mask: fast(ids, mask).logits


def packed_int8(folder: Path) -> Run:
    """The fast path in int8."""
    return packed(folder, int8=True)


def packed_plain(folder: Path) -> Run:
    """The fast path with torch's own linear layers, as on other CPUs."""
    kernels.MklLinear.is_available = staticmethod(lambda: False)  # type: ignore[method-assign]
    return packed(folder)


def transformers_eager(folder: Path, attention: str = "eager") -> Run:
    """The transformers package, attention written out."""
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(folder, attn_implementation=attention).eval()
    return lambda ids, mask: model(input_ids=ids, attention_mask=mask).logits


def transformers_sdpa(folder: Path) -> Run:
    """The transformers package as it comes."""
    return transformers_eager(folder, "sdpa")


def transformers_compile(folder: Path) -> Run:
    """The same, compiled for any shape."""
    return torch.compile(transformers_eager(folder, "sdpa"), dynamic=True)


def export_onnx(folder: Path) -> Path:
    """Write the transformers model as an ONNX file, and return where."""
    from transformers import AutoModelForSequenceClassification

    class Logits(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = AutoModelForSequenceClassification.from_pretrained(folder, attn_implementation="eager").eval()

        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
            return self.model(input_ids=input_ids, attention_mask=attention_mask).logits

    path = Path(tempfile.mkdtemp(dir=folder)) / "model.onnx"
    names = ["input_ids", "attention_mask"]
    ids = torch.ones(2, 8, dtype=torch.long)
    axes = {name: {0: "batch", 1: "tokens"} for name in names}
    torch.onnx.export(Logits(), (ids, ids), path, input_names=names, dynamic_axes=axes, dynamo=False, opset_version=17)
    return path


def onnxruntime(folder: Path, int8: bool = False) -> Run:
    """ONNX Runtime with its optimizer for BERT."""
    import onnxruntime as ort
    from onnxruntime.quantization import quantize_dynamic
    from onnxruntime.transformers.optimizer import optimize_model

    path = export_onnx(folder)
    optimize_model(str(path), model_type="bert", num_heads=12, hidden_size=768).save_model_to_file(str(path))
    if int8:
        quantize_dynamic(path, path, per_channel=True, extra_options={"DefaultTensorType": 1})  # 1: float32
    options = ort.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry("session.force_spinning_stop", "1")  # between runs: the others' time
    session = ort.InferenceSession(path, options)
    return lambda ids, mask: session.run(None, {"input_ids": ids.numpy(), "attention_mask": mask.numpy()})[0]


def onnxruntime_int8(folder: Path) -> Run:
    """ONNX Runtime, weights and activations in int8."""
    return onnxruntime(folder, int8=True)


def openvino(folder: Path) -> Run:
    """OpenVINO in float32."""
    import openvino as ov

    hints = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "INFERENCE_PRECISION_HINT": "f32"}
    compiled = ov.Core().compile_model(export_onnx(folder), "CPU", hints)
    return lambda ids, mask: compiled({"input_ids": ids.numpy(), "attention_mask": mask.numpy()})[0]


def ctranslate2(folder: Path, compute_type: str = "float32") -> Run:
    """CTranslate2's encoder, which drops padding too; the head in torch."""
    import ctranslate2 as ct2

    path = Path(tempfile.mkdtemp(dir=folder)) / "model"
    ct2.converters.TransformersConverter(str(folder)).convert(str(path))
    encoder = ct2.Encoder(str(path), compute_type=compute_type, intra_threads=torch.get_num_threads())
    model = DistilBertForSequenceClassification.from_pretrained(folder)

    def run(ids: Tensor, mask: Tensor) -> Tensor:
        rows = [row[:length] for row, length in zip(ids.tolist(), mask.sum(1).tolist(), strict=True)]
        return model.head(torch.from_numpy(np.array(encoder.forward_batch(rows).last_hidden_state)))

    return run


def ctranslate2_int8(folder: Path) -> Run:
    """CTranslate2 in int8."""
    return ctranslate2(folder, "int8")


def torch_encoder(folder: Path) -> Run:
    """nn.TransformerEncoder, whose fast path turns padded rows into a nested tensor."""
    model = DistilBertForSequenceClassification.from_pretrained(folder)
    blocks = cast(list[TransformerBlock], list(model.distilbert.transformer.layer))
    layer = nn.TransformerEncoderLayer(768, 12, 3072, activation="gelu", batch_first=True, layer_norm_eps=1e-12)
    encoder = nn.TransformerEncoder(layer, len(blocks), enable_nested_tensor=True).eval()
    for target, block in zip(encoder.layers, blocks, strict=True):
        attention = block.attention
        qkv = (attention.q_lin, attention.k_lin, attention.v_lin)
        parts: dict[str, nn.Module] = {
            "linear1": block.ffn.lin1,
            "linear2": block.ffn.lin2,
            "self_attn.out_proj": attention.out_lin,
        }
        parts |= {"norm1": block.sa_layer_norm, "norm2": block.output_layer_norm}
        state = {f"{name}.{key}": value for name, part in parts.items() for key, value in part.state_dict().items()}
        state |= {f"self_attn.in_proj_{key}": torch.cat([getattr(p, key) for p in qkv]) for key in ("weight", "bias")}
        target.load_state_dict(state)

    def run(ids: Tensor, mask: Tensor) -> Tensor:
        padding = None if mask.all() else mask == 0
        return model.head(encoder(model.distilbert.embeddings(ids), src_key_padding_mask=padding))

    return run


def sgemm(folder: Path) -> Run:
    """A product of two 2048 x 2048 matrices: what the machine can do."""
    a, b, out = torch.randn(2048, 2048), torch.randn(2048, 2048), torch.empty(2048, 2048)
    return lambda ids, mask: torch.mm(a, b, out=out)[:1, :2]  # as if logits


SYSTEMS: dict[str, Callable[[Path], Run]] = {
    "packed": packed,
    "packed-int8": packed_int8,
    "packed-plain": packed_plain,
    "minibert-eager": minibert_eager,
    "transformers-eager": transformers_eager,
    "transformers-sdpa": transformers_sdpa,
    "transformers-compile": transformers_compile,
    "onnxruntime": onnxruntime,
    "onnxruntime-int8": onnxruntime_int8,
    "openvino": openvino,
    "ctranslate2": ctranslate2,
    "ctranslate2-int8": ctranslate2_int8,
    "nn.TransformerEncoder": torch_encoder,
    SPEED_OF_LIGHT: sgemm,
}


def draw_lengths(mean: float, sigma: float, longest: int, seed: int, count: int = 32) -> list[int]:
    """Draw lengths from a log-normal distribution with this mean, clipped to 5 … longest."""
    drawn = np.exp(np.random.default_rng(seed).normal(np.log(mean) - sigma**2 / 2, sigma, count))
    return [int(length) for length in drawn.clip(5, longest).round()]


BATCHES: dict[str, list[int]] = {
    "A": [16],
    "B": [128],
    "C": [128] * 32,
    "D": draw_lengths(25, 0.45, 64, 3),  # like the sentences of SST-2
    "E": draw_lengths(90, 0.9, 512, 3),  # heavy-tailed, like reviews
    "F": draw_lengths(25, 0.45, 64, 0),
    "G": draw_lengths(90, 0.9, 512, 8),
    **{
        f"F{count}": draw_lengths(25, 0.45, 64, 0, count) for count in (1, 2, 4, 8, 16, 64)
    },  # smaller and larger than F
}
BY_PADDING = ("C", "F", "D", "G", "E")
BY_SIZE = ("F1", "F2", "F4", "F8", "F16", "F", "F64")


def make_batch(lengths: list[int]) -> tuple[Tensor, Tensor]:
    """Return random ids and the mask, (B, S), padded on the right with 0."""
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    ids = torch.randint(1000, CONFIG.vocab_size, mask.shape, generator=torch.Generator().manual_seed(0))
    return ids * mask, mask


def padding_ratio(lengths: list[int]) -> float:
    """Slots of the padded batch over its real tokens."""
    return len(lengths) * max(lengths) / sum(lengths)


def flops(lengths: list[int]) -> float:
    """Count the multiplications and additions that the real tokens need, in linear layers and attention."""
    linear = 2 * sum(lengths) * (4 * CONFIG.dim**2 + 2 * CONFIG.dim * CONFIG.hidden_dim)
    attention = 4 * CONFIG.dim * sum(length**2 for length in lengths)
    return CONFIG.n_layers * (linear + attention)


def serve(pipe: Connection, name: str, folder: Path, threads: int) -> None:
    """Be a system's process: build it, then time each batch that comes through the pipe."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(threads)
    try:
        with torch.no_grad():
            run = SYSTEMS[name](folder)
    except Exception as error:  # a peer may fail in its own way: the others go on without it
        pipe.send(f"{type(error).__name__}: {error}"[:200])
        return
    pipe.send(None)
    with torch.no_grad():
        while (task := pipe.recv()) is not None:
            lengths, alone = task
            ids, mask = make_batch(lengths)
            if alone:  # each text without its padding
                rows = zip(ids, lengths, strict=True)
                pipe.send(np.concatenate([run(row[None, :n], torch.ones(1, n, dtype=torch.long)) for row, n in rows]))
                continue
            run(ids[:1], mask[:1])  # wakes the process up
            times: list[float] = []
            while sum(times) < SECONDS:
                begin = time.perf_counter()
                logits = run(ids, mask)
                times.append(time.perf_counter() - begin)
            pipe.send((statistics.median(times), np.asarray(logits)))


@dataclass
class System:
    """A running process, and what it measured.

    Args:
        name: see `SYSTEMS`.
        process: its own.
        pipe: to it.
        seconds: of each batch, round by round.
        logits: of each batch.
        drift: of each batch, the largest difference of a text's logits alone and in the batch.
    """

    name: str
    process: Any
    pipe: Connection
    seconds: dict[str, list[float]] = field(default_factory=dict)
    logits: dict[str, Any] = field(default_factory=dict)
    drift: dict[str, float] = field(default_factory=dict)

    @classmethod
    def start(cls, name: str, folder: Path, threads: int) -> "System | None":
        """Start a process and wait for it; None, and a note, if the system cannot run here."""
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=serve, args=(theirs, name, folder, threads), daemon=True)
        process.start()
        theirs.close()
        try:
            problem = ours.recv()
        except EOFError:
            problem = "its process died"
        if problem is not None:
            print(f"skipped {name}: {problem}", flush=True)
            return None
        return cls(name, process, ours)

    def warm(self, batch: str, lengths: list[int]) -> None:
        """Run one batch, and its texts one by one, for their logits."""
        self.pipe.send((lengths, False))
        _, self.logits[batch] = self.pipe.recv()
        if self.name != SPEED_OF_LIGHT:
            self.pipe.send((lengths, True))
            self.drift[batch] = float(np.abs(self.pipe.recv() - self.logits[batch]).max())

    def measure(self, batch: str, lengths: list[int]) -> None:
        """Time one batch."""
        self.pipe.send((lengths, False))
        seconds, _ = self.pipe.recv()
        self.seconds.setdefault(batch, []).append(seconds)


def run_systems(names: list[str], batches: dict[str, list[int]], folder: Path, args: argparse.Namespace) -> Results:
    """Measure, and return what `report` prints."""
    systems = [system for name in names if (system := System.start(name, folder, args.threads))]
    for round_number in range(args.rounds + 1):
        for batch, lengths in batches.items():
            for system in random.sample(systems, len(systems)):
                if round_number == 0:
                    system.warm(batch, lengths)
                else:
                    system.measure(batch, lengths)
        print(f"round {round_number} of {args.rounds}" if round_number else "warm", flush=True)
    for system in systems:
        system.pipe.send(None)
    eager = next((system.logits for system in systems if system.name == "minibert-eager"), {})
    return {
        "machine": {"torch": torch.__version__, "threads": args.threads, "platform": platform.platform()},
        "batches": batches,
        "systems": {
            system.name: {
                "seconds": system.seconds,
                "distance": {b: float(np.abs(system.logits[b] - x).max()) for b, x in eager.items()},
                "drift": system.drift,
            }
            for system in systems
        },
    }


def ratios(numerator: list[float], denominator: list[float]) -> list[float]:
    """Return the ratios of two systems' times in the same rounds."""
    return [a / b for a, b in zip(numerator, denominator, strict=True)]


def summary(values: list[float]) -> str:
    """Median, least and greatest."""
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def report(results: Results) -> None:
    """Print a table for each batch: median time, times over that of `packed`, over ideal, differences in logits."""
    systems = dict(results["systems"])
    light, packed_seconds = systems.pop(SPEED_OF_LIGHT, None), systems.get("packed", {}).get("seconds")
    for batch, lengths in results["batches"].items():
        print(f"\n{batch}: {len(lengths)} x {max(lengths)}, padded / real tokens {padding_ratio(lengths):.2f}")
        if light:
            speed = [2 * 2048**3 / seconds for seconds in light["seconds"][batch]]
            print(f"{SPEED_OF_LIGHT}: {statistics.median(speed) / 1e9:.0f} GFLOP/s")
        print(
            "| system | ms | time / packed, paired (min to max) | over ideal | from eager | alone or in the batch |\n"
            "|---|---|---|---|---|---|"
        )
        for name, system in systems.items():
            times = system["seconds"][batch]
            against = summary(ratios(times, packed_seconds[batch])) if packed_seconds else ""
            over = f"{statistics.median(ratios(times, [flops(lengths) / s for s in speed])):.2f}" if light else ""
            distance = f"{system['distance'][batch]:.1e}" if system["distance"] else ""
            drift = f"{system['drift'][batch]:.1e}"
            print(f"| {name} | {statistics.median(times) * 1e3:.1f} | {against} | {over} | {distance} | {drift} |")


def save_plot(results: Results, path: Path) -> None:
    """Draw the time over that of `packed`, against the padding ratio and against the batch size."""
    from matplotlib import pyplot

    batches, systems = results["batches"], results["systems"]
    padding: dict[str, float] = {batch: padding_ratio(lengths) for batch, lengths in batches.items()}
    sizes: dict[str, float] = {batch: len(lengths) for batch, lengths in batches.items()}
    figure, panels = pyplot.subplots(1, 2, figsize=(11, 4.5), sharey=True)
    for axes, order, places in zip(panels, (BY_PADDING, BY_SIZE), (padding, sizes), strict=True):
        drawn = [batch for batch in order if batch in batches]
        axes.set_prop_cycle(color=["black", *map(pyplot.colormaps["tab20"], range(20))])
        for name, system in systems.items():
            if name != SPEED_OF_LIGHT:
                paired = [ratios(system["seconds"][b], systems["packed"]["seconds"][b]) for b in drawn]
                style = "o--" if "int8" in name else "o-"
                axes.plot([places[b] for b in drawn], list(map(statistics.median, paired)), style, ms=3, label=name)
    panels[0].set(xlabel="padded tokens / real tokens", ylabel="time / time of packed", yscale="log")
    panels[0].set_yticks([0.5, 1, 2, 4, 8], ["0.5", "1", "2", "4", "8"])
    panels[1].set(xlabel="texts in the batch, lengths like F's", xscale="log")
    ticks = [sizes[batch] for batch in BY_SIZE if batch in sizes]
    panels[1].set_xticks(ticks, list(map(str, ticks)))
    panels[1].minorticks_off()
    panels[1].legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path, bbox_inches="tight")


def save_checkpoint(folder: Path) -> None:
    """Write a classifier of distilbert-base's shape with random weights, and a vocabulary of made-up words."""
    torch.manual_seed(0)
    DistilBertForSequenceClassification(CONFIG).save_pretrained(folder)
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = special + [f"w{i}" for i in range(CONFIG.vocab_size - len(special))]
    DistilBertTokenizer({word: i for i, word in enumerate(words)}, model_max_length=512).save_pretrained(folder)


CLASSIFIERS = {
    "minibert": "from minibert.pipeline import TextClassifier; run = TextClassifier({folder!r}, truncation=True)",
    "transformers": "from transformers import pipeline; "
    "run = pipeline('text-classification', {folder!r}, batch_size=32, device='cpu')",
}


def time_start_up(folder: Path, rounds: int) -> None:
    """Time cold processes, from the start to the first result."""
    times: dict[str, list[float]] = {name: [] for name in CLASSIFIERS}
    for _ in range(rounds):
        for name, code in CLASSIFIERS.items():
            begin = time.perf_counter()
            command = [sys.executable, "-W", "ignore", "-c", code.format(folder=str(folder)) + "; list(run(['w1 w2']))"]
            subprocess.run(command, check=True, capture_output=True)
            times[name].append(time.perf_counter() - begin)
    print("\ncold process to first result: " + ", ".join(f"{n} {statistics.median(t):.2f} s" for n, t in times.items()))
    print(f"transformers / minibert: {summary(ratios(times['transformers'], times['minibert']))}")


THROUGHPUT = """
import random, time
rng = random.Random(0)
texts = [" ".join(f"w{{rng.randrange(9999)}}" for _ in range(min(62, int(rng.lognormvariate(3, .45)))))
         for _ in range({count})]
begin = time.perf_counter()
list(run(texts))
print(sum(len(text.split()) + 2 for text in texts) / (time.perf_counter() - begin))
"""


def time_throughput(folder: Path, count: int, rounds: int) -> None:
    """Time a corpus of sentences, tokenizer included, in words and special tokens a second."""
    speeds: dict[str, list[float]] = {name: [] for name in CLASSIFIERS}
    for _ in range(rounds):
        for name in random.sample(list(CLASSIFIERS), len(CLASSIFIERS)):
            script = CLASSIFIERS[name].format(folder=str(folder)) + THROUGHPUT.format(count=count)
            command = [sys.executable, "-W", "ignore", "-c", script]
            speeds[name].append(float(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    medians = (f"{name} {statistics.median(each):,.0f}" for name, each in speeds.items())
    print(f"\n{count} sentences, tokens/s: {', '.join(medians)}")
    print(f"minibert / transformers: {summary(ratios(speeds['minibert'], speeds['transformers']))}")


def print_profile(folder: Path, batch: str, threads: int) -> None:
    """Print where the time of `packed` goes in a batch, operator by operator."""
    torch.set_num_threads(threads)
    run, (ids, mask) = packed(folder), make_batch(BATCHES[batch])
    for _ in range(5):
        run(ids, mask)
    with torch.profiler.profile() as profiler:
        for _ in range(10):
            run(ids, mask)
    print(f"\n{batch}, 10 runs of packed")
    print(profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=10, max_name_column_width=40))


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--systems", nargs="*", choices=SYSTEMS, default=list(SYSTEMS), metavar="SYSTEM")
    parser.add_argument("--batches", nargs="*", choices=BATCHES, default=list(BATCHES), metavar="BATCH")
    parser.add_argument("--lengths", type=Path, help="file of numbers: one more batch, with rows of these lengths")
    parser.add_argument("--rounds", type=int, default=9, help="how often each system runs each batch")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of each system")
    parser.add_argument("--json", type=Path, help="write all measurements here")
    parser.add_argument("--show", type=Path, metavar="JSON", help="show what an earlier run wrote, and measure nothing")
    parser.add_argument("--plot", type=Path, help="write a picture here (needs matplotlib)")
    parser.add_argument(
        "--profile", nargs="*", choices=BATCHES, default=[], metavar="BATCH", help="also show where packed's time goes"
    )
    parser.add_argument("--start-up", action="store_true", help="also time cold processes")
    parser.add_argument("--throughput", type=int, nargs="?", const=2000, help="also time a corpus of sentences")
    args = parser.parse_args()
    if args.plot and not args.show and not {"packed", *BY_PADDING} <= {*args.systems, *args.batches}:
        parser.error(f"--plot needs the system packed and the batches {' '.join(BY_PADDING)}")
    return args


def main() -> None:
    """Measure and print."""
    args = parse_arguments()
    batches = {name: BATCHES[name] for name in args.batches}
    if args.lengths:
        batches[args.lengths.stem] = [int(number) for number in args.lengths.read_text().split()]
    if args.show:
        show(json.loads(args.show.read_text()), args.plot)
        return
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory)
        save_checkpoint(folder)
        if batches:
            results = run_systems(args.systems, batches, folder, args)
            if args.json:
                args.json.write_text(json.dumps(results, indent=1))
            show(results, args.plot)
        for batch in args.profile:
            print_profile(folder, batch, args.threads)
        if args.start_up:
            time_start_up(folder, args.rounds)
        if args.throughput:
            time_throughput(folder, args.throughput, min(args.rounds, 3))


def show(results: Results, plot: Path | None) -> None:
    """Print the tables and draw the picture."""
    report(results)
    if plot:
        save_plot(results, plot)


if __name__ == "__main__":
    main()

"""What padding does to a model: how much attention it draws, how far it moves the results, what it costs.

Shapes and rows are those of `rows.py`. Unless said otherwise the functions take every model, with or without a head, of
any dtype, in eval mode, and any (B, S) mask: padding at the end, at the beginning, holes. They measure in float64,
which Apple's MPS lacks: move the model to the CPU there.
"""

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config import DistilBertConfig
from ..model import DistilBertModel
from ..tokenizer import DistilBertTokenizer
from .models import DTYPES, Model, check_dtypes
from .plots import curves, heatmap
from .report import Report, dtype_name, layers_by_heads, table
from .rows import attentions, read_batch, run, run_alone, tokenize

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BASE = DistilBertConfig()  # distilbert-base


# How much attention padding draws


@dataclass
class PadMass(Report):
    """The share of their attention that real queries give to padding.

    Args:
        mask: whether the mask was on.
        share: (N, H).
        even: what the share would be if each query attended to all keys alike: the share of keys that are padding.
    """

    mask: bool
    share: Tensor
    even: float

    def parts(self) -> Iterator[str]:
        """Return the shares, and what they would be without any preference."""
        yield layers_by_heads(self.share, "mean", self.share.mean(dim=1))
        if not self.mask:
            yield f"evenly spread over all keys it would be {self.even:.2g}"

    def plot(self) -> "Figure":
        """Draw the shares by layer and head; needs matplotlib."""
        layers, heads = (range(n) for n in self.share.shape)
        title = f"Attention to padding {'with' if self.mask else 'without'} the mask"
        names = [f"layer {i}" for i in layers], [f"head {i}" for i in heads]
        return heatmap(self.share, *names, title, f"share (evenly spread: {self.even:.2g})", (0, 1))


@torch.no_grad()
def pad_mass(model: Model, batch: Mapping[str, Tensor], mask: bool = True) -> PadMass:
    """Measure the share of attention that real queries give to padding, in each layer and head.

    A query's share is the sum of its probabilities over the padded keys. The mean is over all real queries of all
    rows that have padding, each with the same weight, so that a long row counts more than a short one. Padded queries
    attend as well, but nobody reads their rows; rows without padding would only lower the mean.

    Args:
        model: in eval mode.
        batch: see `read_batch`.
        mask: whether the mask is on. With it every share is exactly 0.0, since exp(finfo.min - max) is.

    Raises:
        ValueError: see `read_batch`.
    """
    rows = read_batch(model, batch)
    shares = []
    for probs in attentions(model, rows, mask):
        mass = (probs.double() * ~rows.real[:, None, None, :]).sum(dim=-1)  # (B, H, S)
        shares.append(mass.transpose(1, 2)[rows.padded_queries].mean(dim=0))  # (H,)
    padding = (~rows.real).double().mean(dim=1, keepdim=True).expand_as(rows.real)  # share of each query's keys
    return PadMass(mask, torch.stack(shares), padding[rows.padded_queries].mean().item())


# How far padding moves the results


@dataclass
class PaddingDrift(Report):
    """How far each text's values in a padded batch are from its values alone, over its real tokens.

    Args:
        mask: whether the mask was on.
        stages: names of the hidden states, "embeddings" first, and "logits" where the model has a head.
        max: (stages, B), the greatest difference of a number.
        l2: (stages, B), the greatest L2 distance of a token's vector from itself.
        cosine: (stages, B), the least cosine of a token's vector with itself; its own rounding is about 1e-16.
    """

    mask: bool
    stages: list[str]
    max: Tensor
    l2: Tensor
    cosine: Tensor

    def parts(self) -> Iterator[str]:
        """Return the worst of all texts, stage by stage."""
        worst = (self.max.amax(dim=1), self.l2.amax(dim=1), self.cosine.amin(dim=1))
        yield table(
            ("worst of all texts", "max", "L2", "1 - cosine"),
            [
                (stage, largest, l2, 1 - cosine)
                for stage, largest, l2, cosine in zip(self.stages, *(column.tolist() for column in worst), strict=True)
            ],
        )
        yield "max: difference of one number; L2: distance of one token's vector; cosine: of one token's vectors"

    def plot(self) -> "Figure":
        """Draw the greatest difference of each text, stage by stage; needs matplotlib."""
        title = f"How far each padded text is from the same text alone, {'with' if self.mask else 'without'} the mask"
        lines = {f"text {row}": values for row, values in enumerate(self.max.T)}
        return curves(self.stages, lines, title, "after", "greatest difference")


@torch.no_grad()
def padding_drift(
    model: Model, tokenizer: DistilBertTokenizer, texts: Sequence[str], mask: bool = True
) -> PaddingDrift:
    """Run texts in one padded batch and each alone, and measure how far they drift apart, layer by layer.

    The embeddings agree exactly, 0.0: nothing has mixed positions yet. From layer 0 on the difference is rounding with
    the mask (products of other shapes sum in another order), and leakage without it. `precision_ladder` tells which.

    Args:
        model: in eval mode.
        tokenizer: its tokenizer; it pads on the right here. For the left, see `left_padding`.
        texts: not all of one length. For multiple choice each is a choice.
        mask: whether the mask is on in the padded batch.

    Raises:
        ValueError: see `read_batch`.

    Source: the question is asked again and again: transformers issues #2860, #3150, #24257, #29029.
    """
    rows = read_batch(model, tokenize(model, tokenizer, texts))
    padded = run(model, rows, mask)
    return PaddingDrift(mask, list(padded), *drift(padded, run_alone(model, rows), rows.real))


def drift(padded: Mapping[str, Tensor], alone: Sequence[Mapping[str, Tensor]], real: Tensor) -> Tensor:
    """Measure how far a padded batch is from its rows alone.

    Args:
        padded: what `run` returns for the batch.
        alone: what it returns for each row alone.
        real: (B, S) bool.

    Returns:
        (3, stages, B), see `distances`.
    """
    per_row = [
        [
            distances(value[i, real[i]] if value.ndim == 3 else value[i], alone[i][name][0])
            for name, value in padded.items()
        ]
        for i in range(len(real))
    ]
    return torch.stack([torch.stack(row) for row in per_row]).permute(2, 1, 0)


def distances(first: Tensor, second: Tensor) -> Tensor:
    """Compare two (n, D) or (D,), in float64 -> (3,): the greatest difference, L2 of the worst token, worst cosine."""
    first, second = first.double(), second.double()
    difference = first - second
    cosine = F.cosine_similarity(first, second, dim=-1)
    return torch.stack([difference.abs().max(), difference.norm(dim=-1).max(), cosine.min()])


@dataclass
class PrecisionLadder(Report):
    """How far a padded batch is from its rows alone, in one precision after the other.

    Args:
        dtypes: K names.
        eps: (K,), the spacing of each dtype's numbers at 1.
        stages: names of the hidden states, "embeddings" first, and "logits" where the model has a head.
        with_mask: (K, stages), the greatest difference over all rows and real tokens.
        without_mask: (K, stages), the same without the mask.
    """

    dtypes: list[str]
    eps: Tensor
    stages: list[str]
    with_mask: Tensor
    without_mask: Tensor

    def parts(self) -> Iterator[str]:
        """Return the greatest difference at the last stage, a row for each dtype."""
        columns = (self.eps, self.with_mask[:, -1], self.without_mask[:, -1])
        header = ("dtype", "eps", f"{self.stages[-1]}, with mask", "without mask")
        yield table(header, zip(self.dtypes, *(column.tolist() for column in columns), strict=True))
        yield "eps: the spacing of the dtype's numbers at 1; the rest: greatest difference from each text alone"
        if {"bfloat16", "float16"} & {*self.dtypes}:
            yield "A 0 in half precision is not more exact: many kernels sum in float32, and round once at the end."

    def plot(self) -> "Figure":
        """Draw the greatest difference at the last stage over eps, on logarithmic axes; needs matplotlib."""
        lines = {"without the mask": self.without_mask[:, -1], "with the mask": self.with_mask[:, -1], "eps": self.eps}
        title = f"{self.stages[-1]}: a leak is the same in every precision, rounding is not"
        return curves(self.eps.tolist(), lines, title, "eps of the dtype", "greatest difference", logarithmic=True)


@torch.no_grad()
def precision_ladder(
    model: Model, batch: Mapping[str, Tensor], dtypes: Sequence[torch.dtype] = DTYPES
) -> PrecisionLadder:
    """Run a padded batch and its rows alone in several precisions: drift that shrinks with eps is rounding.

    With the mask the drift stays within some multiple of eps. In half precision many kernels sum in float32 and round
    once at the end: there the drift is often exactly 0.0, on some machines and not on others. Without the mask the
    drift is the same in each precision: that is leakage.

    A token alone keeps the position that it has in the batch, so that padding on the left and holes add no drift of
    their own; but a classifier that has padding at position 0 reads that, see `left_padding`.

    Args:
        model: in eval mode; a copy of it is cast to each dtype.
        batch: see `read_batch`.
        dtypes: out of DTYPES.

    Raises:
        ValueError: another dtype; see also `read_batch`.
    """
    check_dtypes(dtypes)
    rows = read_batch(model, batch)
    drifts: dict[bool, list[Tensor]] = {True: [], False: []}
    for dtype in dtypes:
        cast = copy.deepcopy(model).to(dtype)
        alone = run_alone(cast, rows)
        for mask in drifts:
            drifts[mask].append(drift(run(cast, rows, mask), alone, rows.real)[0].amax(dim=1))
    eps = torch.tensor([torch.finfo(dtype).eps for dtype in dtypes], dtype=torch.float64)
    names = [dtype_name(dtype) for dtype in dtypes]
    return PrecisionLadder(names, eps, list(alone[0]), torch.stack(drifts[True]), torch.stack(drifts[False]))


# Padding on the left


@dataclass
class LeftPadding(Report):
    """How far a batch padded on the left is from its rows alone, and what repairs it.

    Args:
        remedies: names of the three runs; each adds a remedy to those before.
        hidden_states: (3,), the greatest difference of the last hidden states, over all rows and real tokens.
        logits: (3,), that of the logits; None without a head.
    """

    remedies: list[str]
    hidden_states: Tensor
    logits: Tensor | None

    def parts(self) -> Iterator[str]:
        """Return a row for each run."""
        logits = ["none"] * 3 if self.logits is None else self.logits.tolist()
        rows = zip(self.remedies, self.hidden_states.tolist(), logits, strict=True)
        yield table(("with the mask", "hidden states", "logits"), rows)
        yield "greatest difference from each text alone"


@torch.no_grad()
def left_padding(model: Model, tokenizer: DistilBertTokenizer, texts: Sequence[str]) -> LeftPadding:
    """Pad texts on the left, mask on: see what breaks, and what repairs it.

    Two things break. Positions count from the padding: `position_ids` that count from the first real token bring the
    hidden states back, to rounding. And a classifier (sequence classification, multiple choice) reads position 0,
    which now is padding: pooling at the first real token brings its logits back, to rounding. The other heads do not
    pool, and for them the last two runs are the same.

    Args:
        model: in eval mode.
        tokenizer: its tokenizer.
        texts: not all of one length. For multiple choice each is a choice.

    Raises:
        ValueError: see `read_batch`.
    """
    plain = read_batch(model, tokenize(model, tokenizer, texts, "left"))
    counted = plain._replace(position_ids=(plain.attention_mask.cumsum(dim=1) - 1).clamp(min=0))
    runs = {"left padding": run(model, plain, mask=True), "+ position_ids": run(model, counted, mask=True)}
    runs["+ pooling at the first real token"] = pool_at_first_real_token(model, runs["+ position_ids"], plain.real)
    alone = run_alone(model, counted)
    drifts = torch.stack([drift(stages, alone, plain.real)[0].amax(dim=1) for stages in runs.values()])  # (3, stages)
    logits = None if isinstance(model, DistilBertModel) else drifts[:, -1]
    return LeftPadding(list(runs), drifts[:, model.config.n_layers], logits)


def pool_at_first_real_token(model: Model, stages: Mapping[str, Tensor], real: Tensor) -> dict[str, Tensor]:
    """Return the stages with the logits that a classifier gives when it reads the first real token as position 0."""
    if isinstance(model, DistilBertModel) or stages["logits"].ndim == 3:  # no head, or one that does not pool
        return dict(stages)
    *_, last_hidden_state, _ = stages.values()
    first_token = last_hidden_state[torch.arange(len(real)), real.int().argmax(dim=1)]  # (B, D)
    return {**stages, "logits": model.head(first_token[:, None])}


# What padding costs


@dataclass
class PaddingCost(Report):
    """What a model computes for texts of these lengths, and which share is for padding.

    Args:
        strategies: names of the four ways to make batches.
        tokens: (4,) int64, computed, padding included.
        multiply_adds: (4,) int64, see `multiply_adds`.
        padding_tokens: (4,), share of the tokens that are padding.
        padding_multiply_adds: (4,), share of the multiply-adds that packing would save.
    """

    strategies: list[str]
    tokens: Tensor
    multiply_adds: Tensor
    padding_tokens: Tensor
    padding_multiply_adds: Tensor

    def parts(self) -> Iterator[str]:
        """Return a row for each way to make batches."""
        columns = (self.tokens, self.padding_tokens, self.multiply_adds.double(), self.padding_multiply_adds)
        yield table(
            ("batches", "tokens", "for padding", "multiply-adds", "for padding"),
            zip(self.strategies, *(column.tolist() for column in columns), strict=True),
        )


def padding_cost(
    lengths: Iterable[int],
    max_length: int = 512,
    batch_size: int = 32,
    config: DistilBertConfig = BASE,
) -> PaddingCost:
    """Count what padding costs: to max_length, to the longest text of each batch, the same after sorting, and packed.

    The counts are exact. They are not times: a time also depends on how well the machine is used.

    Args:
        lengths: tokens of each text, [CLS] and [SEP] included, in the order of the texts.
        max_length: what "max_length" pads to. Its default is distilbert-base's, 512 positions, whatever `config` says.
        batch_size: rows of a batch; the last may have fewer.
        config: sizes of the model; by default distilbert-base.

    Raises:
        ValueError: no lengths, or one that is not from 1 to max_length; a batch_size below 1.
    """
    lengths = list(lengths)
    if not lengths or not 1 <= min(lengths) <= max(lengths) <= max_length:
        raise ValueError(f"lengths must be some of 1 to max_length={max_length}, got {lengths[:8]}")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    computed = {
        "max_length": [max_length] * len(lengths),
        "longest": padded_lengths(lengths, batch_size),
        "sorted": padded_lengths(sorted(lengths), batch_size),
        "packed": lengths,
    }
    tokens = torch.tensor([sum(rows) for rows in computed.values()])
    work = torch.tensor([sum(multiply_adds(config, length) for length in rows) for rows in computed.values()])
    return PaddingCost(list(computed), tokens, work, 1 - tokens[-1].double() / tokens, 1 - work[-1].double() / work)


def padded_lengths(lengths: Sequence[int], batch_size: int) -> list[int]:
    """Length of each row after padding to the longest of its batch."""
    batches = [lengths[i : i + batch_size] for i in range(0, len(lengths), batch_size)]
    return [max(batch) for batch in batches for _ in batch]


def multiply_adds(config: DistilBertConfig, length: int) -> int:
    """Return N (4 S D² + 2 S² D + 2 S D F) for a row of S tokens, F being the width of the feed-forward layer.

    Four projections (q, k, v, out), scores and context (quadratic in S), two feed-forward layers. Left out: embeddings,
    biases, softmax, GELU, LayerNorm and the head.
    """
    dim = config.dim
    return config.n_layers * (4 * length * dim**2 + 2 * length**2 * dim + 2 * length * dim * config.hidden_dim)

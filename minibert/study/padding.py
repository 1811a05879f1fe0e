"""What padding does to a model: how much attention it draws, how far it moves the results, what it costs.

Shapes: B rows, S tokens with padding, D dim, H heads, N layers, L labels. A row is one padded text; each choice of
multiple choice is a row of its own, and its logit a (B, 1) of its own. Unless said otherwise the functions take every
model, with or without a head, of any dtype, in eval mode, and any (B, S) mask: padding at the end, at the beginning,
holes. They measure in float64, which Apple's MPS lacks: there, move the model to the CPU.
"""

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config import DistilBertConfig
from ..heads import DistilBertForMultipleChoice, DistilBertForQuestionAnswering, ModelWithHead
from ..mask import check_attention_mask
from ..model import DistilBertModel
from ..tokenizer import DistilBertTokenizer
from .report import Report, dtype_name, table
from .steps import check_eval

Model = DistilBertModel | ModelWithHead | DistilBertForQuestionAnswering
BASE = DistilBertConfig()  # distilbert-base
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


# What all of them share: rows, a run, a distance


class Rows(NamedTuple):
    """A padded batch as the encoder takes it."""

    input_ids: Tensor  # (B, S)
    attention_mask: Tensor  # (B, S), 1 = real token
    position_ids: Tensor  # (B, S)

    @property
    def real(self) -> Tensor:
        """(B, S) bool, True = real token."""
        return self.attention_mask.bool()

    @property
    def padded_queries(self) -> Tensor:
        """(B, S) bool, True = real token of a row that has padding."""
        return self.real & ~self.real.all(dim=1, keepdim=True)

    def inputs(self, mask: bool) -> dict[str, Tensor | None]:
        """Return the encoder's arguments, with or without the mask."""
        return self._asdict() | {"attention_mask": self.attention_mask if mask else None}

    def alone(self, row: int) -> "Rows":
        """One row without its padding: (1, n) each, every token at the position that it has in the batch."""
        return Rows(*(tensor[row, self.real[row]][None] for tensor in self))


def read_batch(model: Model, batch: Mapping[str, Tensor]) -> Rows:
    """Check a batch and flatten its choices, where it has them, into rows.

    Args:
        model: in eval mode.
        batch: what a tokenizer returns: input_ids and attention_mask, (B, S) or for multiple choice also (B, C, S);
            position_ids of the same shape if they are not 0, 1, 2, …; anything else is ignored.

    Raises:
        ValueError: a model in training mode; a batch that lacks a tensor, does not fit the model or has no padding.
    """
    check_eval(model)
    for name in ("input_ids", "attention_mask"):
        if not isinstance(batch.get(name), Tensor):
            raise ValueError(f"the batch needs a tensor {name}: tokenizer(texts, padding=True, return_tensors='pt')")
    ids = batch["input_ids"]
    if ids.ndim != 2 and not (ids.ndim == 3 and isinstance(model, DistilBertForMultipleChoice)):
        raise ValueError(f"input_ids of {type(model).__name__} cannot have shape {tuple(ids.shape)}")
    length = ids.shape[-1]
    tensors = {"position_ids": torch.arange(length, device=ids.device).expand_as(ids), **batch}
    for name in ("attention_mask", "position_ids"):
        if tensors[name].shape != ids.shape:
            raise ValueError(
                f"{name} must have the shape of input_ids, {tuple(ids.shape)}, got {tuple(tensors[name].shape)}"
            )
    rows = Rows(*(tensors[name].flatten(0, -2) for name in Rows._fields))
    check_attention_mask(rows.attention_mask, len(rows.real), length, model.config.n_heads)
    if rows.real.all():
        raise ValueError(f"nothing is padded: all rows have {length} tokens; give texts of different lengths")
    return rows


def encoder_of(model: Model) -> DistilBertModel:
    """Return the model without its head."""
    return model if isinstance(model, DistilBertModel) else model.distilbert


def run(model: Model, rows: Rows, mask: bool) -> dict[str, Tensor]:
    """Run a model with or without its mask.

    Returns:
        The hidden states, (B, S, D) each: "embeddings", "layer 0", …; then, from a model with a head, "logits".
    """
    output = encoder_of(model)(**rows.inputs(mask), output_hidden_states=True)
    names = ["embeddings", *(f"layer {i}" for i in range(model.config.n_layers))]
    stages = dict(zip(names, output.hidden_states, strict=True))
    if isinstance(model, DistilBertModel):
        return stages
    return stages | {"logits": model.head(output.last_hidden_state)}


def attentions(model: Model, rows: Rows, mask: bool) -> tuple[Tensor, ...]:
    """Return the attention probabilities of each layer, N of (B, H, S, S)."""
    return encoder_of(model)(**rows.inputs(mask), output_attentions=True).attentions


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


def check_dtypes(dtypes: Sequence[torch.dtype]) -> None:
    """Refuse a dtype that the model does not compute in."""
    if not dtypes or (wrong := [dtype for dtype in dtypes if dtype not in DTYPES]):
        raise ValueError(
            f"dtypes must be some of {', '.join(map(dtype_name, DTYPES))}, got {wrong if dtypes else 'none'}"
        )


def layers_by_heads(values: Tensor, last: str, summary: Tensor) -> str:
    """Lay out (N, H) values and a last column of (N,), with two digits, so that twelve heads fit on a line."""
    header = ["layer", *(f"head {i}" for i in range(values.shape[1])), last]
    columns = torch.cat([values, summary[:, None]], dim=1).tolist()
    return table(header, [[layer, *(f"{x:.2g}" for x in row)] for layer, row in enumerate(columns)])


# How much attention padding draws


@dataclass
class PadMass(Report):
    """The share of their attention that real queries give to padding.

    Args:
        mask: whether the mask was on.
        share: (N, H).
    """

    mask: bool
    share: Tensor

    def __str__(self) -> str:
        return layers_by_heads(self.share, "mean", self.share.mean(dim=1))


@torch.no_grad()
def pad_mass(model: Model, batch: Mapping[str, Tensor], mask: bool = True) -> PadMass:
    """Measure the share of attention that real queries give to padding, in each layer and head.

    A query's share is the sum of its probabilities over the padded keys. The mean is over all real queries of all
    rows that have padding, each counting the same, so that a long row counts more than a short one. Padded queries
    attend as well, but nobody reads what they find; rows without padding would only thin the mean out.

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
    return PadMass(mask, torch.stack(shares))


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

    def __str__(self) -> str:
        worst = (self.max.amax(dim=1), self.l2.amax(dim=1), self.cosine.amin(dim=1))
        return table(
            ("worst of all texts", "max", "L2", "1 - cosine"),
            [
                (stage, largest, l2, 1 - cosine)
                for stage, largest, l2, cosine in zip(self.stages, *(column.tolist() for column in worst), strict=True)
            ],
        )


@torch.no_grad()
def padding_drift(
    model: Model, tokenizer: DistilBertTokenizer, texts: Sequence[str], mask: bool = True
) -> PaddingDrift:
    """Run texts in one padded batch and each alone, and measure how far they drift apart, layer by layer.

    The embeddings agree exactly, 0.0, as nothing has mixed positions yet. From layer 0 on: with the mask, rounding
    (products of other shapes sum in another order); without it, leakage. `precision_ladder` tells them apart.

    Args:
        model: in eval mode.
        tokenizer: its tokenizer; it pads on the right here. For the left, see `left_padding`.
        texts: not all of one length. For multiple choice each is a choice.
        mask: whether the mask is on in the padded batch.

    Raises:
        ValueError: see `read_batch`.

    Source: the question is asked again and again: transformers issues #2860, #3150, #24257, #29029.
    """
    rows = read_batch(model, tokenize(model, tokenizer, texts, "right"))
    padded = run(model, rows, mask)
    return PaddingDrift(mask, list(padded), *drift(padded, run_alone(model, rows), rows.real))


def tokenize(
    model: Model, tokenizer: DistilBertTokenizer, texts: Sequence[str], padding_side: str
) -> Mapping[str, Tensor]:
    """Texts -> a batch on the model's device."""
    return tokenizer(texts, padding=True, padding_side=padding_side, return_tensors="pt").to(model.device)


def run_alone(model: Model, rows: Rows) -> list[dict[str, Tensor]]:
    """Run each row without its padding; a mask would be all ones, which is no mask, bit for bit."""
    return [run(model, rows.alone(i), mask=False) for i in range(len(rows.input_ids))]


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

    def __str__(self) -> str:
        columns = (self.eps, self.with_mask[:, -1], self.without_mask[:, -1])
        header = ("dtype", "eps", f"{self.stages[-1]}, with mask", "without mask")
        return table(header, zip(self.dtypes, *(column.tolist() for column in columns), strict=True))


@torch.no_grad()
def precision_ladder(
    model: Model, batch: Mapping[str, Tensor], dtypes: Sequence[torch.dtype] = DTYPES
) -> PrecisionLadder:
    """Run a padded batch and its rows alone in several precisions: drift that goes down with eps is rounding.

    With the mask it stays within some multiple of eps; where a kernel sums in float32 and rounds at the end, as is
    usual in half precision, it is often exactly 0.0. Without the mask it is the same in each: that is leakage.

    A token alone keeps the position that it has in the batch, so that padding on the left and holes bring no drift of
    their own; but a classifier that finds padding at position 0 reads that, see `left_padding`.

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
    """How far a batch padded on the left is from its rows alone, and what mends it.

    Args:
        remedies: names of the three runs; each adds a remedy to those before it.
        hidden_states: (3,), the greatest difference of the last hidden states, over all rows and real tokens.
        logits: (3,), that of the logits; None without a head.
    """

    remedies: list[str]
    hidden_states: Tensor
    logits: Tensor | None

    def __str__(self) -> str:
        logits = ["none"] * 3 if self.logits is None else self.logits.tolist()
        rows = zip(self.remedies, self.hidden_states.tolist(), logits, strict=True)
        return table(("with the mask", "hidden states", "logits"), rows)


@torch.no_grad()
def left_padding(model: Model, tokenizer: DistilBertTokenizer, texts: Sequence[str]) -> LeftPadding:
    """Pad texts on the left, mask on: see what breaks, and what mends it.

    Two things break. Positions count from the padding: `position_ids` that count from the first real token bring the
    hidden states back, to rounding. And a classifier (sequence classification, multiple choice) reads position 0,
    which now is padding: pooling at the first real token brings its logits back, to rounding. The other heads pool
    nothing, and for them the last two runs are the same.

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
    """Return the stages with the logits that a classifier finds when it reads the first real token as position 0."""
    if isinstance(model, DistilBertModel) or stages["logits"].ndim == 3:  # no head, or one that pools nothing
        return dict(stages)
    *_, last_hidden_state, _ = stages.values()
    first_token = last_hidden_state[torch.arange(len(real)), real.int().argmax(dim=1)]  # (B, D)
    return {**stages, "logits": model.head(first_token[:, None])}


# What padding costs


@dataclass
class PaddingCost(Report):
    """What a model computes for texts of these lengths, and which share of it is for padding.

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

    def __str__(self) -> str:
        columns = (self.tokens, self.padding_tokens, self.multiply_adds.double(), self.padding_multiply_adds)
        return table(
            ("batches", "tokens", "for padding", "multiply-adds", "for padding"),
            zip(self.strategies, *(column.tolist() for column in columns), strict=True),
        )


def padding_cost(
    lengths: Iterable[int],
    max_length: int = 512,
    batch_size: int = 32,
    config: DistilBertConfig = BASE,
) -> PaddingCost:
    """Count what padding costs: to max_length, to the longest of each batch, that after sorting, and without any.

    Every count is exact; none is a time, which also depends on how well the machine is used.

    Args:
        lengths: tokens of each text, [CLS] and [SEP] included, in the order in which they come.
        max_length: what "max_length" pads to.
        batch_size: rows of a batch; the last may have fewer.
        config: sizes of the model.

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

"""What the instrument says of padding and of the mask."""

import json
import math
from functools import partial

import pytest
import torch

from minibert import DistilBertConfig, DistilBertTokenizer, additive_mask
from minibert.study.leak import (
    MaskOnly,
    PadInvariance,
    Renormalisation,
    check_pad_invariance,
    leak_routes,
    mask_only,
    pad_gradient,
    partial_masks,
    renormalisation,
)
from minibert.study.masks import compare_masks, same
from minibert.study.padding import (
    LeftPadding,
    PaddingDrift,
    PadMass,
    PrecisionLadder,
    distances,
    left_padding,
    multiply_adds,
    pad_mass,
    padding_cost,
    padding_drift,
    precision_ladder,
)
from minibert.study.rows import read_batch, real_part, run
from minibert.study.steps import edit

from .models import HEADS, batch, model

TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "fine", "sad", "day", ".")
TOKENIZER = DistilBertTokenizer({token: i for i, token in enumerate(TOKENS)})
TEXTS = ("a fine day", "a", "a sad sad fine day .")  # 5, 3 and 8 tokens
CLASSIFIER = "DistilBertForSequenceClassification"
each_head = pytest.mark.parametrize("head", HEADS)
padded_masks = pytest.mark.parametrize("mask", ["ragged", "holes", "left"])


# How much attention padding draws


def test_pad_mass_is_the_mean_over_the_real_queries_of_padded_rows():
    # 1, 4 and 7 real of 7 tokens. Where all scores are 0, one query gives 6/7 to padding, four give 3/7 each.
    with edit(each := model(), {"*.attention.scores": torch.zeros(3, 4, 7, 7)}):
        report = pad_mass(each, batch(), mask=False)
    assert report.share.shape == (2, 4)
    assert torch.allclose(report.share, torch.tensor((6 / 7 + 4 * 3 / 7) / 5, dtype=torch.float64))
    assert report.even == pytest.approx((6 / 7 + 4 * 3 / 7) / 5)  # what these flat scores give


@each_head
@padded_masks
def test_with_the_mask_padding_draws_exactly_nothing(head, mask):
    each, inputs = model(head), batch(head, mask)
    assert (pad_mass(each, inputs).share == 0).all()
    assert (pad_mass(each, inputs, mask=False).share > 0.01).all()


# How far padding moves the results


def test_distances_are_those_of_the_worst_token():
    first, second = torch.tensor([[1.0, 0.0], [0.0, 3.0]]), torch.tensor([[1.0, 0.0], [4.0, 0.0]])
    assert distances(first, second).tolist() == [4, 5, 0]
    assert distances(first[1], second[1]).tolist() == [4, 5, 0]


@each_head
def test_a_text_drifts_by_rounding_with_the_mask_and_by_far_more_without(head):
    each = model(head).double()
    with_mask = padding_drift(each, TOKENIZER, TEXTS)
    without_mask = padding_drift(each, TOKENIZER, TEXTS, mask=False)
    logits = [] if head == "DistilBertModel" else ["logits"]
    assert with_mask.stages == ["embeddings", "layer 0", "layer 1", *logits]
    assert with_mask.max.shape == with_mask.l2.shape == with_mask.cosine.shape == (len(with_mask.stages), 3)
    assert (with_mask.max[0] == 0).all()  # nothing has mixed positions yet
    assert (with_mask.max < 1e-12).all()
    assert ((1 - with_mask.cosine).abs() < 1e-12).all()
    assert (without_mask.max[0] == 0).all()
    assert (without_mask.max[1:, :2] > 0.01).all()
    assert (without_mask.max[:, 2] < 1e-12).all()  # the longest text has no padding
    assert (without_mask.l2 >= without_mask.max).all()


def test_drift_is_that_of_a_text_from_itself_alone():
    each = model(CLASSIFIER).double()
    report = padding_drift(each, TOKENIZER, TEXTS, mask=False)
    padded = TOKENIZER(list(TEXTS), padding=True, return_tensors="pt").input_ids
    with torch.no_grad():
        together = each(padded, output_hidden_states=True)
        for row, text in enumerate(TEXTS):
            alone = each(TOKENIZER([text], return_tensors="pt").input_ids, output_hidden_states=True)
            for stage, states in enumerate(alone.hidden_states):
                ours = together.hidden_states[stage][row, : states.shape[1]]
                drift = torch.stack([report.max[stage, row], report.l2[stage, row], report.cosine[stage, row]])
                assert torch.allclose(drift, distances(ours, states[0]), atol=1e-9)
            difference = together.logits[row] - alone.logits[0]
            assert report.max[-1, row].item() == pytest.approx(difference.abs().max().item(), abs=1e-9)
            assert report.l2[-1, row].item() == pytest.approx(difference.norm().item(), abs=1e-9)


@pytest.mark.parametrize("mask", ["ragged", "holes"])
@each_head
def test_drift_that_shrinks_with_precision_is_rounding(head, mask):
    dtypes = [torch.float64, torch.float32, torch.float16]
    ladder = precision_ladder(model(head, initializer_range=0.1), batch(head, mask), dtypes)
    assert ladder.dtypes == ["float64", "float32", "float16"]
    assert ladder.eps.tolist() == [2**-52, 2**-23, 2**-10]
    assert (ladder.with_mask[:, 0] == 0).all()
    assert (ladder.with_mask < 100 * ladder.eps[:, None]).all()
    assert (ladder.without_mask[:, 1:] > 0.02).all()
    assert ((ladder.without_mask / ladder.without_mask[0] - 1)[:, 1:].abs() < 0.05).all()


def test_rounding_is_there_and_has_the_size_of_eps():
    # In half precision it may be exactly 0: sums are made in float32.
    each = model(dim=256, hidden_dim=512, initializer_range=0.05, max_position_embeddings=64)
    ladder = precision_ladder(each, batch(shape=(3, 40)), [torch.float64, torch.float32])
    assert (ladder.with_mask[:, 1:] > ladder.eps[:, None]).all()


def test_the_ladder_leaves_the_model_as_it_was():
    each = model()
    assert precision_ladder(each, batch()).dtypes == ["float64", "float32", "bfloat16", "float16"]
    assert each.dtype == torch.float32


def test_a_row_alone_keeps_its_positions():
    # Whatever the padding's place: left padding that is masked brings the encoder no drift but rounding.
    ladder = precision_ladder(model(), batch(mask="left"), [torch.float64])
    assert (ladder.with_mask < 1e-12).all()
    given = batch() | {"position_ids": torch.tensor([[6, 5, 4, 3, 2, 1, 0]]).expand(3, 7)}
    assert read_batch(model(), given).alone(1).position_ids.tolist() == [[6, 5, 4, 3]]


@pytest.mark.parametrize(
    ("name", "shape", "part"),
    [
        ("0.q", (2, 4, 3, 3), "queries"),
        ("0.context", (2, 4, 3, 3), "queries"),
        ("0.scores", (2, 4, 3, 3), "both"),
        ("0.masked_scores", (2, 4, 3, 3), "both"),
        ("0.probs", (2, 4, 3, 3), "both"),
        ("0.dropout", (2, 4, 3, 3), "both"),
        ("0.mask", (2, 1, 1, 3), "keys"),
        ("0.mask", (2, 1, 3, 3), "both"),
        ("dropout", (2, 3, 8), "tokens"),
        ("logits", (2, 3, 5), "tokens"),
        ("start_logits", (2, 3), "spans"),
        ("end_logits", (2, 3), "spans"),
        ("logits", (2, 3), "all"),
        ("pre_classifier", (2, 8), "all"),
        ("loss", (), "all"),
    ],
)
def test_which_numbers_of_a_value_belong_to_real_tokens(name, shape, part):
    real = torch.tensor([[True, True, False], [False, True, True]])
    parts = {
        "queries": real[:, None, :, None],
        "keys": real[:, None, None, :],
        "both": real[:, None, :, None] & real[:, None, None, :],
        "tokens": real[:, :, None],
        "spans": real,
        "all": torch.tensor(True),
    }
    found = real_part(name, torch.zeros(shape), real)
    assert torch.equal(found.expand(shape), parts[part].expand(shape))


@pytest.mark.parametrize("mask", [True, False])
@each_head
def test_a_run_gives_the_hidden_states_and_the_logits_with_the_mask_or_without(head, mask):
    each, inputs = model(head), batch(head)
    rows = read_batch(each, inputs)
    stages = run(each, rows, mask)
    with torch.no_grad():
        output = each(inputs["input_ids"], inputs["attention_mask"] if mask else None, output_hidden_states=True)
    assert list(stages)[:3] == ["embeddings", "layer 0", "layer 1"]
    assert all(map(torch.equal, stages.values(), output.hidden_states))
    if head == "DistilBertForQuestionAnswering":
        assert torch.equal(stages["logits"], torch.stack([output.start_logits, output.end_logits], dim=-1))
    elif head != "DistilBertModel":
        assert torch.equal(stages["logits"].flatten(), output.logits.flatten())
    assert len(stages) == 3 + (head != "DistilBertModel")
    assert rows.inputs(mask).keys() == {"input_ids", "attention_mask", "position_ids"}
    padded = rows.real & ~rows.real.all(dim=1, keepdim=True)
    assert torch.equal(rows.padded_queries, padded)
    assert torch.equal(rows.position_ids, torch.arange(7).expand_as(rows.input_ids))


# Padding on the left


@each_head
def test_left_padding_is_mended_by_position_ids_and_pooling(head):
    report = left_padding(model(head).double(), TOKENIZER, TEXTS)
    assert report.remedies == ["left padding", "+ position_ids", "+ pooling at the first real token"]
    assert report.hidden_states[0] > 0.1
    assert (report.hidden_states[1:] < 1e-12).all()
    if head == "DistilBertModel":
        assert report.logits is None
        return
    pools = head in (CLASSIFIER, "DistilBertForMultipleChoice")
    assert report.logits[0] > 0.1
    assert (report.logits[1] > 0.01) == pools
    assert report.logits[1] < 1e-12 or pools
    assert report.logits[2] < 1e-12


def test_left_padding_is_compared_with_each_text_alone():
    each = model(CLASSIFIER).double()
    report = left_padding(each, TOKENIZER, TEXTS)
    padded = TOKENIZER(list(TEXTS), padding=True, padding_side="left", return_tensors="pt")
    states, logits = [], []
    with torch.no_grad():
        together = each(**padded, output_hidden_states=True)
        for row, text in enumerate(TEXTS):
            alone = each(**TOKENIZER([text], return_tensors="pt"), output_hidden_states=True)
            length = alone.hidden_states[-1].shape[1]
            states.append((together.hidden_states[-1][row, -length:] - alone.hidden_states[-1][0]).abs().max())
            logits.append((together.logits[row] - alone.logits[0]).abs().max())
    assert report.hidden_states[0].item() == pytest.approx(max(states).item())
    assert report.logits[0].item() == pytest.approx(max(logits).item())


# What padding costs


def test_padding_cost_by_hand():
    # One layer with D = 2, F = 3: 4 S D² + 2 S² D + 2 S D F is 32 + 16 + 24 for S = 2 and 64 + 64 + 48 for S = 4.
    config = DistilBertConfig(n_layers=1, dim=2, n_heads=1, hidden_dim=3)
    assert [multiply_adds(config, length) for length in (2, 4, 8)] == [72, 176, 480]
    cost = padding_cost([2, 4, 2, 4], max_length=8, batch_size=2, config=config)
    assert cost.strategies == ["max_length", "longest", "sorted", "packed"]
    assert cost.tokens.tolist() == [32, 16, 12, 12]
    assert cost.padding_tokens.tolist() == [1 - 12 / 32, 0.25, 0, 0]
    assert cost.multiply_adds.tolist() == [4 * 480, 4 * 176, 2 * 72 + 2 * 176, 496]
    assert cost.padding_multiply_adds.tolist() == [1 - 496 / 1920, 1 - 496 / 704, 0, 0]
    assert str(cost).splitlines() == [
        "batches     tokens  for padding  multiply-adds  for padding",
        "max_length      32        0.625           1920       0.7417",
        "longest         16         0.25            704       0.2955",
        "sorted          12            0            496            0",
        "packed          12            0            496            0",
    ]


def test_the_last_batch_may_be_smaller():
    assert padding_cost([1, 3, 2], max_length=4, batch_size=2).tokens.tolist() == [12, 8, 7, 6]
    assert padding_cost([1, 3, 2], max_length=3, batch_size=1).tokens.tolist() == [9, 6, 6, 6]
    base = padding_cost([*range(2, 34), 1])  # distilbert-base, 512 positions, batches of 32
    assert base.tokens.tolist() == [33 * 512, 32 * 33 + 1, 32 * 32 + 33, 33 * 34 / 2]
    assert base.multiply_adds[0] == 33 * multiply_adds(DistilBertConfig(), 512)


def test_distilbert_base_takes_five_billion_multiply_adds_for_128_tokens():
    assert multiply_adds(DistilBertConfig(), 128) == 6 * (7_077_888 * 128 + 2 * 768 * 128**2) == 5_586_812_928


# Masks of several kinds, on a row of scores whose exponentials are 1, 2 and 1

SCORES, PADDED, EMPTY = torch.tensor([[1.0, 2.0, 1.0]]).log(), torch.tensor([[1, 1, 0]]), torch.tensor([[0, 0, 0]])


@pytest.mark.parametrize(
    ("kind", "probs", "outcome"),
    [
        ("finfo.min", [1 / 3, 2 / 3, 0], "right"),
        ("-inf", [1 / 3, 2 / 3, 0], "right"),
        ("-1e4", [1 / 3, 2 / 3, 0], "right"),
        ("-1e9", [1 / 3, 2 / 3, 0], "right"),
        ("sdpa", [1 / 3, 2 / 3, 0], "right"),
        ("multiply", [1 / 4, 2 / 4, 0], "sums to 0.75"),
        ("rows", [1 / 4, 2 / 4, 1 / 4], "25.0% to padding"),
    ],
)
def test_what_each_mask_makes_of_a_padded_row(kind, probs, outcome):
    report = compare_masks(SCORES, PADDED, [kind])
    expected = torch.tensor(probs, dtype=torch.float64)
    assert report.probs.shape == (1, 4, 1, 3)
    assert torch.allclose(report.probs[0, 0, 0], expected, rtol=1e-6)  # log 2 is rounded to float32
    assert torch.allclose(report.probs[0, :, 0], expected, atol=2**-9)
    assert torch.equal(report.pad_mass, report.probs[..., 2])
    assert torch.allclose(report.row_sum, expected.sum(), atol=2**-8)
    assert torch.allclose(report.deviation, (expected - torch.tensor([1 / 3, 2 / 3, 0])).abs().max(), atol=2**-8)
    assert report.outcomes[0][:2] == [[outcome], [outcome]]
    assert (report.pad_mass == 0).all() or kind == "rows"


@pytest.mark.parametrize(
    ("kind", "outcomes"),
    [
        ("finfo.min", ["uniform", "uniform", "uniform", "uniform"]),
        ("-inf", ["NaN", "NaN", "NaN", "NaN"]),
        ("-1e4", ["unmasked", "unmasked", "uniform", "uniform"]),  # half precision has no 1 beside 10,000
        ("-1e9", ["unmasked", "uniform", "uniform", "NaN"]),  # and float16 no 1e9
        ("sdpa", ["zeros", "zeros", "zeros", "zeros"]),
        ("multiply", ["zeros", "zeros", "zeros", "zeros"]),
        ("rows", ["uniform", "uniform", "uniform", "uniform"]),
    ],
)
def test_what_each_mask_makes_of_a_row_with_nothing_to_attend_to(kind, outcomes):
    report = compare_masks(SCORES, EMPTY, [kind])
    assert [row for (row,) in report.outcomes[0]] == outcomes
    sums = {"uniform": 1, "unmasked": 1, "zeros": 0, "NaN": math.nan}
    expected = torch.tensor([sums[outcome] for outcome in outcomes], dtype=torch.float64)
    assert torch.allclose(report.row_sum[0, :, 0], expected, atol=2**-8, equal_nan=True)
    assert torch.allclose(report.pad_mass, report.row_sum, equal_nan=True)
    assert report.deviation.isnan().all()


def test_each_kind_dtype_and_row_has_its_own_deviation():
    scores, mask = torch.cat([SCORES, 2 * SCORES]), torch.tensor([[1, 1, 0], [0, 1, 1]])
    report = compare_masks(scores, mask, ["-inf", "rows"], [torch.float64, torch.float32])
    assert report.deviation.shape == report.pad_mass.shape == report.row_sum.shape == (2, 2, 2)
    assert (report.deviation[0] < 1e-6).all()
    # Exponentials of 1, 2, 1 and of 1, 4, 1: unmasked the hidden key gets 1/4 and 1/6, and the others lack it.
    expected = torch.tensor([[1 / 4, 1 / 6]] * 2, dtype=torch.float64)
    assert torch.allclose(report.deviation[1], expected, atol=1e-6)
    assert torch.allclose(report.pad_mass[1], expected, atol=1e-6)
    assert (report.pad_mass[0] == 0).all()
    assert torch.allclose(report.row_sum, torch.ones(2, 2, 2).double(), atol=1e-6)


def test_float16_turns_its_own_minimum_into_infinity_beside_a_score_of_minus_16():
    scores, dtypes = torch.full((2, 3), -16.0), [torch.float16]
    report = compare_masks(scores, torch.cat([PADDED, EMPTY]), ["finfo.min"], dtypes)
    assert report.outcomes == [[["right", "NaN"]]]
    assert compare_masks(scores + 1, torch.cat([PADDED, EMPTY]), ["finfo.min"], dtypes).outcomes[0][0][1] == "uniform"


def test_a_number_that_swallows_some_scores_only_distorts_them():
    # float16 counts in steps of 8 beside 10,000.
    report = compare_masks(torch.tensor([[0.0, 5.0, 9.0]]), EMPTY, ["-1e4"], [torch.float16])
    assert report.outcomes == [[["distorted"]]]


def test_the_table_of_masks_has_a_line_for_each_row_and_kind():
    report = compare_masks(kinds=["-inf", "multiply"], dtypes=[torch.float32, torch.float16])
    assert str(report).splitlines() == [
        "row  real keys  mask      float32       float16",
        "  0     2 of 3  -inf      right         right",
        "  0     2 of 3  multiply  sums to 0.33  sums to 0.33",
        "  1     0 of 3  -inf      NaN           NaN",
        "  1     0 of 3  multiply  zeros         zeros",
        "",
        "-inf:      minus infinity, added to the scores of hidden keys",
        "multiply:  no mask before the softmax; after it the hidden keys are multiplied by 0",
        "right:     0 for hidden keys, the softmax over the others",
        "sums to:   hidden keys get 0, but the row does not sum to 1",
        "zeros:     every key gets 0",
        "NaN:       not a number, which spreads to all later values",
    ]


def test_masks_are_shown_on_a_padded_row_and_on_one_with_nothing_to_attend_to():
    report = compare_masks(kinds=["rows", "multiply"], dtypes=[torch.float32])
    assert report.scores.tolist() == [[1, 2, 3]] * 2
    assert report.attention_mask.tolist() == [[1, 1, 0], [0, 0, 0]]
    assert report.outcomes == [[["66.5% to padding", "uniform"]], [["sums to 0.33", "zeros"]]]


def test_probabilities_are_the_same_up_to_a_hundredth():
    zero, hundredth = torch.zeros(2).double(), torch.tensor([0.0, 0.01]).double()
    assert same(zero, torch.tensor([0.0, 1e-2], dtype=torch.float64))
    assert same(torch.tensor([1e-2, 0.0], dtype=torch.float64), zero)
    assert not same(zero, hundredth * 1.01)
    assert not same(hundredth * 1.01, zero)


def test_every_word_of_the_table_of_masks_is_explained():
    lines = str(compare_masks()).splitlines()
    start = lines.index("")
    explained = {line.partition(":")[0] for line in lines[start + 1 :]}
    words = {word for line in lines[1:start] for word in line.split() if word[0].isalpha() or word[0] == "-"}
    assert words - {"of", "to", "sums", "padding"} <= explained
    assert {"sums to", "to padding"} <= explained


# What the mask does, layer by layer


@each_head
@padded_masks
def test_in_layer_0_the_mask_only_renormalises(head, mask):
    error = renormalisation(model(head).double(), batch(head, mask)).error
    assert error.shape == (2, 4)
    assert (error[0] < 1e-13).all()
    assert (error[1] > 0.01).all()


@padded_masks
def test_renormalisation_gives_the_greatest_error_of_the_real_queries_of_padded_rows(mask):
    each, inputs = model().double(), batch(mask=mask)
    real, error = inputs["attention_mask"].bool(), renormalisation(each, inputs).error
    with torch.no_grad():
        masked = each(**inputs, output_attentions=True).attentions
        unmasked = each(inputs["input_ids"], output_attentions=True).attentions
    for layer in range(2):
        for head in range(4):
            differences = []
            for row in [row for row in range(3) if not real[row].all()]:
                rescaled = torch.where(real[row], unmasked[layer][row, head], 0)
                rescaled = rescaled / rescaled.sum(-1, keepdim=True)
                differences.append((masked[layer][row, head] - rescaled)[real[row]].abs().max())
            assert error[layer, head].item() == pytest.approx(max(differences).item(), abs=1e-12)


# The mask in some places only


def test_a_partial_mask_is_the_mask_in_some_heads_and_0_in_the_others():
    each, inputs = model(), batch()
    first, second = partial_masks(each, read_batch(each, inputs), [1], [2, 0]).values()
    mask = additive_mask(inputs["attention_mask"], torch.float32)[:, 0]
    assert first.shape == second.shape == (3, 4, 1, 7)
    assert (first == 0).all()
    assert torch.equal(second, torch.stack([mask, 0 * mask, mask, 0 * mask], dim=1).nan_to_num(0))


def test_without_a_head_the_effect_is_that_on_the_last_hidden_states_of_real_tokens():
    each, inputs = model(), batch()
    with torch.no_grad():
        masked, unmasked = each(**inputs).last_hidden_state, each(inputs["input_ids"]).last_hidden_state
    change = (masked - unmasked)[inputs["attention_mask"].bool()].norm().item()
    assert mask_only(each, inputs, layers=[0], heads=[0]).change == pytest.approx(change)


@each_head
def test_the_mask_everywhere_has_all_of_its_effect(head):
    report = mask_only(model(head), batch(head))
    assert report.together == 1
    assert report.change > 0.1
    assert report.by_layer.shape == (2,)
    assert report.by_head.shape == (2, 4)
    assert ((report.by_head - 1).abs() > 0.01).all()
    assert "\nlayers together: 1.00\n" in str(report)


def test_the_mask_in_one_head_is_added_to_the_scores_of_that_head():
    each, inputs = model(CLASSIFIER), batch()

    def add_mask(scores):
        scores = scores.clone()
        scores[:, 2] += additive_mask(inputs["attention_mask"], torch.float32)[:, 0]
        return scores

    with torch.no_grad():
        masked, unmasked = each(**inputs).logits, each(inputs["input_ids"]).logits
        with edit(each, {"distilbert.transformer.layer.1.attention.scores": add_mask}):
            one_head = each(inputs["input_ids"]).logits
    expected = 1 - (one_head - masked).norm() / (unmasked - masked).norm()
    report = mask_only(each, inputs, layers=[1], heads=[2])
    assert report.change == pytest.approx((unmasked - masked).norm().item())
    assert report.by_head.item() == report.by_layer.item() == report.together == pytest.approx(expected.item())


def test_the_masks_of_a_layer_work_together():
    each, inputs = model(CLASSIFIER, n_layers=1), batch()
    report = mask_only(each, inputs)
    assert report.by_layer.tolist() == [1]
    assert mask_only(each, inputs, heads=[3, 0]).by_head.tolist() == [[report.by_head[0, 3], report.by_head[0, 0]]]


# By which route padding reaches [CLS]


@each_head
@padded_masks
def test_the_leak_has_two_routes_and_without_both_it_is_exactly_gone(head, mask):
    routes = leak_routes(model(head), batch(head, mask))
    none, cls_hides, others_hide, all_hide = routes.moved.amax(dim=1).tolist()
    assert min(none, cls_hides, others_hide) > 0.01
    assert all_hide == 0


def test_in_one_layer_cls_has_no_route_but_its_own():
    none, cls_hides, others_hide, _ = leak_routes(model(CLASSIFIER, n_layers=1), batch()).moved
    assert (cls_hides == 0).all()
    assert torch.equal(others_hide, none)


@padded_masks
@pytest.mark.parametrize("head", ["DistilBertModel", CLASSIFIER])
def test_each_route_is_the_one_that_its_mask_leaves_open(head, mask):
    each, inputs = model(head), batch(head, mask)
    ids, real = inputs["input_ids"], inputs["attention_mask"].bool()
    first = [row.tolist().index(True) for row in real]
    patterns = torch.ones(4, 3, 1, 7, 7, dtype=torch.bool)  # no token, [CLS], the others, all
    for row in range(3):
        for query in range(7):
            for number in [1, 3] if query == first[row] else [2, 3]:
                patterns[number, row, 0, query] = real[row]
    with torch.no_grad():
        outputs = [each(ids, pattern) for pattern in patterns]
    results = [
        output.last_hidden_state[range(3), first] if head == "DistilBertModel" else output.logits for output in outputs
    ]
    moved = torch.stack([(result - results[3]).abs().amax(dim=1) for result in results])
    report = leak_routes(each, inputs)
    assert report.hidden_from == ["no token", "[CLS] alone", "all tokens but [CLS]", "all tokens"]
    assert torch.allclose(report.moved, moved.double(), atol=1e-5)


# Whether anything gets past the mask


def test_every_other_id_is_another():
    each, inputs = model(vocab_size=2), batch(vocab_size=2) | {"input_ids": torch.tensor([[1, 0, 1, 0, 1, 0, 1]] * 3)}
    real, flipped = inputs["attention_mask"].bool(), 1 - inputs["input_ids"]
    report = check_pad_invariance(each, inputs, mask=False)
    with torch.no_grad():
        ours, other = (each.embeddings.word_embeddings(ids) for ids in (inputs["input_ids"], flipped))
        changed = each(torch.where(real, inputs["input_ids"], flipped)).last_hidden_state
        difference = (changed - each(inputs["input_ids"]).last_hidden_state)[real].abs().max()
    assert not torch.equal(ours, other)
    assert report.differences[report.steps.index("embeddings.word_embeddings")] == 0  # of real tokens
    assert report.differences[-1].item() == pytest.approx(difference.item(), abs=1e-5)


@padded_masks
def test_the_gradient_is_that_of_a_random_projection_to_the_padded_words(mask):
    each = model().double()
    rows = read_batch(each, batch(mask=mask))
    found = pad_gradient(each, rows, False, torch.Generator().manual_seed(5))
    embeds = each.embeddings.word_embeddings(rows.input_ids).detach().requires_grad_()
    states = each(inputs_embeds=embeds).last_hidden_state[rows.real]
    projection = states * torch.randn(states.shape, generator=torch.Generator().manual_seed(5)).double()
    projection.sum().backward()
    assert found == pytest.approx(embeds.grad[~rows.real].abs().max().item())


@each_head
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("mask", ["ragged", "holes"])
def test_other_ids_under_the_mask_change_no_bit_and_get_no_gradient(head, mask, dtype):
    each, inputs = model(head).to(dtype), batch(head, mask)
    report = check_pad_invariance(each, inputs)
    assert report.bit_equal
    assert report.first_difference is None
    assert (report.differences == 0).all()
    assert report.pad_gradient == 0
    assert report.slots == (inputs["attention_mask"] == 0).sum()
    assert len(report.steps) == len(report.differences) > 40


@each_head
@padded_masks
def test_without_the_mask_the_first_step_that_differs_is_the_softmax(head, mask):
    report = check_pad_invariance(model(head), batch(head, mask), mask=False)
    assert not report.bit_equal
    prefix = "" if head == "DistilBertModel" else "distilbert."
    assert report.first_difference == f"{prefix}transformer.layer.0.attention.probs"
    assert report.differences[-1] > 0.01
    assert report.pad_gradient > 0.01


def test_a_mask_that_one_layer_lacks_is_found_there():
    each = model()
    with edit(each, {"transformer.layer.1.attention.mask": torch.zeros_like}):
        report = check_pad_invariance(each, batch())
    assert report.first_difference == "transformer.layer.1.attention.probs"
    assert report.pad_gradient > 0


def test_a_classifier_reads_the_padding_on_its_left():
    assert check_pad_invariance(model(), batch(mask="left")).bit_equal
    assert check_pad_invariance(model(CLASSIFIER), batch(mask="left")).first_difference == "pre_classifier"


def test_heads_as_wide_as_the_text_is_long_are_not_mistaken_for_scores():
    report = check_pad_invariance(model(dim=28), batch())  # E = S = 7: q and scores have one shape
    assert report.bit_equal
    report = check_pad_invariance(model(dim=28), batch(), mask=False)
    assert report.first_difference == "transformer.layer.0.attention.probs"


def test_the_seed_says_which_ids():
    each, inputs = model(), batch()
    first, again, other = (check_pad_invariance(each, inputs, mask=False, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.differences, again.differences)
    assert not torch.equal(first.differences, other.differences)
    assert first.pad_gradient == again.pad_gradient != other.pad_gradient
    assert torch.equal(
        check_pad_invariance(each, inputs, mask=False).differences,
        check_pad_invariance(each, inputs, mask=False, seed=0).differences,
    )


# All of them

each_report = pytest.mark.parametrize(
    ("make", "lines"),
    [
        (
            pad_mass,
            ["layer  head 0  head 1  head 2  head 3  mean"] + [f"    {i}" + "       0" * 4 + "     0" for i in "01"],
        ),
        (partial(pad_mass, mask=False), ["layer", "    0", "    1", "evenly spread over all keys it would be 0.51"]),
        (renormalisation, ["greatest |with mask - without", "layer", "    0", "    1", "layer 0: rounding; later"]),
        (mask_only, ["mask only in", "layer 0", "layer 1", "layers together: 1.00", "1 = the logits as with"]),
        (leak_routes, ["padding is hidden from", "no token", "[CLS] alone", "all tokens but [CLS]", "all tokens"]),
        (
            check_pad_invariance,
            [
                "other ids in 9 padded slots   with mask",
                "real positions bit-equal      yes",
                "first step that differs       none",
                "greatest difference           0",
                "greatest gradient to padding  0",
            ],
        ),
        (
            partial(check_pad_invariance, mask=False),
            [
                "other ids in 9 padded slots   without mask",
                "real positions bit-equal      no",
                "first step that differs       distilbert.transformer.layer.0.attention.probs",
                "greatest difference           ",
                "greatest gradient to padding  ",
            ],
        ),
        (
            precision_ladder,
            [
                "dtype           eps  logits, with mask",
                "float64    2.22e-16",
                "float32",
                "bfloat16",
                "float16",
                "eps",
                "A 0",
            ],
        ),
        (
            lambda each, _: padding_drift(each, TOKENIZER, TEXTS),
            ["worst of all texts", "embeddings", "layer 0", "layer 1", "logits", "max: difference of one number"],
        ),
        (
            lambda each, _: left_padding(each, TOKENIZER, TEXTS),
            [
                "with the mask",
                "left padding",
                "+ position_ids",
                "+ pooling at the first real token",
                "greatest difference",
            ],
        ),
    ],
)


@each_report
def test_a_report_prints_as_a_table_and_goes_into_json(make, lines):
    report = make(model(CLASSIFIER), batch())
    printed = str(report).splitlines()
    assert len(printed) == len(lines)
    assert all(line.startswith(start) for line, start in zip(printed, lines, strict=True)), printed
    assert json.loads(json.dumps(report.to_dict())).keys() == vars(report).keys()


NUMBERS = torch.tensor([[0.25, 0.5], [0.125, 1.0]], dtype=torch.float64)


@pytest.mark.parametrize(
    ("report", "lines"),
    [
        (
            PadMass(False, NUMBERS, 0.375),
            [
                "layer  head 0  head 1  mean",
                "    0    0.25     0.5  0.38",
                "    1    0.12       1  0.56",
                "evenly spread over all keys it would be 0.38",
            ],
        ),
        (
            PaddingDrift(True, ["embeddings", "logits"], NUMBERS, NUMBERS * 4, 1 - NUMBERS / 2),
            [
                "worst of all texts  max  L2  1 - cosine",
                "embeddings          0.5   2        0.25",
                "logits                1   4         0.5",
                "max: difference of one number; L2: distance of one token's vector; cosine: of one token's vectors",
            ],
        ),
        (
            PrecisionLadder(
                ["float64", "bfloat16"], torch.tensor([0.25, 0.5]), ["embeddings", "layer 0"], NUMBERS, 1 + NUMBERS
            ),
            [
                "dtype      eps  layer 0, with mask  without mask",
                "float64   0.25                 0.5           1.5",
                "bfloat16   0.5                   1             2",
                "eps: the spacing of the dtype's numbers at 1; the rest: greatest difference from each text alone",
                "A 0 in half precision is not more exact: many kernels sum in float32, and round once at the end.",
            ],
        ),
        (
            PrecisionLadder(["float64", "float32"], torch.tensor([0.25, 0.5]), ["layer 0"], NUMBERS[:, :1], NUMBERS),
            [
                "dtype     eps  layer 0, with mask  without mask",
                "float64  0.25                0.25           0.5",
                "float32   0.5               0.125             1",
                "eps: the spacing of the dtype's numbers at 1; the rest: greatest difference from each text alone",
            ],
        ),
        (
            LeftPadding(["left padding", "+ position_ids", "+ pooling"], torch.tensor([3.0, 2.0, 1.0]), None),
            [
                "with the mask   hidden states  logits",
                "left padding                3  none",
                "+ position_ids              2  none",
                "+ pooling                   1  none",
                "greatest difference from each text alone",
            ],
        ),
        (
            Renormalisation(NUMBERS),
            [
                "greatest |with mask - without mask / (1 - share of padding)| of the attention to real keys",
                "layer  head 0  head 1  max",
                "    0    0.25     0.5  0.5",
                "    1    0.12       1    1",
                "layer 0: rounding; later layers: without the mask their inputs already hold some of the padding",
            ],
        ),
        (
            MaskOnly([0, 3], [1, 2], 9.0, 0.75, torch.tensor([0.0, 0.5], dtype=torch.float64), NUMBERS),
            [
                "mask only in  together  head 1  head 2",
                "layer 0           0.00    0.25    0.50",
                "layer 3           0.50    0.12    1.00",
                "layers together: 0.75",
                "1 = the logits as with the full mask, 0 = as far from them as without a mask",
            ],
        ),
        (
            PadInvariance(False, 9, False, "b", ["a", "b", "c"], torch.tensor([0.0, 0.5, 0.25]), 2.0),
            [
                "other ids in 9 padded slots   without mask",
                "real positions bit-equal      no",
                "first step that differs       b",
                "greatest difference           0.5",
                "greatest gradient to padding  2",
            ],
        ),
    ],
)
def test_a_report_prints_its_numbers(report, lines):
    assert str(report).splitlines() == lines


def test_a_model_without_a_head_has_no_logits_to_print():
    assert str(left_padding(model(), TOKENIZER, TEXTS)).splitlines()[1].endswith("none")
    assert "layer 1, with mask" in str(precision_ladder(model(), batch()))


def test_nothing_is_left_on_the_model():
    each, inputs = model(), batch()
    for make in (pad_mass, precision_ladder, check_pad_invariance, renormalisation, mask_only, leak_routes):
        make(each, inputs)
    assert not any(module._forward_hooks for module in each.modules())
    assert all(parameter.grad is None for parameter in each.parameters())


IDS, MASK = torch.ones(2, 3, dtype=torch.long), torch.tensor([[1, 1, 1], [1, 1, 0]])


@pytest.mark.parametrize("make", [pad_mass, precision_ladder, check_pad_invariance, renormalisation, mask_only])
@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"input_ids": IDS}, r"needs a tensor attention_mask: tokenizer\(texts, padding=True, return_tensors='pt'\)"),
        ({"attention_mask": MASK}, "needs a tensor input_ids"),
        ({"input_ids": [[1, 2]], "attention_mask": [[1, 0]]}, "needs a tensor input_ids"),
        ({"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}, "nothing is padded: all rows have 3 tokens"),
        ({"input_ids": IDS, "attention_mask": MASK[:1]}, r"shape of input_ids, \(2, 3\), got \(1, 3\)"),
        ({"input_ids": IDS, "attention_mask": MASK, "position_ids": IDS[:1]}, r"position_ids must .*, got \(1, 3\)"),
        ({"input_ids": IDS, "attention_mask": MASK * 2}, "only 0 .* and 1 .*, got 2"),
        ({"input_ids": IDS[None], "attention_mask": MASK[None]}, r"DistilBertModel cannot have shape \(1, 2, 3\)"),
    ],
)
def test_a_batch_that_shows_nothing_is_refused(make, wrong, says):
    with pytest.raises(ValueError, match=says):
        make(model(), wrong)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: pad_mass(model().train(), batch()), "training mode, .*: call model.eval"),
        (lambda: read_batch(model(), {"input_ids": IDS, "attention_mask": MASK * 2}), "only 0 .* and 1 .*, got 2"),
        (lambda: read_batch(model(), {"input_ids": IDS, "attention_mask": MASK * 0}), "is all 0"),
        (lambda: padding_drift(model(), TOKENIZER, ["a day", "a ."]), "nothing is padded: all rows have 4 tokens"),
        (lambda: left_padding(model(), TOKENIZER, ["a day"]), "nothing is padded"),
        (lambda: precision_ladder(model(), batch(), [torch.int8]), r"float16, got \[torch.int8\]"),
        (lambda: precision_ladder(model(), batch(), []), "got none"),
        (lambda: mask_only(model(), batch(), layers=[0, 2]), "layers must be 0 to 1, got 2$"),
        (lambda: mask_only(model(), batch(), heads=[-1]), "heads must be 0 to 3, got -1$"),
        (lambda: mask_only(model(), batch(), heads=[]), "got none"),
        (lambda: compare_masks(kinds=["-1e5"]), r"kinds must be some of finfo.min, .*, got \['-1e5'\]"),
        (lambda: compare_masks(kinds=[]), "got none"),
        (lambda: compare_masks(dtypes=[torch.long]), r"dtypes must be some of float64, .*, got \[torch.int64\]"),
        (lambda: compare_masks(SCORES[0], PADDED[0]), r"one shape \(R, S\), got \(3,\) and \(3,\)"),
        (lambda: compare_masks(SCORES, PADDED[:, :2]), r"got \(1, 3\) and \(1, 2\)"),
        (lambda: compare_masks(SCORES, PADDED / 2), "only 0 and 1, got 0.5"),
        (lambda: padding_cost([]), r"lengths must be some of 1 to max_length=512, got \[\]"),
        (lambda: padding_cost([3, 0]), r"got \[3, 0\]"),
        (lambda: padding_cost([*range(10)]), r"got \[0, 1, 2, 3, 4, 5, 6, 7\]$"),
        (lambda: padding_cost([3, 9], max_length=8), "max_length=8"),
        (lambda: padding_cost([3], batch_size=0), "batch_size must be at least 1, got 0"),
    ],
)
def test_a_wrong_argument_is_named(make, says):
    with pytest.raises(ValueError, match=says):
        make()

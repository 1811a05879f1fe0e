"""The padding audit: right models pass it, whatever their library, and a planted leak is called by its name."""

import json

import pytest
import torch
import torch.nn.functional as F

from minibert.study import audit, edit
from minibert.study.audit import Batch, Check, errors, halves, is_weighted_sum

from .models import SIZES, batch, model

SIZE = {"vocab_size": 50, "max_position_embeddings": 16}
BERT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}


def last_hidden_state(model):
    return lambda ids, mask: model(input_ids=ids, attention_mask=mask).last_hidden_state


def ours(**config):
    return last_hidden_state(model(**config))


def mean(call, weights=lambda mask: mask):
    """What sentence embeddings are: the mean of the hidden states over some tokens."""

    def pooled(ids, mask):
        weight = weights(mask)[..., None].float()
        return (call(ids, mask) * weight).sum(1) / weight.sum(1)

    return pooled


def normalized(call):
    return lambda ids, mask: F.normalize(call(ids, mask), dim=1)


def first(call):
    return lambda ids, mask: call(ids, mask)[:, 0]


def greatest(call):
    return lambda ids, mask: call(ids, mask).amax(1)


def with_head(call):
    head = torch.randn(32, 2)
    return lambda ids, mask: call(ids, mask) @ head


def without_mask(call):
    return lambda ids, mask: call(ids, torch.ones_like(mask))


def inverted(**config):
    wrong = model(**config)

    def call(ids, mask):
        with edit(wrong, {"*.attention.mask": lambda x: torch.where(x == 0, torch.finfo(x.dtype).min, 0.0)}):
            return wrong(ids, mask).last_hidden_state

    return call


@pytest.fixture(params=[0.02, 0.3])
def size(request):
    """Weights fresh and large: where they are small, effects are small and almost add up."""
    return {"initializer_range": request.param}


PLANTED = {
    "mask ignored": [
        lambda size: without_mask(ours(**size)),
        lambda size: first(without_mask(ours(**size))),
        lambda size: mean(without_mask(ours(**size)), torch.ones_like),
    ],
    "mask inverted": [
        lambda size: inverted(**size),
        lambda size: with_head(first(inverted(**size))),
        lambda size: normalized(mean(inverted(**size))),
    ],
    "mean over padding": [
        lambda size: mean(ours(**size), torch.ones_like),
        lambda size: normalized(mean(ours(**size), torch.ones_like)),
        lambda size: with_head(mean(ours(**size), torch.ones_like)),
    ],
    "mask in the mean only": [
        lambda size: mean(without_mask(ours(**size))),
        lambda size: normalized(mean(without_mask(ours(**size)))),
        lambda size: with_head(mean(without_mask(ours(**size)))),
    ],
    "padding leaks": [lambda size: greatest(ours(**size))],  # a maximum that forgot the mask
}


def planted_calls():
    return [
        pytest.param(name, plant, id=f"{name} {i}")
        for name, plants in PLANTED.items()
        for i, plant in enumerate(plants)
    ]


@pytest.mark.parametrize(("name", "plant"), planted_calls())
def test_a_planted_leak_is_called_by_its_name(name, plant, size):
    torch.manual_seed(1)
    report = audit(plant(size), batch())
    assert not report.passed
    assert report.findings == [name]


@pytest.mark.parametrize("pool", [lambda call: call, first, mean, lambda call: normalized(mean(call))])
def test_the_right_model_passes(pool):
    report = audit(pool(ours()), batch())
    assert report.passed
    assert report.findings == []
    assert [check.passed for check in report.checks] == [True, True, True, None]
    other_ids, alone, neighbours, left = (check.difference for check in report.checks)
    assert other_ids == 0
    assert max(alone, neighbours) < 1e-5
    assert left > 0.1  # learned positions: reported, and no finding


@pytest.mark.reference
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("name", ["Bert", "DistilBert"])
def test_transformers_passes_and_its_planted_leaks_do_not(name, attention):
    transformers = pytest.importorskip("transformers")
    sizes = SIZE | BERT if name == "Bert" else SIZES
    config = getattr(transformers, f"{name}Config")(**sizes, attn_implementation=attention)
    theirs = getattr(transformers, f"{name}Model")(config).eval()
    right = last_hidden_state(theirs)

    def inverted(ids, mask):
        return right(ids, 1 - mask)

    for call, findings in [
        (right, []),
        (first(right), []),
        (mean(right), []),
        (normalized(mean(right)), []),
        (without_mask(right), ["mask ignored"]),
        (mean(without_mask(right)), ["mask in the mean only"]),
        (mean(right, torch.ones_like), ["mean over padding"]),
    ]:
        assert audit(call, batch()).findings == findings
    for call in (inverted, first(inverted), mean(inverted)):
        assert audit(call, batch()).findings[0] == "mask inverted"


def moved_by(number, where, dtype=torch.float64):
    """A callable that returns zeros, and a number where the padded batch is told by its mask."""
    return lambda ids, mask: torch.full((len(ids), 2), number if where(mask) else 0.0, dtype=dtype)


def as_given(mask):
    return mask.shape == (3, 7) and mask.sum() == 12


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float64, 1e-9), (torch.float32, 1e-4), (torch.float16, 1e-2), (torch.bfloat16, 1e-1), (torch.int64, 0)],
)
def test_what_is_rounding_depends_on_the_dtype(dtype, tolerance):  # TOLERANCE
    for number in (0.9 * tolerance, 1.1 * tolerance or 1):
        report = audit(moved_by(number, lambda mask: mask.shape[1] == 7, dtype), batch())
        assert report.findings == (["length matters"] if number > tolerance else [])
        assert report.checks[1].demanded == f"within {tolerance:g}"


@pytest.mark.parametrize(
    ("where", "findings"),
    [
        (lambda mask: mask.shape[1] == 7, ["length matters"]),
        (lambda mask: mask.shape[1] == 7 and mask.sum() > 12, ["neighbours matter"]),
        (as_given, ["length matters", "neighbours matter"]),
    ],
)
def test_a_difference_as_large_as_the_tolerance_is_rounding_and_a_larger_one_is_not(where, findings):
    call = moved_by(0.25, where)
    report = audit(call, batch(), tolerance=0.25)
    assert (report.findings, [check.passed for check in report.checks]) == ([], [True, True, True, None])
    report = audit(call, batch(), tolerance=0.2499)
    assert report.findings == findings
    assert [check.passed for check in report.checks] == [
        True, "length matters" not in findings, "neighbours matter" not in findings, None
    ]  # fmt: skip
    demanded = ["equal bits", "within 0.2499", "within 0.2499", "nothing"]
    assert [check.demanded for check in report.checks] == demanded


def test_padding_on_the_other_side_is_reported_whatever_comes_of_it():
    report = audit(moved_by(0.5, lambda mask: mask.shape[1] == 7 and mask[0, 0] == 0), batch())
    assert report.passed
    assert [check.difference for check in report.checks] == [0, 0, 0, 0.5]


def test_one_padded_slot_is_enough_to_find_a_leak_but_not_to_name_it():
    inputs = {"input_ids": torch.tensor([[5, 6, 7], [6, 5, 0]]), "attention_mask": torch.tensor([[1, 1, 1], [1, 1, 0]])}
    right = ours()
    assert audit(right, inputs).passed
    assert audit(mean(right, torch.ones_like), inputs).findings == ["padding leaks"]


def test_a_single_text_gets_one_neighbour():
    one = {name: value[1:2] for name, value in batch().items()}
    assert audit(moved_by(0.5, lambda mask: len(mask) == 2), one).findings == ["neighbours matter"]
    assert audit(moved_by(0.5, lambda mask: len(mask) > 2), one).passed


def test_a_mean_divided_by_all_slots_is_named_where_rounding_is_all_that_is_left():
    def call(ids, mask):  # times 7 slots, by 3 tokens, the padded result is 3.5
        return torch.full((len(ids), 1), 1.5 if mask.shape[1] == 7 else 3.0).double()

    one = {"input_ids": torch.tensor([[5, 6, 7, 0, 0, 0, 0]]), "attention_mask": torch.tensor([[1, 1, 1, 0, 0, 0, 0]])}
    assert audit(call, one, tolerance=0.5 / 3).findings == ["mean divided by all slots"]
    assert audit(call, one, tolerance=0.49 / 3).findings == ["length matters"]


@pytest.mark.parametrize(("real", "slots", "named"), [(3, 4, True), (2, 4, False), (3, 3, False), (4, 4, True)])
def test_to_name_a_leak_takes_a_text_of_three_tokens_and_four_slots(real, slots, named):
    lengths = torch.tensor([[real], [1]])
    inputs = {
        "input_ids": torch.randint(1, 50, (2, slots)),
        "attention_mask": (torch.arange(slots) < lengths).long(),
    }
    expected = "mean over padding" if named else "padding leaks"
    assert audit(mean(ours(), torch.ones_like), inputs).findings == [expected]


def test_an_error_is_absolute_for_small_numbers_and_relative_for_large_ones():
    nan, inf = float("nan"), float("inf")
    our = torch.tensor([0.5, 3.0, -6.0, 1.0, nan, nan, 1.0, inf, -inf, inf, 0.0])
    their = torch.tensor([0.25, 2.0, -4.0, 1.0, nan, 1.0, nan, inf, inf, 1.0, 0.0])
    assert errors(our, their).tolist() == [0.25, 0.5, 0.5, 0, 0, inf, inf, 0, inf, inf, 0]
    assert errors(our, their).dtype == torch.float64


def test_every_other_slot_is_in_the_first_half():
    slots = torch.tensor([[1, 1, 0, 1, 1]]).bool()
    assert [half.long().tolist() for half in halves(slots)] == [[[1, 0, 0, 1, 0]], [[0, 1, 0, 0, 1]]]


def test_other_ids_are_others_and_drawn_from_real_tokens():
    ids = torch.tensor([[5, 6, 5, 0, 0], [6, 5, 0, 0, 0]])
    drawn = Batch({"input_ids": ids, "attention_mask": ids.ne(0)}, "right", 0)
    everywhere = drawn.other_ids(ids, torch.ones_like(ids).bool())
    assert torch.equal(everywhere[ids != 0], 11 - ids[ids != 0])  # of two ids the other
    assert set(everywhere[ids == 0].tolist()) == {5, 6}
    assert torch.equal(drawn.other_ids(ids, ids == 0)[ids != 0], ids[ids != 0])


def test_the_seed_says_which_ids():
    wrong = first(without_mask(ours()))
    reports = [audit(wrong, batch_ := batch(), seed=0)] + [audit(wrong, batch_, seed=seed) for seed in (0, 1)]
    leaks = [report.checks[0].difference for report in reports]
    assert leaks[0] == leaks[1] != leaks[2]
    assert audit(wrong, batch_).checks[0].difference == leaks[0]


@pytest.mark.parametrize(
    ("whole", "is_sum"),
    [
        ([0.5, 0.5], True),
        ([0.75, 0.5], True),  # ROUNDING: 10 times eps of the largest number
        ([0.5, 0.25], True),
        ([0.755, 0.5], False),
        ([0.5, 0.245], False),
    ],
)
def test_the_weights_of_a_few_numbers_are_taken_as_given(whole, is_sum):
    parts = [torch.tensor([1.0, 0.0]), torch.tensor([0.0, -1.0])]
    assert is_weighted_sum(parts, [0.5, -0.5], torch.tensor(whole), 0.025) is is_sum


def test_a_weighted_sum_of_many_numbers_may_have_any_weights():
    parts = [torch.tensor([1.0, 0.0, 1.0]).double(), torch.tensor([0.0, 1.0, 1.0]).double()]
    eps = torch.finfo(torch.float64).eps
    assert is_weighted_sum(parts, [0.5, 0.5], 0.25 * parts[0] + 2 * parts[1], eps)
    assert not is_weighted_sum(parts, [0.5, 0.5], parts[0] + parts[1] + 1e-6 * torch.tensor([1.0, 0, 0]), eps)
    parts[1][0] = float("nan")
    assert not is_weighted_sum(parts, [0.5, 0.5], parts[0], eps)


def test_a_mean_divided_by_all_slots_is_named():
    right = ours()
    report = audit(lambda ids, mask: (right(ids, mask) * mask[..., None]).mean(1), batch())
    assert report.findings == ["mean divided by all slots"]
    assert [check.passed for check in report.checks] == [True, False, True, None]


def test_what_depends_on_the_number_of_slots_is_found():
    right = first(ours())
    assert audit(lambda ids, mask: right(ids, mask) + mask.shape[1], batch()).findings == ["length matters"]


def test_what_depends_on_the_other_rows_is_found():
    right, norm = first(ours()), torch.nn.BatchNorm1d(32)  # in training mode
    report = audit(lambda ids, mask: norm(right(ids, mask)) if len(ids) > 1 else right(ids, mask), batch())
    assert report.findings == ["length matters", "neighbours matter"]
    shared = ours()
    report = audit(lambda ids, mask: shared(ids, mask[:1].expand_as(mask)), batch())  # one row's mask for all
    assert "neighbours matter" in report.findings


def test_an_inverted_mask_of_minus_infinity_gives_nan_and_is_named():
    wrong = model()

    def call(ids, mask):
        with edit(wrong, {"*.attention.mask": lambda x: torch.where(x == 0, -torch.inf, 0.0)}):
            return wrong(ids, mask).last_hidden_state

    assert audit(call, batch()).findings == ["mask inverted", "NaN"]


def test_maps_and_spans_are_read_at_real_tokens_only():
    encoder, answers = model(), model("DistilBertForQuestionAnswering")

    def maps(ids, mask):  # (B, H, S, S)
        return encoder(ids, mask, output_attentions=True).attentions[1]

    assert audit(maps, batch()).passed
    assert audit(without_mask(maps), batch()).findings == ["mask ignored"]
    assert audit(lambda ids, mask: answers(ids, mask).start_logits, batch()).passed  # (B, S)


@pytest.mark.parametrize("mask", ["ragged", "left", "holes"])
def test_padding_may_lie_anywhere_in_the_inputs(mask):
    assert audit(ours(), batch(mask=mask)).passed


def test_a_callable_that_is_used_with_padding_on_the_left_is_audited_so():
    right = ours()

    def last_token(ids, mask):  # as decoders are pooled
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        hidden = encoder(ids, mask, position_ids=positions).last_hidden_state
        return hidden[:, -1]

    encoder = model()
    assert not audit(last_token, batch()).passed
    report = audit(last_token, batch(), padding_side="left")
    assert report.passed
    assert report.checks[-1].name == "padding on the right"
    assert audit(right, batch(), padding_side="left").findings == ["length matters"]  # learned positions


def test_numpy_bools_and_classes_are_taken():
    right = ours()
    inputs = batch()
    assert audit(lambda ids, mask: right(ids, mask).numpy(), inputs).passed
    assert audit(right, inputs | {"attention_mask": inputs["attention_mask"].bool()}).passed
    assert audit(lambda ids, mask: right(ids, mask)[:, 0].argmax(-1), inputs).passed
    report = audit(lambda ids, mask: mean(right, torch.ones_like)(ids, mask).argsort(), inputs)
    assert report.findings[0] == "padding leaks"


def test_half_precision_is_audited_and_only_what_is_sure_is_named():
    right, wrong = ours(), inverted()
    assert audit(lambda ids, mask: right(ids, mask).bfloat16(), batch()).passed
    assert audit(lambda ids, mask: without_mask(right)(ids, mask).bfloat16(), batch()).findings == ["mask ignored"]
    assert audit(lambda ids, mask: wrong(ids, mask).bfloat16(), batch()).findings == ["padding leaks"]


def test_a_result_that_becomes_nan_beside_padding_is_found():
    right = first(ours())
    report = audit(lambda ids, mask: right(ids, mask).masked_fill((mask == 0).any(1, True), torch.nan), batch())
    assert report.findings == ["length matters"]
    assert report.checks[1].difference == float("inf")


def test_the_inputs_stay_as_they_are():
    inputs = batch()
    before = {name: value.clone() for name, value in inputs.items()}

    def call(ids, mask):
        ids.zero_()
        mask.fill_(1)
        return ids.float()

    audit(call, inputs)
    assert all(torch.equal(inputs[name], value) for name, value in before.items())


def test_the_report_prints_and_goes_into_json():
    right = ours()
    report = audit(mean(right, torch.ones_like), batch())
    lines = str(report).splitlines()
    assert lines[0].split() == ["changed", "demanded", "difference", "result"]
    assert lines[1].startswith("other ids in 9 padded slots")
    assert lines[-1].startswith("mean over padding: outputs at padded slots are averaged too")
    assert str(audit(right, batch())).endswith("No padding gets into the result.")
    assert json.loads(json.dumps(report.to_dict()))["passed"] is False
    words = [line.split()[-1] for line in lines[1:5]]
    assert words[:3] == ["FAILED", "FAILED", "passed"]
    assert words[3] == f"{report.checks[3].difference:.4g}"  # no result where nothing is demanded
    assert str(Check("a", "equal bits", 0.125, True)) == "a: equal bits, difference 1.2e-01"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attention_mask": None}, "inputs need a tensor attention_mask"),
        ({"attention_mask": torch.ones(3, 6)}, r"must be \(B, S\), got \(3, 7\), \(3, 6\)"),
        ({"attention_mask": torch.full((3, 7), 0.5)}, "must hold only 0 .* got 0.5"),
        ({"attention_mask": torch.zeros(3, 7)}, "row .0. is all 0"),
        ({"attention_mask": torch.ones(3, 7)}, "nothing is padded: all rows have 7 tokens"),
        ({"input_ids": torch.ones(3), "attention_mask": torch.ones(3)}, r"must be \(B, S\), got \(3,\), \(3,\)"),
        ({"input_ids": torch.full((3, 7), 5)}, "every real token has the id 5"),
    ],
)
def test_inputs_that_show_nothing_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        audit(ours(), batch() | change)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda ids, mask: model()(ids, mask), "must return a tensor, got EncoderOutput: choose one of its values"),
        (lambda ids, mask: ids.sum(), r"a row for each of 1 texts, got \(\)"),
        (lambda ids, mask: torch.ones(5, 2), r"a row for each of 1 texts, got \(5, 2\)"),
        (lambda ids, mask: torch.ones(len(ids), 0), r"a row for each of 1 texts, got \(1, 0\)"),
        (lambda ids, mask: torch.rand(len(ids), 4), "another result for the same input: switch dropout off"),
    ],
)
def test_a_callable_that_cannot_be_audited_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        audit(call, batch())


def test_another_side_is_refused():
    with pytest.raises(ValueError, match="padding_side must be 'right' or 'left', got 'both'"):
        audit(ours(), batch(), padding_side="both")

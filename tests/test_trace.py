"""The trace shows every value with its formula, and one query in full."""

import json
import re

import pytest
import torch

from minibert.study import capture
from minibert.study.report import Report, layers_by_heads, plain, table
from minibert.study.trace import Trace, trace

from .models import HEADS, batch, model

TOKENS = [[f"t{i}" for i in range(7)]] * 3
ROWS_ARE_TEXTS = [head for head in HEADS if head != "DistilBertForMultipleChoice"]


@pytest.mark.parametrize("head", ROWS_ARE_TEXTS)
def test_every_value_has_a_formula_and_its_range(head):
    each, inputs = model(head), batch(head)
    with capture(each) as captured, torch.no_grad():
        each(**inputs)
    steps = trace(each, inputs, TOKENS).steps
    assert all(formula for _, formula, *_ in steps)
    names = [name for name, *_ in steps]
    assert [name for name in captured if name in names] == names
    assert not {name.rpartition(".")[2] for name in names} & {"dropout", "attention", "ffn", "0", "1"}
    for name, _, shape, dtype, low, high in steps:
        value = captured[name]
        assert (shape, dtype, low, high) == (tuple(value.shape), "float32", value.min().item(), value.max().item())


def test_one_query_is_shown_in_full():
    each, inputs = model(), batch()
    result = trace(each, inputs, TOKENS, layer=1, head=2, row=1, query=3)
    with capture(each, "*.1.attention.*") as steps, torch.no_grad():
        each(**inputs)
    for name in ("scores", "masked_scores", "probs"):
        assert torch.equal(result.keys[name], steps[f"transformer.layer.1.attention.{name}"][1, 2, 3])
    assert torch.equal(result.keys["mask"], steps["transformer.layer.1.attention.mask"][1, 0, 0])
    lines = str(result).splitlines()
    assert "Layer 1, head 2, row 1, query 3 (t3): what it computes for each key" in lines
    assert lines[-8].split() == "key score + mask = masked score probability".split()
    assert lines[-1].split()[-1] == "0"  # a padded key
    assert json.dumps(result.to_dict())


@pytest.mark.parametrize("layer", [0, 1])
def test_it_looks_at_the_most_padded_row_and_at_the_head_that_padding_draws_most(layer):
    each, inputs = model(), batch()  # 1, 4 and 7 real tokens of 7
    result = trace(each, inputs, TOKENS, layer=layer, query=2)
    with capture(each, f"*.{layer}.attention.scores") as steps, torch.no_grad():
        each(**inputs)
    (scores,) = steps.values()
    assert result.row == 0
    assert result.head == scores[0, :, 2].softmax(-1)[:, 1:].sum(-1).argmax()
    assert result.head_is_chosen
    # Above layer 0 the scores are those of the run with the mask: what a run without a mask gives [PAD] is not known.
    assert ("of all heads it gives [PAD] the most without a mask" in str(result)) == (layer == 0)
    assert ("with the scores below and no mask added to them" in str(result)) == (layer > 0)
    assert ("layer 0: its scores are the same" in str(result)) == (layer == 0)
    assert not trace(each, inputs, TOKENS, head=result.head).head_is_chosen


def test_a_pattern_of_queries_and_keys_may_be_traced():
    each, inputs = model(), batch()
    pattern = torch.ones(3, 1, 7, 7, dtype=torch.bool).tril()
    result = trace(each, inputs | {"attention_mask": pattern}, TOKENS, row=1, query=3)
    assert (result.keys["probs"][4:] == 0).all()
    assert result.keys["mask"].tolist() == [0.0] * 4 + [torch.finfo(torch.float32).min] * 3
    assert (result.head, result.head_is_chosen) == (0, False)  # such a mask says of no token that it is padding


@pytest.mark.parametrize(
    ("layer", "chosen", "why"),
    [
        (0, False, []),
        (
            0,
            True,
            [
                "(layer 0: its scores are the same with and without the mask;",
                " head 2: of all heads it gives [PAD] the most without a mask)",
            ],
        ),
        (
            1,
            True,
            ["(head 2: of all heads it would give [PAD] the most, with the scores below and no mask added to them)"],
        ),
    ],
)
def test_a_trace_prints_its_steps_and_one_query(layer, chosen, why):
    keys = {
        "scores": torch.tensor([1.0, -2.5]),
        "mask": torch.tensor([0.0, -1e4]),
        "masked_scores": torch.tensor([1.0, -10002.5]),
        "probs": torch.tensor([1.0, 0.0]),
    }
    steps = [("a.b", "x + y", (2, 3), "float32", -0.5, 1.25), ("c", "", (2,), "int64", 0.0, 12345.678)]
    assert str(Trace(steps, layer, 2, 1, 1, ["x", "\x1b"], keys, chosen)).splitlines() == [
        "step  formula  shape   dtype     min        max",
        "a.b   x + y    (2, 3)  float32  -0.5       1.25",
        "c              (2,)    int64       0  1.235e+04",
        "",
        f"Layer {layer}, head 2, row 1, query 1 (\\x1b): what it computes for each key",
        *why,
        "key    score    + mask  = masked score  probability",
        "x      1.000       + 0             = 1       1.0000",
        "\\x1b  -2.500  + -1e+04        = -1e+04            0",
    ]


def test_without_a_mask_there_is_no_column_for_it():
    result = trace(model(activation="relu"), batch(mask="none"), TOKENS)
    assert (result.layer, result.row, result.query) == (0, 0, 0)
    assert (result.head, result.head_is_chosen) == (0, False)
    assert "mask" not in result.keys
    assert "+ mask" not in str(result).rpartition("Layer 0")[2]
    assert "max(x, 0)" in str(result)


def test_a_model_of_one_head_is_traced():
    assert trace(model(n_heads=1), batch(), TOKENS).head == 0


@pytest.mark.parametrize(("place", "size"), [("layer", 2), ("head", 4), ("row", 3), ("query", 7)])
def test_a_place_that_there_is_not_is_refused(place, size):
    for index in (-1, size):
        with pytest.raises(ValueError, match=f"{place} must be 0 to {size - 1}, got {index}"):
            trace(model(), batch(), TOKENS, **{place: index})


def test_a_table_aligns_numbers_to_the_right_and_text_to_the_left():
    rows = [("a", 1, "+ 0", 0.5), ("long", 10, "+ 1", 12345.678)]
    assert table(("key", "n", "m", "x"), rows).splitlines() == [
        "key    n    m          x",
        "a      1  + 0        0.5",
        "long  10  + 1  1.235e+04",
    ]


def test_a_table_shows_itself_in_a_notebook():
    laid_out = table(("key", "n"), [("<b>", 1)])
    cells = re.findall(r'<(t[hd]) style="text-align: (\w+)[^>]*>([^<]*)<', laid_out._repr_html_())
    assert cells == [("th", "left", "key"), ("th", "right", "n"), ("td", "left", "&lt;b&gt;"), ("td", "right", "1")]
    shown = trace(model(), batch(), TOKENS)._repr_html_()
    assert shown.count("<table>") == 2
    assert "<pre" in shown


def test_a_report_goes_into_json():
    value = {"a": torch.tensor([1.0, float("nan")]), 2: [float("inf"), (torch.tensor(1),)], "c": "x"}
    assert plain(value) == {"a": [1.0, None], "2": [None, [1]], "c": "x"}


def test_a_report_says_itself_what_it_prints():
    with pytest.raises(NotImplementedError):
        str(Report())


def test_values_by_layer_and_head_have_two_digits():
    values = torch.tensor([[0.125, 12.0], [0.0, 1e-6]])
    assert layers_by_heads(values, "max", values.amax(dim=1)).splitlines() == [
        "layer  head 0  head 1    max",
        "    0    0.12      12     12",
        "    1       0   1e-06  1e-06",
    ]


def test_a_report_shows_its_lines_in_a_notebook_one_below_the_other():
    class Lines(Report):
        def parts(self):
            return [table(("a",), [("x",)]), "", "<b>"]

    assert Lines()._repr_html_() == (
        '<table><tr><th style="text-align: left; padding: 0 0.5em">a</th></tr>'
        '<tr><td style="text-align: left; padding: 0 0.5em">x</td></tr></table>'
        '<pre style="margin: 0"><br></pre><pre style="margin: 0">&lt;b&gt;</pre>'
    )

"""Reports draw themselves, and a notebook shows the drawings without a magic line."""

import dataclasses
import re
import sys

import pytest
import torch

from minibert import DistilBertTokenizer
from minibert.study import (
    gradient_times_input,
    integrated_gradients,
    pad_mass,
    padding_drift,
    patch,
    precision_ladder,
)
from minibert.study.interventions import Patching
from minibert.study.padding import PaddingDrift, PadMass
from minibert.study.plots import curves, heatmap

from .models import batch, model

CLASSIFIER = "DistilBertForSequenceClassification"
TOKENIZER = DistilBertTokenizer(
    {t: i for i, t in enumerate(("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "day"))}
)
TOKENS = [["$", "<b>", "c", "d", "e", "f", "g"]] * 3


def patched(each, inputs, points="position", tokens=None):
    corrupt = inputs | {"input_ids": inputs["input_ids"] % 48 + 1}
    return patch(each, inputs, corrupt, points, lambda output: output.logits[2, 0], tokens=tokens)


@pytest.fixture
def figures(seed):
    pytest.importorskip("matplotlib")
    each, inputs = model(CLASSIFIER), batch()
    reports = {
        "pad mass": pad_mass(each, inputs, mask=False),
        "drift": padding_drift(each, TOKENIZER, ["a day", "a"], mask=False),
        "ladder": precision_ladder(each, inputs),
        "positions": patched(each, inputs, tokens=TOKENS[0]),
        "heads": patched(each, inputs, "head"),
    }
    return reports, {name: report.plot() for name, report in reports.items()}


def test_a_plot_is_shown_by_a_notebook_as_an_image(figures):
    for figure in figures[1].values():
        png = figure._repr_png_()
        assert png.startswith(b"\x89PNG")
        width, height = (int.from_bytes(png[start : start + 4], "big") for start in (16, 20))
        assert [width, height] == pytest.approx(110 * figure.get_size_inches(), abs=1)  # 110 dots an inch


def test_a_heatmap_shows_each_number_under_its_names(figures):
    reports, drawn = figures
    axes = drawn["pad mass"].axes[0]
    assert torch.equal(torch.tensor(axes.images[0].get_array()), reports["pad mass"].share)
    assert [tick.get_text() for tick in axes.get_xticklabels()] == [f"head {i}" for i in range(4)]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["layer 0", "layer 1"]
    assert [text.get_text() for text in axes.texts] == [
        f"{x:.2f}" for x in reports["pad mass"].share.flatten().tolist()
    ]
    axes = drawn["positions"].axes[0]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == TOKENS[0]
    assert torch.allclose(torch.tensor(axes.images[0].get_array()), reports["positions"].restored.double())
    norm = axes.images[0].norm
    assert norm.vmin == -norm.vmax == -reports["positions"].restored.abs().max().clamp(min=1)  # 0 is white
    assert axes.images[0].cmap.name == "RdBu_r"
    axes = drawn["pad mass"].axes[0]
    assert (axes.images[0].norm.vmin, axes.images[0].norm.vmax) == (0, 1)
    assert axes.get_aspect() == "auto"


def test_the_numbers_of_a_heatmap_stand_out_from_their_cells(figures):
    for name in ("pad mass", "positions"):
        axes = figures[1][name].axes[0]
        image = axes.images[0]
        colours = image.cmap(image.norm(image.get_array())).reshape(-1, 4)[:, :3]
        for text, colour in zip(axes.texts, colours, strict=True):
            luminance = colour @ (0.2126, 0.7152, 0.0722)
            assert (text.get_color() == "white") == (luminance < 0.5) or 0.3 < luminance < 0.7
            assert text.get_horizontalalignment() == text.get_verticalalignment() == "center"


def test_a_heatmap_is_large_enough_for_its_numbers_and_dark_where_they_are_white():
    pytest.importorskip("matplotlib")
    values = torch.tensor(
        [[1.18, -1.18, 1.2], [1.22, -1.22, 0.0]], dtype=torch.float64
    )  # the darkest colour is that of 2
    figure = heatmap(values, ["a", "b"], ["column", "c", "d"], "$a$", "bar", (-2.0, 2.0))  # 2 has the darkest colour
    assert [text.get_color() for text in figure.axes[0].texts] == ["black"] * 3 + ["white"] * 2 + ["black"]
    assert [text.get_position() for text in figure.axes[0].texts] == [(x, y) for y in range(2) for x in range(3)]
    assert {tick.get_rotation() for tick in figure.axes[0].get_xticklabels()} == {0}  # six letters
    axes = figure.axes[0]
    assert not any(text.get_parse_math() for text in (axes.title, *axes.get_xticklabels(), *axes.get_yticklabels()))
    assert figure.get_size_inches().tolist() == pytest.approx([4.5, 1.6 + 0.35 * 2])  # inches
    wide = heatmap(torch.zeros(12, 12), ["r"] * 12, ["c"] * 12, "title", "bar", (0.0, 1.0))
    assert wide.get_size_inches().tolist() == pytest.approx([2.2 + 0.6 * 12, 1.6 + 0.35 * 12])
    assert wide.axes[0].images[0].cmap.name == "Blues"


def test_names_that_are_long_are_turned(figures):
    assert {tick.get_rotation() for tick in figures[1]["pad mass"].axes[0].get_xticklabels()} == {0}
    figure = heatmap(torch.zeros(1, 2), ["a"], ["columns", "b"], "title", "bar", (0.0, 1.0))
    assert {tick.get_rotation() for tick in figure.axes[0].get_xticklabels()} == {90}
    assert (figure.axes[0].get_title(), figure.axes[1].get_ylabel()) == ("title", "bar")


def test_curves_go_through_the_numbers_of_the_report(figures):
    reports, drawn = figures
    first, second = drawn["drift"].axes[0].lines
    assert torch.equal(torch.tensor(first.get_ydata()), reports["drift"].max[:, 0])
    assert first.get_label() == "text 0"
    axes = drawn["drift"].axes[0]
    assert (axes.get_xscale(), axes.get_yscale(), first.get_marker()) == ("linear", "linear", "o")
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("after", "greatest difference")
    assert axes.get_title() == "How far each padded text is from the same text alone, without the mask"
    assert axes.get_xticklabels()[0].get_text() == "embeddings"
    assert not any(text.get_parse_math() for text in axes.get_legend().get_texts())
    assert drawn["drift"].get_size_inches().tolist() == [6, 3.6]
    assert torch.equal(torch.tensor(second.get_ydata()), reports["drift"].max[:, 1])
    axes = drawn["ladder"].axes[0]
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    assert all(torch.equal(torch.tensor(line.get_xdata()), reports["ladder"].eps) for line in axes.lines)
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("eps of the dtype", "greatest difference")
    lines = {line.get_label(): torch.tensor(line.get_ydata()) for line in axes.lines}
    assert torch.equal(lines["eps"], reports["ladder"].eps)
    assert torch.equal(lines["without the mask"], reports["ladder"].without_mask[:, -1])
    with_mask = reports["ladder"].with_mask[:, -1]
    assert torch.equal(lines["with the mask"].nan_to_num(0), with_mask)  # an exact 0 has no place on such an axis


def test_a_plot_says_whether_the_mask_was_on():
    pytest.importorskip("matplotlib")
    share = PadMass(True, torch.tensor([[0.25, 0.5]]), 0.125)
    for report, how in ((share, "with"), (dataclasses.replace(share, mask=False), "without")):
        axes, bar = report.plot().axes
        assert axes.get_title() == f"Attention to padding {how} the mask"
        assert bar.get_ylabel() == "share (evenly spread: 0.12)"
    drift = PaddingDrift(True, ["a", "b"], torch.zeros(2, 1), torch.zeros(2, 1), torch.ones(2, 1))
    assert drift.plot().axes[0].get_title().endswith("alone, with the mask")


@pytest.mark.parametrize(("restored", "largest"), [(0.5, 1), (-0.5, 1), (1.5, 1.5), (-1.5, 1.5)])
def test_what_is_restored_has_colours_from_minus_1_to_1_or_further(restored, largest):
    pytest.importorskip("matplotlib")
    axes = Patching(("layer", "head"), ["a"], 1.0, 0.0, torch.tensor([[restored]])).plot().axes[0]
    assert (axes.images[0].norm.vmin, axes.images[0].norm.vmax) == (-largest, largest)
    assert [label.get_text() for label in axes.get_yticklabels()] == ["layer 0"]


def test_a_0_has_a_place_on_plain_axes_only():
    pytest.importorskip("matplotlib")
    values = {"a": torch.tensor([0.0, 1.0, 2.0])}
    plain, logarithmic = (curves([1, 2, 3], values, "", "", "", log).axes[0].lines[0] for log in (False, True))
    assert plain.get_ydata().tolist() == [0, 1, 2]
    assert str(logarithmic.get_ydata().tolist()) == "[nan, 1.0, 2.0]"


def test_tokens_that_do_not_fit_are_refused():
    each, inputs = model(CLASSIFIER), batch()
    with pytest.raises(ValueError, match="names positions, 7 of them here; got 2"):
        patched(each, inputs, tokens=["a", "b"])
    with pytest.raises(ValueError, match="points='head'"):
        patched(each, inputs, "head", tokens=["a"] * 4)


@pytest.mark.parametrize("attribute", [gradient_times_input, integrated_gradients])
def test_an_attribution_is_coloured_text_in_a_notebook(attribute):
    each, inputs = model(CLASSIFIER), batch()
    report = attribute(each, inputs, tokens=TOKENS)
    shown = report._repr_html_()
    assert re.findall(r">([^<]+)</span>", shown) == ["$", "&lt;b&gt;", "c", "d", "e", "f", "g"] * 3
    colours = re.findall(r"rgba\((\d+), \d+, \d+, ([\d.]+)\)", shown)
    scores = report.scores.flatten()
    for (red, strength), score in zip(colours, scores.tolist(), strict=True):
        assert (red == "50") == (score > 0)
        assert float(strength) == pytest.approx(0.7 * abs(score) / scores.abs().max().item(), abs=0.006)
    assert str(report).splitlines()[1].split()[:2] == ["0", "$"]
    assert re.findall(r"<div>class (\d):", shown) == [str(target) for target in report.target.tolist()]
    assert [float(x) for x in re.findall(r'title="([^"]*)"', shown)] == pytest.approx(scores.tolist(), rel=1e-2)
    plain = attribute(each, inputs)  # without tokens: numbers
    assert "<table>" in plain._repr_html_()
    assert [line.split()[:2] for line in str(plain).splitlines()[1:]] == [[f"{i // 7}", f"{i % 7}"] for i in range(21)]
    nothing = dataclasses.replace(report, scores=torch.zeros(3, 7))
    assert set(re.findall(r"rgba\(([^)]*)\)", nothing._repr_html_())) == {"230, 60, 50, 0.00"}


def test_without_matplotlib_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"a plot needs matplotlib: pip install matplotlib \(the extra plot\)"):
        pad_mass(model(), batch()).plot()

"""Padding without a mask changes the label of short texts; the demo shows it, and the walk ends with it."""

import copy
import dataclasses

import pytest
import torch

import minibert
from minibert.study import label_flips, walk
from minibert.study.flips import LONG_TEXT, SHORT_TEXTS, Flips

from .command_line import load


@pytest.fixture(scope="module")
def demo():
    model = minibert.DistilBertForSequenceClassification.from_pretrained(minibert.DEMO)
    return model, minibert.DistilBertTokenizer.from_pretrained(minibert.DEMO)


def test_a_good_film_is_bad_beside_a_long_text(demo):
    assert len(LONG_TEXT.split()) == 24
    flips = label_flips(*demo)
    row = flips.texts.index("a good film")
    assert flips.flipped[0] == row
    assert (flips.alone[row, 1] - flips.alone[row, 0]).item() == pytest.approx(4.84, abs=0.01)
    assert (flips.without_mask[row, 1] - flips.without_mask[row, 0]).item() < -0.5
    assert torch.allclose(flips.with_mask, flips.alone, atol=1e-5)
    assert len(flips.flipped) == 5
    lines = str(flips).splitlines()
    assert lines[1].split() == "a good film POSITIVE 2.57 NEGATIVE 0.41 POSITIVE 2.57".split()
    assert lines[-1] == "padded to 31 tokens; 5 of 10 labels change without the mask"


def test_the_demos_walk_ends_with_a_label_that_changes(demo):
    lines = str(walk(*demo)).splitlines()
    assert "Can the answer itself change? 'a good film' beside a text of 24 words" in lines
    assert [line.split()[-1] for line in lines[-4:-1]] == ["POSITIVE", "NEGATIVE", "POSITIVE"]
    assert lines[-1] == "   Without the mask 5 of 10 short texts change their label; the mask restores it."


def test_where_no_label_changes_the_walk_says_so(checkpoint):
    model, tokenizer = load(checkpoint)
    with torch.no_grad():
        model.classifier.bias += torch.tensor([100.0, 0.0])
    flips = label_flips(model, tokenizer)
    assert flips.flipped == []
    assert flips.length == 16  # the long text is cut at the model's number of positions
    most = (flips.without_mask - flips.alone).abs().amax(dim=1).argmax()
    printed = str(walk(model, tokenizer))
    assert f"Can the answer itself change? {SHORT_TEXTS[most]!r} beside" in printed
    assert printed.endswith("Without the mask none of 10 short texts changes its label; this one moves the most.")


def test_a_label_has_flipped_if_only_the_run_without_the_mask_gives_another():
    first, second = [1.0, 0.0], [0.0, 1.0]
    alone, without_mask, with_mask = (
        torch.tensor(runs)
        for runs in ([first, first, first, second], [second, first, second, first], [second, first, first, second])
    )
    flips = Flips(list("abcd"), "long", 9, ["NO", "YES"], alone, without_mask, with_mask)
    assert flips.flipped == [2, 3]
    assert str(flips).splitlines() == [
        "text  alone     padded, no mask  padded, mask",
        "a     NO 1.00   YES 1.00         YES 1.00",
        "b     NO 1.00   NO 1.00          NO 1.00",
        "c     NO 1.00   YES 1.00         NO 1.00",
        "d     YES 1.00  NO 1.00          YES 1.00",
        "padded to 9 tokens; 2 of 4 labels change without the mask",
    ]


def test_texts_are_padded_on_the_right_whatever_the_tokenizer_does(demo):
    model, tokenizer = demo
    left = dataclasses.replace(tokenizer, padding_side="left")
    assert torch.equal(label_flips(model, left).without_mask, label_flips(model, tokenizer).without_mask)
    with pytest.raises(ValueError, match=r"model\.eval\(\)"):
        label_flips(copy.deepcopy(model).train(), tokenizer)


def test_a_text_as_long_as_the_long_one_is_not_padded(demo):
    flips = label_flips(*demo, texts=[LONG_TEXT, "a good film"], beside=LONG_TEXT)
    assert torch.equal(flips.without_mask[0], flips.with_mask[0])
    assert flips.flipped == [1]

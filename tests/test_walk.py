"""The walk, word by word: what it prints of given numbers, and where it takes the numbers from."""

import dataclasses

import pytest
import torch

from minibert.study import walk
from minibert.study.flips import Flips
from minibert.study.leak import ROUTES, LeakRoutes
from minibert.study.walk import Walk, _columns

from .command_line import load

LONG = "so we sat there until the lights came on"
LESSON = """\
1  One sentence, without a mask
   tokens  [CLS] day [SEP]
   ids     2     9   3
   logits  BAD 0.2500   GOOD -0.5000

2  The same, with its mask
   tokens  [CLS] day [SEP]
   ids     2     9   3
   mask    1     1   1
   logits  BAD 0.2500   GOOD -0.5000     <- the same bits as in 1

3  Padded into one batch, without a mask
   tokens  [CLS] a day about tomorrow [SEP]
   ids     2     8 9   12    13       3
   logits  BAD 1.0000   GOOD -1.0000
   tokens  [CLS] day [SEP] [PAD] [PAD] [PAD]
   ids     2     9   3     0     0     0
   logits  BAD 0.2500   GOOD 0.5000     <- moved by up to 1.0000

4  Padded into one batch, with the mask
   tokens  [CLS] a day about tomorrow [SEP]
   ids     2     8 9   12    13       3
   mask    1     1 1   1     1        1
   logits  BAD 1.5000   GOOD -1.5000
   tokens  [CLS] day [SEP] [PAD] [PAD] [PAD]
   ids     2     9   3     0     0     0
   mask    1     1   1     0     0     0
   logits  BAD 0.2500   GOOD -0.5000     <- as in 1, to rounding (at most 1e-06)

Why: layer 0, head 3, what [CLS] of 'day' computes for each key
   (layer 0: its scores are the same with and without the mask;
    head 3: of all heads it gives [PAD] the most without a mask)
   key    score    + mask  = masked score  probability  without mask
   [CLS]  1.000       + 0             = 1       0.5000        0.2500
   day    2.000       + 0             = 2       0.2500        0.1250
   [SEP]  3.000       + 0             = 3       0.2500        0.1250
   [PAD]  4.000  + -1e+04         = -9996            0        0.2500
   [PAD]  5.000  + -1e+04         = -9995            0        0.1250
   [PAD]  6.000  + -1e+04         = -9994            0        0.1250
   Without a mask [PAD] takes 50.0% of this attention; evenly spread it would be 50.0%.
   The mask makes its scores so low that exp() of them is exactly 0: all attention goes to real keys.

Share of the sentence's attention that goes to [PAD], mean over heads and real queries
   layer  without mask  with mask
       0         25.0%          0
       1         75.0%       1.0%
   Evenly spread over all keys it would be 50.0%.

The logits are read at [CLS]. How [PAD] reaches it: the mask in the rows of some queries only
   padding is hidden from  moved by  route that is left
   no token                       4  both routes
   [CLS] alone                    3  the other tokens attend to [PAD], and [CLS] attends to them
   all tokens but [CLS]           2  [CLS] itself attends to [PAD]
   all tokens                     1  none

Can the answer itself change? 'fine' beside a text of 9 words
   run                        BAD    GOOD  answer
   alone                   0.0000  1.0000  GOOD
   padded, without a mask  0.5000  0.2500  BAD
   padded, with the mask   0.0000  0.7500  GOOD
   Without the mask 1 of 3 short texts changes its label; the mask restores it."""


def flips(flipped):
    """Of three texts, of which some get another label without the mask."""
    without_mask = torch.tensor([[0.25, 1.5], [0.0, 2.5], [1.0, 2.0]])
    for row in flipped:
        without_mask[row] = torch.tensor([0.5, 0.25])
    alone, with_mask = torch.tensor([[0.0, 1.0]] * 3), torch.tensor([[0.0, 0.75]] * 3)
    return Flips(["good", "fine", "bad"], LONG, 11, ["BAD", "GOOD"], alone, without_mask, with_mask)


def lesson(**other):
    """A walk of round numbers; the second sentence is followed."""
    alone, mask = torch.tensor([[0.25, -0.5]]).double(), torch.tensor([0.0] * 3 + [-1e4] * 3)
    values = {
        "texts": ["a day about tomorrow", "day"],
        "tokens": ["[CLS] a day about tomorrow [SEP]".split(), "[CLS] day [SEP] [PAD] [PAD] [PAD]".split()],
        "input_ids": torch.tensor([[2, 8, 9, 12, 13, 3], [2, 9, 3, 0, 0, 0]]),
        "attention_mask": torch.tensor([[1] * 6, [1, 1, 1, 0, 0, 0]]),
        "labels": ["BAD", "GOOD"],
        "subject": 1,
        "logits": {
            "alone": alone,
            "alone, mask": alone,
            "padded": torch.tensor([[1.0, -1.0], [0.25, 0.5]]),
            "padded, mask": torch.tensor([[1.5, -1.5], [0.25, -0.5]]),
        },
        "head": 3,
        "keys": {
            "scores": torch.arange(1.0, 7),
            "mask": mask,
            "masked_scores": torch.arange(1.0, 7) + mask,
            "probs": torch.tensor([0.5, 0.25, 0.25, 0, 0, 0]),
            "probs_without_mask": torch.tensor([0.25, 0.125, 0.125, 0.25, 0.125, 0.125]),
        },
        "pad_mass": {"padded": torch.tensor([0.25, 0.75]), "padded, mask": torch.tensor([0.0, 0.01])},
        "routes": LeakRoutes(list(ROUTES), torch.tensor([[4.0], [3.0], [2.0], [1.0]])),
        "flips": flips([1]),
    }
    return Walk(**values | other)


def test_the_whole_lesson_is_printed_of_the_sentence_that_is_followed():
    assert str(lesson()).splitlines() == LESSON.splitlines()


@pytest.mark.parametrize(
    ("moved", "says"),
    [
        (0, "as in 1, to rounding (at most 1e-06)"),
        (1e-6, "as in 1, to rounding (at most 1e-06)"),
        (1.1e-6, "as in 1, to rounding (at most 1e-05)"),
        (1e-5, "as in 1, to rounding (at most 1e-05)"),
        (1.1e-5, "as in 1, to rounding (at most 1e-04)"),
        (1e-4, "as in 1, to rounding (at most 1e-04)"),
        (1.1e-4, "as in 1, to rounding (at most 1e-03)"),
        (1e-3, "as in 1, to rounding (at most 1e-03)"),
        (1.1e-3, "moved by up to 0.0011"),
        (-1.1e-3, "moved by up to 0.0011"),
    ],
)
def test_the_walk_says_how_far_the_logits_moved(moved, says):
    logits = {run: torch.zeros(2, 2).double() for run in ("padded", "padded, mask")}
    logits |= {run: torch.zeros(1, 2).double() for run in ("alone", "alone, mask")}
    logits["padded, mask"][1, 1] = moved
    (line,) = [line for line in str(lesson(logits=logits)).split("\n\n")[3].splitlines() if "<-" in line]
    assert line.endswith(f"<- {says}")


def test_a_mask_of_ones_that_moves_the_logits_is_not_the_same_bits():
    logits = lesson().logits | {"alone, mask": torch.tensor([[0.25, -0.5 + 1e-7]]).double()}
    assert "<- as in 1, to rounding (at most 1e-06)" in str(lesson(logits=logits)).split("\n\n")[1]


@pytest.mark.parametrize(
    ("flipped", "text", "says"),
    [
        ([], "fine", "none of 3 short texts changes its label; this one moves the most."),
        ([2], "bad", "1 of 3 short texts changes its label; the mask restores it."),
        ([0, 2], "good", "2 of 3 short texts change their label; the mask restores it."),
    ],
)
def test_the_walk_ends_with_the_first_text_that_flips_or_that_moves_most(flipped, text, says):
    *_, asked, _, _, _, _, last = str(lesson(flips=flips(flipped))).splitlines()
    assert asked == f"Can the answer itself change? '{text}' beside a text of 9 words"
    assert last == f"   Without the mask {says}"


def test_a_row_of_tokens_is_folded_where_it_is_wider_than_96_characters():
    fits = {"tokens": ["a" * 47, "b" * 48], "ids": [1, 22]}  # and a space between them
    assert list(_columns(fits)) == [f"   tokens  {'a' * 47} {'b' * 48}", f"   ids     1{' ' * 47}22"]
    one_more = {"tokens": ["a" * 48, "b" * 48, "c"], "ids": [1, 22, 3]}
    assert list(_columns(one_more)) == [
        f"   tokens  {'a' * 48}",
        "   ids     1",
        f"   tokens  {'b' * 48} c",
        f"   ids     22{' ' * 46} 3",
    ]
    assert [len(line) for line in _columns({"tokens": ["x", "y" * 200, "z"]})] == [12, 211, 12]
    assert list(_columns({"tokens": ["", "x"]})) == ["   tokens   x"]


def test_the_shortest_sentence_is_followed_wherever_it_stands(checkpoint):
    model, tokenizer = load(checkpoint)
    texts = ["a nice day but not today", "a day", "not sure today"]
    result = walk(model, dataclasses.replace(tokenizer, padding_side="left"), texts)  # the walk pads on the right
    inputs = tokenizer(texts, padding=True, return_tensors="pt")
    ids, mask = inputs.input_ids, inputs.attention_mask
    assert torch.equal(result.input_ids, ids)
    assert torch.equal(result.attention_mask, mask)
    with torch.no_grad():
        one = model(ids[1:2, :4])
        without, masked = (model(ids, each, output_attentions=True) for each in (None, mask))
    assert (result.subject, result.texts, result.labels) == (1, texts, ["NEGATIVE", "POSITIVE"])
    assert list(result.logits) == ["alone", "alone, mask", "padded", "padded, mask"]
    for run, logits in zip(result.logits.values(), (one, one, without, masked), strict=True):
        assert torch.equal(run, logits.logits)
    first = without.attentions[0][1, :, 0]  # (H, S) of [CLS] in the second sentence
    assert result.head == first[:, 4:].sum(-1).argmax()
    assert torch.equal(result.keys["probs_without_mask"], first[result.head])
    assert torch.equal(result.keys["probs"], masked.attentions[0][1, result.head, 0])
    for run, output in (("padded", without), ("padded, mask", masked)):
        share = torch.stack([probs[1, :, :4, 4:].sum(-1).mean() for probs in output.attentions])
        assert torch.allclose(result.pad_mass[run], share)
    assert result.even == 0.5
    assert result.routes.moved.shape == (4, 1)
    moved = (without.logits - masked.logits)[1].abs().max().double()
    assert torch.allclose(result.routes.moved[:, 0].gather(0, torch.tensor([0, 3])), torch.stack([moved, moved * 0]))


@pytest.mark.parametrize(("words", "padding"), [(9, 4), (10, 4), (11, 3), (13, 1)])
def test_sentences_of_one_length_get_four_slots_of_padding_where_the_model_has_them(checkpoint, words, padding):
    model, tokenizer = load(checkpoint)  # 16 positions
    result = walk(model, tokenizer, ["nice " * words, "day " * words])
    assert (result.attention_mask == 0).sum(dim=1).tolist() == [padding] * 2


def test_sentences_that_fill_all_positions_are_refused(checkpoint):
    with pytest.raises(ValueError, match="nothing is padded: all rows have 16 tokens"):
        walk(*load(checkpoint), ["nice " * 14])

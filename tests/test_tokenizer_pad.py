"""Padding of rows that are tokenized already, by `pad` and by the data collators of transformers."""

import numpy as np
import pytest
import torch

from minibert import DistilBertTokenizer

VOCAB = {word: i for i, word in enumerate("[PAD] [UNK] [CLS] [SEP] [MASK] a b c nice ##ly".split())}
TOKENIZER = DistilBertTokenizer(VOCAB, model_max_length=12)
ROWS = [{"input_ids": [2, 5, 3], "labels": 1}, {"input_ids": [2, 3], "labels": 0}]


def test_rows_and_columns_are_padded_alike():
    padded = {"input_ids": [[2, 5, 3], [2, 3, 0]], "labels": [1, 0], "attention_mask": [[1, 1, 1], [1, 1, 0]]}
    assert TOKENIZER.pad(ROWS) == padded
    assert TOKENIZER.pad({"input_ids": [[2, 5, 3], [2, 3]], "labels": [1, 0]}) == padded
    assert ROWS[1] == {"input_ids": [2, 3], "labels": 0}  # not changed
    assert TOKENIZER.pad([TOKENIZER("a"), TOKENIZER("")]) == TOKENIZER(["a", ""], padding=True)


@pytest.mark.parametrize("options", [{}, {"padding_side": "left"}, {"pad_to_multiple_of": 4}])
def test_pad_gives_what_a_call_gives(options):
    returned = {
        "return_special_tokens_mask": True,
        "return_token_type_ids": True,
        "return_offsets_mapping": True,
        "return_overflowing_tokens": True,
    }
    pairs = [("a b", "c"), ("nicely", ""), ("", "a")]
    assert TOKENIZER.pad(TOKENIZER(pairs, **returned), **options) == TOKENIZER(
        pairs, padding=True, **returned, **options
    )


@pytest.mark.parametrize("padding", [True, "longest", False])
def test_max_length_is_for_its_own_kind_of_padding(padding):
    assert TOKENIZER.pad(ROWS, padding=padding, max_length=6) == TOKENIZER.pad(ROWS, padding=padding)


def test_one_row_stays_one_row():
    assert TOKENIZER.pad({"input_ids": [2, 5, 3]}, padding="max_length", max_length=5) == {
        "input_ids": [2, 5, 3, 0, 0],
        "attention_mask": [1, 1, 1, 0, 0],
    }
    padded = TOKENIZER.pad({"input_ids": torch.tensor([2, 5])}, padding="max_length")
    assert padded.input_ids.tolist() == [2, 5, *[0] * 10]


def test_the_mask_of_a_row_is_padded_made_or_left_out():
    rows = [{"input_ids": [2, 5, 3], "attention_mask": [1, 0, 1]}, {"input_ids": [2, 3], "attention_mask": [1, 1]}]
    assert TOKENIZER.pad(rows).attention_mask == [[1, 0, 1], [1, 1, 0]]
    assert list(TOKENIZER.pad(rows, return_attention_mask=False)) == ["input_ids"]
    assert TOKENIZER.pad(rows, padding=False).input_ids == [[2, 5, 3], [2, 3]]
    assert TOKENIZER.pad([]) == {"input_ids": [], "attention_mask": []}


@pytest.mark.parametrize(("kind", "make"), [("pt", torch.tensor), ("np", np.array)])
def test_tensors_in_tensors_out(kind, make):
    rows = [
        {"input_ids": make([2, 5, 3]), "labels": make([0.5, 1.0])},
        {"input_ids": make([2, 3]), "labels": make([1.0, 0.0])},
    ]
    for padded in (TOKENIZER.pad(rows), TOKENIZER.pad(rows, return_tensors=kind)):
        assert type(padded.input_ids) is type(padded.labels) is type(make([1]))
        assert str(padded.input_ids.dtype).endswith("int64")
        assert str(padded.labels.dtype).endswith("float32")
        assert padded.input_ids.tolist() == [[2, 5, 3], [2, 3, 0]]
        assert padded.labels.tolist() == [[0.5, 1.0], [1.0, 0.0]]


@pytest.mark.parametrize(
    ("inputs", "options", "error", "message"),
    [
        (["a"], {}, TypeError, r"expected a mapping or a list of mappings, not \['a'\]"),
        ({"labels": [1]}, {}, ValueError, r"there are no input_ids to pad, only \['labels'\]"),
        (
            [ROWS[0], {"input_ids": [2]}],
            {},
            ValueError,
            r"row 1 has \['input_ids'\], but row 0 has \['input_ids', 'lab",
        ),
        ({"input_ids": [[2], [2, 3]], "labels": [1]}, {}, ValueError, "labels has 1 rows, but input_ids have 2"),
        ([{"input_ids": [2, 3], "attention_mask": [1]}], {}, ValueError, "attention_mask of row 0 must be a list of 2"),
        ([{"input_ids": [2, 3], "attention_mask": "11"}], {}, ValueError, "attention_mask of row 0 must be a list of"),
        (
            [{"input_ids": [[2, 3], [2]]}],
            {},
            ValueError,
            "input_ids of row 0 are lists: pass each choice as a separate",
        ),
        (ROWS, {"padding": False, "return_tensors": "pt"}, ValueError, r"rows of \[2, 3\] tokens cannot be one tensor"),
        (ROWS, {"padding": "max_length", "max_length": 13, "return_tensors": "pt"}, ValueError, "the model takes 12"),
        (
            [{"input_ids": [2, 3], "labels": [1, 1]}, {"input_ids": [2], "labels": [1]}],
            {"return_tensors": "pt"},
            ValueError,
            "labels cannot be a tensor: pad it to one length, or remove what is not a number",
        ),
        ([{"input_ids": [2], "text": "a"}], {"return_tensors": "pt"}, ValueError, "text cannot be a tensor"),
        (ROWS, {"return_tensors": "tf"}, ValueError, "return_tensors must be one of None, 'pt', 'np', not 'tf'"),
        ([], {"return_tensors": "pt"}, ValueError, "an empty batch cannot be a tensor"),
    ],
)
def test_rows_that_cannot_be_padded_are_refused(inputs, options, error, message):
    with pytest.raises(error, match=message):
        TOKENIZER.pad(inputs, **options)


TEXTS = ["nice a", "a b c nicely", "b"]


@pytest.fixture(scope="module")
def pair():
    """This tokenizer and that of transformers."""
    transformers = pytest.importorskip("transformers")
    return TOKENIZER, transformers.DistilBertTokenizer(vocab=dict(VOCAB), model_max_length=12)


def assert_equal_batches(ours, theirs):
    assert list(ours) == list(theirs)
    for name in ours:
        assert ours[name].dtype == theirs[name].dtype
        assert ours[name].tolist() == theirs[name].tolist()


@pytest.mark.reference
@pytest.mark.parametrize("kind", ["pt", "np"])
@pytest.mark.parametrize("options", [{}, {"padding": "max_length"}, {"pad_to_multiple_of": 8}])
def test_the_padding_collator(pair, kind, options):
    from transformers import DataCollatorWithPadding

    features = [[{**tokenizer(text), "label": i % 2} for i, text in enumerate(TEXTS)] for tokenizer in pair]
    batches = [
        DataCollatorWithPadding(tokenizer, return_tensors=kind, **options)(rows)
        for tokenizer, rows in zip(pair, features, strict=True)
    ]
    assert_equal_batches(*batches)


@pytest.mark.reference
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("kind", ["pt", "np"])
def test_the_token_classification_collator(pair, side, kind):
    from transformers import DataCollatorForTokenClassification

    batches = []
    for tokenizer in pair:
        tokenizer.padding_side = side
        rows = [{**tokenizer(text), "labels": [-100, *range(len(tokenizer(text).input_ids) - 1)]} for text in TEXTS]
        batches.append(DataCollatorForTokenClassification(tokenizer)(rows, return_tensors=kind))
        tokenizer.padding_side = "right"
    assert_equal_batches(*batches)


@pytest.mark.reference
@pytest.mark.parametrize(
    "options",
    [
        {"mlm_probability": 0.5},
        {"mlm_probability": 0.5, "pad_to_multiple_of": 4},
        {"mlm_probability": 0.5, "whole_word_mask": True, "mask_replace_prob": 1, "random_replace_prob": 0},
        {"mlm": False},
    ],
    ids=["tokens", "multiple", "words", "causal"],
)
def test_the_language_modeling_collator(pair, options):
    from transformers import DataCollatorForLanguageModeling

    words = "whole_word_mask" in options
    texts = ["nicely a b", "a b nicely"] if words else TEXTS  # transformers does not pad the offsets
    batches = []
    for tokenizer in pair:
        rows = [dict(tokenizer(text, return_offsets_mapping=words)) for text in texts]
        batches.append(DataCollatorForLanguageModeling(tokenizer, seed=0, **options)(rows))
    assert_equal_batches(*batches)


@pytest.mark.reference
def test_the_multiple_choice_collator(pair):
    from transformers import DataCollatorForMultipleChoice

    batches = []
    for tokenizer in pair:
        rows = [{**tokenizer(["a", "b"], ["b", text]), "label": 1} for text in TEXTS]
        batches.append(DataCollatorForMultipleChoice(tokenizer)(rows))
    assert_equal_batches(*batches)

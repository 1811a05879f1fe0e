"""Tokens that are added, special tokens and settings that change, and what of a tokenizer is pickled."""

import copy
import pickle

import pytest

from minibert import DistilBertTokenizer
from minibert.tokenizer.wordpiece import AddedToken

WORDS = "[PAD] [UNK] [CLS] [SEP] [MASK] a b c nice ##ly l y [unused0]".split()
VOCAB = {word: i for i, word in enumerate(WORDS)}
NEXT = len(VOCAB)


def small(**settings):
    return DistilBertTokenizer(dict(VOCAB), **settings)


def test_added_tokens_get_the_next_ids():
    tokenizer = small()
    assert tokenizer.add_tokens(["New", "b c", AddedToken("<x>", special=True), "nice", "New"]) == 3
    assert (len(tokenizer), tokenizer.vocab_size) == (NEXT + 3, NEXT)
    assert tokenizer.get_vocab() == VOCAB | {"New": NEXT, "b c": NEXT + 1, "<x>": NEXT + 2}
    assert tokenizer.tokenize("a new B  c<x><X>nicely") == [
        "a",
        "New",
        "b",
        "c",
        "<x>",
        "[UNK]",
        "[UNK]",
        "[UNK]",
        "nice",
        "[UNK]",
    ]
    assert tokenizer.decode(tokenizer.encode("new a <x>"), skip_special_tokens=True) == "New a"
    assert tokenizer.add_tokens("<s>", special_tokens=True) == 1
    assert tokenizer.convert_tokens_to_ids("<s>") == NEXT + 3
    assert tokenizer.all_special_tokens[-2:] == tokenizer.extra_special_tokens == ["<x>", "<s>"]
    assert tokenizer.add_tokens([]) == 0


def test_special_tokens_are_added_with_their_role():
    tokenizer = small()
    added = tokenizer.add_special_tokens({"pad_token": "<pad>", "additional_special_tokens": ["<e>", "<f>"]})
    assert (added, tokenizer.pad_token, tokenizer.pad_token_id) == (3, "<pad>", NEXT)
    assert tokenizer(["a", "a b<e>"], padding=True).input_ids == [[2, 5, 3, NEXT, NEXT], [2, 5, 6, NEXT + 1, 3]]
    assert tokenizer.special_tokens_map == {
        "unk_token": "[UNK]",
        "sep_token": "[SEP]",
        "pad_token": "<pad>",
        "cls_token": "[CLS]",
        "mask_token": "[MASK]",
    }
    with pytest.raises(
        ValueError, match=r"the role of a special token must be one of 'unk_token', .*, not 'bos_token'"
    ):
        tokenizer.add_special_tokens({"mask_token": "<m>", "bos_token": "<s>"})
    with pytest.raises(ValueError, match="replace_extra_special_tokens must be one of False, not True"):
        tokenizer.add_special_tokens({"mask_token": "<m>"}, replace_extra_special_tokens=True)
    assert "<m>" not in tokenizer.vocab


@pytest.mark.parametrize(
    ("token", "error", "message"),
    [
        (3, TypeError, "a token must be a str or an AddedToken, not 3"),
        (["a", None], TypeError, "a token must be a str or an AddedToken, not None"),
        (["new", ""], ValueError, "a token must have at least one character"),
    ],
)
def test_what_is_not_a_token_is_not_added(token, error, message):
    tokenizer = small()
    with pytest.raises(error, match=message):
        tokenizer.add_tokens(token)
    assert tokenizer.vocab == VOCAB


def test_an_added_token_never_takes_an_id_that_is_in_use():
    tokenizer = DistilBertTokenizer({"[UNK]": 0, "[CLS]": 1, "[SEP]": 2, "a": 9})
    tokenizer.add_tokens("new")
    assert tokenizer.vocab["new"] == 10
    assert DistilBertTokenizer({**VOCAB, "last": 1_999_999}).vocab["last"] == 1_999_999  # the largest id
    with pytest.raises(ValueError, match="integers from 0 to 1999999"):
        DistilBertTokenizer({**VOCAB, "last": 1_999_999}).add_tokens("new")


def test_a_token_with_a_role_is_special_whatever_its_entry_says():
    tokenizer = small(added_tokens={4: AddedToken("[MASK]"), NEXT: AddedToken("<e>")})
    assert sorted(tokenizer.all_special_ids) == [0, 1, 2, 3, 4]


def test_what_transformers_asks_of_a_tokenizer():
    tokenizer = small()
    assert (tokenizer.pad_token_type_id, tokenizer.is_fast) == (0, True)
    assert (tokenizer.num_special_tokens_to_add(), tokenizer.num_special_tokens_to_add(pair=True)) == (2, 3)
    assert (len(tokenizer("a").input_ids), len(tokenizer("a", "b").input_ids)) == (1 + 2, 2 + 3)


def test_added_tokens_are_saved(tmp_path):
    tokenizer = small()
    tokenizer.add_special_tokens({"mask_token": "<m>", "pad_token": "[unused0]"})
    tokenizer.add_tokens("New")
    tokenizer.save_pretrained(tmp_path)
    again = DistilBertTokenizer.from_pretrained(tmp_path)
    assert again.vocab == tokenizer.vocab
    assert again.special_tokens_map == tokenizer.special_tokens_map
    texts = ["a new <M> <m> [unused0]", "b"]
    assert again(texts, padding=True) == tokenizer(texts, padding=True)


def test_a_token_that_is_none_is_saved_as_none(tmp_path):
    tokenizer = small()
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path)
    assert DistilBertTokenizer.from_pretrained(tmp_path).pad_token_id is None


def test_a_setting_that_changes_takes_effect():
    tokenizer = small()
    tokenizer("A")
    tokenizer.pad_token = "[unused0]"
    assert tokenizer.pad_token_id == 12
    assert tokenizer(["a b", "a"], padding=True).input_ids == [[2, 5, 6, 3], [2, 5, 3, 12]]
    tokenizer.pad_token_id = 0
    assert tokenizer.pad_token == "[PAD]"
    tokenizer.pad_token = None
    assert tokenizer.pad_token_id is None
    tokenizer.pad_token_id = 12
    tokenizer.pad_token_id = None
    assert tokenizer.pad_token is None
    tokenizer.do_lower_case = False
    assert tokenizer.tokenize("A") == ["[UNK]"]
    tokenizer.cls_token = "b"
    assert tokenizer.encode("a") == [6, 5, 3]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda tokenizer: tokenizer.add_tokens(["new", "\n"]), ValueError, "an added token of white space"),
        (lambda tokenizer: setattr(tokenizer, "pad_token", ["a"]), TypeError, r"pad_token must be a str, not \['a'\]"),
        (
            lambda tokenizer: tokenizer.add_special_tokens({"extra_special_tokens": ["<a>"], "mask_token": 3}),
            TypeError,
            "a token must be a str or an AddedToken, not 3",
        ),
        (
            lambda tokenizer: tokenizer.add_special_tokens({"extra_special_tokens": ["<a>"], "mask_token": ["a", "b"]}),
            TypeError,
            "a token must be a str or an AddedToken",
        ),
    ],
)
def test_after_an_error_the_tokenizer_is_as_before_and_can_be_saved(tmp_path, change, error, message):
    tokenizer = small()
    before = pickle.dumps(tokenizer)
    with pytest.raises(error, match=message):
        change(tokenizer)
    assert pickle.dumps(tokenizer) == before
    tokenizer.save_pretrained(tmp_path)
    assert DistilBertTokenizer.from_pretrained(tmp_path).vocab == VOCAB


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("pad_token", "<p>", r"'<p>' is not in the vocabulary: add_special_tokens\({'pad_token': '<p>'}\) adds it"),
        ("cls_token", None, "lacks None"),
        ("pad_token_id", 99, r"ids \[99\] are not in this vocabulary"),
        ("padding_side", "up", "padding_side must be one of"),
        ("model_max_length", 0, "model_max_length must be an integer, at least 1"),
    ],
)
def test_a_setting_that_cannot_work_changes_nothing(name, value, message):
    tokenizer = small()
    before, ids = repr(tokenizer), tokenizer(["a b", "a"], padding=True)
    with pytest.raises(ValueError, match=message):
        setattr(tokenizer, name, value)
    assert repr(tokenizer) == before
    assert tokenizer(["a b", "a"], padding=True) == ids


def test_a_vocabulary_is_a_dict():
    with pytest.raises(
        TypeError, match=r"vocab must be a dict, token to id, not 'vocab.txt': from_pretrained reads files"
    ):
        DistilBertTokenizer("vocab.txt")


def test_use_changes_neither_pickle_nor_copies():
    tokenizer = small()
    before = pickle.dumps(tokenizer)
    tokenizer([f"word{i}" for i in range(1000)], padding=True, return_offsets_mapping=True)
    assert pickle.dumps(tokenizer) == before
    tokenizer.add_tokens("New")
    assert pickle.dumps(tokenizer) != before
    for copied in (copy.copy(tokenizer), copy.deepcopy(tokenizer), pickle.loads(pickle.dumps(tokenizer))):
        assert copied.encode("a new nicely") == tokenizer.encode("a new nicely") == [2, 5, NEXT, 8, 9, 3]
        copied.pad_token = "[unused0]"
        assert (copied.pad_token_id, tokenizer.pad_token_id) == (12, 0)


def test_from_pretrained_takes_settings(tmp_path):
    small(padding_side="right", model_max_length=99).save_pretrained(tmp_path)
    tokenizer = DistilBertTokenizer.from_pretrained(
        tmp_path, do_lower_case=False, model_max_length=4, padding_side="left", truncation_side="left", use_fast=False
    )
    assert tokenizer.tokenize("A a") == ["[UNK]", "a"]
    assert tokenizer(["a b c", "a"], padding=True, truncation=True).input_ids == [[2, 6, 7, 3], [0, 2, 5, 3]]
    (tmp_path / "tokenizer_config.json").unlink()
    assert DistilBertTokenizer.from_pretrained(tmp_path, do_lower_case=True).do_lower_case is True  # without a warning
    with pytest.raises(ValueError, match="padding_side must be one of 'right', 'left', not 'up'"):
        DistilBertTokenizer.from_pretrained(tmp_path, do_lower_case=True, padding_side="up")
    with pytest.raises(TypeError, match="a tokenizer has no setting lowercase, only unk_token, "):
        DistilBertTokenizer.from_pretrained(tmp_path, lowercase=True)


def test_the_special_tokens_mask_of_ids():
    assert small().get_special_tokens_mask([2, 5, 3, 0], already_has_special_tokens=True) == [1, 0, 1, 1]
    with pytest.raises(ValueError, match="already_has_special_tokens must be one of True, not False"):
        small().get_special_tokens_mask([5], already_has_special_tokens=False)


@pytest.mark.reference
def test_added_tokens_are_those_of_transformers(tmp_path):
    transformers = pytest.importorskip("transformers")
    ours, theirs = small(), transformers.DistilBertTokenizer(vocab=dict(VOCAB))
    for tokenizer in (ours, theirs):
        tokenizer.add_tokens(["New", "b c", "nice", transformers.AddedToken("<x>", special=True)])
        tokenizer.add_tokens(["<s>", "<t>"], special_tokens=True)
        tokenizer.add_special_tokens({"pad_token": "<pad>", "extra_special_tokens": ["<e>"]})
    texts = ["a New b c<x>nicely <s><T> <e>", "a"]
    assert ours(texts, padding=True) == theirs(texts, padding=True)
    for name in ("special_tokens_map", "model_input_names", "is_fast", "pad_token_id"):
        assert getattr(ours, name) == getattr(theirs, name)
    assert ours.get_vocab() == theirs.get_vocab()
    ours.save_pretrained(tmp_path)
    loaded = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert loaded(texts, padding=True) == theirs(texts, padding=True)
    assert loaded.extra_special_tokens == ours.extra_special_tokens == ["[PAD]", "<x>", "<s>", "<t>", "<e>"]
    ids = ours(texts[0]).input_ids
    assert loaded.decode(ids, skip_special_tokens=True) == theirs.decode(ids, skip_special_tokens=True)
    again = DistilBertTokenizer.from_pretrained(tmp_path)
    assert again.extra_special_tokens == ours.extra_special_tokens

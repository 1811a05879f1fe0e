"""The tokenizer: words and pieces, rows and windows, files, errors."""

import copy
import json
import pickle
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from minibert import DistilBertTokenizer
from minibert.tokenizer.rows import kept_lengths
from minibert.tokenizer.unicode_tables import LazyTable, decompose, lower
from minibert.tokenizer.wordpiece import AddedToken

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[unused0]"]


def rich_vocab():
    """A vocabulary that spells nearly every word, so that a wrong word shows: characters, and a few words."""
    scripts = (
        *(range(0x21, 0x7F), range(0xA1, 0x180), range(0x1EA0, 0x1EFA)),  # Latin
        *(range(0x300, 0x370), range(0x370, 0x460), range(0x5D0, 0x5EB), range(0x620, 0x660)),  # marks … Arabic
        *(range(0x900, 0x980), range(0x1100, 0x1200), range(0x3041, 0x3100)),  # Devanagari, Hangul jamo, kana
        *(range(0x4E00, 0x4E20), range(0x20AC, 0x20AD), range(0x1F468, 0x1F46A), range(0x11930, 0x1193A)),
        map(ord, "日本国中文々〇\u0378\u2e52🫨\U0002b820\u302e\U0001d165"),
    )
    characters = dict.fromkeys(chr(code_point) for script in scripts for code_point in script)
    words = "the to day nice good movie word token naive is what about un like able don not we it do".split()
    pieces = "##ing ##s ##ization ##able ##ly ##day ##t ##word".split()
    tokens = [*SPECIAL, *characters, *(f"##{character}" for character in characters), *words, *pieces]
    return {token: i for i, token in enumerate(dict.fromkeys(tokens))}


VOCAB = rich_vocab()
UNCASED = DistilBertTokenizer(VOCAB, model_max_length=512)
CASED = DistilBertTokenizer(VOCAB, do_lower_case=False, model_max_length=512)


# ---------------------------------------------------------------------------------------------------------------- words


def spelled(word):
    """The pieces of a word that is in the vocabulary by its characters only."""
    return [word[0], *(f"##{character}" for character in word[1:])]


JAMO = "\u1112\u1161\u11ab"  # 한, decomposed

WORDS = {  # text: tokens, lowercased and without accents
    "": [],
    " \t\n ": [],
    "The movie is nice!": ["the", "movie", "is", "nice", "!"],
    "tokenization": ["token", "##ization"],
    "naïve nai\u0308ve NAÏVE": ["naive"] * 3,
    "unlikeable": ["un", *spelled("xlike")[1:], "##able"],
    "don't": ["don", "'", "t"],
    "ΟΔΟΣ": spelled("οδοσ"),  # σ, not the final ς of str.lower
    "İzmir": spelled("izmir"),
    "a≠b": ["a", "=", "b"],  # decomposed: = and a stroke
    "a\u1fefb\u037ec": ["a", "`", "b", ";", "c"],  # decomposed: punctuation
    "한": spelled(JAMO),
    "한" * 33: spelled(JAMO * 33),
    "한" * 34: ["[UNK]"],  # 102 after decomposition
    "a" * 100: spelled("a" * 100),
    "a" * 101: ["[UNK]"],
    "e\u0301" * 100: spelled("e" * 100),
    "हिन्दी": spelled("हिनदी"),
    "が": spelled("か"),
    "日本語 中文": ["日", "本", "[UNK]", "中", "文"],
    "々〇": spelled("々〇"),  # not ideographs
    "\U0002b820\U0002b820": spelled("\U0002b820" * 2),  # not for the Rust code
    "word\u200bword word\u00adword": ["word", "##word"] * 2,
    "a\x1cb a\x85b a\x0bb a\x0cb a\ue000b a\ufffdb a\x00b": spelled("ab") * 7,
    "a\u2028b\u3000c\u00a0d": ["a", "b", "c", "d"],
    "a\u0378b": spelled("a\u0378b"),  # unassigned
    "a🫨b": spelled("a🫨b"),  # newer than Python 3.11
    "a\u2e52b": spelled("a\u2e52b"),  # punctuation, but newer than the Rust tables
    "\u0301": [],
    "\u00f1\u302e": spelled("n\u302e"),  # the tilde and the mark after it change places, and the tilde goes
    "👩\u200d👩": spelled("👩👩"),
    "€10 $10": [*spelled("€10"), "$", *spelled("10")],
    "\U00011938": ["\U00011938"],  # decomposes in newer Unicode only
    "##ing": ["#", "#", "i", "##n", "##g"],
    "foo[MASK]bar": [*spelled("foo"), "[MASK]", *spelled("bar")],
    "[SEP][SEP]": ["[SEP]", "[SEP]"],
    "[[MASK]]": ["[", "[MASK]", "]"],
    "[mask]": ["[", *spelled("mask"), "]"],
    "[unused0]": ["[", "un", "##u", "##s", "##e", "##d", "##0", "]"],
}


@pytest.mark.parametrize("text", WORDS, ids=ascii)
def test_words_and_pieces(text):
    assert UNCASED.tokenize(text) == WORDS[text]


CASED_WORDS = {
    "É": ["É"],
    "e\u0301": spelled("e\u0301"),
    "ΟΔΟΣ": spelled("ΟΔΟΣ"),
    "a≠b": ["[UNK]"],
    "日é本": ["日", "é", "本"],
}


@pytest.mark.parametrize("text", CASED_WORDS, ids=ascii)
def test_a_cased_tokenizer_keeps_capitals_and_accents(text):
    assert CASED.tokenize(text) == CASED_WORDS[text]


def test_settings_for_accents_and_ideographs():
    assert DistilBertTokenizer(VOCAB, strip_accents=False).tokenize("É İ") == ["é", *spelled("i\u0307")]
    assert DistilBertTokenizer(VOCAB, do_lower_case=False, strip_accents=True).tokenize("É") == ["E"]
    assert DistilBertTokenizer(VOCAB, tokenize_chinese_chars=False).tokenize("日本") == spelled("日本")


def test_the_longest_piece_comes_first_and_a_word_with_an_unknown_end_is_unknown():
    vocab = {token: i for i, token in enumerate(["[UNK]", "[CLS]", "[SEP]", "un", "unlike", "##like", "##ly"])}
    tokenizer = DistilBertTokenizer(vocab)
    assert tokenizer.tokenize("unlikely unlike unlikeness like") == ["unlike", "##ly", "unlike", "[UNK]", "[UNK]"]


def test_marks_that_are_kept_are_put_in_canonical_order():
    assert decompose("e\u0301\u0323 \u0344") == "e\u0323\u0301 \u0308\u0301"
    assert UNCASED.tokenize("a\u302e\u0301\U0001d165") == spelled("a\U0001d165\u302e")
    assert decompose("a\u0301\u1ac5\u0316") == "a\u0301\u1ac5\u0316"  # U+1AC5 is newer: nothing moves past it


def test_lowercase_letters_do_not_depend_on_the_version_of_python():
    assert [lower(ord(character)) for character in "AΣİß"] == ["a", "σ", "i\u0307", "ß"]
    assert [lower(code_point) for code_point in (0x1C89, 0xA7CB, 0xA7CC, 0x10D65, 0x16EB8)] == [
        *("\u1c8a", "\u0264", "\ua7cd", "\U00010d85", "\U00016ed3")
    ]


def test_capitals_newer_than_python_with_both_ends_of_their_ranges():
    pairs = [(0x1C89, 0x1C8A), (0xA7CB, 0x264), (0xA7DC, 0x19B), (0x10D50, 0x10D70), (0x10D65, 0x10D85)]
    pairs += [(0x16EA0, 0x16EBB), (0x16EB8, 0x16ED3), *((c, c + 1) for c in (0xA7CC, 0xA7CE, 0xA7D2, 0xA7D4, 0xA7DA))]
    for capital, small in pairs:
        assert lower(capital) == chr(small)
    for code_point in (0x1C8B, 0x10D4F, 0x10D66, 0x16E9F, 0x16EB9):
        assert lower(code_point) == chr(code_point)


def test_both_ends_of_the_ranges_of_ideographs_and_of_private_use():
    clean = UNCASED._wordpiece.clean_character
    ideographs = [(0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x2A6DF), (0x2A700, 0x2B81F)]
    for first, last in [*ideographs, (0x2B920, 0x2CEAF), (0x2F800, 0x2FA1F)]:
        assert clean(first) == f" {chr(first)} "
        assert clean(last) == f" {chr(last)} "
        assert clean(last + 1) == chr(last + 1)
        assert first == 0xF900 or clean(first - 1) == chr(first - 1)  # private use before it
    for first, last in [(0xE000, 0xF8FF), (0xF0000, 0xFFFFD), (0x100000, 0x10FFFD)]:
        assert clean(first) is clean(last) is None
        assert first == 0xE000 or clean(first - 1) == chr(first - 1)  # surrogates before it
        assert last == 0xF8FF or clean(last + 1) == chr(last + 1)


@pytest.mark.parametrize(
    "text",
    ["a" * 1_000_000, "ab " * 100_000, "a" + "\u0301\u0316" * 100_000, "\u302e\U0001d165" * 100_000, "[MASK]" * 30_000],
    ids=["one word", "words", "marks to strip", "marks to keep", "special tokens"],
)
def test_time_is_linear_in_the_length(text):
    begin = time.process_time()
    UNCASED(text)
    UNCASED(text[:100_000], return_offsets_mapping=True)
    assert time.process_time() - begin < 10  # where a step is quadratic, it takes minutes


def test_tables_are_bounded():
    calls = []
    table = LazyTable(lambda key: calls.append(key) or key * 2, limit=2)
    assert [table[key] for key in (1, 2, 1, 3, 1)] == [2, 4, 2, 6, 2]
    assert calls == [1, 2, 3, 1]
    assert len(table) == 2
    table = LazyTable(str)
    assert [len(table) for i in range(50_001) if table[i]] == [*range(1, 50_001), 1]
    tokenizer = DistilBertTokenizer(VOCAB)
    tokenizer("a" * 1_000_000)
    assert sum(map(len, tokenizer._wordpiece.pieces)) == 101


# --------------------------------------------------------------------------------------------------------- added tokens


def with_added(*tokens, **settings):
    added = {len(VOCAB) + i: token for i, token in enumerate(tokens)}
    return DistilBertTokenizer(VOCAB, added_tokens=added, **settings)


def test_added_tokens_are_found_as_written_or_normalized():
    tokenizer = with_added(AddedToken("<Cat>"), AddedToken("Dög", normalized=True), AddedToken("<Cat>s"))
    assert tokenizer.tokenize("a<Cat><Cat>s<cat>") == ["a", "<Cat>", "<Cat>s", "<", *spelled("cat"), ">"]
    assert tokenizer.tokenize("aDOGgy dög") == ["a", "Dög", *spelled("gy"), "Dög"]
    assert tokenizer.encode("<Cat>") == [2, len(VOCAB), 3]


def test_a_single_word_token_is_not_found_within_a_longer_word():
    tokenizer = with_added(AddedToken("cat", single_word=True), AddedToken("at"))
    assert tokenizer.tokenize("cat, cats") == ["cat", ",", *spelled("cats")]
    assert tokenizer.tokenize("bat") == ["b", "at"]
    assert tokenizer.tokenize("cats a cat b") == [*spelled("cats"), "a", "cat", "b"]
    assert tokenizer.tokenize("xcat") == spelled("xcat")  # the longest is found first, and no other in its place
    assert tokenizer.tokenize("cat\u0301") == spelled("cat")
    for after in "z9_é\u0301\u0903\u20dd\u203f\u200dⅫⓐ\U0001e030":  # letters, digits, marks, a tie, a joiner, a numeral
        assert tokenizer.tokenize(f"cat{after}")[0] != "cat"
    for after in "²½€-\u200b🫨\u0378":  # superscript and fraction are no digits; a symbol, a character without meaning
        assert tokenizer.tokenize(f"cat{after}")[0] == "cat"


def test_a_normalized_single_word_token_is_not_found_beside_a_mark_of_words():
    tokenizer = with_added(AddedToken("Cat", single_word=True, normalized=True))
    assert tokenizer.tokenize("CAT, cat _ cat-cat") == ["Cat", ",", "Cat", "_", "Cat", "-", "Cat"]
    for text in ("cat_", "_cat", "a_cat b", "cat\u203f"):
        assert "Cat" not in tokenizer.tokenize(text)


def test_added_tokens_of_white_space_are_found_as_written():
    tokenizer = with_added(AddedToken("\n"), AddedToken("  "))
    assert tokenizer.tokenize("a\nb   a\n\n") == ["a", "\n", "b", "  ", "a", "\n", "\n"]
    batch = tokenizer("a\n  b", return_offsets_mapping=True, add_special_tokens=False)
    assert batch.offset_mapping == [(0, 1), (1, 2), (2, 4), (4, 5)]
    for options in ("normalized", "lstrip", "rstrip"):
        with pytest.raises(ValueError, match="an added token of white space is only found as written"):
            with_added(AddedToken(" ", **{options: True}))


def test_word_pieces_do_not_use_added_tokens():
    assert with_added(AddedToken("qq")).tokenize("QQ") == spelled("qq")


def test_special_tokens_and_ids():
    tokenizer = with_added(AddedToken("<s>", special=True), AddedToken("<t>"))
    assert tokenizer.all_special_tokens == ["[UNK]", "[SEP]", "[PAD]", "[CLS]", "[MASK]", "<s>"]
    assert tokenizer.all_special_ids == [1, 3, 0, 2, 4, len(VOCAB)]
    assert (tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.cls_token_id) == (0, 1, 2)
    assert (tokenizer.sep_token_id, tokenizer.mask_token_id) == (3, 4)
    assert (tokenizer.vocab_size, len(tokenizer)) == (len(VOCAB), len(VOCAB) + 2)
    assert tokenizer.vocab["<t>"] == len(VOCAB) + 1
    assert "vocab" not in repr(tokenizer)


# ----------------------------------------------------------------------------------------------------------------- rows

LETTERS = {token: i for i, token in enumerate([*SPECIAL[:5], *"abcdefghijklm"])}  # a is 5, b is 6, … m is 17
SMALL = DistilBertTokenizer(LETTERS, model_max_length=8)


def test_one_text_gives_lists_that_are_not_nested():
    assert SMALL("a b") == {"input_ids": [2, 5, 6, 3], "attention_mask": [1, 1, 1, 1]}


def test_a_batch_gives_rows():
    assert SMALL(["a b", "", "c"]) == {
        "input_ids": [[2, 5, 6, 3], [2, 3], [2, 7, 3]],
        "attention_mask": [[1, 1, 1, 1], [1, 1], [1, 1, 1]],
    }
    assert SMALL(("a",)) == SMALL(["a"])


def test_an_empty_batch_is_empty():
    assert SMALL([]) == {"input_ids": [], "attention_mask": []}
    assert SMALL([], padding=True, truncation=True) == {"input_ids": [], "attention_mask": []}


def test_pairs():
    assert SMALL("a", "b c").input_ids == [2, 5, 3, 6, 7, 3]
    assert SMALL(["a", "b"], ["", "c"]).input_ids == [[2, 5, 3, 3], [2, 6, 3, 7, 3]]
    assert SMALL("a", "").input_ids == [2, 5, 3, 3]
    assert SMALL("a", "b c", add_special_tokens=False).input_ids == [5, 6, 7]
    assert SMALL([("a", "b c"), ["b", "c"], "d"]).input_ids == [[2, 5, 3, 6, 7, 3], [2, 6, 3, 7, 3], [2, 8, 3]]
    words = [(["a"], ["b", "c"]), ["d", "e"]]
    assert SMALL(words, is_split_into_words=True).input_ids == [[2, 5, 3, 6, 7, 3], [2, 8, 9, 3]]


def test_token_type_ids_and_the_mask_can_be_chosen():
    batch = SMALL(["a", "b"], ["b c", "a"], return_token_type_ids=True, return_attention_mask=False, padding=True)
    assert batch == {
        "input_ids": [[2, 5, 3, 6, 7, 3], [2, 6, 3, 5, 3, 0]],
        "token_type_ids": [[0, 0, 0, 1, 1, 1], [0, 0, 0, 1, 1, 0]],
    }
    left = SMALL("a", padding="max_length", max_length=5, padding_side="left", return_token_type_ids=True)
    assert left.token_type_ids == [0] * 5
    bare = SMALL("a b", "c", add_special_tokens=False, return_token_type_ids=True)
    assert bare.token_type_ids == [0, 0, 1]


def test_encode_and_tokenize():
    assert SMALL.encode("a b") == [2, 5, 6, 3]
    assert SMALL.encode("a b", "c d", truncation="only_first", max_length=6) == [2, 5, 3, 7, 8, 3]
    assert SMALL.encode("a b", add_special_tokens=False) == [5, 6]
    assert SMALL.encode("a b", return_tensors="pt").tolist() == [[2, 5, 6, 3]]
    assert SMALL.encode("a b", padding="max_length", max_length=5) == [2, 5, 6, 3, 0]
    assert SMALL.tokenize("a x", "b", add_special_tokens=True) == ["[CLS]", "a", "[UNK]", "[SEP]", "b", "[SEP]"]


@pytest.mark.parametrize(
    ("options", "ids"),
    [
        ({"padding": True}, [[2, 5, 6, 3], [2, 7, 3, 0]]),
        ({"padding": "longest", "padding_side": "left"}, [[2, 5, 6, 3], [0, 2, 7, 3]]),
        ({"padding": "max_length", "max_length": 5}, [[2, 5, 6, 3, 0], [2, 7, 3, 0, 0]]),
        ({"padding": "max_length", "max_length": 3}, [[2, 5, 6, 3], [2, 7, 3]]),  # nothing is cut
        ({"padding": "max_length"}, [[2, 5, 6, 3, 0, 0, 0, 0], [2, 7, 3, 0, 0, 0, 0, 0]]),
        ({"padding": True, "pad_to_multiple_of": 3}, [[2, 5, 6, 3, 0, 0], [2, 7, 3, 0, 0, 0]]),
        ({"pad_to_multiple_of": 3}, [[2, 5, 6, 3], [2, 7, 3]]),
        ({"padding": "max_length", "max_length": 5, "pad_to_multiple_of": 3}, [[2, 5, 6, 3, 0, 0], [2, 7, 3, 0, 0, 0]]),
        ({"truncation": True, "max_length": 3, "pad_to_multiple_of": 2}, [[2, 5, 3], [2, 7, 3]]),
        ({"truncation": True, "padding": True, "max_length": 4, "pad_to_multiple_of": 2}, [[2, 5, 6, 3], [2, 7, 3, 0]]),
    ],
)
def test_padding(options, ids):
    batch = SMALL(["a b", "c"], return_special_tokens_mask=True, **options)
    assert batch.input_ids == ids
    assert batch.attention_mask == [[int(i != 0) for i in row] for row in ids]
    assert batch.special_tokens_mask == [[int(i < 5) for i in row] for row in ids]


def test_padding_without_special_tokens():
    assert SMALL(["a b", "c"], padding=True, add_special_tokens=False).input_ids == [[5, 6], [7, 0]]


def test_sides_of_padding_and_truncation_can_be_set_for_the_tokenizer():
    tokenizer = DistilBertTokenizer(LETTERS, padding_side="left", truncation_side="left", model_max_length=5)
    assert tokenizer(["a b c d", "e"], padding=True, truncation=True).input_ids == [[2, 6, 7, 8, 3], [0, 0, 2, 9, 3]]
    assert tokenizer(["a", "b c"], padding=True, padding_side="right").input_ids == [[2, 5, 3, 0], [2, 6, 7, 3]]


@pytest.mark.parametrize(
    ("strategy", "max_length", "first", "second"),
    [
        (True, 11, "abcde", "fgh"),  # both fit
        ("longest_first", 10, "abcd", "fgh"),
        (True, 9, "abc", "fgh"),
        (True, 7, "ab", "fg"),
        (True, 6, "ab", "f"),  # an odd one out goes to the longer text
        (True, 3, "", ""),
        ("only_first", 9, "abc", "fgh"),
        ("only_first", 6, None, None),
        ("only_second", 9, "abcde", "f"),
        ("only_second", 8, None, None),
    ],
)
def test_truncation_of_a_pair(strategy, max_length, first, second):
    if first is None:
        with pytest.raises(ValueError, match=f"truncation='{strategy}' cannot make texts of 5 and 3 tokens fit into"):
            SMALL("a b c d e", "f g h", truncation=strategy, max_length=max_length)
        return
    batch = SMALL("a b c d e", "f g h", truncation=strategy, max_length=max_length)
    assert SMALL.decode(batch.input_ids, skip_special_tokens=True) == " ".join(first + second)
    assert batch.sequence_ids() == [None, *[0] * len(first), None, *[1] * len(second), None]


def test_truncation_of_a_text():
    assert SMALL("a b c d", truncation=True, max_length=5).input_ids == [2, 5, 6, 7, 3]
    assert SMALL("a b c d", max_length=5).input_ids == [2, 5, 6, 7, 3]
    assert SMALL("a", padding="max_length", truncation="do_not_truncate", max_length=4).input_ids == [2, 5, 3, 0]
    assert SMALL("a b c d", truncation="only_first", max_length=3).input_ids == [2, 5, 3]
    assert SMALL("a b c d", truncation=True, max_length=2).input_ids == [2, 3]
    assert SMALL("a b c d", truncation=True, max_length=2, add_special_tokens=False).input_ids == [5, 6]
    assert SMALL("a b c d e f g h", truncation=True).input_ids == [2, 5, 6, 7, 8, 9, 10, 3]  # model_max_length
    with pytest.raises(ValueError, match="cannot make texts of 4 and 0 tokens fit into 1"):
        SMALL("a b c d", truncation="only_second", max_length=3)


def rows(batch):
    return [SMALL.decode(row).replace("[CLS] ", "").replace(" [SEP]", "|") for row in batch.input_ids]


def test_windows_onto_a_long_text():
    options = {"truncation": True, "max_length": 5, "return_overflowing_tokens": True}
    batch = SMALL(["a b c d e f g", "h"], **options)
    assert rows(batch) == ["a b c|", "d e f|", "g|", "h|"]
    assert batch.overflow_to_sample_mapping == [0, 0, 0, 1]
    assert rows(SMALL("a b c d e f", stride=1, **options)) == ["a b c|", "c d e|", "e f|"]
    assert rows(SMALL("a b c d e", stride=1, **options)) == ["a b c|", "c d e|"]
    assert rows(SMALL("a b c d e", stride=2, **options)) == ["a b c|", "b c d|", "c d e|"]
    assert SMALL("a", **options) == {
        "input_ids": [[2, 5, 3]],
        "attention_mask": [[1, 1, 1]],
        "overflow_to_sample_mapping": [0],
    }


def test_windows_from_the_end():
    tokenizer = DistilBertTokenizer(LETTERS, truncation_side="left")
    options = {"truncation": True, "max_length": 5, "return_overflowing_tokens": True}
    assert rows(tokenizer("a b c d e f", stride=1, **options)) == ["d e f|", "b c d|", "a b|"]


def test_windows_of_a_question_and_its_context():
    batch = SMALL(
        ["a b"],
        ["c d e f"],
        truncation="only_second",
        max_length=7,
        stride=1,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
        padding=True,
    )
    assert rows(batch) == ["a b| c d|", "a b| d e|", "a b| e f|"]
    assert batch.offset_mapping[2] == [(0, 0), (0, 1), (2, 3), (0, 0), (4, 5), (6, 7), (0, 0)]
    assert batch.sequence_ids(2) == [None, 0, 0, None, 1, 1, None]
    assert batch.word_ids(2) == [None, 0, 1, None, 2, 3, None]


def test_windows_of_both_texts_go_with_each_other():
    batch = SMALL("a b c", "d e f", truncation=True, max_length=7, return_overflowing_tokens=True)
    assert rows(batch) == ["a b| d e|", "c| d e|", "c| f|", "a b| f|"]


def test_windows_that_do_not_advance_are_refused():
    options = {"truncation": True, "return_overflowing_tokens": True}
    with pytest.raises(
        ValueError, match=r"windows of 3 tokens of this text cannot share stride=3 tokens: pass a smaller stride or"
    ):
        SMALL("a b c d", max_length=5, stride=3, **options)
    with pytest.raises(ValueError, match="windows of 0 tokens of this text cannot share stride=0"):
        SMALL("a", max_length=2, **options)
    assert kept_lengths(0, 2, 2, "only_first") == (0, 2)  # they fit
    assert kept_lengths(1, 5, 4, "longest_first") == (1, 3)  # only the longer one is cut
    assert kept_lengths(3, 3, 5, "longest_first") == (2, 3)
    assert SMALL("a b c", max_length=5, stride=9, **options).input_ids == [[2, 5, 6, 7, 3]]  # one window


def test_offsets_are_indices_into_the_text():
    text = "Naïve tokenization, 한국!"
    batch = UNCASED(text, return_offsets_mapping=True)
    offsets = batch.offset_mapping[1:-1]
    assert [text[start:end] for start, end in offsets] == [
        *("Naïve", "token", "ization", ","),
        *("한한한국국국!"),
    ]
    assert UNCASED.tokenize(text)[2:4] == ["##ization", ","]
    assert batch.word_ids() == [None, 0, 1, 1, 2, 3, 3, 3, 3, 3, 3, 4, None]


def test_tokens_and_characters_of_a_batch():
    batch = UNCASED([("Naïve tokenization", "a day"), ("the", "")], padding=True)
    assert batch.tokens()[:5] == ["[CLS]", "naive", "token", "##ization", "[SEP]"]
    assert UNCASED("", add_special_tokens=False).tokens() == []
    assert batch.tokens(1) == ["[CLS]", "the", "[SEP]", "[SEP]", "[PAD]", "[PAD]", "[PAD]", "[PAD]"]
    assert UNCASED("the", return_tensors="pt").tokens() == UNCASED("the").tokens() == ["[CLS]", "the", "[SEP]"]
    assert [batch.char_to_token(i) for i in (0, 4, 5, 6, 10, 11, 17, 18)] == [1, 1, None, 2, 2, 3, 3, None]
    assert batch.char_to_token(0, 2, sequence_index=1) == batch.char_to_token(2, sequence_index=1) == 6
    assert batch.char_to_token(1, 2) == 1
    assert [batch.token_to_chars(i) for i in range(5)] == [None, (0, 5), (6, 11), (11, 18), None]
    assert batch.token_to_chars(0, 6) == (2, 5)
    assert [batch.token_to_word(i) for i in range(5)] == [None, 0, 1, 1, None]
    assert [batch.token_to_sequence(i) for i in range(4, 8)] == [None, 1, 1, None]
    assert [batch.char_to_word(i) for i in (0, 5, 17)] == [0, None, 1]
    assert batch.word_to_tokens(1) == batch.word_to_tokens(0, 1) == (2, 4)
    assert batch.word_to_tokens(0, 1, sequence_index=1) == (6, 7)
    assert batch.word_to_chars(1) == (6, 18)
    assert batch.word_to_tokens(7) is batch.word_to_chars(7) is None
    window = UNCASED("the day is nice", truncation=True, max_length=4, return_overflowing_tokens=True)
    assert [window.char_to_token(0, 4), window.char_to_token(0, 8), window.char_to_token(1, 8)] == [2, None, 1]


def test_a_pickled_batch_keeps_its_offsets_but_not_the_vocabulary():
    batch = UNCASED("the day", return_offsets_mapping=True)
    copied = pickle.loads(pickle.dumps(batch))
    assert copied.char_to_token(4) == 2
    assert len(pickle.dumps(batch)) < 1000
    copied = pickle.loads(pickle.dumps(UNCASED("the day")))
    with pytest.raises(ValueError, match="tokenize with return_offsets_mapping=True; for tokens, use"):
        copied.char_to_token(4)
    with pytest.raises(ValueError, match=r"use tokenizer\.convert_ids_to_tokens"):
        copied.tokens()
    with pytest.raises(ValueError, match="this batch has no texts"):
        UNCASED.pad(UNCASED("the day")).word_ids()


def test_offsets_skip_what_is_dropped_and_cover_what_is_between():
    for text, offsets in {
        "\u200ba\u200bb\u0301\u200b": [(1, 2), (3, 4)],
        " 日本 ": [(1, 2), (2, 3)],
        "x" * 101 + "  y": [(0, 101), (103, 104)],
        "a [MASK]b": [(0, 1), (2, 8), (8, 9)],
        "İ": [(0, 1)],
        "x\u00f1\u302e": [(0, 1), (1, 2), (2, 3)],
        "a\u0301\u302e": [(0, 1), (1, 2)],
        "\u302e\U0001d165": [(0, 1), (1, 2)],  # the marks change places, their indices do not
    }.items():
        assert UNCASED(text, return_offsets_mapping=True, add_special_tokens=False).offset_mapping == offsets


def test_offsets_of_added_tokens():
    tokenizer = with_added(AddedToken("<e 1>"), AddedToken("É 日 x", normalized=True))
    batch = tokenizer("a<e 1> e\u0301 日  x é 日 xb", return_offsets_mapping=True, add_special_tokens=False)
    assert tokenizer.convert_ids_to_tokens(batch.input_ids) == [
        *("a", "<e 1>", "e", "日", "x", "É 日 x", "b"),
    ]
    assert batch.offset_mapping == [(0, 1), (1, 6), (7, 8), (10, 11), (13, 14), (15, 20), (20, 21)]


def test_offsets_of_tokens_that_take_the_white_space_beside_them():
    tokenizer = with_added(AddedToken("<l>", lstrip=True), AddedToken("<r>", rstrip=True))
    encoding = tokenizer("a \t<l> <r>\u3000 a", return_offsets_mapping=True, add_special_tokens=False)
    assert encoding.offset_mapping == [(0, 1), (1, 6), (7, 12), (12, 13)]
    one_space = tokenizer("a <l>b<r> a", return_offsets_mapping=True, add_special_tokens=False)
    assert one_space.offset_mapping == [(0, 1), (1, 5), (5, 6), (6, 10), (10, 11)]
    assert tokenizer("<r> <l>a", return_offsets_mapping=True, add_special_tokens=False).offset_mapping == [
        *((0, 4), (4, 7), (7, 8)),  # the space belongs to the first
    ]
    encoding = with_added(AddedToken(" x", rstrip=True))(" x xa", return_offsets_mapping=True, add_special_tokens=False)
    assert encoding.offset_mapping == [(0, 3), (2, 4), (4, 5)]  # one space belongs to both
    stripped = with_added(AddedToken(" x", lstrip=True, rstrip=True))
    encoding = stripped(" x xa", return_offsets_mapping=True, add_special_tokens=False)
    assert encoding.offset_mapping == [(0, 3), (3, 4), (4, 5)]


def test_texts_that_are_split_into_words():
    batch = UNCASED(
        [["naïve", "tokenization", "", "don't"], ["a[MASK]"]], is_split_into_words=True, return_offsets_mapping=True
    )
    assert UNCASED.convert_ids_to_tokens(batch.input_ids[0])[1:-1] == ["naive", "token", "##ization", "don", "'", "t"]
    assert batch.word_ids(0) == [None, 0, 1, 1, 3, 3, 3, None]
    assert batch.word_ids(1) == [None, 0, 0, None]
    assert batch.offset_mapping[0][1:-1] == [(0, 5), (0, 5), (5, 12), (0, 3), (3, 4), (4, 5)]
    assert UNCASED(["the", "zoo"], is_split_into_words=True).word_ids() == [None, 0, 1, 1, 1, None]
    assert UNCASED(["the"], ["day"], is_split_into_words=True).sequence_ids()[:3] == [None, 0, None]
    assert UNCASED([], is_split_into_words=True).input_ids == [2, 3]
    assert UNCASED([[]], is_split_into_words=True).input_ids == [[2, 3]]


# -------------------------------------------------------------------------------------------------------------- tensors


@pytest.mark.parametrize(("kind", "type_"), [("pt", torch.Tensor), ("np", np.ndarray)])
def test_tensors_are_int64_with_a_row_for_each_text(kind, type_):
    batch = SMALL(
        ["a b", "c"],
        padding=True,
        truncation=True,
        return_tensors=kind,
        return_offsets_mapping=True,
        return_special_tokens_mask=True,
        return_overflowing_tokens=True,
    )
    assert {name: value.shape for name, value in batch.items()} == {
        "input_ids": (2, 4),
        "attention_mask": (2, 4),
        "special_tokens_mask": (2, 4),
        "offset_mapping": (2, 4, 2),
        "overflow_to_sample_mapping": (2,),
    }
    assert all(isinstance(value, type_) and value.dtype in (torch.int64, np.int64) for value in batch.values())
    assert batch.input_ids.tolist() == [[2, 5, 6, 3], [2, 7, 3, 0]]
    assert SMALL("a", return_tensors=kind).input_ids.tolist() == [[2, 5, 3]]
    empty = SMALL("", return_tensors=kind, add_special_tokens=False, truncation=True, max_length=0)
    assert (empty.input_ids.shape, empty.input_ids.dtype) == ((1, 0), batch.input_ids.dtype)


def test_rows_of_several_lengths_cannot_be_a_tensor():
    with pytest.raises(ValueError, match=r"rows of \[3, 4\] tokens cannot be one tensor: pass padding=True"):
        SMALL(["a b", "c"], return_tensors="pt")
    with pytest.raises(ValueError, match="an empty batch cannot be a tensor"):
        SMALL([], return_tensors="pt")


def test_a_tensor_longer_than_the_model_takes_is_refused_and_a_list_is_not():
    with pytest.raises(ValueError, match="a row has 9 tokens, but the model takes 8: pass truncation=True"):
        SMALL("a b c d e f g", return_tensors="pt")
    assert len(SMALL("a b c d e f g").input_ids) == 9
    assert SMALL("a b c d e f g", return_tensors="pt", truncation=True).input_ids.shape == (1, 8)
    assert DistilBertTokenizer(LETTERS)("a b c d e f g", return_tensors="pt").input_ids.shape == (1, 9)


def test_a_batch_encoding_is_a_mapping_with_attributes_that_moves():
    batch = SMALL("a", return_tensors="pt", return_overflowing_tokens=True, truncation=True)
    assert batch.input_ids is batch["input_ids"]
    assert (lambda **inputs: list(inputs))(**batch) == ["input_ids", "attention_mask", "overflow_to_sample_mapping"]
    assert not hasattr(batch, "token_type_ids")
    with pytest.raises(AttributeError, match=r"no 'token_type_ids' here, only \['input_ids', 'attention_mask'"):
        _ = batch.token_type_ids
    for copied in (copy.copy(batch), copy.deepcopy(batch), pickle.loads(pickle.dumps(batch))):
        assert copied.input_ids.tolist() == [[2, 5, 3]]
        assert copied.word_ids() == [None, 0, None]
    assert batch.to("meta", non_blocking=True) is batch
    with pytest.raises(TypeError, match=r"expected a device, got torch\.float16"):
        batch.to(torch.float16)
    assert batch.input_ids.dtype == torch.int64
    assert batch.attention_mask.device.type == "meta"
    assert SMALL("a").to("meta").input_ids == [2, 5, 3]


# --------------------------------------------------------------------------------------------------------- back to text


def test_decoding():
    ids = UNCASED.encode("It is naïve tokenization, we don't do [MASK] . . .")
    assert UNCASED.decode(ids) == "[CLS] it is naive tokenization, we don ' t do [MASK]... [SEP]"
    assert UNCASED.decode(ids, skip_special_tokens=True) == "it is naive tokenization, we don ' t do..."
    assert UNCASED.decode(ids, clean_up_tokenization_spaces=True)[6:] == (
        "it is naive tokenization, we don't do [MASK]... [SEP]"
    )
    assert UNCASED.decode(torch.tensor(ids)) == UNCASED.decode(np.array(ids)) == UNCASED.decode(ids)
    assert UNCASED.decode(VOCAB["##ing"]) == "##ing"
    assert UNCASED.decode(torch.tensor(VOCAB["the"])) == "the"
    assert UNCASED.decode([]) == ""
    tokenizer = with_added(*map(AddedToken, [" .x", "' s", "do not"]))  # cleaned as in the Rust library
    assert tokenizer.decode(tokenizer.encode("a .x' sdo not")) == "[CLS] a .x's don't [SEP]"
    assert tokenizer.decode(tokenizer.encode(" .xa"), True, True) == ".x a"
    assert UNCASED.convert_tokens_to_string(["token", "##ization", ".", "don", "'", "t"]) == "tokenization. don ' t"
    assert DistilBertTokenizer(VOCAB, clean_up_tokenization_spaces=True).decode(ids[7:12]) == "we don't do"


def test_decoding_a_batch():
    batch = UNCASED(["the movie", "good"], padding=True, return_tensors="pt")
    assert UNCASED.batch_decode(batch.input_ids, skip_special_tokens=True) == ["the movie", "good"]
    assert UNCASED.batch_decode([[2, 3], []]) == ["[CLS] [SEP]", ""]
    for ids in ([2, 3], (2, 3), torch.tensor([2, 3]), np.array([2, 3]), list(np.array([2, 3]))):
        assert UNCASED.batch_decode(ids) == ["[CLS] [SEP]"]  # the ids of one text
    assert UNCASED.batch_decode(torch.tensor([[2, 3], [3, 2]])) == ["[CLS] [SEP]", "[SEP] [CLS]"]
    assert UNCASED.batch_decode([]) == []
    its = UNCASED.convert_tokens_to_ids(["it", "'", "s"])
    assert UNCASED.batch_decode([its], clean_up_tokenization_spaces=True) == ["it's"]


def test_ids_and_tokens():
    assert SMALL.convert_ids_to_tokens(5) == "a"
    assert SMALL.convert_ids_to_tokens([2, 5, 3]) == ["[CLS]", "a", "[SEP]"]
    assert SMALL.convert_ids_to_tokens(torch.tensor([2, 5]), skip_special_tokens=True) == ["a"]
    assert SMALL.convert_tokens_to_ids("b") == 6
    assert SMALL.convert_tokens_to_ids(["b", "nothing"]) == [6, 1]
    assert SMALL.convert_ids_to_tokens([np.int64(5), torch.tensor(6)]) == ["a", "b"]
    assert SMALL.convert_ids_to_tokens(2, skip_special_tokens=True) == "[CLS]"
    for several in ([[5], [6]], torch.tensor([[5], [6]]), None):
        with pytest.raises(TypeError, match=r"expected the ids of one text, integers: use batch_decode"):
            SMALL.decode(several)
    for ids in (18, [5, 18], [-1]):
        with pytest.raises(ValueError, match=r"ids \[(18|-1)\] are not in this vocabulary of 18 tokens"):
            SMALL.decode(ids)


# -------------------------------------------------------------------------------------------------------------- options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"padding": "max"}, "padding must be one of False, True, 'longest', 'max_length', 'do_not_pad', not 'max'"),
        ({"truncation": "first"}, "truncation must be one of None, False, True, 'longest_first', .*, not 'first'"),
        ({"truncation": 1, "max_length": 9}, "truncation must be one of None, False, True, .*, not 1"),
        ({"padding": 0}, "padding must be one of False, True, .*, not 0"),
        ({"return_tensors": "tf"}, "return_tensors must be one of None, 'pt', 'np', not 'tf'"),
        ({"padding_side": "up"}, "padding_side must be one of 'right', 'left', not 'up'"),
        ({"max_length": -1}, "max_length must be an integer, at least 0, not -1"),
        ({"max_length": "5"}, "max_length must be an integer, at least 0, not '5'"),
        ({"stride": 1.5}, "stride must be an integer, at least 0, not 1.5"),
        ({"pad_to_multiple_of": 0}, "pad_to_multiple_of must be an integer, at least 1, not 0"),
        (
            {"max_length": 5, "truncation": False},
            "max_length=5 alone does nothing: pass truncation=True or padding='max_length'",
        ),
        ({"max_length": 5, "padding": True}, "max_length=5 alone does nothing"),
        ({"max_length": 1, "truncation": True}, "max_length=1 has no room for the 2 special tokens"),
        ({"max_length": 2, "truncation": True, "text_pair": "b"}, "max_length=2 has no room for the 3 special tokens"),
        (
            {"max_length": 5, "truncation": True, "padding": True, "pad_to_multiple_of": 2},
            "max_length=5 is not a multiple of pad_to_multiple_of=2",
        ),
    ],
)
def test_options_that_cannot_be_met_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        SMALL("a", **options)


@pytest.mark.parametrize("options", [{"truncation": True}, {"padding": "max_length"}])
def test_an_unknown_maximum_length_is_an_error(options):
    with pytest.raises(ValueError, match=r"this tokenizer has no model_max_length: pass max_length="):
        DistilBertTokenizer(LETTERS)("a", **options)


def test_without_a_padding_token_there_is_no_padding():
    tokenizer = DistilBertTokenizer({"[UNK]": 0, "[CLS]": 1, "[SEP]": 2})
    assert (tokenizer.pad_token_id, tokenizer.mask_token_id) == (None, None)
    assert tokenizer("a").input_ids == tokenizer.encode("a") == [1, 0, 2]
    with pytest.raises(ValueError, match=r"the vocabulary has no \[PAD\] to pad with"):
        tokenizer(["a", "b"], padding=True)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ((None,), "text is NoneType, not str"),
        ((b"a",), "text is bytes, not str"),
        ((["a", None],), r"text\[1\] is NoneType, not str"),
        ((["a", ["b"]],), r"text\[1\] is a list of 1, neither a text nor a pair of texts"),
        ((["a", ("b", None)],), r"text\[1\]\[1\] is NoneType, not str"),
        (([["a", "b"]], [["a", "b"]]), r"text\[0\] is list, not str"),
        ((iter("ab"),), "text is str_(ascii_)?iterator, not str"),
        (("a", ["b"]), "text_pair is list, not str"),
        ((["a"], [3]), r"text_pair\[0\] is int, not str"),
    ],
)
def test_a_text_that_is_not_a_str_is_named(texts, message):
    with pytest.raises(TypeError, match=f"^{message}"):
        SMALL(*texts)


def test_words_that_are_not_str_are_named():
    with pytest.raises(TypeError, match=r"text\[1\] is int, not str"):
        SMALL(["a", 2], is_split_into_words=True)
    with pytest.raises(TypeError, match=r"text\[1\]\[0\] is NoneType, not str"):
        SMALL([["a"], [None]], is_split_into_words=True)
    with pytest.raises(TypeError, match="text is str, not a list of words, with is_split_into_words=True"):
        SMALL("a b", is_split_into_words=True)


@pytest.mark.parametrize("second", ["b", ["b"], []])
def test_as_many_second_texts_as_first_ones(second):
    with pytest.raises(ValueError, match="text_pair must be a list of 2 texts, one for each text"):
        SMALL(["a", "a"], second)


def test_a_lone_surrogate_is_shown():
    with pytest.raises(ValueError, match=r"text\[1\] has a lone surrogate, '\\ud800' at index 2: decode the"):
        SMALL(["a", "é \ud800"])


@pytest.mark.parametrize(
    ("vocab", "settings", "message"),
    [
        ({"[UNK]": 0, "[CLS]": 1}, {}, r"the vocabulary of 2 tokens lacks '\[SEP\]'$"),
        ({"a": 0}, {}, r"the vocabulary of 1 tokens lacks '\[UNK\]', '\[CLS\]', '\[SEP\]'$"),
        ({}, {"added_tokens": {i: AddedToken(token) for token, i in LETTERS.items()}}, "the vocabulary is empty"),
        (LETTERS, {"cls_token": "<s>\n"}, r"lacks '<s>\\n'$"),
        ({**LETTERS, "x": 5}, {}, "must be different integers from 0 to"),
        ({**LETTERS, "x": -1}, {}, "must be different integers from 0 to"),
        ({**LETTERS, "x": "7"}, {}, "must be different integers from 0 to"),
        (LETTERS, {"padding_side": "up"}, "padding_side must be one of 'right', 'left', not 'up'"),
        (LETTERS, {"truncation_side": None}, "truncation_side must be one of 'right', 'left', not None"),
        ({**LETTERS, "x": 2_000_000}, {}, "must be different integers from 0 to 1999999"),
        (LETTERS, {"model_max_length": True}, "model_max_length must be an integer, at least 1, not True"),
        (LETTERS, {"do_lower_case": "false"}, "do_lower_case must be one of True, False, not 'false'"),
        (LETTERS, {"tokenize_chinese_chars": 1.0}, "tokenize_chinese_chars must be one of True, False, not 1.0"),
        (LETTERS, {"strip_accents": "false"}, "strip_accents must be one of None, True, False, not 'false'"),
        (LETTERS, {"model_max_length": 0}, "model_max_length must be an integer, at least 1, not 0"),
        ({**LETTERS, "x" * 1001: 99}, {}, "a token has 1001 characters, 1000 are the most: 'xxx"),
        (LETTERS, {"added_tokens": {99: AddedToken("x" * 1001)}}, "a token has 1001 characters, 1000 are the most"),
        (
            LETTERS,
            {"added_tokens": {i: AddedToken(f"{i:01000}") for i in range(99, 2100)}},
            "the added tokens have 2001000 characters, 2000000 are the most",
        ),
    ],
)
def test_a_vocabulary_or_a_setting_that_cannot_work_is_refused(vocab, settings, message):
    with pytest.raises(ValueError, match=message):
        DistilBertTokenizer(vocab, **settings)


# ---------------------------------------------------------------------------------------------------------------- files


def write(folder, **files):
    """Write files of a checkpoint, `vocab_txt=` as it is and the others as JSON."""
    for name, content in files.items():
        if name == "vocab_txt":
            (folder / "vocab.txt").write_bytes(content if isinstance(content, bytes) else content.encode())
        else:
            (folder / f"{name}.json").write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


LONG = "a" * 10_000
MANY = "\n" * 2_000_001
BASIC = "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\nb\n"
LOWER = {"do_lower_case": True}


def test_line_ends_blank_lines_and_duplicates_in_vocab_txt(tmp_path):
    crlf = write(
        tmp_path, vocab_txt="\ufeff[PAD]\r\n[UNK]  \n[CLS]\n[SEP]\n\na\nb\na\n\u2028x\nlast", tokenizer_config=LOWER
    )
    vocab = DistilBertTokenizer.from_pretrained(crlf).vocab
    assert vocab == {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "": 4, "b": 6, "a": 7, "\u2028x": 8, "last": 9}


def test_settings_come_from_tokenizer_config(tmp_path):
    folder = write(
        tmp_path,
        vocab_txt=BASIC + "<m>\n",
        tokenizer_config={
            "do_lower_case": False,
            "strip_accents": True,
            "tokenize_chinese_chars": False,
            "model_max_length": 128,
            "mask_token": {"__type": "AddedToken", "content": "<m>", "lstrip": True},
            "padding_side": "left",
            "truncation_side": "left",
            "clean_up_tokenization_spaces": True,
            "tokenizer_class": "BertTokenizer",
            "never_split": None,
        },
    )
    assert repr(DistilBertTokenizer.from_pretrained(str(folder))) == (
        "DistilBertTokenizer(unk_token='[UNK]', cls_token='[CLS]', sep_token='[SEP]', pad_token='[PAD]', "
        "mask_token='<m>', clean_up_tokenization_spaces=True, do_lower_case=False, strip_accents=True, "
        "tokenize_chinese_chars=False, model_max_length=128, padding_side='left', truncation_side='left')"
    )


@pytest.mark.parametrize(
    ("config", "model", "length"),
    [
        ({}, None, None),
        ({}, {"max_position_embeddings": 64}, 64),
        ({"model_max_length": 10**9}, {"max_position_embeddings": 64}, None),
        ({"model_max_length": 10**9 - 1}, None, 10**9 - 1),
        ({"model_max_length": 1}, None, 1),
        ({}, {"dim": 8}, None),
        ({"model_max_length": 32}, {"max_position_embeddings": 64}, 32),
        ({"model_max_length": 1000000000000000019884624838656}, None, None),
        ({"model_max_length": 1e30}, None, None),
    ],
)
def test_model_max_length_comes_from_either_config(tmp_path, config, model, length):
    write(tmp_path, vocab_txt=BASIC, tokenizer_config=LOWER | config, **({"config": model} if model else {}))
    assert DistilBertTokenizer.from_pretrained(tmp_path).model_max_length == length


def tokenizer_json(**normalizer):
    return {
        "added_tokens": [{"id": 7, "content": "<e>", "normalized": False, "special": True, "extra": 1}],
        "normalizer": {"type": "BertNormalizer", **normalizer},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "model": {"type": "WordPiece", "vocab": {token: i for i, token in enumerate(BASIC.split())}},
    }


def test_a_tokenizer_json_of_2020_has_no_type_of_its_model(tmp_path):
    content = tokenizer_json(lowercase=True)
    content["model"] = OF_2020 | {"vocab": content["model"]["vocab"]}
    assert DistilBertTokenizer.from_pretrained(write(tmp_path, tokenizer=content)).encode("a") == [2, 5, 3]
    null = content | {"model": content["model"] | {"type": None}}
    with pytest.raises(ValueError, match=r"model\.type in tokenizer\.json must be 'WordPiece', not None"):
        DistilBertTokenizer.from_pretrained(write(tmp_path, tokenizer=null))
    for name in content["model"]:  # without one of them, the Rust library reads another kind of model
        cut = content | {"model": {key: value for key, value in content["model"].items() if key != name}}
        with pytest.raises(ValueError, match=r"model\.type in tokenizer\.json must be 'WordPiece', not None"):
            DistilBertTokenizer.from_pretrained(write(tmp_path, tokenizer=cut))


def test_the_entries_of_a_tokenizer_json_are_counted_before_they_are_copied(tmp_path, monkeypatch):
    write(tmp_path, tokenizer=tokenizer_json(lowercase=True))  # 7 of them
    monkeypatch.setattr("minibert.tokenizer.files.MAX_SIZE", 7)
    DistilBertTokenizer.from_pretrained(tmp_path)
    monkeypatch.setattr("minibert.tokenizer.files.MAX_SIZE", 6)
    with pytest.raises(ValueError, match=r"json: 7 tokens, 6 are the most"):
        DistilBertTokenizer.from_pretrained(tmp_path)


def test_tokenizer_json_alone_is_enough(tmp_path):
    content = tokenizer_json(lowercase=False, strip_accents=True, handle_chinese_chars=False, clean_text=True)
    tokenizer = DistilBertTokenizer.from_pretrained(write(tmp_path, tokenizer=content))
    assert (tokenizer.do_lower_case, tokenizer.strip_accents, tokenizer.tokenize_chinese_chars) == (False, True, False)
    assert tokenizer.encode("á<e>A") == [2, 5, 7, 1, 3]
    assert tokenizer.decode([7, 5], skip_special_tokens=True) == "a"
    write(tmp_path, tokenizer_config=LOWER)  # comes before tokenizer.json
    assert DistilBertTokenizer.from_pretrained(tmp_path).encode("A") == [2, 5, 3]


NO_VOCAB = tokenizer_json(lowercase=True) | {"model": {"type": "WordPiece"}}
OF_2020 = {"unk_token": "[UNK]", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100}  # without a type
TEMPLATE = {
    "type": "TemplateProcessing",
    "single": [{"SpecialToken": {"id": "[CLS]"}}, {"Sequence": {"id": "A"}}, {"SpecialToken": {"id": "[SEP]"}}],
}


@pytest.mark.parametrize(
    ("part", "values", "message"),
    [
        ("model", {"continuing_subword_prefix": "@@"}, "model.continuing_subword_prefix in .* must be '##', not '@@'"),
        ("model", {"max_input_chars_per_word": 5}, "model.max_input_chars_per_word in .* must be 100, not 5"),
        (
            "normalizer",
            {"type": "Lowercase"},
            "normalizer.type in tokenizer.json must be 'BertNormalizer', not 'Lowerc",
        ),
        ("normalizer", {"clean_text": False}, "normalizer.clean_text in tokenizer.json must be True, not False"),
        ("pre_tokenizer", {"type": "Whitespace"}, "pre_tokenizer.type in .* must be 'BertPreTokenizer', not 'Whitesp"),
        ("post_processor", {"type": "RobertaProcessing"}, "a post_processor of type 'RobertaProcessing'"),
        (
            "post_processor",
            {"type": "BertProcessing", "cls": ["[SEP]", 3], "sep": ["[CLS]", 2]},
            r"makes rows of \['\[SEP\]', 'A', '\[CLS\]'\], not \['\[CLS\]', 'A', '\[SEP\]'\]",
        ),
        (
            "post_processor",
            {"type": "BertProcessing", "cls": ["[CLS]", 1], "sep": ["[SEP]", 3]},
            r"gives '\[CLS\]' the ids \[1\], the vocabulary \[2\]",
        ),
        (
            "post_processor",
            {"special_tokens": {"[CLS]": {"ids": [2]}, "[SEP]": {"ids": [3, 3]}}},
            r"gives '\[SEP\]' the ids \[3, 3\], the vocabulary \[3\]",
        ),
        ("post_processor", {"type": "BertProcessing", "cls": ["[CLS]", 2], "sep": ""}, "writes them: IndexError"),
        ("post_processor", {"single": TEMPLATE["single"][:2]}, r"makes rows of \['\[CLS\]', 'A'\], not"),
    ],
)
def test_a_tokenizer_json_of_another_tokenizer_is_refused(tmp_path, part, values, message):
    content = {**tokenizer_json(lowercase=True), "post_processor": TEMPLATE}
    assert DistilBertTokenizer.from_pretrained(write(tmp_path, tokenizer=content)).encode("A") == [2, 5, 3]
    content[part] = {**content.get(part, {}), **values}
    with pytest.raises(ValueError, match=message):
        DistilBertTokenizer.from_pretrained(write(tmp_path, tokenizer=content))


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ({"<e>": 7, "<f>": 7}, "the added tokens '<e>' and '<f>' have the same id, 7"),
        ({"a": 7}, "the added token 'a' has two ids, 5 and 7"),
    ],
)
def test_an_added_token_has_one_id_and_an_id_one_added_token(tmp_path, ids, message):
    added = [{"id": i, "content": token} for token, i in ids.items()]
    for files in (
        {"vocab_txt": BASIC, "added_tokens": ids, "tokenizer_config": LOWER},
        {"tokenizer": tokenizer_json(lowercase=True) | {"added_tokens": added}},
    ):
        with pytest.raises(ValueError, match=message):
            DistilBertTokenizer.from_pretrained(write(tmp_path, **files))


def test_an_error_shows_the_beginning_of_a_long_value(tmp_path):
    content = tokenizer_json(lowercase=True)
    for change in ({"model": content["model"] | {"unk_token": LONG}}, {"post_processor": {"type": LONG}}):
        with pytest.raises(ValueError, match="aaa") as error:
            DistilBertTokenizer.from_pretrained(write(tmp_path, tokenizer=content | change))
        assert len(str(error.value)) < 400 + len(str(tmp_path))


def test_the_unknown_token_of_tokenizer_json(tmp_path):
    content = tokenizer_json(lowercase=True)
    content["model"]["unk_token"] = "b"
    assert DistilBertTokenizer.from_pretrained(write(tmp_path, tokenizer=content)).encode("zz") == [2, 6, 3]
    write(tmp_path, tokenizer_config={"unk_token": "[UNK]"})
    assert DistilBertTokenizer.from_pretrained(tmp_path).encode("zz") == [2, 1, 3]


@pytest.mark.parametrize("content", [3, None, ["<e>"]])
@pytest.mark.parametrize("file", ["tokenizer", "tokenizer_config"])
def test_an_added_token_that_is_not_a_str_is_refused(tmp_path, file, content):
    token = {"id": 7, "content": content}
    if file == "tokenizer":
        write(tmp_path, tokenizer={**tokenizer_json(lowercase=True), "added_tokens": [token]})
    else:
        write(tmp_path, vocab_txt=BASIC, tokenizer_config=LOWER | {"added_tokens_decoder": {"7": token}})
    with pytest.raises(ValueError, match=r"not as transformers writes them: TypeError.*content of an added token is"):
        DistilBertTokenizer.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("word", "lowers"), [("a", True), ("A", False), ("[UNUSED]", True), ("[A", False), ("A]", False)]
)
def test_without_a_setting_do_lower_case_follows_the_capitals_with_a_warning(tmp_path, word, lowers):
    write(tmp_path, vocab_txt=BASIC + word)
    with pytest.warns(
        UserWarning, match=f"no file has the setting do_lower_case. The vocabulary suggests {lowers}: write"
    ) as caught:
        tokenizer = DistilBertTokenizer.from_pretrained(tmp_path)
    assert tokenizer.do_lower_case is lowers
    assert caught[0].filename == __file__


@pytest.mark.parametrize("name", [3, None, "other.txt", "vocab-0.txt"])
def test_a_vocab_file_of_another_name_is_not_read(tmp_path, name):
    write(tmp_path, vocab_txt=BASIC, tokenizer_config=LOWER | {"vocab_file": name})
    assert DistilBertTokenizer.from_pretrained(tmp_path).vocab == {word: i for i, word in enumerate(BASIC.split())}


def test_tokens_added_to_vocab_txt(tmp_path):
    decoder = {"7": {"content": "<e>", "normalized": True, "special": False}}
    write(tmp_path, vocab_txt=BASIC, tokenizer_config=LOWER | {"added_tokens_decoder": decoder})
    assert DistilBertTokenizer.from_pretrained(tmp_path).encode("a<E>") == [2, 5, 7, 3]


def test_added_tokens_in_separate_files(tmp_path):
    write(
        tmp_path,
        vocab_txt=BASIC,
        tokenizer_config=LOWER,
        added_tokens={"<e>": 7, "<f>": 8, "<g>": 9},
        special_tokens_map={"additional_special_tokens": ["<f>", {"content": "<g>"}]},
    )
    tokenizer = DistilBertTokenizer.from_pretrained(tmp_path)
    assert tokenizer.encode("<E><f><g>", add_special_tokens=False) == [7, 8, 9]
    assert tokenizer.all_special_tokens[-2:] == ["<f>", "<g>"]
    (tmp_path / "special_tokens_map.json").unlink()
    assert DistilBertTokenizer.from_pretrained(tmp_path).encode("<F>", add_special_tokens=False) == [8]


@pytest.mark.parametrize(
    ("files", "error", "message"),
    [
        ({}, OSError, "it has no tokenizer, neither tokenizer.json nor vocab.txt"),
        ({"vocab_txt": b"\xff\xfe"}, ValueError, "vocab.txt: not UTF-8"),
        ({"vocab_txt": b"", "tokenizer_config": LOWER}, ValueError, r"vocab\.txt: the file is empty"),
        ({"vocab_txt": MANY}, ValueError, "vocab.txt: 2000001 tokens, 2000000 are the most"),
        ({"vocab_txt": "a\nb", "tokenizer_config": LOWER}, ValueError, "the vocabulary of 2 tokens lacks '.UNK.', "),
        ({"tokenizer": "{"}, ValueError, "not valid JSON"),
        (
            {"tokenizer": {"model": {"type": "BPE"}}},
            ValueError,
            "model.type in tokenizer.json must be 'WordPiece', not 'BPE",
        ),
        ({"tokenizer": {}}, ValueError, "model.type in tokenizer.json must be 'WordPiece', not None"),
        ({"tokenizer": NO_VOCAB | {"normalizer": None}}, ValueError, "normalizer.type .* 'BertNormalizer', not None"),
        ({"tokenizer": NO_VOCAB}, ValueError, "not as transformers writes them: KeyError"),
        ({"tokenizer": tokenizer_json() | {"added_tokens": {}}}, ValueError, "added_tokens is not a list"),
        (
            {"tokenizer": tokenizer_json() | {"added_tokens": [{"id": True, "content": "x"}]}},
            ValueError,
            "numbers as ids",
        ),
        ({"tokenizer": tokenizer_json() | {"added_tokens": [{"id": 7, "content": ["x"] * 999}]}}, ValueError, "writes"),
        ({"tokenizer": NO_VOCAB | {"model": OF_2020 | {"vocab": 3}}}, ValueError, "writes them: AttributeError"),
        ({"tokenizer": NO_VOCAB | {"model": OF_2020 | {"vocab": {"a": [1]}}}}, ValueError, "unhashable"),
        (
            {"tokenizer": NO_VOCAB | {"model": OF_2020 | {"vocab": [["a", 1]]}}},
            ValueError,
            "writes them: AttributeError",
        ),
        (
            {"tokenizer": NO_VOCAB | {"model": OF_2020 | {"vocab": {"a": True}}}},
            ValueError,
            "must be different integers",
        ),
        ({"tokenizer": NO_VOCAB | {"pre_tokenizer": None}}, ValueError, "pre_tokenizer.type .* not None"),
        ({"tokenizer": NO_VOCAB | {"normalizer": {"lowercase": True}}}, ValueError, "normalizer.type .* not None"),
        (
            {"vocab_txt": BASIC, "tokenizer_config": {"added_tokens_decoder": {"7": "<e>"}}},
            ValueError,
            "not as transformers writes them",
        ),
        (
            {"vocab_txt": BASIC, "tokenizer_config": {"added_tokens_decoder": {"x": {"content": "y"}}}},
            ValueError,
            "ids of added_tokens_decoder must be numbers",
        ),
        (
            {"vocab_txt": BASIC, "tokenizer_config": LOWER | {"model_max_length": "5"}},
            ValueError,
            "model_max_length must be an integer, at least 1, not '5'",
        ),
        (
            {"vocab_txt": BASIC, "tokenizer_config": LOWER | {"padding_side": "up"}},
            ValueError,
            "padding_side must be one of",
        ),
    ],
)
def test_files_without_a_valid_tokenizer_are_refused(tmp_path, files, error, message):
    with pytest.raises(error, match=message) as caught:
        DistilBertTokenizer.from_pretrained(write(tmp_path, **files))
    assert str(tmp_path) in str(caught.value)
    assert len(str(caught.value)) < 800


def test_saving_and_loading_changes_nothing(tmp_path):
    tokenizer = with_added(
        AddedToken("<E 1>", normalized=True, single_word=True, lstrip=True),
        AddedToken("é!", special=True, rstrip=True),
        do_lower_case=False,
        strip_accents=True,
        model_max_length=77,
        padding_side="left",
    )
    tokenizer.save_pretrained(tmp_path / "new" / "folder")
    again = DistilBertTokenizer.from_pretrained(tmp_path / "new" / "folder")
    assert repr(again) == repr(tokenizer)
    assert again.vocab == tokenizer.vocab
    assert again.added_tokens == tokenizer.added_tokens
    assert again.all_special_ids == tokenizer.all_special_ids
    config = json.loads((tmp_path / "new" / "folder" / "tokenizer_config.json").read_text())
    assert (config["tokenizer_class"], config["model_max_length"]) == ("DistilBertTokenizer", 77)
    assert {path.name for path in (tmp_path / "new" / "folder").iterdir()} == {"vocab.txt", "tokenizer_config.json"}


def test_saving_keeps_ids_where_some_have_no_token(tmp_path):
    vocab = {"[UNK]": 1, "[CLS]": 3, "[SEP]": 4, "": 6, "\u2028a": 8, "\ufeffb": 5}
    DistilBertTokenizer(vocab).save_pretrained(tmp_path)
    assert DistilBertTokenizer.from_pretrained(tmp_path).vocab == vocab


def test_saving_replaces_a_tokenizer_of_another_format(tmp_path):
    write(tmp_path, tokenizer=tokenizer_json(lowercase=True), added_tokens={"<x>": 9}, special_tokens_map={})
    SMALL.save_pretrained(tmp_path)
    assert DistilBertTokenizer.from_pretrained(tmp_path).vocab == LETTERS


@pytest.mark.parametrize("token", ["a ", "a\nb", "\u3000"])
def test_a_token_that_a_line_cannot_hold_is_not_saved(tmp_path, token):
    tokenizer = DistilBertTokenizer({**LETTERS, token: len(LETTERS)})
    with pytest.raises(ValueError, match=r"vocab.txt cannot hold tokens with a line break, or with white space at"):
        tokenizer.save_pretrained(tmp_path / "folder")
    assert not (tmp_path / "folder").exists()


def test_a_vocabulary_whose_file_could_not_be_read_again_is_not_written(tmp_path):
    vocab = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]": 4, "w" * 100: 1_999_999}
    with pytest.raises(ValueError, match=r"would have 201\d+ bytes, .* 1999994 are of ids without a token, and"):
        DistilBertTokenizer(vocab).save_pretrained(tmp_path / "folder")
    assert not (tmp_path / "folder").exists()


def test_tokenizers_are_copied_pickled_and_shared_by_threads():
    texts = [f"The naïve movie {i} is tokenization" for i in range(200)]
    expected = UNCASED(texts)
    for tokenizer in (copy.deepcopy(UNCASED), pickle.loads(pickle.dumps(UNCASED))):
        assert tokenizer(texts) == expected
    shared = DistilBertTokenizer(VOCAB)
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(shared.encode, texts)) == expected.input_ids

"""The tokenizer against transformers' tokenizer and the Rust library, on every character and on random texts."""

import json
import random
import warnings

import pytest

from minibert import DistilBertTokenizer
from minibert.tokenizer.rows import kept_lengths
from minibert.tokenizer.unicode_tables import DROPPED, MARKS, NEWER, WHITE_SPACE, decompose, is_word_character
from minibert.tokenizer.wordpiece import AddedToken

from .test_tokenizer import VOCAB, WORDS

pytest.importorskip("transformers")
import tokenizers
import transformers
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

pytestmark = pytest.mark.reference

NORMALIZATIONS = [  # do_lower_case, strip_accents, tokenize_chinese_chars
    *((True, None, True), (False, None, True), (True, False, True), (False, True, False)),
]


def pair(do_lower_case=True, strip_accents=None, tokenize_chinese_chars=True, vocab=VOCAB):
    options = {
        "do_lower_case": do_lower_case,
        "strip_accents": strip_accents,
        "tokenize_chinese_chars": tokenize_chinese_chars,
        "model_max_length": 512,
    }
    return DistilBertTokenizer(vocab, **options), transformers.DistilBertTokenizer(vocab=dict(vocab), **options)


PAIRS = {options: pair(*options) for options in NORMALIZATIONS}
each_pair = pytest.mark.parametrize(("ours", "theirs"), PAIRS.values(), ids=map(str, PAIRS))


def assert_equal_encodings(ours, theirs, *texts, **options):
    """The same columns, word_ids, sequence_ids, tokens, and tokens of the first characters."""
    mine, reference = ours(*texts, **options), theirs(*texts, **options)
    assert dict(mine) == dict(reference.data)
    for i in range(len(reference.encodings)):
        assert mine.word_ids(i) == reference.word_ids(i)
        assert mine.sequence_ids(i) == reference.sequence_ids(i)
        assert mine.tokens(i) == ours.convert_ids_to_tokens(reference.encodings[i].ids)
        for text in {0, 1} & set(mine.sequence_ids(i)):
            for char in range(4):
                assert mine.char_to_token(i, char, text) == reference.char_to_token(i, char, text)


@each_pair
def test_nasty_texts(ours, theirs):
    texts = [*WORDS, " ".join(WORDS), "".join(WORDS)]
    assert_equal_encodings(ours, theirs, texts, return_offsets_mapping=True, return_special_tokens_mask=True)
    for text in texts:
        assert_equal_encodings(ours, theirs, text)


@each_pair
def test_every_character(ours, theirs):
    last_planes = range(0xE0000, 0x110000, 7)  # but for a few, all private use
    characters = [chr(code_point) for code_point in (*range(0xD800), *range(0xE000, 0x33480), *last_planes)]
    normalizer, pre_tokenizer = theirs.backend_tokenizer.normalizer, theirs.backend_tokenizer.pre_tokenizer
    for start in range(0, len(characters), 4096):
        text = " ".join(f"a{character}b" for character in characters[start : start + 4096])
        words = [word for word, _ in pre_tokenizer.pre_tokenize_str(normalizer.normalize_str(text))]
        assert ours._wordpiece.normalize(text).split() == words


def test_any_run_of_marks_is_decomposed_as_in_rust():
    reference = tokenizers.normalizers.NFD()
    rng = random.Random(0)
    marks = [chr(code_point) for code_point in sorted(MARKS | NEWER)] + list("eé한\u0344\u302e\u302f\U0001d165 ") * 20
    for _ in range(20_000):
        text = "".join(rng.choices(marks, k=rng.randint(1, 12)))
        assert decompose(text) == reference.normalize_str(text)


# Characters in the vocabulary, characters with special rules, and any others.
characters = st.one_of(
    st.sampled_from([token for token in VOCAB if len(token) == 1]),
    st.sampled_from([chr(code_point) for code_point in sorted(DROPPED | WHITE_SPACE)]),
    st.characters(codec="utf-8"),
)
texts = st.lists(
    st.one_of(
        st.text(characters, max_size=8),
        st.sampled_from([token for token in VOCAB if len(token) > 1]),
        st.sampled_from([*WORDS, " ", " "]),
    ),
    max_size=8,
).map("".join)
hypothesis = settings(
    max_examples=250, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), database=None
)


@each_pair
@hypothesis
@given(text=texts)
def test_any_text(ours, theirs, text):
    assert_equal_encodings(ours, theirs, text, return_offsets_mapping=True, return_special_tokens_mask=True)
    ids = ours.encode(text)
    assert ours.tokenize(text) == theirs.tokenize(text)
    for options in ({}, {"skip_special_tokens": True}, {"clean_up_tokenization_spaces": True}):
        assert ours.decode(ids, **options) == theirs.decode(ids, **options)


ids = st.lists(st.sampled_from(sorted(VOCAB.values())), max_size=12)


@hypothesis
@given(rows=st.lists(ids, min_size=1, max_size=4), skip=st.booleans(), clean=st.sampled_from([None, True, False]))
def test_any_ids_to_text(rows, skip, clean):
    ours, theirs = PAIRS[NORMALIZATIONS[0]]
    options = {"skip_special_tokens": skip, "clean_up_tokenization_spaces": clean}
    assert ours.batch_decode(rows, **options) == theirs.batch_decode(rows, **options)
    for row in rows:
        assert ours.decode(row, **options) == theirs.decode(row, **options)
        assert ours.convert_ids_to_tokens(row, skip) == theirs.convert_ids_to_tokens(row, skip)


@st.composite
def calls(draw):
    """Texts, pairs or lists of words, and options that both tokenizers accept."""
    is_split = draw(st.booleans())
    text = st.lists(texts, min_size=1, max_size=4) if is_split else texts
    count = draw(st.integers(1, 3))
    arguments = [draw(st.lists(text, min_size=count, max_size=count)) for _ in range(draw(st.integers(1, 2)))]
    if draw(st.booleans()) and (len(arguments) == 1 or arguments[1][0]):  # transformers: "" is no second text
        arguments = [argument[0] for argument in arguments]
    elif draw(st.booleans()):
        arguments = [list(zip(*arguments, strict=True)) if len(arguments) == 2 else arguments[0]]
    options = {
        "is_split_into_words": is_split,
        "padding": draw(st.sampled_from([False, True, "longest", "max_length"])),
        "truncation": draw(st.sampled_from([False, True, "longest_first", "only_first", "only_second"])),
        "padding_side": draw(st.sampled_from([None, "left", "right"])),
        "pad_to_multiple_of": draw(st.sampled_from([None, 4])),
        "add_special_tokens": draw(st.booleans()),
        "return_overflowing_tokens": draw(st.booleans()),
        "return_token_type_ids": draw(st.sampled_from([None, True, False])),
        "return_attention_mask": draw(st.sampled_from([None, True, False])),
        "return_offsets_mapping": True,
        "return_special_tokens_mask": True,
    }
    if options["truncation"] or options["padding"] == "max_length":
        options["max_length"] = draw(st.sampled_from([4, 8, 12, 24]))
    if options["return_overflowing_tokens"] and options["truncation"]:
        options["stride"] = draw(st.integers(0, min(3, options["max_length"] - 4)))
    return arguments, options, draw(st.sampled_from(["left", "right"]))


@settings(hypothesis, max_examples=400)
@given(call=calls())
def test_any_call(call):
    arguments, options, truncation_side = call
    ours, theirs = PAIRS[NORMALIZATIONS[0]]
    ours.truncation_side = theirs.truncation_side = truncation_side
    try:
        ours(*arguments, **options)
    except ValueError as error:
        # transformers refuses the same with an error or a panic, except windows of 0 tokens: its rows are then longer
        # than max_length.
        if "windows of 0 tokens" not in str(error):
            with pytest.raises(BaseException, match=r"too short|cannot|stride|second|Truncation error"):
                theirs(*arguments, **options)
        return
    assert_equal_encodings(ours, theirs, *arguments, **options)


def test_truncation_of_a_pair_to_every_length():
    _, theirs = PAIRS[NORMALIZATIONS[0]]
    for first in range(8):
        for second in range(8):
            for room in range(17):
                reference = theirs(
                    ["the " * first], ["the " * second], truncation=True, max_length=room, add_special_tokens=False
                )
                kept = [reference.sequence_ids(0).count(i) for i in (0, 1)] if room else [0, 0]
                assert list(kept_lengths(first, second, room, "longest_first")) == kept


def test_characters_of_a_word_are_those_of_rust():
    """A token of a single word is not found before such a character: both ends of each of our ranges, and samples."""
    rust = tokenizers.Tokenizer(tokenizers.models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    rust.add_tokens([tokenizers.AddedToken("the", single_word=True)])
    is_word = [is_word_character(chr(c)) for c in range(0x110000)]
    ends = [c for c in range(1, 0x110000) if is_word[c] != is_word[c - 1]]
    points = {*range(0, 0x40000, 13), *range(0, 0x110000, 1009), *ends, *(c - 1 for c in ends)}
    characters = [chr(c) for c in sorted(points) if not 0xD800 <= c < 0xE000]
    encoding = rust.encode("".join(f"the{character} " for character in characters))
    found = {start for (start, _), i in zip(encoding.offsets, encoding.ids, strict=True) if i == 1}
    assert [i * 5 not in found for i in range(len(characters))] == list(map(is_word_character, characters))


ADDED = [
    AddedToken("<e1>", special=True),
    AddedToken("<E2>"),
    AddedToken("new token", normalized=True),
    AddedToken("ñandú", normalized=True, single_word=True),
    AddedToken("日本", normalized=True),
    AddedToken("the", single_word=True),
    AddedToken("them"),
    AddedToken("<e1>s", rstrip=True, lstrip=True),
]
pieces = st.sampled_from(
    ["<e1>", "<E2>", "<e2>", "New Token", "NANDU", "ñandú", "日本", "the", "them", "theme", "s", "é"]
)
added_texts = st.lists(st.one_of(pieces, st.sampled_from([" ", "a", ".", "_", "\u0301"])), max_size=8).map("".join)


@pytest.fixture(scope="module")
def added_pair(tmp_path_factory):
    """A tokenizer with added tokens, read from what transformers saves: tokenizer.json without vocab.txt."""
    folder = tmp_path_factory.mktemp("added")
    _, theirs = pair()
    theirs.add_tokens([tokenizers.AddedToken(**vars(token)) for token in ADDED])
    theirs.save_pretrained(folder)
    assert not (folder / "vocab.txt").exists()
    return DistilBertTokenizer.from_pretrained(folder), transformers.DistilBertTokenizer.from_pretrained(folder), folder


@hypothesis
@given(text=added_texts)
@example(text="ñandú_")
@example(text="_ñandú")
@example(text="_ ñandú _")
def test_any_text_with_added_tokens(added_pair, text):
    ours, theirs, _ = added_pair
    assert_equal_encodings(ours, theirs, text)


def test_a_tokenizer_that_transformers_saved_is_the_same(added_pair):
    ours, theirs, _ = added_pair
    assert ours.vocab == theirs.get_vocab()
    assert (ours.vocab_size, len(ours), ours.model_max_length) == (theirs.vocab_size, len(theirs), 512)
    for name in ("unk_token", "cls_token", "sep_token", "pad_token", "mask_token"):
        assert getattr(ours, name) == getattr(theirs, name)
        assert getattr(ours, f"{name}_id") == getattr(theirs, f"{name}_id")


@pytest.mark.parametrize("loader", [transformers.AutoTokenizer, transformers.DistilBertTokenizer])
def test_transformers_loads_what_is_saved_here_without_a_warning(added_pair, tmp_path, loader, caplog):
    ours, theirs, _ = added_pair
    ours.save_pretrained(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = loader.from_pretrained(tmp_path)
    assert not caplog.records
    assert type(loaded) is transformers.DistilBertTokenizer
    assert loaded.get_vocab() == theirs.get_vocab()
    assert loaded.model_max_length == 512
    text = "the ñandú<e1>s <E2> tokenization <e2> NEW TOKEN"
    assert loaded(text) == theirs(text)
    assert list(loaded(text)) == ["input_ids", "attention_mask"]


@pytest.mark.parametrize("do_lower_case", [True, False])
def test_a_cased_tokenizer_stays_cased_in_both_directions(tmp_path, do_lower_case):
    ours, theirs = pair(do_lower_case)
    ours.save_pretrained(tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs")
    loaded = transformers.AutoTokenizer.from_pretrained(tmp_path / "ours")
    read = DistilBertTokenizer.from_pretrained(tmp_path / "theirs")
    for text in WORDS:
        assert read.encode(text) == ours.encode(text) == loaded.encode(text) == theirs.encode(text)


def test_old_checkpoints_with_vocab_txt_only(tmp_path):
    lines = ["[PAD]", "[UNK]  ", "[CLS]", "[SEP]", "[MASK]", "a", "", "b", "##c", "a", "\u2028d", "e\r"]
    (tmp_path / "vocab.txt").write_bytes("\n".join(lines).encode())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": True, "model_max_length": 9}))
    ours = DistilBertTokenizer.from_pretrained(tmp_path)
    theirs = transformers.DistilBertTokenizer.from_pretrained(tmp_path)
    assert ours.vocab == theirs.get_vocab()
    assert ours.encode("A bc e d") == theirs.encode("A bc e d") == [2, 9, 7, 8, 11, 1, 3]

"""Any tokenizer.json, tokenizer_config.json and vocab.txt. Oracle: the Rust library reads the same tokenizer.json."""

import json

import tokenizers

from minibert import DistilBertTokenizer

from .tools import accepted, edited, edited_bytes, folder_of, json_value

WORDS = "[PAD] [UNK] [CLS] [SEP] [MASK] a b c A B é e the ##a ##b ##e ##the nice ##ly ! 日 <e>".split()
TEXTS = [
    "",
    "a",
    "A é THE",
    "ab the nicely!",
    "a日b <e>a<E>",
    "zz [MASK][PAD]b",
    "a\u0301 e\u0301",
    "<e> <e>",
    "a  b\tc",
]
FLAGS = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
CONTENT = {
    "version": "1.0",
    "truncation": None,
    "padding": None,
    "added_tokens": [{"id": i, "content": word, **FLAGS} for i, word in enumerate(WORDS[:5])],
    "normalizer": {
        "type": "BertNormalizer",
        "clean_text": True,
        "handle_chinese_chars": True,
        "strip_accents": None,
        "lowercase": True,
    },
    "pre_tokenizer": {"type": "BertPreTokenizer"},
    "post_processor": {
        "type": "TemplateProcessing",
        "single": [
            {"SpecialToken": {"id": "[CLS]", "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
            {"SpecialToken": {"id": "[SEP]", "type_id": 0}},
        ],
        "pair": [
            {"SpecialToken": {"id": "[CLS]", "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
            {"SpecialToken": {"id": "[SEP]", "type_id": 0}},
            {"Sequence": {"id": "B", "type_id": 1}},
            {"SpecialToken": {"id": "[SEP]", "type_id": 1}},
        ],
        "special_tokens": {
            "[CLS]": {"id": "[CLS]", "ids": [2], "tokens": ["[CLS]"]},
            "[SEP]": {"id": "[SEP]", "ids": [3], "tokens": ["[SEP]"]},
        },
    },
    "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
    "model": {
        "type": "WordPiece",
        "unk_token": "[UNK]",
        "continuing_subword_prefix": "##",
        "max_input_chars_per_word": 100,
        "vocab": {word: i for i, word in enumerate(WORDS)},
    },
}
BERT_PROCESSING = {"type": "BertProcessing", "sep": ["[SEP]", 3], "cls": ["[CLS]", 2]}
CONFIG = {"do_lower_case": True, "model_max_length": 32, "unk_token": "[UNK]", "tokenizer_class": "DistilBertTokenizer"}
CONFIG |= {"added_tokens_decoder": {"21": {"content": "<e>", **FLAGS}}, "pad_token": {"content": "[PAD]"}}


def likely(source):
    """A value that stands somewhere in a tokenizer.json, or any other."""
    options = [*WORDS, *range(25), True, False, "Lowercase", "BPE", "Sequence", "BertPreTokenizer", BERT_PROCESSING]
    return source.choice(options) if source.once_in(2) else json_value(source)


def added(source):
    flags = {name: source.once_in(3) for name in FLAGS}
    content = source.choice([*WORDS[5:], "x", "new", "a b", " ", "<E>", "É"])
    return {"id": source.choice([len(WORDS), len(WORDS) + 1, 21, 5, 30]), "content": content, **flags}


def several_edits(source, content):
    for _ in range(source.integer(0, 3)):
        content = edited(source, content, likely)
    return content


def make(source):
    kind = source.choice(["json", "json", "json", "txt", "bytes"])
    if kind == "txt":
        lines = "\n".join(WORDS).encode()
        for _ in range(source.integer(0, 2)):
            lines = edited_bytes(source, lines)
        files = {"vocab.txt": lines, "tokenizer_config.json": several_edits(source, CONFIG)}
        for name in ("added_tokens.json", "special_tokens_map.json"):
            if source.once_in(4):
                base = {"<e>": 21, "new": 22} if name[0] == "a" else {"additional_special_tokens": ["<e>", "new"]}
                files[name] = several_edits(source, base)
        return files
    content = json.loads(json.dumps(CONTENT))
    content["added_tokens"] += source.several(lambda: added(source), 2)
    if source.once_in(3):
        content["post_processor"] = source.choice([BERT_PROCESSING, None])
    if source.once_in(2):
        name = source.choice(["lowercase", "strip_accents", "handle_chinese_chars"])
        content["normalizer"][name] = source.choice([True, False, None])
    content = several_edits(source, content)
    files = {"tokenizer.json": content}
    if kind == "bytes":
        files["tokenizer.json"] = edited_bytes(source, json.dumps(content).encode())
    if source.once_in(4):
        files["tokenizer_config.json"] = several_edits(source, CONFIG)
    return files


def check(files):
    with folder_of(files) as folder:
        ours = accepted(lambda: DistilBertTokenizer.from_pretrained(folder))
        if ours is None:
            return False
        encoded = [ours.encode(text) for text in TEXTS]
        if "tokenizer_config.json" not in files and "tokenizer.json" in files:  # otherwise the former may change it
            compare_with_rust(json.loads((folder / "tokenizer.json").read_bytes()), ours, encoded)
        decoded = [ours.decode(ids) for ids in encoded]
    with folder_of({}) as folder:
        if accepted(lambda: ours.save_pretrained(folder) or True) is None:
            return True
        again = DistilBertTokenizer.from_pretrained(folder)
        assert again.get_vocab() == ours.get_vocab(), "saved and loaded, the vocabulary differs"
        assert [again.encode(text) for text in TEXTS] == encoded, "saved and loaded, the ids differ"
        assert [again.decode(ids) for ids in encoded] == decoded, "saved and loaded, the decoded texts differ"
    return True


def compare_with_rust(content, ours, encoded):
    """The Rust library takes the file too, and gives the same ids. Parts that minibert does not read are made valid."""
    content = {name: value for name, value in content.items() if name in CONTENT}
    content |= {name: CONTENT[name] for name in ("version", "truncation", "padding", "decoder", "pre_tokenizer")}
    content["model"] = {name: value for name, value in content["model"].items() if name in CONTENT["model"]}
    for token in content.get("added_tokens", []):
        for name in token.keys() - {"id", "content", *FLAGS}:
            del token[name]
    post = content.get("post_processor")
    if post and post["type"] == "TemplateProcessing":  # minibert reads its tokens and their ids
        given = {token: special["ids"] for token, special in post.get("special_tokens", {}).items()}
        specials = {
            token: {"id": token, "tokens": [token], "ids": given.get(token, [ours.vocab[token]])}
            for token in ("[CLS]", "[SEP]")
        }
        content["post_processor"] = CONTENT["post_processor"] | {"special_tokens": specials}
    elif post:
        content["post_processor"] = {**post, "cls": post["cls"][:2], "sep": post["sep"][:2]}
    if content["normalizer"].keys() != CONTENT["normalizer"].keys():  # minibert then takes DistilBERT's value
        return
    try:
        theirs = tokenizers.Tokenizer.from_str(json.dumps(content))
    except Exception as error:
        if "missing field" in str(error):  # minibert then takes DistilBERT's value
            return
        raise AssertionError(f"the Rust library refuses the file: {error}") from None
    added = {token["content"]: token["id"] for token in content.get("added_tokens", [])}
    if any(theirs.token_to_id(token) != i for token, i in added.items()):  # it numbers added tokens anew
        return
    if not set(ours.special_tokens_map.values()) <= added.keys():  # minibert finds all of them in a text
        return
    for one, ids in zip(TEXTS, encoded, strict=True):
        expected = theirs.encode(one).ids
        assert (ids if post is not None else ids[1:-1]) == expected, f"{one!r} is {ids}, in the Rust library {expected}"
    assert ours.get_vocab() == theirs.get_vocab(), "the vocabulary differs from that of the Rust library"

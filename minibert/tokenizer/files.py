"""A tokenizer on disk: vocab.txt or tokenizer.json, and tokenizer_config.json."""

import re
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from ..checkpoint import LARGEST_TEXT, CheckpointFiles, write_pair
from .vocabulary import MAX_SIZE
from .wordpiece import MAX_WORD_CHARS, AddedToken

NO_LIMIT = 10**9  # where the model's limit is unknown, transformers writes a model_max_length of 10**30
VOCAB_FILE = re.compile(r"vocab-minibert-[0-9a-f]{32}\.txt")  # tokenizer_config.json names it where a save was killed
NORMALIZER_SETTINGS = {  # name in tokenizer.json: name in tokenizer_config.json
    "lowercase": "do_lower_case",
    "strip_accents": "strip_accents",
    "handle_chinese_chars": "tokenize_chinese_chars",
}


TOKENIZER_JSON: dict[str, dict[str, object]] = {  # the settings that this tokenizer knows
    "model": {"type": "WordPiece", "continuing_subword_prefix": "##", "max_input_chars_per_word": MAX_WORD_CHARS},
    "normalizer": {"type": "BertNormalizer", "clean_text": True},
    "pre_tokenizer": {"type": "BertPreTokenizer"},
}


def read_tokenizer(
    files: CheckpointFiles, names: Iterable[str], given: Mapping[str, Any]
) -> tuple[dict[str, int], dict[int, AddedToken], dict[str, Any]]:
    """Read a checkpoint's tokenizer.

    Where tokenizer_config.json and tokenizer.json differ, tokenizer_config.json counts. If neither has
    `do_lower_case`, it is False for a vocabulary with capitals, with a warning.

    Args:
        files: of the checkpoint.
        names: of the settings to read.
        given: settings that replace those of the files.

    Returns:
        The vocabulary, token to id; the added tokens, id to token; and the settings found.

    Raises:
        OSError: the checkpoint does not exist, or has no tokenizer.
        ValueError: a file has not the content that its name promises.
    """
    config, vocab, added_tokens, settings = files.read_whole("tokenizer_config.json", lambda: _read_files(files))
    settings |= {name: _content(config[name]) for name in names if config.get(name) is not None}
    settings |= {name: None for name in ("pad_token", "mask_token") if config.get(name, "") is None}
    settings |= given
    if "model_max_length" not in settings:
        settings["model_max_length"] = (files.read_json("config.json") or {}).get("max_position_embeddings")
    elif isinstance(settings["model_max_length"], (int, float)) and settings["model_max_length"] >= NO_LIMIT:
        settings["model_max_length"] = None
    if "do_lower_case" not in settings:
        words = [token for token in vocab if not (token.startswith("[") and token.endswith("]"))]
        settings["do_lower_case"] = all(word == word.lower() for word in words)
        warnings.warn(
            f"{files.name}: no file has the setting do_lower_case. The vocabulary suggests "
            f"{settings['do_lower_case']}: write this into tokenizer_config.json",
            stacklevel=4,  # the caller of from_pretrained
        )
    return vocab, added_tokens, settings


def _read_files(
    files: CheckpointFiles,
) -> tuple[dict[str, Any], dict[str, int], dict[int, AddedToken], dict[str, Any]]:
    """Return tokenizer_config.json, the vocabulary, the added tokens, and the settings that tokenizer.json holds."""
    config = files.read_json("tokenizer_config.json") or {}
    vocab_file = config.get("vocab_file")
    if not (isinstance(vocab_file, str) and VOCAB_FILE.fullmatch(vocab_file)):
        vocab_file = None
    content = files.read_json("tokenizer.json") if vocab_file is None else None
    settings: dict[str, Any] = {}
    try:
        if content is None:
            vocab = read_vocab_txt(files, vocab_file or "vocab.txt")
            added_tokens = read_added_tokens(files, config)
        else:
            check_tokenizer_json(files, content)
            pairs = content["model"]["vocab"].items()
            check_size(f"{files.name}: tokenizer.json", len(pairs))
            vocab = dict(pairs)
            added = content.get("added_tokens", [])
            if not isinstance(added, list) or not all(type(token["id"]) is int for token in added):
                raise TypeError("added_tokens is not a list of tokens with numbers as ids")
            added_tokens = _by_id(files, ((token["id"], _added_token(token)) for token in added))
            ids = vocab | {token.content: i for i, token in added_tokens.items()}
            check_post_processor(files, content.get("post_processor"), config, ids)
            normalizer = content.get("normalizer") or {}
            settings = {NORMALIZER_SETTINGS[name]: normalizer[name] for name in NORMALIZER_SETTINGS & normalizer.keys()}
            settings["unk_token"] = content["model"].get("unk_token", "[UNK]")
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        raise ValueError(
            f"{files.name}: the tokenizer's files are not as transformers writes them: {error!r:.300}"
        ) from None
    return config, vocab, added_tokens, settings


def check_tokenizer_json(files: CheckpointFiles, content: Mapping[str, Any]) -> None:
    """Refuse a tokenizer.json that describes another tokenizer than this one.

    Args:
        files: of the checkpoint, for its name.
        content: of tokenizer.json. A setting that it does not have is as here.

    Raises:
        ValueError: a setting has a value that this tokenizer does not know.
    """
    for part, expected in TOKENIZER_JSON.items():
        # Files of 2020 have no model.type, but all settings. Another part without a type does not exist, or is null.
        found = {} | (content.get(part) or {})
        of_2020 = part == "model" and found.keys() >= {*expected, "unk_token", "vocab"} - {"type"}
        found.setdefault("type", "WordPiece" if of_2020 else None)
        for name, value in expected.items():
            if found.get(name, value) != value:
                raise ValueError(
                    f"{files.name}: {part}.{name} in tokenizer.json must be {value!r}, not {found[name]!r:.200}"
                )


def check_post_processor(
    files: CheckpointFiles, post: Any, config: Mapping[str, Any], vocab: Mapping[str, int]
) -> None:
    """Refuse a post_processor of tokenizer.json that makes another row of a text than [CLS] text [SEP].

    Args:
        files: of the checkpoint, for its name.
        post: the post_processor; None is not refused.
        config: of tokenizer_config.json.
        vocab: token to id, with the added tokens.

    Raises:
        ValueError: the row has other tokens, or [CLS] or [SEP] has another id than in the vocabulary.
    """
    if post is None:
        return
    if post["type"] == "TemplateProcessing":
        row = [value["id"] for piece in post["single"] for value in piece.values()]
        ids = {token: special["ids"] for token, special in post.get("special_tokens", {}).items()}
    elif post["type"] == "BertProcessing":
        row = [post["cls"][0], "A", post["sep"][0]]
        ids = {post[name][0]: [post[name][1]] for name in ("cls", "sep")}
    else:
        raise ValueError(
            f"{files.name}: tokenizer.json has a post_processor of type {post['type']!r:.60}, not BertProcessing"
        )
    expected_row = [_content(config.get("cls_token") or "[CLS]"), "A", _content(config.get("sep_token") or "[SEP]")]
    if row != expected_row:
        raise ValueError(
            f"{files.name}: the post_processor in tokenizer.json makes rows of {row!r:.200}, not {expected_row!r:.200}"
        )
    for token in (row[0], row[2]):
        expected = [vocab.get(token)]
        if ids.get(token, expected) != expected:
            raise ValueError(
                f"{files.name}: the post_processor in tokenizer.json gives {token!r:.60} the ids {ids[token]!r:.60}, "
                f"the vocabulary {expected!r:.60}"
            )


def read_vocab_txt(files: CheckpointFiles, name: str = "vocab.txt") -> dict[str, int]:
    """Read vocab.txt: one token in each line, its id is the line number from 0 on; the last of equal tokens counts."""
    path = files.find(name)
    if path is None:
        raise OSError(f"{files.name}: it has no tokenizer, neither tokenizer.json nor vocab.txt{files.hint()}")
    data = files.read_bytes(path)
    check_size(str(path), data.count(b"\n"))
    try:
        lines = data.decode("utf-8-sig").split("\n")  # not splitlines(): U+2028 may be a token
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 ({error})") from None
    if lines == [""]:
        raise ValueError(f"{path}: the file is empty")
    return {line.rstrip(): i for i, line in enumerate(lines if lines[-1] else lines[:-1])}


def check_size(where: str, n_tokens: int) -> None:
    """Refuse more tokens than there are ids, before they take memory."""
    if n_tokens > MAX_SIZE:
        raise ValueError(f"{where}: {n_tokens} tokens, {MAX_SIZE} are the most")


def read_added_tokens(files: CheckpointFiles, config: Mapping[str, Any]) -> dict[int, AddedToken]:
    """Read the tokens added to those of vocab.txt; old checkpoints hold them in separate files."""
    if "added_tokens_decoder" in config:
        tokens = config["added_tokens_decoder"]
        if not all(i.isdecimal() for i in tokens):
            raise ValueError(f"{files.name}: tokenizer_config.json: the ids of added_tokens_decoder must be numbers")
        return _by_id(files, ((int(i), _added_token(token)) for i, token in tokens.items()))
    ids = files.read_json("added_tokens.json") or {}
    special_tokens = (files.read_json("special_tokens_map.json") or {}) if ids else {}
    special = {_content(token) for token in special_tokens.get("additional_special_tokens", ())}
    return _by_id(
        files, ((i, AddedToken(t, normalized=t not in special, special=t in special)) for t, i in ids.items())
    )


def write_tokenizer(
    folder: Path, vocab: Mapping[str, int], added_tokens: Mapping[int, AddedToken], settings: Mapping[str, Any]
) -> None:
    """Write a tokenizer so that `read_tokenizer` and transformers can read it.

    Raises:
        ValueError: a token that a line of vocab.txt cannot hold, or more text than `read_tokenizer` would read.
    """
    if unfit := [token for token in vocab if token != token.rstrip() or "\n" in token]:
        raise ValueError(f"vocab.txt cannot hold tokens with a line break, or with white space at the end: {unfit}")
    tokens = {i: token for token, i in vocab.items()}
    last = max(tokens)
    # The line of an id without a token repeats the last token: `read_vocab_txt` keeps the last of equal tokens.
    lines = [tokens.get(i, tokens[last]) for i in range(last + 1)]
    if (size := sum(len(line.encode()) + 1 for line in lines)) > LARGEST_TEXT:
        raise ValueError(
            f"vocab.txt would have {size} bytes, and {LARGEST_TEXT} are the most that can be read again: of its "
            f"{last + 1} lines {last + 1 - len(tokens)} are of ids without a token, and repeat {tokens[last]!r:.60}"
        )
    decoder = {str(i): asdict(token) for i, token in sorted(added_tokens.items())}
    config = {**settings, "added_tokens_decoder": decoder, "tokenizer_class": "DistilBertTokenizer"}
    special = [token.content for token in added_tokens.values() if token.special]
    if without_role := [token for token in special if token not in settings.values()]:
        config["additional_special_tokens"] = without_role  # transformers 4 and 5 both read this name
    text = "".join(f"{line}\n" for line in lines).encode()
    earlier = ("tokenizer.json", "added_tokens.json", "special_tokens_map.json")  # would be read first
    names = "tokenizer_config.json", "vocab.txt"
    write_pair(folder, names, config, "vocab_file", lambda path: path.write_bytes(text), earlier)


def _content(value: Any) -> Any:
    """Files hold a special token as a string or as a dict with the fields of an `AddedToken`."""
    return value.get("content", value) if isinstance(value, dict) else value


def _by_id(files: CheckpointFiles, tokens: Iterable[tuple[int, AddedToken]]) -> dict[int, AddedToken]:
    """Return the added tokens by id, and refuse an id that two of them have."""
    found: dict[int, AddedToken] = {}
    for i, token in tokens:
        if i in found:
            contents = f"{found[i].content!r:.60} and {token.content!r:.60}"
            raise ValueError(f"{files.name}: the added tokens {contents} have the same id, {i!r:.20}")
        found[i] = token
    return found


def _added_token(values: Mapping[str, Any]) -> AddedToken:
    token = AddedToken(**{field.name: values[field.name] for field in fields(AddedToken) if field.name in values})
    for name, value in asdict(token).items():
        if not isinstance(value, str if name == "content" else bool):
            raise TypeError(f"{name} of an added token is {value!r}")
    return token

"""A tokenizer on disk: vocab.txt or tokenizer.json, and tokenizer_config.json."""

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from ..checkpoint import CheckpointFiles, to_json, write_atomically
from .wordpiece import AddedToken

NO_LIMIT = 10**9  # where the model's limit is unknown, transformers writes a model_max_length of 10**30
NORMALIZER_SETTINGS = {  # their names in tokenizer.json, and in tokenizer_config.json
    "lowercase": "do_lower_case",
    "strip_accents": "strip_accents",
    "handle_chinese_chars": "tokenize_chinese_chars",
}


def read_tokenizer(
    files: CheckpointFiles, names: Iterable[str]
) -> tuple[dict[str, int], dict[int, AddedToken], dict[str, Any]]:
    """Read a checkpoint's tokenizer.

    What tokenizer_config.json says comes before what tokenizer.json says. If neither tells whether texts are lowered,
    the capitals in the vocabulary decide, with a warning.

    Args:
        files: those of the checkpoint.
        names: of the settings to look for.

    Returns:
        The vocabulary, token to id; the added tokens by id; and the settings found.

    Raises:
        OSError: no such checkpoint, or no tokenizer in it.
        ValueError: a file is not what its name says.
    """
    config = files.read_json("tokenizer_config.json") or {}
    content = files.read_json("tokenizer.json")
    settings: dict[str, Any] = {}
    try:
        if content is None:
            vocab = read_vocab_txt(files)
            added_tokens = read_added_tokens(files, config)
        else:
            kind = content["model"].get("type", "WordPiece")  # old files do not name it
            if kind != "WordPiece":
                raise ValueError(f"{files.name}: its tokenizer.json is of a {kind} tokenizer, not of WordPiece")
            vocab = dict(content["model"]["vocab"])
            added_tokens = {token["id"]: _added_token(token) for token in content.get("added_tokens", ())}
            normalizer = content.get("normalizer") or {}
            settings = {NORMALIZER_SETTINGS[name]: normalizer[name] for name in NORMALIZER_SETTINGS & normalizer.keys()}
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(
            f"{files.name}: the tokenizer's files are not as transformers writes them: {error!r}"
        ) from None

    settings |= {name: _content(config[name]) for name in names if config.get(name) is not None}
    if "model_max_length" not in settings:
        settings["model_max_length"] = (files.read_json("config.json") or {}).get("max_position_embeddings")
    elif isinstance(settings["model_max_length"], (int, float)) and settings["model_max_length"] >= NO_LIMIT:
        settings["model_max_length"] = None
    if "do_lower_case" not in settings:
        words = [token for token in vocab if not (token.startswith("[") and token.endswith("]"))]
        settings["do_lower_case"] = all(word == word.lower() for word in words)
        warnings.warn(
            f"{files.name}: no file says whether this tokenizer lowers its texts. Its vocabulary suggests "
            f"do_lower_case={settings['do_lower_case']}: write that into tokenizer_config.json",
            stacklevel=4,  # the caller of from_pretrained
        )
    return vocab, added_tokens, settings


def read_vocab_txt(files: CheckpointFiles) -> dict[str, int]:
    """Read vocab.txt: a token a line, its id the number of the line; of equal tokens the last one counts."""
    path = files.find("vocab.txt")
    if path is None:
        raise OSError(f"{files.name}: no tokenizer in it: neither tokenizer.json nor vocab.txt{files.hint()}")
    try:
        lines = path.read_bytes().decode("utf-8-sig").split("\n")  # and at nothing else: U+2028 may be a token
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 ({error})") from None
    if lines == [""]:
        raise ValueError(f"{path}: it is empty")
    return {line.rstrip(): i for i, line in enumerate(lines if lines[-1] else lines[:-1])}


def read_added_tokens(files: CheckpointFiles, config: Mapping[str, Any]) -> dict[int, AddedToken]:
    """Read what was added to the tokens of vocab.txt; in old checkpoints that is in files of its own."""
    if "added_tokens_decoder" in config:
        tokens = config["added_tokens_decoder"]
        if not all(i.isdecimal() for i in tokens):
            raise ValueError(f"{files.name}: tokenizer_config.json: the ids of added_tokens_decoder must be numbers")
        return {int(i): _added_token(token) for i, token in tokens.items()}
    ids = files.read_json("added_tokens.json") or {}
    special_tokens = (files.read_json("special_tokens_map.json") or {}) if ids else {}
    special = {_content(token) for token in special_tokens.get("additional_special_tokens", ())}
    return {i: AddedToken(token, normalized=token not in special, special=token in special) for token, i in ids.items()}


def write_tokenizer(
    folder: Path, vocab: Mapping[str, int], added_tokens: Mapping[int, AddedToken], settings: Mapping[str, Any]
) -> None:
    """Write a tokenizer so that `read_tokenizer` and transformers can read it.

    Raises:
        ValueError: a token that a line of vocab.txt cannot hold.
    """
    if unfit := [token for token in vocab if token != token.rstrip() or "\n" in token]:
        raise ValueError(f"vocab.txt cannot hold tokens with a line break, or with white space at the end: {unfit}")
    tokens = {i: token for token, i in vocab.items()}
    last = max(tokens)
    # Where an id has no token, a copy of the last token holds its line: of equal tokens the last one counts.
    lines = [tokens.get(i, tokens[last]) for i in range(last + 1)]
    decoder = {str(i): asdict(token) for i, token in sorted(added_tokens.items())}
    config = {**settings, "added_tokens_decoder": decoder, "tokenizer_class": "DistilBertTokenizer"}
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "vocab.txt", "".join(f"{line}\n" for line in lines).encode())
    write_atomically(folder / "tokenizer_config.json", to_json(config))
    for other in ("tokenizer.json", "added_tokens.json", "special_tokens_map.json"):
        (folder / other).unlink(missing_ok=True)  # of a former tokenizer here: it would be read first


def _content(value: Any) -> Any:
    """A special token may stand there as a string, or with the fields of an `AddedToken`."""
    return value.get("content", value) if isinstance(value, dict) else value


def _added_token(values: Mapping[str, Any]) -> AddedToken:
    return AddedToken(**{field.name: values[field.name] for field in fields(AddedToken) if field.name in values})

"""Tokens and their ids: the vocabulary, the special tokens, and from ids back to text."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass, field, fields
from typing import Any, Literal, cast, overload

import numpy as np
import torch

from .checks import check_choice
from .wordpiece import AddedToken, as_added_token, join_pieces

SPECIAL_TOKENS = ("unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
LISTS_OF_SPECIAL_TOKENS = ("additional_special_tokens", "extra_special_tokens")  # in transformers 4 and 5

MAX_SIZE = 2_000_000  # ids are below it; vocab.txt has a line for each id, so one huge id would fill the disk
MAX_TOKEN_CHARS = 1000  # reports and pages show a token for each position
MAX_ADDED_CHARS = 2_000_000  # of all added tokens: the pattern that finds them takes 100 bytes for each character

Ids = Sequence[int] | torch.Tensor | np.ndarray


def _id_of(name: str) -> Any:
    """Make the attribute `pad_token_id` for `pad_token`, and so on: if one is set, the other follows."""
    return property(
        lambda self: self.vocab.get(getattr(self, name)),
        lambda self, i: setattr(self, name, None if i is None else self.convert_ids_to_tokens(i)),
    )


@dataclass(eq=False)
class Vocabulary:
    """The part of a tokenizer that needs no text: tokens and their ids.

    Args:
        vocab: token to id; a piece that continues a word begins with ##. The attribute includes the added tokens.
        unk_token: in place of a word that the vocabulary cannot spell.
        cls_token: the first token of each row.
        sep_token: after each text.
        pad_token: pads the shorter rows. Without it in the vocabulary nothing can be padded.
        mask_token: in place of a word that a masked language model should predict. The vocabulary may lack it.
        clean_up_tokenization_spaces: `decode` also removes the spaces around an apostrophe.
        added_tokens: id to token: tokens beyond the vocabulary, and how to find a token of the vocabulary in a text.

    Raises:
        TypeError: the vocabulary is not a dict.
        ValueError: the vocabulary lacks a token or repeats an id.
    """

    vocab: dict[str, int] = field(repr=False)
    _: KW_ONLY
    unk_token: str = "[UNK]"
    cls_token: str = "[CLS]"
    sep_token: str = "[SEP]"
    pad_token: str | None = "[PAD]"
    mask_token: str | None = "[MASK]"
    clean_up_tokenization_spaces: bool = False
    added_tokens: dict[int, AddedToken] = field(default_factory=dict, repr=False)

    unk_token_id = _id_of("unk_token")
    cls_token_id = _id_of("cls_token")
    sep_token_id = _id_of("sep_token")
    pad_token_id = _id_of("pad_token")
    mask_token_id = _id_of("mask_token")

    def __post_init__(self) -> None:
        if not isinstance(self.vocab, dict):
            raise TypeError(f"vocab must be a dict, token to id, not {self.vocab!r:.60}: from_pretrained reads files")
        if not self.vocab:
            raise ValueError("the vocabulary is empty")
        self._base_vocab = self.vocab
        self._update()

    def __setattr__(self, name: str, value: object) -> None:
        """Change a setting and what follows from it; after an error nothing has changed."""
        if "_base_vocab" not in vars(self) or name not in self._settings():  # __init__ is not done, or not a setting
            super().__setattr__(name, value)
            return
        with self._all_or_nothing():
            super().__setattr__(name, value)
            if name in SPECIAL_TOKENS and value is not None:
                if not isinstance(value, str):
                    raise TypeError(f"{name} must be a str, not {value!r:.60}")
                if value not in self.vocab:
                    raise ValueError(
                        f"{value!r} is not in the vocabulary: add_special_tokens({{{name!r}: {value!r}}}) adds it"
                    )
            self._update()

    @contextmanager
    def _all_or_nothing(self) -> Iterator[None]:
        """Undo every change of the tokenizer if the block raises an error."""
        before = vars(self).copy()
        try:
            yield
        except Exception:
            vars(self).clear()
            vars(self).update(before)
            raise

    @classmethod
    def _settings(cls) -> list[str]:
        """Names of the arguments that tokenizer_config.json holds."""
        return [field.name for field in fields(cls) if field.name not in ("vocab", "added_tokens")]

    def _update(self) -> None:
        """Check the tokens, and compute what follows from them."""
        self.vocab = dict(self._base_vocab)
        for i, token in self.added_tokens.items():
            if (other := self.vocab.setdefault(token.content, i)) != i:
                raise ValueError(f"the added token {token.content!r:.60} has two ids, {other!r:.20} and {i!r:.20}")
        self._tokens = {i: token for token, i in self.vocab.items()}
        if len(self._tokens) < len(self.vocab) or not all(type(i) is int and 0 <= i < MAX_SIZE for i in self._tokens):
            raise ValueError(f"the ids of a vocabulary must be different integers from 0 to {MAX_SIZE - 1}")
        if long := next((token for token in self.vocab if len(token) > MAX_TOKEN_CHARS), None):
            raise ValueError(f"a token has {len(long)} characters, {MAX_TOKEN_CHARS} are the most: {long!r:.60}")
        if (n_chars := sum(len(token.content) for token in self.added_tokens.values())) > MAX_ADDED_CHARS:
            raise ValueError(f"the added tokens have {n_chars} characters, {MAX_ADDED_CHARS} are the most")
        if missing := [t for t in (self.unk_token, self.cls_token, self.sep_token) if t not in self.vocab]:
            raise ValueError(f"the vocabulary of {len(self.vocab)} tokens lacks {', '.join(map(repr, missing)):.200}")
        for token in self.added_tokens.values():
            if not token.content.strip() and (token.normalized or token.lstrip or token.rstrip):
                raise ValueError(
                    f"an added token of white space is only found as written: AddedToken({token.content!r}), "
                    f"without normalized, lstrip and rstrip"
                )
        special = {self.vocab[token]: AddedToken(token, special=True) for token in self.special_tokens_map.values()}
        self.added_tokens = special | self.added_tokens

    def __len__(self) -> int:
        return len(self.vocab)

    @property
    def vocab_size(self) -> int:
        """Number of tokens without the added ones; `len()` includes them."""
        return len(self._base_vocab)

    def get_vocab(self) -> dict[str, int]:
        """Return a copy of `vocab`."""
        return dict(self.vocab)

    @property
    def special_tokens_map(self) -> dict[str, str]:
        """The special tokens by role, such as `pad_token`, as far as the vocabulary has them."""
        return {name: getattr(self, name) for name in SPECIAL_TOKENS if getattr(self, name) in self.vocab}

    @property
    def all_special_ids(self) -> list[int]:
        """The ids that `skip_special_tokens` leaves out."""
        named = self.special_tokens_map.values()
        return [i for i, token in self.added_tokens.items() if token.special or token.content in named]

    @property
    def all_special_tokens(self) -> list[str]:
        """The tokens that `skip_special_tokens` leaves out."""
        return [self._tokens[i] for i in self.all_special_ids]

    @property
    def extra_special_tokens(self) -> list[str]:
        """The special tokens without a role."""
        return [token for token in self.all_special_tokens if token not in self.special_tokens_map.values()]

    def add_tokens(
        self, new_tokens: str | AddedToken | Sequence[str | AddedToken], special_tokens: bool = False
    ) -> int:
        """Add tokens, which are searched for in a text before the text is split into words.

        A token that is new to the vocabulary gets the next id. The model needs an embedding for it:
        `model.resize_token_embeddings(len(tokenizer))`.

        Args:
            new_tokens: one or several. An `AddedToken`, also that of transformers, says how to find the token. A str is
                searched for in the normalized text, or as a special token in the text as written.
            special_tokens: whether `skip_special_tokens` leaves the tokens out.

        Returns:
            The number of tokens that are new to the vocabulary.

        Raises:
            TypeError: a token is not a str and not an `AddedToken`.
            ValueError: a token is empty.
        """
        before = len(self)
        ids, added_tokens = dict(self.vocab), dict(self.added_tokens)
        next_id = max(ids.values()) + 1
        for new_token in new_tokens if isinstance(new_tokens, (list, tuple)) else [new_tokens]:
            token = as_added_token(new_token, special_tokens)
            i = ids.setdefault(token.content, next_id)
            next_id = max(next_id, i + 1)
            added_tokens[i] = token
        with self._all_or_nothing():
            self.added_tokens = added_tokens
            self._update()
        return len(self) - before

    def add_special_tokens(
        self, special_tokens: Mapping[str, Any], *, replace_extra_special_tokens: Literal[False] = False
    ) -> int:
        """Add special tokens by role, such as `{"pad_token": "<pad>"}`.

        Args:
            special_tokens: role to token. Tokens without a role are a list, `{"extra_special_tokens": ["<a>", "<b>"]}`.
            replace_extra_special_tokens: False: the special tokens that were there stay special.

        Returns:
            The number of tokens that are new to the vocabulary.

        Raises:
            TypeError: a token is not a str and not an `AddedToken`.
            ValueError: DistilBERT has no such role, or a token is empty.
        """
        check_choice("replace_extra_special_tokens", replace_extra_special_tokens, (False,))
        for name in special_tokens:
            check_choice("the role of a special token", name, SPECIAL_TOKENS + LISTS_OF_SPECIAL_TOKENS)
        before = len(self)
        with self._all_or_nothing():
            for name, tokens in special_tokens.items():
                self.add_tokens(tokens, special_tokens=True)
                if name in SPECIAL_TOKENS:
                    setattr(self, name, as_added_token(tokens, special=True).content)
        return len(self) - before

    def get_special_tokens_mask(self, token_ids: Ids, *, already_has_special_tokens: Literal[True]) -> list[int]:
        """For each id of a row return 1 for a special token, else 0.

        Args:
            token_ids: of one row.
            already_has_special_tokens: True. For a text there is `return_special_tokens_mask`.
        """
        check_choice("already_has_special_tokens", already_has_special_tokens, (True,))
        special = set(self.all_special_ids)
        return [int(i in special) for i in _as_list(token_ids)]

    @overload
    def convert_ids_to_tokens(self, ids: int, skip_special_tokens: bool = ...) -> str: ...
    @overload
    def convert_ids_to_tokens(self, ids: Ids, skip_special_tokens: bool = ...) -> list[str]: ...
    def convert_ids_to_tokens(self, ids: int | Ids, skip_special_tokens: bool = False) -> str | list[str]:
        """Look up the token of one id, or the tokens of several.

        Raises:
            TypeError: an id is not an integer, but for example a list.
            ValueError: an id is not in the vocabulary.
        """
        numbers = _as_list(ids)
        if unknown := [i for i in numbers if i not in self._tokens]:
            raise ValueError(f"ids {unknown[:5]} are not in this vocabulary of {len(self)} tokens")
        if isinstance(ids, int):
            return self._tokens[ids]
        skipped = set(self.all_special_ids) if skip_special_tokens else set()
        return [self._tokens[i] for i in numbers if i not in skipped]

    @overload
    def convert_tokens_to_ids(self, tokens: str) -> int: ...
    @overload
    def convert_tokens_to_ids(self, tokens: list[str] | tuple[str, ...]) -> list[int]: ...
    def convert_tokens_to_ids(self, tokens: str | list[str] | tuple[str, ...]) -> int | list[int]:
        """Look up the id of one token, or the ids of several; the id of [UNK] for a token not in the vocabulary."""
        if isinstance(tokens, str):
            return self.vocab.get(tokens, self.unk_token_id)
        return [self.vocab.get(token, self.unk_token_id) for token in tokens]

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """Join tokens to a text, as `decode` does."""
        return join_pieces(tokens, False)

    def decode(
        self,
        token_ids: int | Ids,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
    ) -> str:
        """Turn the ids of a text back into text, with spaces where transformers puts them.

        Args:
            token_ids: of one text.
            skip_special_tokens: leave out [CLS], [SEP], [PAD] and other special tokens.
            clean_up_tokenization_spaces: also remove spaces around an apostrophe; None for the tokenizer's own setting.

        Raises:
            TypeError, ValueError: see `convert_ids_to_tokens`.
        """
        tokens = self.convert_ids_to_tokens(_as_list(token_ids), skip_special_tokens)
        if clean_up_tokenization_spaces is None:
            clean_up_tokenization_spaces = self.clean_up_tokenization_spaces
        return join_pieces(tokens, clean_up_tokenization_spaces)

    def batch_decode(
        self,
        sequences: Sequence[Ids] | Ids,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
    ) -> list[str]:
        """Turn the ids of several texts back into texts; the arguments are those of `decode`.

        The ids of one text, not in a list, give a list of one text.
        """
        if isinstance(sequences, (torch.Tensor, np.ndarray)):
            sequences = sequences.tolist()
        if len(sequences) and isinstance(sequences[0], (int, np.integer)):
            return [self.decode(cast(Ids, sequences), skip_special_tokens, clean_up_tokenization_spaces)]
        return [self.decode(ids, skip_special_tokens, clean_up_tokenization_spaces) for ids in sequences]


def _as_list(ids: int | Ids) -> list[int]:
    if isinstance(ids, (torch.Tensor, np.ndarray, np.generic)):
        ids = ids.tolist()
    try:
        return [int(i) for i in ([ids] if isinstance(ids, int) else ids)]
    except TypeError:
        raise TypeError("expected the ids of one text, integers: use batch_decode for several texts") from None

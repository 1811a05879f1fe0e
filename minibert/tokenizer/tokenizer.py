"""From texts to the ids and the mask that a model takes, and back to text.

`wordpiece.py` turns a text into ids, `encoding.py` turns the ids of several texts into a batch. The results are those
of transformers' tokenizer. Where that tokenizer silently ignores an option, or returns rows that the model cannot take,
this one raises an error.
"""

import os
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, field, fields
from pathlib import Path
from typing import Any, Self, overload

import numpy as np
import torch

from ..checkpoint import CheckpointFiles
from .encoding import BatchEncoding, Row, Text, as_batch, pad, truncate
from .files import read_tokenizer, write_tokenizer
from .wordpiece import AddedToken, WordPiece, join_pieces

SIDES = ("right", "left")
PADDINGS = (False, True, "longest", "max_length")
TRUNCATIONS = (False, True, "longest_first", "only_first", "only_second")

Ids = Sequence[int] | torch.Tensor | np.ndarray


@dataclass(eq=False)
class DistilBertTokenizer:
    """Turns texts into the ids and the mask that a model takes, and ids back into text.

    Args:
        vocab: token to id; a piece that continues a word begins with ##. The attribute includes the added tokens.
        do_lower_case: lowercase the text, for an uncased vocabulary.
        strip_accents: é to e; None follows `do_lower_case`.
        tokenize_chinese_chars: make each CJK ideograph a word.
        model_max_length: the most tokens that the model takes; None if unknown.
        unk_token: in place of a word that the vocabulary cannot spell.
        cls_token: the first token of each row.
        sep_token: after each text.
        pad_token: pads the shorter rows. Without it in the vocabulary nothing can be padded.
        mask_token: in place of a word that a masked language model should predict. The vocabulary may lack it.
        padding_side: "right" or "left".
        truncation_side: the side that loses tokens, "right" or "left".
        clean_up_tokenization_spaces: `decode` also removes the spaces around an apostrophe.
        added_tokens: id to token: tokens beyond the vocabulary, and how to find a token of the vocabulary in a text.

    Raises:
        ValueError: the vocabulary lacks a token or repeats an id, or a setting has no such value.
    """

    vocab: dict[str, int] = field(repr=False)
    _: KW_ONLY
    do_lower_case: bool = True
    strip_accents: bool | None = None
    tokenize_chinese_chars: bool = True
    model_max_length: int | None = None
    unk_token: str = "[UNK]"
    cls_token: str = "[CLS]"
    sep_token: str = "[SEP]"
    pad_token: str = "[PAD]"
    mask_token: str = "[MASK]"
    padding_side: str = "right"
    truncation_side: str = "right"
    clean_up_tokenization_spaces: bool = False
    added_tokens: dict[int, AddedToken] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        _check_choice("padding_side", self.padding_side, SIDES)
        _check_choice("truncation_side", self.truncation_side, SIDES)
        _check_integer("model_max_length", self.model_max_length, 1)
        self._base_vocab = self.vocab
        self.vocab = {**self.vocab, **{token.content: i for i, token in self.added_tokens.items()}}
        self._tokens = {i: token for token, i in self.vocab.items()}
        if len(self._tokens) < len(self.vocab) or not all(isinstance(i, int) and i >= 0 for i in self._tokens):
            raise ValueError("the ids of a vocabulary must be different integers, at least 0")
        if missing := [t for t in (self.unk_token, self.cls_token, self.sep_token) if t not in self.vocab]:
            raise ValueError(f"the vocabulary of {len(self.vocab)} tokens lacks {', '.join(missing)}")
        self.unk_token_id = self.vocab[self.unk_token]
        self.cls_token_id = self.vocab[self.cls_token]
        self.sep_token_id = self.vocab[self.sep_token]
        self.pad_token_id = self.vocab.get(self.pad_token)
        self.mask_token_id = self.vocab.get(self.mask_token)
        named = (self.unk_token, self.sep_token, self.pad_token, self.cls_token, self.mask_token)
        special = {self.vocab[token]: AddedToken(token, special=True) for token in named if token in self.vocab}
        self.added_tokens = {**special, **self.added_tokens}
        self.all_special_ids = [i for i, token in self.added_tokens.items() if token.special or i in special]
        self.all_special_tokens = [self._tokens[i] for i in self.all_special_ids]
        self._wordpiece = WordPiece(
            self._base_vocab,
            self.unk_token_id,
            do_lower_case=self.do_lower_case,
            strip_accents=self.do_lower_case if self.strip_accents is None else self.strip_accents,
            tokenize_chinese_chars=self.tokenize_chinese_chars,
            added_tokens=self.added_tokens,
        )

    def __len__(self) -> int:
        return len(self.vocab)

    @property
    def vocab_size(self) -> int:
        """Number of tokens without the added ones; `len()` includes them."""
        return len(self._base_vocab)

    @classmethod
    def from_pretrained(
        cls,
        name_or_folder: str | os.PathLike[str],
        *,
        revision: str | None = None,
        token: str | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
    ) -> Self:
        """Load a checkpoint's tokenizer: tokenizer.json or vocab.txt, and tokenizer_config.json.

        The arguments are those of `minibert.checkpoint.CheckpointFiles`.

        Raises:
            OSError: the checkpoint does not exist, or has no tokenizer.
            ValueError: a file has not the content that its name promises.
        """
        files = CheckpointFiles(
            name_or_folder, revision=revision, token=token, cache_dir=cache_dir, local_files_only=local_files_only
        )
        return cls.from_files(files)

    @classmethod
    def from_files(cls, files: CheckpointFiles) -> Self:
        """Load a tokenizer from files that are shared with its model, so that both are of one commit."""
        vocab, added_tokens, settings = read_tokenizer(files, cls._settings())
        try:
            return cls(vocab, added_tokens=added_tokens, **settings)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{files.name}: {error}") from None

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write vocab.txt and tokenizer_config.json, which transformers reads too; they replace an earlier tokenizer.

        Each file is written whole or not at all. An interruption between the two leaves a new and an old file.

        Raises:
            ValueError: a line of vocab.txt cannot hold a token.
        """
        settings = {name: getattr(self, name) for name in self._settings()}
        write_tokenizer(Path(folder), self._base_vocab, self.added_tokens, settings)

    @classmethod
    def _settings(cls) -> list[str]:
        """Names of the arguments that tokenizer_config.json holds."""
        return [field.name for field in fields(cls) if field.name not in ("vocab", "added_tokens")]

    def __call__(
        self,
        text: str | Sequence[str] | Sequence[Sequence[str]],
        text_pair: str | Sequence[str] | Sequence[Sequence[str]] | None = None,
        *,
        padding: bool | str = False,
        truncation: bool | str = False,
        max_length: int | None = None,
        stride: int = 0,
        is_split_into_words: bool = False,
        add_special_tokens: bool = True,
        padding_side: str | None = None,
        pad_to_multiple_of: int | None = None,
        return_tensors: str | None = None,
        return_offsets_mapping: bool = False,
        return_special_tokens_mask: bool = False,
        return_overflowing_tokens: bool = False,
    ) -> BatchEncoding:
        """Tokenize a text or a list of texts: [CLS] text [SEP], or [CLS] text [SEP] text_pair [SEP].

        Args:
            text: one text or a list of texts.
            text_pair: the second text of each row, as many as there are texts.
            padding: True or "longest": pad to the longest row; "max_length": pad to `max_length`.
            truncation: True or "longest_first": cut rows to `max_length`, the longer text first; "only_first" or
                "only_second": cut only this text.
            max_length: in tokens, special tokens included; None for `model_max_length`.
            stride: number of tokens that two neighbouring windows share.
            is_split_into_words: each text is a list of words.
            add_special_tokens: add [CLS] and [SEP].
            padding_side: "right" or "left"; None for the tokenizer's own.
            pad_to_multiple_of: with padding, round the length up to a multiple of this.
            return_tensors: "pt" for PyTorch, "np" for NumPy, both int64; None for lists, a flat one for one text.
            return_offsets_mapping: also `offset_mapping`, the start and end of each token in its text, (B, S, 2).
            return_special_tokens_mask: also `special_tokens_mask`, 1 for [CLS], [SEP] and padding, (B, S).
            return_overflowing_tokens: put the tokens that truncation cuts off into further rows, windows of the same
                text; also `overflow_to_sample_mapping`, the index of each row's text, (B,).

        Returns:
            `input_ids` and `attention_mask` (1 for a token, 0 for padding), both (B, S), and the values asked for.

        Raises:
            TypeError: a text is not a str.
            ValueError: options that contradict each other, or a text with a lone surrogate.
        """
        side = self.padding_side if padding_side is None else padding_side
        _check_choice("padding", padding, PADDINGS)
        _check_choice("truncation", truncation, TRUNCATIONS)
        _check_choice("padding_side", side, SIDES)
        _check_choice("return_tensors", return_tensors, (None, "pt", "np"))
        _check_integer("max_length", max_length, 0)
        _check_integer("stride", stride, 0)
        _check_integer("pad_to_multiple_of", pad_to_multiple_of, 1)
        limited = bool(truncation) or padding == "max_length"
        if max_length is not None and not limited:
            raise ValueError(
                f"max_length={max_length} alone does nothing: pass truncation=True or padding='max_length'"
            )
        length = self.model_max_length if max_length is None else max_length
        if limited and length is None:
            raise ValueError("this tokenizer has no model_max_length: pass max_length=")
        if padding and self.pad_token_id is None:
            raise ValueError(f"the vocabulary has no {self.pad_token} to pad with")
        if truncation and padding and length and pad_to_multiple_of and length % pad_to_multiple_of:
            raise ValueError(f"max_length={length} is not a multiple of pad_to_multiple_of={pad_to_multiple_of}")

        batch, is_batch = as_batch(text, text_pair, is_split_into_words)
        n_special = (2 if text_pair is None else 3) if add_special_tokens else 0
        if truncation and length is not None and length < n_special:
            raise ValueError(f"max_length={length} has no room for the {n_special} special tokens of a row")
        rows: list[Row] = []
        samples: list[int] = []
        for sample, given in enumerate(batch):
            texts = tuple([self._read(one, return_offsets_mapping) for one in given])
            windows = [texts]
            if truncation and length is not None:
                windows = truncate(
                    texts,
                    length - n_special,
                    strategy="longest_first" if truncation is True else str(truncation),
                    side=self.truncation_side,
                    stride=stride if return_overflowing_tokens else None,
                )
            rows += [Row(window, add_special_tokens) for window in windows]
            samples += [sample] * len(windows)
        if padding:
            pad(rows, length=length if padding == "max_length" else None, multiple_of=pad_to_multiple_of, side=side)

        special_ids = {"cls": self.cls_token_id, "sep": self.sep_token_id, "pad": self.pad_token_id}
        data: dict[str, Any] = {
            "input_ids": [row.lay_out([text.ids for text in row.texts], **special_ids) for row in rows],
            "attention_mask": [row.attention_mask for row in rows],
        }
        if return_special_tokens_mask:
            data["special_tokens_mask"] = [[int(i is None) for i in row.sequence_ids] for row in rows]
        if return_offsets_mapping:
            data["offset_mapping"] = [row.offsets for row in rows]
        if return_overflowing_tokens:
            data["overflow_to_sample_mapping"] = samples
        if return_tensors is not None:
            self._check_tensor_shape({len(row) for row in rows})
            data = {name: np.array(values, dtype=np.int64) for name, values in data.items()}
            if return_tensors == "pt":
                data = {name: torch.from_numpy(array) for name, array in data.items()}
        elif not is_batch and not return_overflowing_tokens:
            data = {name: values[0] for name, values in data.items()}
        return BatchEncoding(data, rows)

    def _read(self, text: str | Sequence[str], with_offsets: bool) -> Text:
        """Tokenize a text, given as a str or as a list of words."""
        chunks = [text] if isinstance(text, str) else text
        pieces = [self._wordpiece.split(chunk)[1] for chunk in chunks]
        ids = [i for words in pieces for word in words for i in word]
        if isinstance(text, str):
            word_ids = [number for number, word in enumerate(pieces[0]) for _ in word]
        else:
            word_ids = [number for number, words in enumerate(pieces) for word in words for _ in word]
        offsets: list[tuple[int, int]] = []
        if with_offsets:
            for chunk in chunks:
                offsets += self._wordpiece.offsets(chunk, self._tokens)
        return Text(ids, word_ids, offsets)

    def _check_tensor_shape(self, lengths: set[int]) -> None:
        if not lengths:
            raise ValueError("an empty batch cannot be a tensor")
        if len(lengths) > 1:
            raise ValueError(f"rows of {sorted(lengths)} tokens cannot be one tensor: pass padding=True")
        if self.model_max_length is not None and max(lengths) > self.model_max_length:
            raise ValueError(
                f"a row has {max(lengths)} tokens, but the model takes {self.model_max_length}: pass truncation=True, "
                f"with return_overflowing_tokens=True to keep all of the text"
            )

    def encode(
        self,
        text: str,
        text_pair: str | None = None,
        *,
        add_special_tokens: bool = True,
        truncation: bool | str = False,
        max_length: int | None = None,
    ) -> list[int]:
        """Return the `input_ids` of one text or pair; the arguments are those of a call."""
        encoding = self(
            text, text_pair, add_special_tokens=add_special_tokens, truncation=truncation, max_length=max_length
        )
        ids: list[int] = encoding["input_ids"]
        return ids

    def tokenize(self, text: str, pair: str | None = None, *, add_special_tokens: bool = False) -> list[str]:
        """Split a text into tokens."""
        return self.convert_ids_to_tokens(self.encode(text, pair, add_special_tokens=add_special_tokens))

    @overload
    def convert_ids_to_tokens(self, ids: int, skip_special_tokens: bool = False) -> str: ...
    @overload
    def convert_ids_to_tokens(self, ids: Ids, skip_special_tokens: bool = False) -> list[str]: ...
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
        sequences: Sequence[Ids] | torch.Tensor | np.ndarray,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
    ) -> list[str]:
        """Turn the ids of several texts back into texts; the arguments are those of `decode`."""
        return [self.decode(ids, skip_special_tokens, clean_up_tokenization_spaces) for ids in sequences]


def _as_list(ids: int | Ids) -> list[int]:
    if isinstance(ids, (torch.Tensor, np.ndarray, np.generic)):
        ids = ids.tolist()
    try:
        return [int(i) for i in ([ids] if isinstance(ids, int) else ids)]
    except TypeError:
        raise TypeError("expected the ids of one text, integers: use batch_decode for several texts") from None


def _check_choice(name: str, value: object, choices: Sequence[object]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, not {value!r}")


def _check_integer(name: str, value: object, least: int) -> None:
    if value is not None and (not isinstance(value, int) or value < least):
        raise ValueError(f"{name} must be an integer, at least {least}, not {value!r}")

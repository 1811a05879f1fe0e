"""From texts to the ids and the mask that a model takes, and back.

How one text becomes ids, the heart of it, is in `wordpiece.py`; how ids become rows of one length is in `encoding.py`.
The results are those of transformers' tokenizer. Where that one silently does less than it is asked, or gives rows
that the model cannot take, this one raises.
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
from .wordpiece import AddedToken, WordPiece

SIDES = ("right", "left")
PADDINGS = (False, True, "longest", "max_length")
TRUNCATIONS = (False, True, "longest_first", "only_first", "only_second")
NO_BLANK_BEFORE = (".", "?", "!", ",", "n't", "'m", "'s", "'ve", "'re")  # where tokens are joined to text
CLEAN_UP = (" .", " ?", " !", " ,", " ' ", " n't", " 'm", " 's", " 've", " 're")

Ids = Sequence[int] | torch.Tensor | np.ndarray


@dataclass(eq=False)
class DistilBertTokenizer:
    """Turns texts into the ids and the mask that a model takes, and ids back into text.

    Args:
        vocab: token to id; a piece that continues a word begins with ##. As an attribute it holds added tokens too.
        do_lower_case: lower the text, for an uncased vocabulary.
        strip_accents: é to e; None follows `do_lower_case`.
        tokenize_chinese_chars: make each CJK ideograph a word.
        model_max_length: the most tokens that the model takes; None if unknown.
        unk_token: stands for a word that the vocabulary cannot spell.
        cls_token: begins each row.
        sep_token: ends each text.
        pad_token: fills the shorter rows; a vocabulary may lack it, but then nothing can be padded.
        mask_token: hides a word from a masked language model; a vocabulary may lack it.
        padding_side: "right" or "left", where a call does not say.
        truncation_side: the side that loses tokens.
        clean_up_tokenization_spaces: `decode` also closes the blanks around an apostrophe.
        added_tokens: by id: tokens beyond the vocabulary, or how some of it are found in a text.

    Raises:
        ValueError: a vocabulary or a setting that cannot work.
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
            raise ValueError("the ids of a vocabulary must be integers from 0 on, and no two tokens have the same id")
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
        """Number of tokens without the added ones; `len()` counts those too."""
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

        Args:
            name_or_folder: a folder, or a name on the Hugging Face Hub.
            revision: branch, tag or commit on the Hub.
            token: of a Hub account, for private and gated repositories.
            cache_dir: where the Hub's files are kept.
            local_files_only: take them from there, and never use the network.

        Raises:
            OSError: no such checkpoint, or no tokenizer in it.
            ValueError: a file that is not what its name says.
        """
        files = CheckpointFiles(
            name_or_folder, revision=revision, token=token, cache_dir=cache_dir, local_files_only=local_files_only
        )
        return cls.from_files(files)

    @classmethod
    def from_files(cls, files: CheckpointFiles) -> Self:
        """Load a tokenizer from files that its model may share, so that both are of one commit."""
        vocab, added_tokens, settings = read_tokenizer(files, cls._settings())
        try:
            return cls(vocab, added_tokens=added_tokens, **settings)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{files.name}: {error}") from None

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write vocab.txt and tokenizer_config.json, which transformers reads too, in place of what was there.

        Each file is written as a whole or not at all; between the two an interruption leaves one old and one new.

        Raises:
            ValueError: a token that a line of vocab.txt cannot hold.
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
            text: one text or a list of them.
            text_pair: the second text of each row, as many as there are texts.
            padding: True or "longest": fill the rows to the longest; "max_length": fill them to `max_length`.
            truncation: True or "longest_first": cut rows to `max_length`, from the longer text first; "only_first"
                or "only_second": from that one alone.
            max_length: in tokens, special ones included; None is `model_max_length`.
            stride: how many tokens a window shares with the next.
            is_split_into_words: each text is a list of words.
            add_special_tokens: add [CLS] and [SEP].
            padding_side: "right" or "left"; None is the tokenizer's own.
            pad_to_multiple_of: with padding, fill on to a multiple of this.
            return_tensors: "pt" for PyTorch, "np" for NumPy; None for lists, for one text not nested.
            return_offsets_mapping: also `offset_mapping`, where each token begins and ends in its text.
            return_special_tokens_mask: also `special_tokens_mask`, 1 for [CLS], [SEP] and padding.
            return_overflowing_tokens: what truncation cuts off follows in further rows, windows onto the same text;
                also `overflow_to_sample_mapping`, the number of each row's text.

        Returns:
            `input_ids` and `attention_mask` (1 for a token, 0 for padding), both (B, S), and what was asked for.

        Raises:
            TypeError: a text that is no str.
            ValueError: options that cannot be met, or a text with a lone surrogate.
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
            raise ValueError(
                "the longest length is unknown, for this tokenizer has no model_max_length: pass max_length="
            )
        if padding and self.pad_token_id is None:
            raise ValueError(f"the vocabulary has no {self.pad_token} to pad with")
        if truncation and padding and length and pad_to_multiple_of and length % pad_to_multiple_of:
            raise ValueError(f"max_length={length} is no multiple of pad_to_multiple_of={pad_to_multiple_of}")

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
        """Tokenize a text, or one that is a list of words."""
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
            raise ValueError("an empty batch makes no tensor")
        if len(lengths) > 1:
            raise ValueError(f"rows of {sorted(lengths)} tokens do not make a tensor: pass padding=True")
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
        """Like a call, but for the ids of one text or pair only."""
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
        """Look up the tokens of one id or several.

        Raises:
            TypeError: what is no id, such as a list within the list.
            ValueError: an id that is not in the vocabulary.
        """
        numbers = _as_list(ids)
        if unknown := [i for i in numbers if i not in self._tokens]:
            raise ValueError(f"{unknown[:5]} are no ids of this vocabulary of {len(self)} tokens")
        if isinstance(ids, int):
            return self._tokens[ids]
        skipped = set(self.all_special_ids) if skip_special_tokens else set()
        return [self._tokens[i] for i in numbers if i not in skipped]

    @overload
    def convert_tokens_to_ids(self, tokens: str) -> int: ...
    @overload
    def convert_tokens_to_ids(self, tokens: list[str] | tuple[str, ...]) -> list[int]: ...
    def convert_tokens_to_ids(self, tokens: str | list[str] | tuple[str, ...]) -> int | list[int]:
        """Look up the ids of one token or several; that of [UNK] for a token that is not in the vocabulary."""
        if isinstance(tokens, str):
            return self.vocab.get(tokens, self.unk_token_id)
        return [self.vocab.get(token, self.unk_token_id) for token in tokens]

    def decode(
        self,
        token_ids: int | Ids,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
    ) -> str:
        """Turn the ids of a text back into text, with blanks where transformers puts them.

        Args:
            token_ids: of one text.
            skip_special_tokens: leave out [CLS], [SEP], [PAD] and the like.
            clean_up_tokenization_spaces: also close blanks around an apostrophe; None: as the tokenizer is set.

        Raises:
            TypeError: what is no id, such as a list within the list.
            ValueError: an id that is not in the vocabulary.
        """
        tokens = self.convert_ids_to_tokens(_as_list(token_ids), skip_special_tokens)
        glued = ("##", *NO_BLANK_BEFORE)
        rest = [token.removeprefix("##") if token.startswith(glued) else f" {token}" for token in tokens[1:]]
        text = "".join(tokens[:1] + rest)
        if self.clean_up_tokenization_spaces if clean_up_tokenization_spaces is None else clean_up_tokenization_spaces:
            for blanks in CLEAN_UP:
                text = text.replace(blanks, blanks.strip())
        return text

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
        raise TypeError("expected the ids of one text, integers; for several texts there is batch_decode") from None


def _check_choice(name: str, value: object, choices: Sequence[object]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, not {value!r}")


def _check_integer(name: str, value: object, least: int) -> None:
    if value is not None and (not isinstance(value, int) or value < least):
        raise ValueError(f"{name} must be an integer from {least} on, not {value!r}")

"""From texts to the ids and the mask that a model takes.

`wordpiece.py` turns a text into ids, `rows.py` turns the ids of several texts into rows; `vocabulary.py` turns ids back
into text. The results are those of transformers' tokenizer. Where that tokenizer silently ignores an option, or returns
rows that the model cannot take, this one raises an error.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Self

from ..checkpoint import CheckpointFiles
from ..config import without_file_choices
from .checks import check_choice, check_integer
from .columns import as_columns, as_tensors, pad_columns
from .encoding import BatchEncoding
from .files import read_tokenizer, write_tokenizer
from .rows import Row, Text, Window, as_batch, padded_length, truncate
from .vocabulary import Vocabulary
from .wordpiece import WordPiece

SIDES = ("right", "left")
PADDINGS = (False, True, "longest", "max_length", "do_not_pad")
TRUNCATIONS = (None, False, True, "longest_first", "only_first", "only_second", "do_not_truncate")
TENSORS = (None, "pt", "np")

Texts = str | Sequence[str] | Sequence[Sequence[str]] | Sequence[Sequence[Sequence[str]]]


@dataclass(eq=False)
class DistilBertTokenizer(Vocabulary):
    """Turns texts into the ids and the mask that a model takes, and ids back into text.

    Args:
        do_lower_case: lowercase the text, for an uncased vocabulary.
        strip_accents: é to e; None follows `do_lower_case`.
        tokenize_chinese_chars: make each CJK ideograph a word.
        model_max_length: the most tokens that the model takes; None if unknown.
        padding_side: "right" or "left".
        truncation_side: the side that loses tokens, "right" or "left".

    `vocab` and the other arguments are those of `Vocabulary`. Every setting can be changed later:
    `tokenizer.pad_token = "[unused0]"` changes `pad_token_id` too.

    Raises:
        TypeError: the vocabulary is not a dict.
        ValueError: the vocabulary lacks a token or repeats an id, or a setting has no such value.
    """

    _: KW_ONLY
    do_lower_case: bool = True
    strip_accents: bool | None = None
    tokenize_chinese_chars: bool = True
    model_max_length: int | None = None
    padding_side: str = "right"
    truncation_side: str = "right"

    model_input_names: ClassVar[list[str]] = ["input_ids", "attention_mask"]
    pad_token_type_id: ClassVar[int] = 0
    is_fast: ClassVar[bool] = True  # transformers asks this before it uses offsets and word_ids

    def _update(self) -> None:
        super()._update()
        check_choice("padding_side", self.padding_side, SIDES)
        check_choice("truncation_side", self.truncation_side, SIDES)
        check_integer("model_max_length", self.model_max_length, 1)
        for name in ("do_lower_case", "tokenize_chinese_chars", "clean_up_tokenization_spaces"):
            check_choice(name, getattr(self, name), (True, False))
        check_choice("strip_accents", self.strip_accents, (None, True, False))
        vars(self).pop("_wordpiece", None)

    @cached_property
    def _wordpiece(self) -> WordPiece:
        return WordPiece(
            self._base_vocab,
            self.vocab[self.unk_token],
            do_lower_case=self.do_lower_case,
            strip_accents=self.do_lower_case if self.strip_accents is None else self.strip_accents,
            tokenize_chinese_chars=self.tokenize_chinese_chars,
            added_tokens=self.added_tokens,
        )

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the tables that grow with use: `datasets` recognizes a tokenizer by its pickle."""
        return {name: value for name, value in vars(self).items() if name != "_wordpiece"}

    @classmethod
    def from_pretrained(
        cls,
        name_or_folder: str | os.PathLike[str],
        *,
        revision: str | None = None,
        token: str | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        use_fast: bool = True,
        **settings: Any,
    ) -> Self:
        """Load a checkpoint's tokenizer: tokenizer.json or vocab.txt, and tokenizer_config.json.

        The first five arguments are those of `minibert.checkpoint.CheckpointFiles`. `use_fast` changes nothing, nor do
        `trust_remote_code` and `force_download` of transformers.
        `settings` are arguments of this class, such as `model_max_length`, in place of those in the files.

        Raises:
            TypeError: this class has no such setting.
            OSError: the checkpoint does not exist, or has no tokenizer.
            ValueError: a file has not the content that its name promises, or a setting has no such value; or a keyword
                of transformers chooses other files, such as `subfolder=`.
        """
        settings = without_file_choices(settings)
        files = CheckpointFiles(
            name_or_folder, revision=revision, token=token, cache_dir=cache_dir, local_files_only=local_files_only
        )
        return cls.from_files(files, **settings)

    @classmethod
    def from_files(cls, files: CheckpointFiles, **settings: Any) -> Self:
        """Load a tokenizer from files that are shared with its model, so that both are of one commit.

        Args:
            files: of the checkpoint.
            settings: arguments of this class, in place of those in the files.
        """
        if unknown := settings.keys() - cls._settings():
            raise TypeError(
                f"a tokenizer has no setting {', '.join(sorted(unknown))}, only {', '.join(cls._settings())}"
            )
        vocab, added_tokens, settings = read_tokenizer(files, cls._settings(), settings)
        try:
            return cls(vocab, added_tokens=added_tokens, **settings)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{files.name}: {error}") from None

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write vocab.txt and tokenizer_config.json, which transformers reads too; they replace an earlier tokenizer.

        If saving is interrupted, minibert reads either the old tokenizer or the new one.

        Raises:
            ValueError: a line of vocab.txt cannot hold a token.
        """
        settings = {name: getattr(self, name) for name in self._settings()}
        write_tokenizer(Path(folder), self._base_vocab, self.added_tokens, settings)

    def __call__(
        self,
        text: Texts,
        text_pair: Texts | None = None,
        *,
        padding: bool | str = False,
        truncation: bool | str | None = None,
        max_length: int | None = None,
        stride: int = 0,
        is_split_into_words: bool = False,
        add_special_tokens: bool = True,
        padding_side: str | None = None,
        pad_to_multiple_of: int | None = None,
        return_tensors: str | None = None,
        return_token_type_ids: bool | None = None,
        return_attention_mask: bool | None = None,
        return_offsets_mapping: bool = False,
        return_special_tokens_mask: bool = False,
        return_overflowing_tokens: bool = False,
    ) -> BatchEncoding:
        """Tokenize a text or a list of texts: [CLS] text [SEP], or [CLS] text [SEP] text_pair [SEP].

        Args:
            text: one text, or a list of texts or of pairs of texts.
            text_pair: the second text of each row, as many as there are texts.
            padding: True or "longest": pad to the longest row; "max_length": pad to `max_length`.
            truncation: True or "longest_first": cut rows to `max_length`, the longer text first; "only_first" or
                "only_second": cut only this text. None is True if `max_length` is given without padding.
            max_length: in tokens, special tokens included; None for `model_max_length`.
            stride: number of tokens that two neighbouring windows share.
            is_split_into_words: each text is a list of words.
            add_special_tokens: add [CLS] and [SEP].
            padding_side: "right" or "left"; None for the tokenizer's own.
            pad_to_multiple_of: with padding, round the length up to a multiple of this.
            return_tensors: "pt" for PyTorch, "np" for NumPy, both int64; None for lists, a flat one for one text.
            return_token_type_ids: also `token_type_ids`, 1 for the second text and its [SEP], else 0, (B, S).
            return_attention_mask: False leaves out `attention_mask`.
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
        if truncation is None:
            truncation = max_length is not None and padding in (False, "do_not_pad")
        check_choice("truncation", truncation, TRUNCATIONS)
        check_choice("return_tensors", return_tensors, TENSORS)
        check_integer("stride", stride, 0)
        truncated = truncation not in (False, "do_not_truncate")
        limit, kind, side = self._limits(padding, truncated, max_length, pad_to_multiple_of, padding_side)

        batch, is_batch = as_batch(text, text_pair, is_split_into_words)
        rows: list[Row] = []
        samples: list[int] = []
        for sample, given in enumerate(batch):
            texts = [self._read(one) for one in given]
            n_special = 1 + len(texts) if add_special_tokens else 0
            if not truncated or limit is None:
                windows = [tuple([Window(text, 0, len(text.ids)) for text in texts])]
            elif limit < n_special:
                raise ValueError(f"max_length={limit} has no room for the {n_special} special tokens of a row")
            else:
                windows = truncate(
                    texts,
                    limit - n_special,
                    strategy="longest_first" if truncation is True else str(truncation),
                    side=self.truncation_side,
                    stride=stride if return_overflowing_tokens else None,
                )
            rows += [Row(window, add_special_tokens) for window in windows]
            samples += [sample] * len(windows)
        if kind:
            length = padded_length(map(len, rows), limit if kind == "max_length" else None, pad_to_multiple_of)
            for row in rows:
                row.length, row.padding_side = length, side

        special_ids = {"cls": self.cls_token_id, "sep": self.sep_token_id, "pad": self.pad_token_id}
        data: dict[str, Any] = {
            "input_ids": [row.lay_out([window.ids for window in row.windows], **special_ids) for row in rows]
        }
        if return_token_type_ids:
            data["token_type_ids"] = [row.token_type_ids for row in rows]
        if return_attention_mask is not False:
            data["attention_mask"] = [row.attention_mask for row in rows]
        if return_special_tokens_mask:
            data["special_tokens_mask"] = [[int(i is None) for i in row.sequence_ids] for row in rows]
        if return_offsets_mapping:
            data["offset_mapping"] = [row.offsets for row in rows]
        if return_overflowing_tokens:
            data["overflow_to_sample_mapping"] = samples
        if return_tensors is not None:
            data = as_tensors(data, return_tensors, self.model_max_length)
        elif not is_batch and not return_overflowing_tokens:
            data = {name: values[0] for name, values in data.items()}
        return BatchEncoding(data, rows)

    def _limits(
        self, padding: bool | str, truncated: bool, max_length: int | None, multiple_of: int | None, side: str | None
    ) -> tuple[int | None, str | None, str]:
        """Check the options for lengths.

        Returns:
            The length to cut and pad to, None for no limit; "longest", "max_length" or None for no padding; its side.
        """
        check_choice("padding", padding, PADDINGS)
        check_integer("max_length", max_length, 0)
        check_integer("pad_to_multiple_of", multiple_of, 1)
        side = self.padding_side if side is None else side
        check_choice("padding_side", side, SIDES)
        kind = "longest" if padding is True else None if padding in (False, "do_not_pad") else str(padding)
        if kind and self.pad_token_id is None:
            raise ValueError(
                f"the vocabulary has no {self.pad_token} to pad with: add_special_tokens({{'pad_token': '[PAD]'}})"
            )
        if not truncated and kind != "max_length":
            if max_length is not None:
                raise ValueError(
                    f"max_length={max_length} alone does nothing: pass truncation=True or padding='max_length'"
                )
            return None, kind, side
        limit = self.model_max_length if max_length is None else max_length
        if limit is None:
            raise ValueError("this tokenizer has no model_max_length: pass max_length=")
        if truncated and kind and multiple_of and limit % multiple_of:
            raise ValueError(f"max_length={limit} is not a multiple of pad_to_multiple_of={multiple_of}")
        return limit, kind, side

    def _read(self, text: str | Sequence[str]) -> Text:
        """Tokenize a text, given as a str or as a list of words."""
        chunks = [text] if isinstance(text, str) else text
        pieces = [self._wordpiece.split(chunk)[1] for chunk in chunks]
        ids = [i for words in pieces for word in words for i in word]
        if isinstance(text, str):
            word_ids = [number for number, word in enumerate(pieces[0]) for _ in word]
        else:
            word_ids = [number for number, words in enumerate(pieces) for word in words for _ in word]
        return Text(chunks, ids, word_ids, self._wordpiece)

    def pad(
        self,
        encoded_inputs: Mapping[str, Any] | Sequence[Mapping[str, Any]],
        padding: bool | str = True,
        *,
        max_length: int | None = None,
        pad_to_multiple_of: int | None = None,
        padding_side: str | None = None,
        return_attention_mask: bool | None = None,
        return_tensors: str | None = None,
    ) -> BatchEncoding:
        """Pad rows that a call returned, for example in a data collator.

        Args:
            encoded_inputs: a list of mappings, one for each row; or a mapping with the values of all rows or of one.
                The values that a call returns are padded, other values such as `labels` are not.
            padding: this and the following arguments are as in a call.
            max_length: for `padding="max_length"`; any other padding ignores it, as transformers does.
            pad_to_multiple_of: as in a call.
            padding_side: as in a call.
            return_attention_mask: False leaves out `attention_mask`; else a missing one is made.
            return_tensors: as in a call; but if the `input_ids` are tensors, None keeps their kind.

        Raises:
            TypeError: `encoded_inputs` is something else.
            ValueError: options or values that contradict each other, or values that cannot be tensors.
        """
        limit, kind, side = self._limits(
            padding, False, max_length if padding == "max_length" else None, pad_to_multiple_of, padding_side
        )
        check_choice("return_tensors", return_tensors, TENSORS)
        columns, is_row, given_kind = as_columns(encoded_inputs)
        if return_attention_mask is False:
            columns.pop("attention_mask", None)
        else:
            columns.setdefault("attention_mask", [[1] * len(ids) for ids in columns["input_ids"]])
        if kind:
            lengths = map(len, columns["input_ids"])
            length = padded_length(lengths, limit if kind == "max_length" else None, pad_to_multiple_of)
            columns = pad_columns(columns, self.pad_token_id, length, side)
        data: Mapping[str, Any] = columns
        if (tensors := return_tensors or given_kind) is not None:
            data = as_tensors(columns, tensors, self.model_max_length)
        return BatchEncoding({name: values[0] for name, values in data.items()} if is_row else data)

    def encode(
        self,
        text: str | Sequence[str],
        text_pair: str | Sequence[str] | None = None,
        *,
        add_special_tokens: bool = True,
        padding: bool | str = False,
        truncation: bool | str | None = None,
        max_length: int | None = None,
        return_tensors: str | None = None,
    ) -> Any:
        """Return the `input_ids` of a text or pair: a list, or with `return_tensors` a tensor (1, S).

        The arguments are those of a call.
        """
        return self(
            text,
            text_pair,
            add_special_tokens=add_special_tokens,
            padding=padding,
            truncation=truncation,
            max_length=max_length,
            return_tensors=return_tensors,
        )["input_ids"]

    def num_special_tokens_to_add(self, pair: bool = False) -> int:
        """Count [CLS] and [SEP] in a row of one text, or of two."""
        return 3 if pair else 2

    def tokenize(self, text: str, pair: str | None = None, *, add_special_tokens: bool = False) -> list[str]:
        """Split a text into tokens."""
        return self.convert_ids_to_tokens(self.encode(text, pair, add_special_tokens=add_special_tokens))

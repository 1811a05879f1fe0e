"""WordPiece by hand: from a text to words, and from each word to the longest pieces that spell it; and back.

With the vocabulary of `distilbert-base-uncased`:

    Naïve tokenization!
    naive tokenization !         words: cleaned, accents stripped, lowercased; each punctuation mark is a word
    naive token ##ization !      pieces: ## marks a piece that continues a word
    15743 19204 3989 999         ids

The ids are those of the Rust library `tokenizers`, on which transformers builds. This is fast in Python because each
character and each word is computed once: a `LazyTable` keeps the result.

Source: Wu et al. 2016, section 4.1 (https://arxiv.org/abs/1609.08144), and
https://github.com/google-research/bert/blob/eedf5716ce1268e56f0a50264a88cafad334ac61/tokenization.py
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from .unicode_tables import (
    CJK,
    DROPPED,
    MARKS,
    PRIVATE_USE,
    PUNCTUATION,
    WHITE_SPACE,
    LazyTable,
    canonical_order,
    decompose,
    is_word_character,
    lower,
)

MAX_WORD_CHARS = 100  # a longer word is [UNK], whatever its pieces
CLEAN_UP = (" .", " ?", " !", " ,", " ' ", " n't", " 'm", " 's", " 've", " 're")

SPACE = re.compile(r"[^\S\x1c-\x1f]")  # what lstrip and rstrip take; for the Rust library \x1c to \x1f are not spaces


@dataclass(frozen=True)
class AddedToken:
    """A token that is searched for in the text before the text is split into words, and within words too.

    Args:
        content: the token as text.
        single_word: do not find it within a longer word.
        lstrip: it includes the white space before it. This changes no id: white space has none. It changes the offsets,
            but not those of a normalized token.
        rstrip: the same for the white space after it.
        normalized: search for it in the normalized text, so that case and accents do not matter.
        special: `skip_special_tokens` leaves it out, as it does [CLS].
    """

    content: str
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool = False
    special: bool = False


def as_added_token(token: Any, special: bool) -> AddedToken:
    """Make an `AddedToken` of a str, or of the `AddedToken` of transformers.

    Raises:
        TypeError: the token is something else.
        ValueError: the token is empty.
    """
    if isinstance(token, str):
        token = AddedToken(token, normalized=not special, special=special)
    elif not isinstance(getattr(token, "content", None), str):
        raise TypeError(f"a token must be a str or an AddedToken, not {token!r:.60}")
    if not token.content:
        raise ValueError("a token must have at least one character")
    values = {field.name: getattr(token, field.name) for field in fields(AddedToken)}
    return AddedToken(**values | {"special": special or token.special})


class WordPiece:
    """Splits texts into words and words into pieces.

    Args:
        vocab: piece to id.
        unk_id: the id of a word that the vocabulary cannot spell.
        do_lower_case: lowercase the text, for an uncased vocabulary.
        strip_accents: é to e.
        tokenize_chinese_chars: make each CJK ideograph a word.
        added_tokens: id to token, for the tokens that are searched for before the text is split.
    """

    def __init__(
        self,
        vocab: Mapping[str, int],
        unk_id: int,
        *,
        do_lower_case: bool,
        strip_accents: bool,
        tokenize_chinese_chars: bool,
        added_tokens: Mapping[int, AddedToken],
    ) -> None:
        self.vocab = vocab
        self.tokens = {i: token for token, i in vocab.items()} | {i: t.content for i, t in added_tokens.items()}
        self.unk_id = unk_id
        self.do_lower_case = do_lower_case
        self.strip_accents = strip_accents
        self.tokenize_chinese_chars = tokenize_chinese_chars
        self.longest_piece = max(map(len, vocab))
        self.cleaned = LazyTable(self.clean_character)
        self.folded = LazyTable(self.fold_character)
        self.pieces = LazyTable(self.longest_match_first)
        self.as_written = _Finder({t.content: (i, t) for i, t in added_tokens.items() if not t.normalized})
        self.normalized = _Finder({self.normalize(t.content): (i, t) for i, t in added_tokens.items() if t.normalized})

    def split(self, text: str) -> tuple[list[str], list[tuple[int, ...]]]:
        """Split a text into words, and the words into pieces.

        Returns:
            The normalized words, and for each word the ids of its pieces. An added token is one word.
        """
        words: list[str] = []
        pieces: list[tuple[int, ...]] = []
        for _, part, added_id in self.as_written.split(text):
            if added_id is not None:
                words.append(part)
                pieces.append((added_id,))
                continue
            for _, stretch, added_id in self.normalized.split(self.normalize(part)):
                if added_id is not None:
                    words.append(stretch.replace(" ", ""))
                    pieces.append((added_id,))
                    continue
                found = stretch.split()
                words += found
                # A longer word is cut so that it takes little memory in the table: it is [UNK] anyway.
                pieces += [self.pieces[word[: MAX_WORD_CHARS + 1]] for word in found]
        return words, pieces

    def normalize(self, text: str) -> str:
        """Clean the text, strip accents, lowercase, and put spaces around punctuation marks and ideographs."""
        return self.clean(text).translate(self.folded)

    def clean(self, text: str) -> str:
        """Clean each character; if accents are to be stripped, separate them from their letters."""
        text = text.translate(self.cleaned)
        return decompose(text) if self.strip_accents and not text.isascii() else text

    def clean_character(self, code_point: int) -> str | None:
        """Drop a control character, turn white space into a space, put spaces around a CJK ideograph."""
        if code_point in DROPPED or any(code_point in area for area in PRIVATE_USE):
            return None
        if code_point in WHITE_SPACE:
            return " "
        if self.tokenize_chinese_chars and any(code_point in block for block in CJK):
            return f" {chr(code_point)} "
        return chr(code_point)

    def fold_character(self, code_point: int) -> str | None:
        """Drop an accent, lowercase a letter, put spaces around a punctuation mark."""
        if self.strip_accents and code_point in MARKS:
            return None
        if code_point in PUNCTUATION:
            return f" {chr(code_point)} "
        return lower(code_point) if self.do_lower_case else chr(code_point)

    def longest_match_first(self, word: str) -> tuple[int, ...]:
        """Take the longest piece that begins the word, then the longest piece that continues it, and so on.

        Returns:
            The ids of the pieces; only `unk_id` for a word that is too long or that the pieces cannot spell.
        """
        if len(word) > MAX_WORD_CHARS:
            return (self.unk_id,)
        pieces: list[int] = []
        start, prefix = 0, ""
        while start < len(word):
            for end in range(min(len(word), start + self.longest_piece), start, -1):
                piece = self.vocab.get(prefix + word[start:end])
                if piece is not None:
                    break
            else:
                return (self.unk_id,)
            pieces.append(piece)
            start, prefix = end, "##"
        return tuple(pieces)

    def offsets(self, text: str) -> list[tuple[int, int]]:
        """Find the start and end of each piece in the text.

        Args:
            text: as given to `split`.

        Returns:
            For each piece its start index and its end index, exclusive.
        """
        origins: list[int] = []  # for each character of the normalized words: the index of its original in the text
        for start, part, added_id in self.as_written.split(text):
            indices = range(start, start + len(part))
            if added_id is not None:
                origins += indices
            else:
                cleaned = [self.clean(char) for char in part]
                text_indices = iter([index for index, chars in zip(indices, cleaned, strict=True) if chars])
                is_first = [i == 0 for chars in cleaned for i in range(len(chars))]
                joined = "".join(cleaned)
                # As in the Rust library: where marks change places, the first characters of the decompositions take
                # the indices in their order, and another character takes the index of the one before it.
                for i in canonical_order(joined) if self.strip_accents else range(len(joined)):
                    if is_first[i]:
                        origin = next(text_indices)
                    origins += [origin] * len((self.folded[ord(joined[i])] or "").strip())
        offsets = []
        start = 0
        for word, ids in zip(*self.split(text), strict=True):
            for i, piece_id in enumerate(ids):
                length = len(word) if len(ids) == 1 else len(self.tokens[piece_id]) - (2 if i else 0)  # 2: the ##
                offsets.append((origins[start], origins[start + length - 1] + 1))
                start += length
        return offsets


class _Finder:
    """Finds added tokens in a text, from left to right; where several match, the longest.

    Args:
        tokens: the text of each token to its id and how it is found.
    """

    def __init__(self, tokens: Mapping[str, tuple[int, AddedToken]]) -> None:
        self.tokens = {token: found for token, found in tokens.items() if token}  # normalized, it may be empty
        longest_first = sorted(self.tokens, reverse=True)  # of two that match, one is the beginning of the other
        self.pattern = re.compile("|".join(map(re.escape, longest_first)))

    def split(self, text: str) -> list[tuple[int, str, int | None]]:
        """Split a text into the tokens found, each with its index and id, and the text between them, with None as id.

        White space that a token takes with `rstrip` may also begin the next token, if that has no `lstrip`.
        """
        parts: list[tuple[int, str, int | None]] = []
        end = 0
        for match in self.pattern.finditer(text) if self.tokens else ():
            token_id, token = self.tokens[match[0]]
            start, stop = match.span()
            if token.single_word:
                before, after = text[max(0, start - 2) : start], text[stop : stop + 2]
                beside = before[-1:] + after[:1]
                if token.normalized:  # where a mark such as _, which belongs to a word too, stands between spaces
                    beside += "".join(char for char in before[:-1] + after[1:] if ord(char) in PUNCTUATION)
                if any(map(is_word_character, beside)):
                    continue
            if token.lstrip:
                start = max(start, end)
                while start > end and SPACE.match(text, start - 1, start):
                    start -= 1
            while token.rstrip and SPACE.match(text, stop):
                stop += 1
            parts += [(end, text[end:start], None), (start, text[start:stop], token_id)]
            end = stop
        return [*parts, (end, text[end:], None)]


def join_pieces(pieces: list[str], clean_up: bool) -> str:
    """Join pieces to a text, with spaces where transformers puts them.

    Args:
        pieces: also added and special tokens.
        clean_up: also remove spaces around an apostrophe.
    """
    spaced = pieces[:1] + [piece.removeprefix("##") if piece.startswith("##") else f" {piece}" for piece in pieces[1:]]
    text = "".join(map(clean_piece, spaced))
    return remove_spaces(text) if clean_up else text


def clean_piece(piece: str) -> str:
    """Remove spaces from a piece with the space before it; most are plain words, and stay."""
    return piece if piece.strip().isalnum() else remove_spaces(piece).replace(" do not", " don't")


def remove_spaces(text: str) -> str:
    """Remove spaces before a full stop, a comma and the like."""
    for spaced in CLEAN_UP:
        text = text.replace(spaced, spaced.strip())
    return text

"""WordPiece by hand: from a text to words, and from each word to the longest pieces that spell it.

With the vocabulary of `distilbert-base-uncased`:

    Naïve tokenization!
    naive tokenization !         words: cleaned, accents stripped, lower case; punctuation stands alone
    naive token ##ization !      pieces: those with ## continue a word
    15743 19204 3989 999         ids

The ids are those of the Rust library `tokenizers`, on which transformers builds. To be fast in Python, nothing here
looks at a character or a word twice: `LazyTable` keeps what became of it.

Source: Wu et al. 2016, section 4.1 (https://arxiv.org/abs/1609.08144), and
https://github.com/google-research/bert/blob/eedf5716ce1268e56f0a50264a88cafad334ac61/tokenization.py
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from .unicode_tables import CJK, DROPPED, MARKS, PRIVATE_USE, PUNCTUATION, WHITE_SPACE, LazyTable, decompose, lower

MAX_WORD_CHARS = 100  # a longer word is [UNK], whatever its pieces

WORD_CHARACTER = re.compile(rf"[\w{''.join(map(chr, sorted(MARKS)))}]")  # a letter, a digit, _ or an accent


@dataclass(frozen=True)
class AddedToken:
    """A token that is found in the text before it is split into words, even glued to other characters.

    Args:
        content: how it is written.
        single_word: do not find it within a longer word.
        lstrip: it takes the white space before it along; no id depends on this, since white space has none.
        rstrip: the same for the white space after it.
        normalized: find it in the normalized text, so that case and accents do not matter.
        special: one that `skip_special_tokens` leaves out, such as [CLS].
    """

    content: str
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool = False
    special: bool = False


class WordPiece:
    """Splits texts into words and words into pieces.

    Args:
        vocab: piece to id.
        unk_id: id that stands for a word which the vocabulary cannot spell.
        do_lower_case: lower the text, for an uncased vocabulary.
        strip_accents: é to e.
        tokenize_chinese_chars: make each CJK ideograph a word.
        added_tokens: by id: what else is found in a text, and how.
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
        self.unk_id = unk_id
        self.do_lower_case = do_lower_case
        self.strip_accents = strip_accents
        self.tokenize_chinese_chars = tokenize_chinese_chars
        self.longest_piece = max(map(len, vocab))
        self.cleaned = LazyTable(self.clean_character)
        self.folded = LazyTable(self.fold_character)
        self.pieces = LazyTable(self.longest_match_first)
        self.as_written = _Finder({t.content: (i, t.single_word) for i, t in added_tokens.items() if not t.normalized})
        self.normalized = _Finder(
            {self.normalize(t.content): (i, t.single_word) for i, t in added_tokens.items() if t.normalized}
        )

    def split(self, text: str) -> tuple[list[str], list[tuple[int, ...]]]:
        """Split a text into words and those into pieces.

        Returns:
            The words, normalized, and for each the ids of its pieces. An added token counts as a word.
        """
        words: list[str] = []
        pieces: list[tuple[int, ...]] = []
        for part, added_id in self.as_written.split(text):
            if added_id is not None:
                words.append(part)
                pieces.append((added_id,))
                continue
            for stretch, added_id in self.normalized.split(self.normalize(part)):
                if added_id is not None:
                    words.append(stretch.replace(" ", ""))
                    pieces.append((added_id,))
                    continue
                found = stretch.split()
                words += found
                # So many characters of a word tell that it is too long; the rest is not worth its place in the table.
                pieces += [self.pieces[word[: MAX_WORD_CHARS + 1]] for word in found]
        return words, pieces

    def normalize(self, text: str) -> str:
        """Bring a text into the spelling of the vocabulary, every word between blanks."""
        return self.clean(text).translate(self.folded)

    def clean(self, text: str) -> str:
        """Clean each character, and where accents are to be stripped, part them from their letters."""
        text = text.translate(self.cleaned)
        return decompose(text) if self.strip_accents and not text.isascii() else text

    def clean_character(self, code_point: int) -> str | None:
        """Drop control characters, make white space blank, set CJK ideographs apart."""
        if code_point in DROPPED or any(code_point in area for area in PRIVATE_USE):
            return None
        if code_point in WHITE_SPACE:
            return " "
        if self.tokenize_chinese_chars and any(code_point in block for block in CJK):
            return f" {chr(code_point)} "
        return chr(code_point)

    def fold_character(self, code_point: int) -> str | None:
        """Strip accents, lower, set punctuation apart."""
        if self.strip_accents and code_point in MARKS:
            return None
        if code_point in PUNCTUATION:
            return f" {chr(code_point)} "
        return lower(code_point) if self.do_lower_case else chr(code_point)

    def longest_match_first(self, word: str) -> tuple[int, ...]:
        """Take the longest piece that the word begins with, then the longest that continues it, to its end.

        Returns:
            The ids of the pieces; `unk_id` alone for a word that is too long or cannot be spelled to its end.
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

    def offsets(self, text: str, tokens: Mapping[int, str]) -> list[tuple[int, int]]:
        """Find where in a text each of its pieces lies.

        Args:
            text: as given to `split`.
            tokens: id to piece.

        Returns:
            For each piece the place of its first character and the place after its last one's.
        """
        origins: list[int] = []  # for each normalized character but blanks: the place of the one it came from
        start = 0
        for part, added_id in self.as_written.split(text):
            places = range(start, start + len(part))
            if added_id is not None:
                origins += places
            else:
                places_in_clean = [place for place, char in zip(places, part, strict=True) for _ in self.clean(char)]
                for place, char in zip(places_in_clean, self.clean(part), strict=True):
                    origins += [place] * len((self.folded[ord(char)] or "").strip())
            start += len(part)
        offsets = []
        start = 0
        for word, ids in zip(*self.split(text), strict=True):
            for i, piece_id in enumerate(ids):
                length = len(word) if len(ids) == 1 else len(tokens[piece_id]) - (2 if i else 0)  # 2: the ##
                offsets.append((origins[start], origins[start + length - 1] + 1))
                start += length
        return offsets


class _Finder:
    """Finds added tokens in a text: from the left, and of several at one place the longest.

    Args:
        tokens: for each, as it is to be found, its id and whether it must stand as a word of its own.
    """

    def __init__(self, tokens: Mapping[str, tuple[int, bool]]) -> None:
        self.tokens = {token: found for token, found in tokens.items() if token.strip()}
        self.pattern = re.compile("|".join(map(re.escape, sorted(self.tokens, key=len, reverse=True))))

    def split(self, text: str) -> list[tuple[str, int | None]]:
        """Split a text at the tokens found: they come with their ids, the text between them with None."""
        parts: list[tuple[str, int | None]] = []
        end = 0
        for match in self.pattern.finditer(text) if self.tokens else ():
            token_id, single_word = self.tokens[match[0]]
            start, stop = match.span()
            if single_word and (WORD_CHARACTER.match(text[start - 1 : start]) or WORD_CHARACTER.match(text, stop)):
                continue
            parts += [(text[end:start], None), (match[0], token_id)]
            end = stop
        return [*parts, (text[end:], None)]

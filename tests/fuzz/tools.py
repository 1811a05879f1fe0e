"""What the targets share: choices drawn from bytes, hostile JSON, and what counts as a proper refusal."""

import copy
import json
import tempfile
import traceback
from contextlib import contextmanager
from pathlib import Path

import minibert

PACKAGE = str(Path(minibert.__file__).parent)
LONGEST_MESSAGE = 1000  # characters, the path of a temporary folder included

NUMBERS = [0, 1, 2, 3, 4, 8, -1, 0.0, 0.5, 1.0, 1.5, 1e308, -1e-9, float("inf"), float("nan")]
NUMBERS += [10**6, 10**6 + 1, 2**31, 2**63, 10**12, 10**400]
STRINGS = [
    "",
    "0",
    "1",
    "00",
    "a",
    "A",
    " ",
    "\n",
    "\x00",
    "\x1b[2J",
    "é",
    "٣",
    "²",
    "[CLS]",
    "##a",
    "true",
    "a" * 2000,
]
SCALARS = [None, True, False, *NUMBERS, *STRINGS]


class Source:
    """Choices drawn from bytes in the order in which they are asked for; when the bytes end, the first of each."""

    def __init__(self, data):
        self.data, self.at = data, 0

    def bytes(self, count):
        taken = self.data[self.at : self.at + count]
        self.at += count
        return taken + bytes(count - len(taken))

    def integer(self, low, high):
        """From `low` to `high`, both included."""
        span = high - low + 1
        return low + int.from_bytes(self.bytes((span.bit_length() + 7) // 8), "little") % span

    def choice(self, options):
        return options[self.integer(0, len(options) - 1)]

    def once_in(self, count):
        return self.integer(0, count - 1) == count - 1

    def several(self, make, most):
        """A list of up to `most` results of `make()`."""
        return [make() for _ in range(self.integer(0, most))]


def json_value(source, depth=2):
    """Any value that JSON can hold, nested at most `depth` times."""
    kind = source.integer(0, 7)
    if depth and kind == 6:
        return source.several(lambda: json_value(source, depth - 1), 3)
    if depth and kind == 7:
        return {str(source.choice(SCALARS)): json_value(source, depth - 1) for _ in range(source.integer(0, 3))}
    return source.choice(SCALARS)


def edited(source, content, values=json_value):
    """A copy of a JSON value in which one place, at any depth, is replaced, removed, renamed or added."""
    root = place = copy.deepcopy(content)
    while isinstance(place, (dict, list)) and place:
        key = source.choice(list(place)) if isinstance(place, dict) else source.integer(0, len(place) - 1)
        if isinstance(place[key], (dict, list)) and place[key] and not source.once_in(4):
            place = place[key]
            continue
        match source.integer(0, 5):
            case 0 | 1:
                place[key] = values(source)
            case 2:
                del place[key]
            case 3 if isinstance(place, dict):
                place[str(source.choice(SCALARS))] = place.pop(key)
            case 4 if isinstance(place, dict):
                place[source.choice(list(place))] = place[key]
            case 5 if type(place[key]) is int:
                place[key] += source.choice([1, -1])
            case _ if isinstance(place, list):
                place.insert(key, values(source))
            case _:
                place[str(source.choice(SCALARS))] = values(source)
        break
    return root


def edited_bytes(source, content):
    """A copy of bytes in which a stretch is replaced, removed, inserted or repeated."""
    start = source.integer(0, len(content))
    length = source.choice([0, 1, 1, 2, 4, 8, 64, len(content)])
    new = source.choice([b"", source.bytes(1), source.bytes(4), content[start : start + length] * 2, b"[" * 2000])
    return content[:start] + new + content[start + length :]


def accepted(call):
    """The result of a call, or None if minibert refuses its arguments as it should; anything else is a find.

    A refusal is a ValueError, a TypeError or an OSError that a `raise` in minibert raises, with one line of text.
    """
    try:
        return call()
    except (ValueError, TypeError, OSError) as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        if not (last.filename.startswith(PACKAGE) and (last.line or "").startswith("raise")):
            raise
        text = str(error)
        assert text, "the error has no message"
        assert "\n" not in text, f"the message has several lines: {text[:300]!r}"
        assert len(text) <= LONGEST_MESSAGE, f"the message has {len(text)} characters: {text[:300]}"
        assert "Exceeds the limit" not in text, f"the message cannot be written: {text}"
        return None


@contextmanager
def folder_of(files):
    """A temporary folder with these files: name to bytes, or to what JSON is made of."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file, content in files.items():
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            (folder / file).write_bytes(data)
        yield folder

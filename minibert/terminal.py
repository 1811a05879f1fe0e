"""Text that cannot control a terminal, whatever a checkpoint or a user has put into it."""

import re

# C0 and C1 control characters, line separators, characters that reverse the order of a line, lone surrogates
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def visible(text: str) -> str:
    r"""Escape control characters: a newline becomes \n, so that a text stays on its line.

    >>> visible("two\nlines\x1b[31m")
    'two\\nlines\\x1b[31m'
    """
    return CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode(), text)

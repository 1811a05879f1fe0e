"""Checks of arguments."""

from collections.abc import Sequence


def check_choice(name: str, value: object, choices: Sequence[object]) -> None:
    """Refuse a value that is not one of the choices; 1 is not True here, and 0 not False."""
    if value not in choices or (value in (True, False) and type(value) in (int, float)):
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, not {value!r:.200}")


def check_integer(name: str, value: object, least: int) -> None:
    """Refuse what is neither None nor an integer, at least `least`; True and False are not integers here."""
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < least):
        raise ValueError(f"{name} must be an integer, at least {least}, not {value!r:.200}")

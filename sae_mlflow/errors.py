"""The one exception for what a user did: what is wrong, where, and how to fix it."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Bad input. The command line prints its text alone, without a traceback, and exits with 2."""


class OutOfReach(UserError):
    """A tracking store that doesn't answer now; it may do so later."""


def known(names: Iterable[str], limit: int = 12) -> str:
    """The names there are, for the end of an error message: `a, b, c (and 9 more)`."""
    names = list(names)
    if not names:
        return "none"
    shown = ", ".join(names[:limit])
    return shown if len(names) <= limit else f"{shown} (and {len(names) - limit} more)"


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """The nearest of the names there are, as a sentence and a space; empty where none is near."""
    near = difflib.get_close_matches(name, list(names), n=1)
    return f"Did you mean {near[0]}? " if near else ""


def reason_of(error: Exception) -> str:
    """What an error of somebody else's code says, in one line without a full stop."""
    said = error.strerror if isinstance(error, OSError) else None
    lines = (said or str(error)).strip().splitlines() or [type(error).__name__]
    return lines[0].rstrip(".:")

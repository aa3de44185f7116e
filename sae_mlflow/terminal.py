"""Text on its way to a terminal: without what would steer it, and without secrets.

Names come out of models, files and stores that others may write to. An escape sequence in one can
move the cursor, change what stands above, or name the window; a mark of direction turns text round.
"""

import logging
import sys
from typing import TextIO

from sae_mlflow.secrets import without_secrets


def plain(text: str) -> str:
    """One line: every character that can't be printed, a line's end included, is a space."""
    return "".join(c if c.isprintable() else " " for c in text)


def plain_lines(text: str) -> str:
    """The same of a text of several lines, which stay."""
    return "\n".join(plain(line.expandtabs(4)) for line in text.split("\n"))


def shown(text: str) -> str:
    """Lines as they may be shown."""
    return plain_lines(without_secrets(text))


def say(text: object, to: TextIO | None = None) -> None:
    """Print lines, at once."""
    print(shown(str(text)), file=to or sys.stdout, flush=True)


def warn(text: object) -> None:
    say(f"warning: {text}", sys.stderr)


class ShownLines(logging.Filter):
    """Lets log records through as they may be shown."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = shown(record.getMessage()), None
        return True

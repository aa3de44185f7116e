"""Names in Markdown, as text: the MLflow UI shows descriptions as Markdown with HTML in it."""

import html
import re

from sae_mlflow.terminal import plain

_MARKS = re.compile(r"([\\`*_{}\[\]()#+!|~^:@-])")


def literal(name: str) -> str:
    """A name that starts no link, picture, heading, table's cell or tag: shown as it is."""
    return _MARKS.sub(r"\\\1", html.escape(" ".join(plain(name).split()), quote=False))

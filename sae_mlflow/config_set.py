"""What `--set` says: KEY=VALUE between spaces, as a shell's quotes and YAML's brackets have it."""

import re
import shlex
from collections.abc import Iterable
from typing import Any

import yaml

from sae_mlflow.config_files import plain_yaml
from sae_mlflow.errors import UserError

_ANOTHER = re.compile(r",\s*[a-z]+\.[a-z_0-9]+\s*=")


def parse_set(text: str) -> dict[str, Any]:
    """`"sae.k=64 train.epochs=3"` as `{"sae.k": 64, "train.epochs": 3}`; values are YAML.

    Raises:
        UserError: a part isn't KEY=VALUE, or its value no YAML.
    """
    overrides: dict[str, Any] = {}
    try:
        parts = shlex.split(text)
    except ValueError as error:
        raise UserError(f"--set {text!r}: {error}. Write it as KEY=VALUE KEY=VALUE.") from None
    for part in _joined(parts):
        key, equals, value = (each.strip() for each in part.partition("="))
        if not equals or not key:
            raise UserError(f"--set: {part!r} is not KEY=VALUE, for example sae.k=64.")
        if _ANOTHER.search(value):
            raise UserError(f"--set: {part!r} has a comma between settings. Part them by spaces.")
        try:
            overrides[key] = plain_yaml(value) if value else None
        except (yaml.YAMLError, RecursionError):
            raise UserError(f"--set {key}: {value!r} is not a YAML value.") from None
    return overrides


def _joined(words: Iterable[str]) -> list[str]:
    """Words between spaces as KEY=VALUE, which may have spaces around = and within brackets."""
    parts: list[str] = []
    for word in words:
        if parts and _goes_on(parts[-1], word):
            parts[-1] += f" {word}"
        else:
            parts.append(word)
    return parts


def _goes_on(part: str, word: str) -> bool:
    """Whether what was begun, as `betas=[0.0,` or `sae.k =`, isn't whole without the next word."""
    _, equals, value = part.partition("=")
    if value.lstrip().startswith(("[", "{")):
        return sum(map(value.count, "[{")) > sum(map(value.count, "]}"))
    return not value and "=" not in word if equals else word.startswith("=")

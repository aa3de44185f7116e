"""What is wrong with a setting, in a sentence: where it stands, what it means, what is nearest."""

import difflib
from collections.abc import Collection, Mapping
from pathlib import Path

from pydantic_core import ErrorDetails

from sae_mlflow.errors import known


def explain(
    error: ErrorDetails, path: Path, overridden: Collection[str], meanings: Mapping[str, str]
) -> str:
    """One of pydantic's findings as what, where and how to fix.

    Args:
        path: the file that was read.
        overridden: dotted keys that were set beside it.
        meanings: of every setting, by its dotted key.
    """
    names = {part for key in meanings for part in key.split(".")}
    parts = [str(part) for part in error["loc"]]
    while parts and parts[-1] not in names:  # union branches and list indices
        if error["type"] == "extra_forbidden":
            break
        parts.pop()
    key = ".".join(parts)
    where = "--set" if key in overridden else str(path)
    if error["type"] == "extra_forbidden":
        return f"{where}: unknown setting {key!r}. {_nearest(key, meanings)}"
    meaning = f" {key}: {meanings[key]}" if key in meanings else ""
    message = error["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    return f"{where}: {key} = {error['input']!r}, but {message}.{meaning}"


def _nearest(key: str, settings: Collection[str]) -> str:
    sections = {setting.split(".")[0] for setting in settings if "." in setting}
    keys = [*settings, *sorted(sections)]
    by_name = {k.split(".")[-1]: k for k in reversed(keys)}
    near = difflib.get_close_matches(key, keys, n=1, cutoff=0.5)
    name = key.split(".")[-1]
    near = near or [by_name[n] for n in difflib.get_close_matches(name, by_name, n=1)]
    return f"Did you mean {near[0]}?" if near else f"Known here: {known(sorted(by_name))}."

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
    message = _message(error, key, meanings)
    # what lists the names there are has said what the meaning would
    told = key in meanings and "There are: " not in message
    meaning = f" {key}: {meanings[key]}" if told else ""
    return f"{where}: {key} = {error['input']!r}, but {message}.{meaning}"


def _message(error: ErrorDetails, key: str, meanings: Mapping[str, str]) -> str:
    """What pydantic says, in the words of a config file where its own are Python's."""
    if error["input"] is None:
        return "it is empty; give it a value, or leave it away"
    if error["type"] == "tuple_type":
        return f"it takes a list, such as [{error['input']}]"
    if error["type"] in ("model_type", "model_attributes_type"):
        inner = next((each for each in meanings if each.startswith(f"{key}.")), key)
        return f"it holds settings; set one of them, such as {inner}"
    message = error["msg"].removeprefix("Value error, ")
    return message[0].lower() + message[1:]


def _nearest(key: str, settings: Collection[str]) -> str:
    sections = {setting.split(".")[0] for setting in settings if "." in setting}
    keys = [*settings, *sorted(sections)]
    by_name = {k.split(".")[-1]: k for k in reversed(keys)}
    near = difflib.get_close_matches(key, keys, n=1, cutoff=0.5)
    name = key.split(".")[-1]
    near = near or [by_name[n] for n in difflib.get_close_matches(name, by_name, n=1)]
    return f"Did you mean {near[0]}?" if near else f"Known here: {known(sorted(by_name))}."

"""`sae-mlflow settings`: what can be set."""

from typing import Any, Literal, get_args, get_origin

import typer

from sae_mlflow.config import Settings
from sae_mlflow.config_load import setting_docs


def settings_command() -> None:
    """List every setting, with its default.

    And what it means, by section.
    """
    sections = _sections()
    last = ""
    for key, default, meaning in setting_docs():
        section, dot, _ = key.partition(".")
        if dot and section != last:
            typer.echo(f"\n{section}: {sections[section].__doc__}")
            last = section
        choices = ", ".join(_choices(key))
        typer.echo(f"{key} = {default}\n    {meaning}")
        if choices:
            typer.echo(f"    Values: {choices}.")


def _sections() -> dict[str, type[Any]]:
    return {name: type(field.default) for name, field in Settings.model_fields.items()}


def _choices(key: str) -> list[str]:
    """The only values that a setting, or each part of it, may have; none where others may be."""
    section, dot, name = key.partition(".")
    fields = _sections()[section].model_fields if dot else Settings.model_fields
    return _literals(fields[name or key].annotation) if (name or key) in fields else []


def _literals(annotation: Any) -> list[str]:
    if get_origin(annotation) is Literal:
        return list(map(str, get_args(annotation)))
    return [value for part in get_args(annotation) for value in _literals(part)]

"""`sae-mlflow settings`: what can be set."""

import typer

from sae_mlflow.config import setting_docs


def settings_command() -> None:
    """List every setting with its default and what it means."""
    for key, default, meaning in setting_docs():
        typer.echo(f"{key} = {default}\n    {meaning}")

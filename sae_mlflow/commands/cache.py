"""`sae-mlflow cache list` and `cache prune`: the activation cache."""

from datetime import datetime
from typing import Annotated

import typer

from sae_mlflow.commands.cli import make_app
from sae_mlflow.errors import UserError
from sae_mlflow.terminal import say

app = make_app(help="Cached activations of language models.")


@app.command("list")
def cache_list() -> None:
    """Show what is cached."""
    from sae_mlflow.activations.cache import list_cache
    from sae_mlflow.disk import in_units

    entries = list_cache()
    for entry in entries:
        last_used = datetime.fromtimestamp(entry.last_used).strftime("%Y-%m-%d %H:%M")
        say(
            f"{entry.key}  {in_units(entry.bytes):>9}  {entry.model}  {entry.text}  "
            f"{entry.tokens:,} tokens  {','.join(entry.hookpoints)}  last used {last_used}"
        )
    say(f"{len(entries)} entries, {in_units(sum(entry.bytes for entry in entries))}")


@app.command("prune")
def cache_prune(
    keys: Annotated[
        list[str] | None, typer.Argument(help="Keys, as `cache list` shows them.")
    ] = None,
    older_than_days: Annotated[
        float | None, typer.Option(min=0, help="Entries that weren't used for so many days.")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="All entries.")] = False,
) -> None:
    """Delete cached activations; a training that needs them collects them again."""
    from sae_mlflow.activations.cache import prune_cache
    from sae_mlflow.disk import in_units

    if not keys and older_than_days is None and not everything:
        raise UserError("Nothing was chosen. Give keys (`cache list`), --older-than-days or --all.")
    freed = prune_cache(keys=keys or [], older_than_days=older_than_days, everything=everything)
    say(f"freed {in_units(freed)}")

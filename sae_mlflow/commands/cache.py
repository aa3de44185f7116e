"""`sae-mlflow cache list`, `cache verify` and `cache prune`: the activation cache."""

from collections.abc import Iterator
from datetime import datetime
from typing import TYPE_CHECKING, Annotated

import typer

from sae_mlflow.commands.cli import make_app
from sae_mlflow.disk import Pruning, in_units
from sae_mlflow.errors import UserError
from sae_mlflow.terminal import say

if TYPE_CHECKING:
    from sae_mlflow.activations.verification import Checked

EXIT_SOME_BAD = 1
_SHOWN = 5  # damaged places of one hookpoint

app = make_app(help="Cached activations of language models.")


@app.command("list")
def cache_list() -> None:
    """Show what is cached."""
    from sae_mlflow.activations.cache import list_cache

    entries = list_cache()
    for entry in entries:
        last_used = datetime.fromtimestamp(entry.last_used).strftime("%Y-%m-%d %H:%M")
        say(
            f"{entry.key}  {in_units(entry.bytes):>9}  {entry.model}  {entry.text}  "
            f"{entry.tokens:,} tokens  {','.join(entry.hookpoints)}  last used {last_used}"
        )
    say(f"{len(entries)} entries, {in_units(sum(entry.bytes for entry in entries))}")


@app.command("verify")
def cache_verify(
    keys: Annotated[
        list[str] | None, typer.Argument(help="Keys, as `cache list` shows them; unset means all.")
    ] = None,
) -> None:
    """Check every byte of cached activations against their checksums. Exits 1 if something is bad.

    A training checks what it reads as well, and collects anew what is bad.
    """
    from sae_mlflow.activations.verification import verify_cache

    bad: list[str] = []
    n_checked = n_bytes = 0
    for checked in verify_cache(keys or []):
        for line in _lines(checked):
            say(line)
        if checked.damage and checked.key not in bad:
            bad.append(checked.key)
        n_checked += bool(checked.hookpoint)
        n_bytes += checked.bytes
    say(f"{n_checked} hookpoints checked, {in_units(n_bytes)}; {len(bad)} bad entries")
    if bad:
        say(f"To collect them anew: sae-mlflow cache prune {' '.join(bad)}")
        raise typer.Exit(EXIT_SOME_BAD)


def _lines(checked: "Checked") -> Iterator[str]:
    name = f"{checked.key}  {checked.hookpoint or 'facts'}"
    for damage in checked.damage[:_SHOWN]:
        yield f"{name}  BAD  {damage}"
    if len(checked.damage) > _SHOWN:
        yield f"{name}  BAD  and in {len(checked.damage) - _SHOWN:,} more places"
    if checked.whole:
        yield f"{name}  whole  {checked.windows:,} windows, {in_units(checked.bytes)}"
    elif not checked.damage:
        part = f"{checked.windows:,} of {checked.n_windows:,} windows"
        yield f"{name}  unfinished  {part}; a training goes on from there"


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

    choice = Pruning(keys or (), older_than_days, everything)
    if not choice:
        raise UserError("Nothing was chosen. Give keys (`cache list`), --older-than-days or --all.")
    for line in prune_cache(choice).lines():
        say(line)

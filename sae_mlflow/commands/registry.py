"""`sae-mlflow register` and `sae-mlflow promote`: SAEs in MLflow's model registry."""

from typing import Annotated

import typer

from sae_mlflow.commands.cli import TRACKING_URI
from sae_mlflow.terminal import say


def register_command(
    run: Annotated[str, typer.Option(metavar="ID", help="A layer's run.")],
    tracking_uri: Annotated[str | None, TRACKING_URI] = None,
) -> None:
    """Register a run's SAE as an MLflow model.

    `{model}-{layer}` is a pyfunc model that gives latents. It has its own copy of the weights, and
    so outlives the run.
    """
    from sae_mlflow.registry import register_run
    from sae_mlflow.tracking.store import existing_store

    uri, is_new = register_run(existing_store(tracking_uri), run)
    say(f"{uri} {'registered' if is_new else 'is there already'} (run {run})")


def promote_command(
    experiment: Annotated[str, typer.Option(metavar="NAME", help="MLflow experiment.")],
    max_l0: Annotated[float, typer.Option(help="Largest held-out L0 (val_l0_norm) of a run.")],
    model: Annotated[str | None, typer.Option(help="Only this language model.")] = None,
    layer: Annotated[
        str | None, typer.Option(help="Only this layer: 10, layer10, layers.10.mlp.")
    ] = None,
    tracking_uri: Annotated[str | None, TRACKING_URI] = None,
) -> None:
    """Move the alias `best` to each layer's best run.

    That is the one with the lowest val_fvu within an L0. A run that isn't registered yet is
    registered first. Only runs with the text settings of a layer's newest run are compared.
    """
    from sae_mlflow.registry import promote
    from sae_mlflow.tracking.store import existing_store

    store = existing_store(tracking_uri)
    for line in promote(store, experiment, max_l0, model=model or None, layer=layer or None):
        say(line)

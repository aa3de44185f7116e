"""`sae-mlflow evaluate`: what the LM loses with a trained SAE in it, and what latents fire on."""

from typing import Annotated

import typer

from sae_mlflow.commands.cli import TRACKING_URI, check_one_of
from sae_mlflow.terminal import say


def evaluate_command(
    run: Annotated[
        str | None, typer.Option(help="Evaluate this run: a layer's, or a parent with all layers.")
    ] = None,
    experiment: Annotated[
        str | None, typer.Option(help="Evaluate all finished runs of this MLflow experiment.")
    ] = None,
    tokens: Annotated[
        int,
        typer.Option(
            min=1,
            help="Held-out tokens that the LM reads, rounded down to whole windows, one at least.",
        ),
    ] = 8192,
    latents: Annotated[
        int,
        typer.Option(
            min=0, help="Latents that latents.html shows: half the most frequent, half random."
        ),
    ] = 50,
    latent: Annotated[
        list[int] | None,
        typer.Option(help="Also show the latent of this index; give it again for more."),
    ] = None,
    trust_remote_code: Annotated[
        bool,
        typer.Option(
            "--trust-remote-code",
            help="Run Python code that models bring along, where the training did too.",
        ),
    ] = False,
    tracking_uri: Annotated[str | None, TRACKING_URI] = None,
) -> None:
    """Measure what trained SAEs cost the model.

    Each stands in for its layer, and what the LM loses is logged to its run: metrics
    (`ce_loss_recovered`, `kl_divergence`, ...) and `evaluation/` with density.csv, density.png and
    latents.html. Special tokens, each window's first position and giant norms pass through
    unspliced, and the zero ablation leaves the same ones as they are.
    """
    check_one_of(experiment, run)
    from sae_mlflow.evaluation.runs import (
        Request,
        evaluate_runs,
        finished_of_experiment,
        finished_of_run,
    )
    from sae_mlflow.memory import keep_freed_memory
    from sae_mlflow.tracking.store import existing_store

    keep_freed_memory()
    store = existing_store(tracking_uri)
    rows = finished_of_run(store, run) if run else finished_of_experiment(store, experiment or "")
    request = Request(tokens, latents, tuple(dict.fromkeys(latent or ())), trust_remote_code)
    for line in evaluate_runs(store, rows, request):
        say(line)

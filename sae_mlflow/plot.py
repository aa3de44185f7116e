"""Plots: `python -m sae_mlflow.plot`, and four functions for histories that one has at hand."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from sae_mlflow import naming
from sae_mlflow.commands.cli import make_app, run_cli
from sae_mlflow.errors import UserError
from sae_mlflow.history import REQUIRED_KEYS, check_history, read_history
from sae_mlflow.plots.choice import Choice, check_metric, parse_layers
from sae_mlflow.plots.drawing import draw, drawing_processes
from sae_mlflow.plots.files import draw_history_file, draw_sae_dir
from sae_mlflow.plots.pictures import layer_pictures, overlay_pictures, stem
from sae_mlflow.plots.runs import draw_experiment, draw_layer_run, draw_parent

__all__ = [
    "draw_experiment",
    "draw_layer_run",
    "draw_parent",
    "load_and_plot_from_json",
    "plot_all_layers_comparison",
    "plot_command",
    "plot_reconstruction_loss_only",
    "plot_sae_training_history",
]

DEFAULT_SAE_DIR = Path("results/saes")

History = Mapping[str, Sequence[float]]
"""Metric names to one number an epoch; index 0 is epoch 1."""

app = make_app()


def plot_sae_training_history(
    history: History, model_name: str, layer: int | str, output_dir: str | Path
) -> list[Path]:
    """Write `{model}_{layer}_training_history.png`: reconstruction, total, sparsity loss and L0.

    Args:
        history: needs `total_loss`, `reconstruction_loss`, `sparsity_loss` and `l0_norm`.
        layer: `10`, `"10"`, `"layer10"`, or a module path (`layers.10.mlp`).

    Raises:
        UserError: the history is bad, or the folder can't be written.
    """
    return _plot_layer(history, model_name, layer, output_dir, REQUIRED_KEYS, slice(0, 1))


def plot_reconstruction_loss_only(
    history: History, model_name: str, layer: int | str, output_dir: str | Path
) -> list[Path]:
    """Write `{model}_{layer}_reconstruction_loss.png`, with the final loss named.

    Args:
        history: needs `reconstruction_loss`.
        layer: as for `plot_sae_training_history`.

    Raises:
        UserError: the history is bad, or the folder can't be written.
    """
    needed = ("reconstruction_loss",)
    return _plot_layer(history, model_name, layer, output_dir, needed, slice(1, 2))


def plot_all_layers_comparison(
    histories: Mapping[Any, History],
    model_name: str,
    output_dir: str | Path,
    metric: str = "reconstruction_loss",
) -> list[Path]:
    """Write `{model}_all_layers_{metric}.png`: a metric of all layers over each other.

    Args:
        histories: by layer (`10`, `"10"`, `"layer10"` or a module path); a layer without the
            metric is named on the picture.

    Raises:
        UserError: a history is bad, none has the metric, or the folder can't be written.
    """
    from sae_mlflow.plots.frames import history_table

    checked = {
        naming.layer_label(layer): check_history(history, f"the history of {layer!r}", ())
        for layer, history in histories.items()
    }
    where = f"The histories of {model_name}"
    if len(checked) < max(1, len(histories)):
        raise UserError(f"{where} have to be one or more, each of another layer.")
    check_metric(metric, {key for history in checked.values() for key in history}, where)
    table = history_table(model_name, checked)
    pictures = overlay_pictures(table, Path(output_dir), stem(model_name), [metric])
    return [draw(picture) for picture in pictures]


def load_and_plot_from_json(
    history_file: str | Path, model_name: str, layer: int | str, output_dir: str | Path
) -> list[Path]:
    """Write both pictures of a `{layer}_training_history.json`.

    Raises:
        UserError: the file is missing or bad, or the folder can't be written.
    """
    history = read_history(Path(history_file))
    return _plot_layer(history, model_name, layer, output_dir, REQUIRED_KEYS, slice(0, 2))


def _plot_layer(
    history: History,
    model_name: str,
    layer: int | str,
    output_dir: str | Path,
    needed: Sequence[str],
    which: slice,
) -> list[Path]:
    from sae_mlflow.plots.frames import history_table

    label = naming.layer_label(layer)
    checked = check_history(history, f"The history of {model_name} {label}", needed)
    table = history_table(model_name, {label: checked})
    pictures = layer_pictures(table, Path(output_dir), stem(model_name, label))
    return [draw(picture) for picture in pictures[which]]


@app.command()
def plot_command(
    experiment: Annotated[
        str | None, typer.Option(help="Draw this MLflow experiment's runs, out of the store.")
    ] = None,
    sae_dir: Annotated[
        Path | None,
        typer.Option(
            help="Draw every {model}/{layer}_training_history.json below this folder. "
            f"[default without --experiment: {DEFAULT_SAE_DIR}]"
        ),
    ] = None,
    history_file: Annotated[
        Path | None,
        typer.Option(help="Draw this file; model and layer come from its folder's and own name."),
    ] = None,
    model_name: Annotated[
        str | None, typer.Option(help="Only this model, with or without its slashes.")
    ] = None,
    layers: Annotated[
        str | None, typer.Option(help="Only these layers: 10,15 or 3-7 or layer10_mlp.")
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option(help="Only this metric (any in the store): one picture a layer, one overlay."),
    ] = None,
    runs: Annotated[
        Literal["latest", "all"] | None,
        typer.Option(
            help="Of runs that differ only in their seed: the latest, or all, as mean and range. "
            "[default: latest]"
        ),
    ] = None,
    comparison: Annotated[
        bool | None,
        typer.Option(
            "--comparison/--no-comparison",
            help="Overlays of all layers. [default: on with --experiment, else off]",
        ),
    ] = None,
    log: Annotated[
        bool | None,
        typer.Option("--log/--no-log", help="Log the pictures into the runs. [default: log]"),
    ] = None,
    output_dir: Annotated[
        Path | None, typer.Option(help="Write DIR/{model}/training_plots/ (too).", metavar="DIR")
    ] = None,
    tracking_uri: Annotated[
        str | None, typer.Option(help="MLflow tracking store; unset means MLflow's own setting.")
    ] = None,
) -> None:
    """Draw training histories, from the tracking store or from files.

    Prints each file and artifact that it made.
    """
    _refuse_conflicts(
        experiment is not None,
        files={"--sae-dir": sae_dir is not None, "--history-file": history_file is not None},
        store={
            "--runs": runs is not None,
            "--log": log is True,
            "--no-log": log is False,
            "--tracking-uri": tracking_uri is not None,
        },
    )
    choice = Choice(
        model=model_name or None,
        layers=parse_layers(layers) if layers else (),
        metric=metric or None,
        runs=runs or "latest",
        comparison=experiment is not None if comparison is None else comparison,
        log=log is not False,
        output_dir=output_dir,
    )
    made: Iterator[str]
    if experiment is not None:
        made = _from_store(experiment, choice, tracking_uri)
    elif history_file is not None:
        if choice.comparison:
            raise UserError("--comparison needs several layers. Give --sae-dir instead.")
        made = draw_history_file(history_file, choice)
    else:
        made = draw_sae_dir(sae_dir or DEFAULT_SAE_DIR, choice)
    for line in made:
        print(line, flush=True)


def _from_store(experiment: str, choice: Choice, tracking_uri: str | None) -> Iterator[str]:
    if not choice.log and choice.output_dir is None:
        raise UserError("--no-log without --output-dir DIR would leave no picture. Add the latter.")
    with drawing_processes() as pool:
        from sae_mlflow.tracking.store import Store

        yield from draw_experiment(Store(tracking_uri), experiment, choice, pool)


def _refuse_conflicts(
    from_store: bool, files: Mapping[str, bool], store: Mapping[str, bool]
) -> None:
    wrong = [option for option, given in (files if from_store else store).items() if given]
    if wrong and from_store:
        raise UserError(
            f"--experiment draws from the store, {wrong[0]} from files. Leave one away."
        )
    if wrong:
        raise UserError(f"{wrong[0]} is about runs in the store. Add --experiment NAME.")
    if all(files.values()):
        raise UserError("--sae-dir and --history-file exclude each other. Leave one away.")


def main() -> None:
    run_cli(app)


if __name__ == "__main__":
    main()

"""`sae-mlflow plot`, which is `python -m sae_mlflow.plot`: pictures of runs or history files."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Literal

import typer

from sae_mlflow.commands.cli import TRACKING_URI
from sae_mlflow.errors import UserError
from sae_mlflow.folders import user_path
from sae_mlflow.plots.choice import Choice, parse_layers
from sae_mlflow.plots.drawing import drawing_processes
from sae_mlflow.plots.files import draw_history_file, draw_sae_dir
from sae_mlflow.plots.formats import DEFAULT_FORMATS, parse_formats
from sae_mlflow.plots.style import load_style
from sae_mlflow.terminal import say
from sae_mlflow.whole_file import check_folder

DEFAULT_SAE_DIR = Path("results/saes")


def plot_command(
    experiment: Annotated[
        list[str] | None,
        typer.Option(
            help="Draw this MLflow experiment's runs, out of the store. Given several times, runs "
            "of all of them are held against each other.",
            metavar="NAME",
        ),
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
        typer.Option(
            help="Only this metric, any that was logged: a picture of it of each layer, of all "
            "layers, and in comparisons."
        ),
    ] = None,
    runs: Annotated[
        Literal["latest", "all"] | None,
        typer.Option(
            help="Of runs that differ only in their seed: the latest, or all, as mean and range. "
            "[default: latest]"
        ),
    ] = None,
    filter: Annotated[
        str | None,
        typer.Option(
            help="Only runs of which this holds, in MLflow's filter language: "
            "\"params.`sae.k` = '32' and metrics.val_fvu < 0.1\"."
        ),
    ] = None,
    comparison: Annotated[
        bool | None,
        typer.Option(
            "--comparison/--no-comparison",
            help="Overlays of all layers. [default: on with --experiment, else off]",
        ),
    ] = None,
    interactive: Annotated[
        bool | None,
        typer.Option(
            "--interactive/--no-interactive",
            help="Pages for the browser: beside overlays, and beside each layer's pictures. "
            "[default: beside overlays alone]",
        ),
    ] = None,
    log: Annotated[
        bool | None,
        typer.Option("--log/--no-log", help="Log the pictures into the runs. [default: log]"),
    ] = None,
    output_dir: Annotated[
        Path | None, typer.Option(help="Write DIR/{model}/training_plots/ (too).", metavar="DIR")
    ] = None,
    format_: Annotated[
        str, typer.Option("--format", help="Files of each picture: png, pdf, svg or several.")
    ] = ",".join(DEFAULT_FORMATS),
    style: Annotated[
        str | None,
        typer.Option(
            help="How they look: a YAML file, or default, paper, dark or talk.",
            metavar="FILE|NAME",
        ),
    ] = None,
    tracking_uri: Annotated[str | None, TRACKING_URI] = None,
) -> None:
    """Draw training histories.

    They come from the tracking store, or from files. Prints each file and artifact that it made.
    """
    _refuse_conflicts(
        bool(experiment),
        files={"--sae-dir": sae_dir is not None, "--history-file": history_file is not None},
        store={
            "--runs": runs is not None,
            "--filter": filter is not None,
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
        filter=filter or None,
        comparison=bool(experiment) if comparison is None else comparison,
        log=log is not False,
        interactive="parent" if interactive is None else "all" if interactive else "none",
        output_dir=user_path(output_dir) if output_dir else None,
        style=load_style(style or None),
        formats=parse_formats(format_),
    )
    if choice.output_dir is not None:
        check_folder(choice.output_dir)
    made: Iterator[str]
    if experiment:
        made = _from_store(experiment, choice, tracking_uri)
    elif history_file is not None:
        if choice.comparison:
            raise UserError("--comparison needs several layers. Give --sae-dir instead.")
        made = draw_history_file(user_path(history_file), choice)
    else:
        made = draw_sae_dir(user_path(sae_dir or DEFAULT_SAE_DIR), choice)
    for line in made:
        say(line)


def _from_store(experiments: list[str], choice: Choice, tracking_uri: str | None) -> Iterator[str]:
    if not choice.log and choice.output_dir is None:
        raise UserError("--no-log without --output-dir DIR would leave no picture. Add the latter.")
    with drawing_processes() as pool:
        from sae_mlflow.plots.runs import draw_experiments
        from sae_mlflow.tracking.store import existing_store

        yield from draw_experiments(existing_store(tracking_uri), experiments, choice, pool)


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

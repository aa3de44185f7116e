"""What is asked to be drawn, held against what there is."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from sae_mlflow import naming
from sae_mlflow.errors import UserError, known
from sae_mlflow.plots.formats import DEFAULT_FORMATS
from sae_mlflow.plots.style import Style, load_style
from sae_mlflow.tracking.contents import RunRow

Interactive = Literal["parent", "all", "none"]


@dataclass(frozen=True)
class Choice:
    """What of an experiment is drawn, how, and where it goes."""

    model: str | None = None
    """As it was trained, or sanitised; None means all."""
    layers: tuple[str, ...] = ()
    """Labels such as `layer10`; none means all."""
    metric: str | None = None
    """Draw this one alone: a single picture a layer, one overlay, and comparisons of it."""
    runs: Literal["latest", "all"] = "latest"
    filter: str | None = None
    """Only runs of which this holds, in MLflow's filter language."""
    comparison: bool = True
    log: bool = True
    interactive: Interactive = "parent"
    """Which interactive pages there are: beside overlays, or also beside each layer's pictures."""
    output_dir: Path | None = None
    """Also write `{output_dir}/{model}/training_plots/`."""
    style: Style = field(default_factory=load_style)
    formats: tuple[str, ...] = DEFAULT_FORMATS


def parse_layers(text: str) -> tuple[str, ...]:
    """`10,15`, `3-7`, `layer10_mlp` or `layers.10.mlp` as labels: `("layer10", "layer15")`.

    Raises:
        UserError: there is none, or one that no model can have.
    """
    try:
        labels = filter(None, map(naming.layer_label, naming.parse_layers(text)))
    except ValueError as error:
        raise UserError(f"--layers {text[:100]!r} {error}.") from None
    if found := tuple(dict.fromkeys(labels)):
        return found
    raise UserError(f"--layers {text[:100]!r} names no layer. Write 10,15 or 3-7 or layer10_mlp.")


def chosen_rows(rows: list[RunRow], experiments: str, choice: Choice) -> list[RunRow]:
    """The rows of the chosen model and layers; says what there is where one isn't.

    Args:
        experiments: their names, quoted.
    """
    where = f"Experiment {experiments}"
    if choice.model is not None:
        models = sorted({row.model for row in rows})
        rows = [row for row in rows if same_model(row.model, choice.model)]
        if not rows:
            raise UserError(
                f"{where} has no finished run of {choice.model!r}. It has {known(models)}."
            )
    if choice.layers:
        check_layers(choice.layers, {row.layer for row in rows}, where)
        rows = [row for row in rows if row.layer in choice.layers]
    if choice.metric:
        check_metric(choice.metric, {key for row in rows for key in row.metrics}, where)
    return rows


def same_model(name: str, asked: str) -> bool:
    return asked == name or naming.sanitise(asked) == naming.sanitise(name)


def check_layers(asked: Iterable[str], there: Iterable[str], where: str) -> None:
    names = sorted(there, key=naming.layer_order)
    for layer in asked:
        if layer not in names:
            raise UserError(f"{where} has no {layer}. It has {known(names)}.")


def check_metric(asked: str, there: Iterable[str], where: str) -> None:
    names = sorted(there)
    if asked not in names:
        raise UserError(f"{where} has no metric {asked!r}. It has {known(names, limit=30)}.")

"""Pictures of histories that one has at hand: the four functions that `sae_mlflow.plot` offers."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sae_mlflow import naming
from sae_mlflow.errors import UserError
from sae_mlflow.history import REQUIRED_KEYS, check_history, read_history
from sae_mlflow.plots.choice import check_metric
from sae_mlflow.plots.drawing import draw
from sae_mlflow.plots.formats import DEFAULT_FORMATS, parse_formats
from sae_mlflow.plots.pictures import Picture, layer_pictures, overlay_pictures, stem
from sae_mlflow.plots.style import load_style

History = Mapping[str, Sequence[float]]
"""Metric names to one number an epoch; index 0 is epoch 1."""


def plot_sae_training_history(
    history: History,
    model_name: str,
    layer: int | str,
    output_dir: str | Path,
    *,
    style: str | Path | None = None,
    formats: str | Iterable[str] = DEFAULT_FORMATS,
) -> list[Path]:
    """Write `{model}_{layer}_training_history.png`: reconstruction, total, sparsity loss and L0.

    Args:
        history: needs `total_loss`, `reconstruction_loss`, `sparsity_loss` and `l0_norm`.
        layer: `10`, `"10"`, `"layer10"`, or a module path (`layers.10.mlp`).
        style: a shipped style's name (`paper`) or a style file; None is the default.
        formats: of `png`, `pdf` and `svg`, each a file; `png,pdf` works as text.

    Raises:
        UserError: the history, style or a format is bad, or the folder can't be written.
    """
    pictures = _layer_pictures(history, model_name, layer, output_dir, REQUIRED_KEYS, slice(0, 1))
    return _drawn(pictures, style, formats)


def plot_reconstruction_loss_only(
    history: History,
    model_name: str,
    layer: int | str,
    output_dir: str | Path,
    *,
    style: str | Path | None = None,
    formats: str | Iterable[str] = DEFAULT_FORMATS,
) -> list[Path]:
    """Write `{model}_{layer}_reconstruction_loss.png`, with the final loss named.

    Args:
        history: needs `reconstruction_loss`.
        layer, style, formats: as for `plot_sae_training_history`.

    Raises:
        UserError: the history, style or a format is bad, or the folder can't be written.
    """
    needed = ("reconstruction_loss",)
    pictures = _layer_pictures(history, model_name, layer, output_dir, needed, slice(1, 2))
    return _drawn(pictures, style, formats)


def plot_all_layers_comparison(
    histories: Mapping[Any, History],
    model_name: str,
    output_dir: str | Path,
    metric: str = "reconstruction_loss",
    *,
    style: str | Path | None = None,
    formats: str | Iterable[str] = DEFAULT_FORMATS,
) -> list[Path]:
    """Write `{model}_all_layers_{metric}.png`: a metric of all layers over each other.

    Args:
        histories: by layer (`10`, `"10"`, `"layer10"` or a module path); a layer without the
            metric is named on the picture.
        style, formats: as for `plot_sae_training_history`.

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
    return _drawn(pictures, style, formats)


def load_and_plot_from_json(
    history_file: str | Path,
    model_name: str,
    layer: int | str,
    output_dir: str | Path,
    *,
    style: str | Path | None = None,
    formats: str | Iterable[str] = DEFAULT_FORMATS,
) -> list[Path]:
    """Write both pictures of a `{layer}_training_history.json`.

    Args:
        style, formats: as for `plot_sae_training_history`.

    Raises:
        UserError: the file is missing or bad, or the folder can't be written.
    """
    history = read_history(Path(history_file))
    pictures = _layer_pictures(history, model_name, layer, output_dir, REQUIRED_KEYS, slice(0, 2))
    return _drawn(pictures, style, formats)


def _layer_pictures(
    history: History,
    model_name: str,
    layer: int | str,
    output_dir: str | Path,
    needed: Sequence[str],
    which: slice,
) -> list[Picture]:
    from sae_mlflow.plots.frames import history_table

    label = naming.layer_label(layer)
    checked = check_history(history, f"The history of {model_name} {label}", needed)
    table = history_table(model_name, {label: checked})
    pictures = layer_pictures(table, Path(output_dir), stem(model_name, label))
    return pictures[which]


def _drawn(
    pictures: Iterable[Picture], style: str | Path | None, formats: str | Iterable[str]
) -> list[Path]:
    look, endings = load_style(style), parse_formats(formats)
    return [file for picture in pictures for file in draw(picture.drawn(look, endings))]

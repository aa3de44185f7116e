"""Pictures of histories that one has at hand: the four functions that `sae_mlflow.plot` offers."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sae_mlflow import naming
from sae_mlflow.errors import UserError
from sae_mlflow.history import REQUIRED_KEYS, check_history, read_history
from sae_mlflow.plots.choice import check_metric
from sae_mlflow.plots.drawing import draw
from sae_mlflow.plots.pictures import layer_pictures, overlay_pictures, stem

History = Mapping[str, Sequence[float]]
"""Metric names to one number an epoch; index 0 is epoch 1."""


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

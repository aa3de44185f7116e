"""Pictures of history files: what a training left in `{model}/{layer}_training_history.json`."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from sae_mlflow import naming
from sae_mlflow.errors import UserError, known
from sae_mlflow.history import FILE_SUFFIX, layer_of, read_history
from sae_mlflow.plots.choice import Choice, check_layers, check_metric, same_model
from sae_mlflow.plots.drawing import Drawable, draw_all
from sae_mlflow.plots.pages import all_layers_page, layer_page
from sae_mlflow.plots.pictures import (
    OVERLAY_METRICS,
    layer_pictures,
    overlay_pictures,
    stem,
)

Histories = Mapping[str, Mapping[str, Sequence[float]]]


def draw_history_file(file: Path, choice: Choice) -> Iterator[str]:
    """Draw one file's pictures; yields their paths.

    The model is its folder's name and the layer its own, unless the choice names them.

    Raises:
        UserError: the file is missing or bad, or the place can't be written.
    """
    if len(choice.layers) > 1:
        raise UserError(
            f"--layers names {len(choice.layers)} layers, but {file} is the history of one."
        )
    model = choice.model or file.resolve().parent.name
    layer = choice.layers[0] if choice.layers else layer_of(file)
    history = read_history(file)
    if choice.metric:
        check_metric(choice.metric, history, str(file))
    pictures = _pictures(model, {layer: history}, _folder(model, file.parent, choice), choice)
    yield from (str(file) for files in draw_all(pictures) for file in files)


def draw_sae_dir(sae_dir: Path, choice: Choice) -> Iterator[str]:
    """Draw every history below a folder, a model's in a folder each; yields the pictures' paths.

    All files are read before the first picture is drawn, so a bad one leaves nothing half done.

    Raises:
        UserError: no history is there, or none that was chosen; a file is bad; two models' pictures
            would meet in one folder; a place can't be written.
    """
    pictures: list[Drawable] = []
    folders: dict[Path, Path] = {}
    for source, files in _chosen_files(sae_dir, choice).items():
        model = choice.model or source.resolve().name
        target = _folder(model, source, choice)
        if target in folders:
            raise UserError(
                f"{folders[target]} and {source} would both be drawn into {target}. "
                "Leave --output-dir away, or give one of them as --sae-dir."
            )
        folders[target] = source
        pictures += _pictures(model, _read(files, choice), target, choice)
    yield from (str(file) for files in draw_all(pictures) for file in files)


def _chosen_files(sae_dir: Path, choice: Choice) -> dict[Path, list[Path]]:
    """The history files of the chosen models and layers, by folder; layers in their order."""
    if not sae_dir.is_dir():
        raise UserError(
            f"There is no folder {sae_dir}. Name one with --sae-dir, or draw from the tracking "
            "store with --experiment NAME."
        )
    files = sorted(
        sae_dir.rglob(f"*{FILE_SUFFIX}"),
        key=lambda file: (file.parent, naming.layer_order(layer_of(file))),
    )
    if not files:
        raise UserError(f"{sae_dir} holds no {{model}}/{{layer}}{FILE_SUFFIX}.")
    if choice.model is not None:
        models = sorted({file.resolve().parent.name for file in files})
        files = [f for f in files if same_model(f.resolve().parent.name, choice.model)]
        if not files:
            raise UserError(f"{sae_dir} has no model {choice.model!r}. It has {known(models)}.")
    if choice.layers:
        check_layers(choice.layers, {layer_of(file) for file in files}, str(sae_dir))
        files = [file for file in files if layer_of(file) in choice.layers]
    by_folder: dict[Path, list[Path]] = {}
    for file in files:
        by_folder.setdefault(file.parent, []).append(file)
    return by_folder


def _read(files: Sequence[Path], choice: Choice) -> Histories:
    histories = {layer_of(file): read_history(file) for file in files}
    if choice.metric:
        metrics = {key for history in histories.values() for key in history}
        check_metric(choice.metric, metrics, str(files[0].parent))
    return histories


def _pictures(model: str, histories: Histories, folder: Path, choice: Choice) -> list[Drawable]:
    from sae_mlflow.plots.frames import history_table

    table = history_table(model, histories)
    pictures: list[Drawable] = []
    for layer in histories:
        mine = table[table["layer"] == layer]
        pictures += layer_pictures(mine, folder, stem(model, layer), choice.metric)
        if choice.interactive == "all":
            pictures.append(layer_page(mine, folder, stem(model, layer), choice.metric))
    if choice.comparison:
        metrics = [choice.metric] if choice.metric else OVERLAY_METRICS
        pictures += overlay_pictures(table, folder, stem(model), metrics)
        if choice.interactive != "none":
            pictures.append(all_layers_page(table, folder, stem(model), choice.metric))
    return [p.drawn(choice.style, choice.formats) for p in pictures if p.has_data]


def _folder(model: str, source: Path, choice: Choice) -> Path:
    if choice.output_dir:
        return choice.output_dir / naming.sanitise(model) / naming.PLOTS_FOLDER
    return source / naming.PLOTS_FOLDER

"""The evaluation at a training's end: of all layers together, logged to their runs."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from sae_mlflow.activations.layer import LayerActivations
from sae_mlflow.config import Settings
from sae_mlflow.errors import UserError
from sae_mlflow.evaluation.evaluate import Evaluation
from sae_mlflow.evaluation.files import log_evaluation, write_density
from sae_mlflow.evaluation.splice import Splicer
from sae_mlflow.evaluation.stored_saes import StoredSite, evaluate_stored
from sae_mlflow.lm.hookpoints import LanguageModel
from sae_mlflow.plots.style import Style
from sae_mlflow.reporting.layer_table import TrainedLayer
from sae_mlflow.text.corpus import Windows
from sae_mlflow.tracking.store import Store

# Of SAEs that are in memory at once: the LM's clean pass is shared by so many.
_TOGETHER_BYTES = 1 << 30


def evaluate_layers(
    store: Store,
    settings: Settings,
    lm: LanguageModel,
    windows: Windows,
    layers: Sequence[tuple[TrainedLayer, LayerActivations]],
    style: Style | None = None,
) -> Iterator[tuple[TrainedLayer, Mapping[str, float] | UserError]]:
    """Log what the LM loses to each layer's SAE, as it stands in the store.

    Args:
        layers: each with what its SAE was trained on.
        style: of pictures; unset means the default.

    Yields:
        A layer and its figures, once its run has them; or why it isn't evaluated: its SAE can't be
        opened, or nothing in the held-out text is for it.

    Raises:
        OutOfReach: the store doesn't answer.
    """
    splicer = Splicer(lm)
    for group in _groups(layers):
        sites = [StoredSite(row.run_id, acts.site, acts.caps) for row, acts in group]
        found = evaluate_stored(store, splicer, windows, sites, tokens=settings.evaluate.tokens)
        for (row, _), result in zip(group, found, strict=True):
            if isinstance(result, UserError):
                yield row, result
                continue
            _log(store, settings, row, result.evaluation, style)
            yield row, result.evaluation.metrics


def _groups(
    layers: Sequence[tuple[TrainedLayer, LayerActivations]],
) -> Iterator[list[tuple[TrainedLayer, LayerActivations]]]:
    group: list[tuple[TrainedLayer, LayerActivations]] = []
    for row, acts in layers:
        if group and sum(r.weight_bytes for r, _ in group) + row.weight_bytes > _TOGETHER_BYTES:
            yield group
            group = []
        group.append((row, acts))
    yield group


def _log(
    store: Store, settings: Settings, row: TrainedLayer, evaluation: Evaluation, style: Style | None
) -> None:
    model = settings.model.label
    with TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_density(evaluation, folder, model=model, layer=row.layer, style=style)
        log_evaluation(store.reopen(row.run_id), settings.train.epochs, evaluation, folder)

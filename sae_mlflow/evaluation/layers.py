"""The evaluation at a training's end: of all layers together, logged to their runs."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from sae_mlflow.activations.layer import LayerActivations
from sae_mlflow.config import Settings
from sae_mlflow.evaluation.evaluate import Evaluation, StandIn, evaluate
from sae_mlflow.evaluation.files import write_density
from sae_mlflow.evaluation.splice import Splicer
from sae_mlflow.formats.sae_files import load_sae
from sae_mlflow.lm.hookpoints import LanguageModel
from sae_mlflow.lm.sites import Site
from sae_mlflow.reporting.layer_table import Row
from sae_mlflow.text.corpus import Windows
from sae_mlflow.tracking.contents import EVALUATION_FOLDER, SAE_FOLDER
from sae_mlflow.tracking.store import Store

# Of SAEs that are in memory at once: the LM's clean pass is shared by so many.
_TOGETHER_BYTES = 1 << 30


def evaluate_layers(
    store: Store,
    settings: Settings,
    lm: LanguageModel,
    windows: Windows,
    rows: Sequence[Row],
    all_acts: Sequence[LayerActivations],
) -> None:
    """Log what the LM loses to each layer's SAE, as it stands in the store; fills in the rows.

    A row is filled in once its run has the figures, so that work cut off may be begun again.

    Args:
        all_acts: what each row's SAE was trained on.

    Raises:
        UserError: the held-out text has nothing to evaluate on.
    """
    splicer = Splicer(lm)
    for group in _groups(list(zip(rows, all_acts, strict=True))):
        stand_ins = [
            stored_stand_in(store, row.run_id, lm, acts.site, acts.caps) for row, acts in group
        ]
        found = evaluate(splicer, windows, stand_ins, tokens=settings.evaluate.tokens)
        for (row, _), evaluation in zip(group, found, strict=True):
            _log(store, settings, row, evaluation)
            row.evaluation.update(evaluation.metrics)


def stored_stand_in(
    store: Store, run_id: str, lm: LanguageModel, site: Site, caps: Mapping[str, float]
) -> StandIn:
    """A run's SAE, as it stands in the store, on the LM's device.

    Args:
        caps: the largest norm at each hookpoint; those of other sites are left out.
    """
    source = f"runs:/{run_id}/{SAE_FOLDER}"
    sae = load_sae(source, device=str(lm.device), tracking_uri=store.uri)
    return StandIn(site, sae, {hookpoint: caps[hookpoint] for hookpoint in site.hookpoints})


def _groups(
    layers: Sequence[tuple[Row, LayerActivations]],
) -> Iterator[list[tuple[Row, LayerActivations]]]:
    group: list[tuple[Row, LayerActivations]] = []
    for row, acts in layers:
        if group and sum(r.weight_bytes for r, _ in group) + row.weight_bytes > _TOGETHER_BYTES:
            yield group
            group = []
        group.append((row, acts))
    yield group


def _log(store: Store, settings: Settings, row: Row, evaluation: Evaluation) -> None:
    """The metrics come last: where they stand, everything does."""
    run = store.reopen(row.run_id)
    with TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_density(evaluation, folder, model=settings.model.label, layer=row.layer)
        run.log_folder(folder, EVALUATION_FOLDER)
    run.log_metrics(settings.train.epochs, evaluation.metrics)

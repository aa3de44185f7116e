"""The model registry: SAEs registered as `{model}-{layer}`, and the alias `best` among them."""

import math
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

from sae_mlflow import naming
from sae_mlflow.architectures import TRANSCODERS
from sae_mlflow.errors import OutOfReach, UserError, known
from sae_mlflow.formats.sae_files import load_sae
from sae_mlflow.history import restored
from sae_mlflow.tracking.contents import SAE_FOLDER, RunRow
from sae_mlflow.tracking.models import REGISTERED_MODEL
from sae_mlflow.tracking.store import Store
from sae_mlflow.tracking.trainings import layer_run

BEST = "best"
_MODEL_SETTING = "model.name"
_TOO_DENSE = "Raise --max-l0, or train a sparser SAE."
_NEEDED = ("sae-mlflow", "mlflow", "torch", "numpy", "safetensors")


def register_run(store: Store, run_id: str, folder: Path | None = None) -> tuple[str, bool]:
    """Register a run's SAE, once: `models:/NAME/VERSION`, and whether that is new.

    Args:
        folder: the SAE's files, where they are at hand; else the run's own are copied.

    Raises:
        UserError: the run holds no SAE, or one that is damaged; the registry can't be used.
    """
    row = layer_run(store, run_id)
    run_id, name = row.run_id, _name(row)
    found = store.models.version_of_run(name, run_id)
    if found is not None:
        return f"models:/{name}/{found}", False
    with TemporaryDirectory() as scratch:
        where = f"runs:/{run_id}/{SAE_FOLDER}"
        source = folder or store.download(where, Path(scratch))
        _check(source, where)
        number = store.models.register(
            name, row, REGISTERED_MODEL, {"sae": source}, _requirements()
        )
    return f"models:/{name}/{number}", True


def _name(row: RunRow) -> str:
    return naming.registered_name(
        row.model,
        row.layer,
        row.params.get(_MODEL_SETTING),
        transcodes=row.architecture in TRANSCODERS,
    )


def _check(source: Path, where: str) -> None:
    """What can't be opened isn't registered: a registry outlives the run that could tell why."""
    try:
        load_sae(source)
    except UserError as error:
        raise UserError(str(error).replace(str(source), where)) from None


def _requirements() -> list[str]:
    """What `registered_model.py` needs, as installed here; a build's own suffix (`+cpu`) is left
    out, since package indexes have none."""
    return [f"{package}=={version(package).partition('+')[0]}" for package in _NEEDED]


def promote(
    store: Store,
    experiment: str,
    max_l0: float,
    *,
    model: str | None = None,
    layer: str | None = None,
) -> Iterator[str]:
    """Give the alias `best` to each model and layer's run of lowest `val_fvu` within an L0.

    Transcoders are compared among themselves, and of each model and layer only the runs whose text
    settings are those of its newest run: they alone have the same held-out tokens.

    Args:
        max_l0: largest `val_l0_norm` (its last value) that a run may have.
        model: only this one, as the tag `sae.model`, its file name or the setting has it.
        layer: only this one: `10`, `layer10`, `layers.10.mlp`.

    Yields:
        How many runs were left out for their text, where any were; for each model and layer what
        moved.

    Raises:
        OutOfReach: the store doesn't answer.
        UserError: no such experiment, model or layer; no run of any is within the L0; and after
            the others moved, of a model and layer whose best run can't be registered.
    """
    if math.isnan(max_l0):
        raise UserError("--max-l0 nan is no L0. Give a number over 0.")
    rows = _chosen(store.layer_runs(store.find_experiment(experiment)), experiment, model, layer)
    groups = {name: _of_newest_text(group) for name, group in _by_name(rows).items()}
    compared = [row for group in groups.values() for row in group]
    if left_out := len(rows) - len(compared):
        yield (
            f"{left_out} of {len(rows)} runs are left out: their text.* settings differ from those "
            "of the newest run of their layer, so their val_fvu is of other held-out tokens"
        )
    best = {name: _best(group, max_l0) for name, group in groups.items()}
    if not any(best.values()):
        advice = "Train again." if _within(compared, max_l0) else _TOO_DENSE
        raise UserError(f"{experiment!r}: {_why_none(compared, max_l0)}. {advice}")
    refused: list[str] = []
    for name, winner in best.items():
        if winner is None:
            yield f"{name}: {_why_none(groups[name], max_l0)}"
        else:
            yield from _move(store, name, winner, refused)
    if refused:
        raise UserError("\n".join(refused))


def _chosen(
    rows: Sequence[RunRow], experiment: str, model: str | None, layer: str | None
) -> list[RunRow]:
    label = None if layer is None else naming.layer_label(layer)
    kept = [
        row
        for row in rows
        if model in (None, row.model, naming.sanitise(row.model), row.params.get(_MODEL_SETTING))
        and (layer in (None, row.layer) or label == row.layer)
    ]
    if not kept:
        there = known(sorted({f"{row.model} {row.layer}" for row in rows}))
        asked = " ".join(filter(None, (model, layer))) or "any model"
        raise UserError(f"{experiment!r} has no finished run of {asked}. There are: {there}.")
    return kept


def _by_name(rows: Sequence[RunRow]) -> dict[str, list[RunRow]]:
    """Runs under the names that their SAEs are registered by, in the layers' order."""
    groups: dict[str, list[RunRow]] = {}
    for row in sorted(rows, key=lambda row: (row.model, naming.layer_order(row.layer), _name(row))):
        groups.setdefault(_name(row), []).append(row)
    return groups


def _of_newest_text(rows: Sequence[RunRow]) -> list[RunRow]:
    """Of runs, newest first, those that read the same text as the first, as far as both say."""
    newest = {key: value for key, value in rows[0].params.items() if key.startswith("text.")}
    return [
        row
        for row in rows
        if all(row.params.get(key, value) == value for key, value in newest.items())
    ]


def _best(rows: Sequence[RunRow], max_l0: float) -> RunRow | None:
    """Of runs as good as each other the newest."""
    within = [row for row in _within(rows, max_l0) if _is_number(row, "val_fvu")]
    return min(within, key=lambda row: row.metrics["val_fvu"], default=None)


def _within(rows: Sequence[RunRow], max_l0: float) -> list[RunRow]:
    return [row for row in rows if row.metrics.get("val_l0_norm", math.nan) <= max_l0]


def _is_number(row: RunRow, metric: str) -> bool:
    """Not where it is missing, NaN or infinity."""
    return math.isfinite(restored(row.metrics.get(metric, math.nan)))


def _why_none(rows: Sequence[RunRow], max_l0: float) -> str:
    """Why none of these runs is the best one."""
    if within := _within(rows, max_l0):
        runs = known([row.run_id for row in within], limit=3)
        return f"no run with val_l0_norm <= {max_l0:g} has a val_fvu that is a number (not {runs})"
    said = f"no run has val_l0_norm <= {max_l0:g}; "
    with_l0 = [row for row in rows if _is_number(row, "val_l0_norm")]
    if not with_l0:
        return said + "none has a val_l0_norm that is a number"
    row = min(with_l0, key=lambda row: row.metrics["val_l0_norm"])
    return said + f"the lowest there is {row.metrics['val_l0_norm']:.4g} (run {row.run_id})"


def _move(store: Store, name: str, row: RunRow, refused: list[str]) -> Iterator[str]:
    before = store.models.aliased_version(name, BEST)
    try:
        uri, _ = register_run(store, row.run_id)
    except OutOfReach:
        raise
    except UserError as error:
        refused.append(f"{name}: {error}")
        return
    number = uri.rpartition("/")[2]
    facts = f"val_fvu {row.metrics['val_fvu']:.4g} at L0 {row.metrics['val_l0_norm']:.4g}"
    if before == number:
        yield f"models:/{name}@{BEST} stays at version {number} (run {row.run_id}, {facts})"
        return
    store.models.move_alias(name, BEST, number)
    came = f" from version {before}" if before else ""
    yield f"models:/{name}@{BEST} moved{came} to version {number} (run {row.run_id}, {facts})"

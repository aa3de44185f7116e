"""The curves of watched trainings, as a page draws them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from sae_mlflow.history import restored
from sae_mlflow.plots import frames
from sae_mlflow.plots.interactive import page_content
from sae_mlflow.plots.pages import Page, run_links
from sae_mlflow.tracking.contents import SHORT_ID, RunRow
from sae_mlflow.tracking.store import Store
from sae_mlflow.watching.state import WAITING, LayerState, TrainingState

_Seen = tuple[str, int]  # a layer's status, and the epochs that it has had


class Curves:
    """Every metric of every watched layer; a run is read again when it has had another epoch."""

    def __init__(self, store: Store, title: str) -> None:
        self._store, self._title = store, title
        self._seen: dict[str, _Seen] = {}
        self._rows: dict[str, RunRow] = {}
        self._values: dict[str, list[tuple[str, int, float]]] = {}
        self._drawn: tuple[list[str], bool] | None = None
        self.content = self._content([], under_way=True)
        """What the page draws, as of the last `read`."""

    def read(self, trainings: Sequence[TrainingState]) -> None:
        """Bring `content` up to where the trainings stand.

        Raises:
            OutOfReach: the store doesn't answer.
        """
        layers = [x for t in trainings for x in t.layers if x.status != WAITING and x.run_id]
        fresh = [x for x in layers if self._seen.get(x.run_id) != (x.status, x.epoch)]
        with self._store.reading():
            for layer in fresh:
                self._read_run(layer)
        shown = [layer.run_id for layer in layers]
        under_way = any(training.is_running for training in trainings)
        if fresh or self._drawn != (shown, under_way):
            self.content = self._content([self._rows[run_id] for run_id in shown], under_way)
            self._drawn = (shown, under_way)

    def _read_run(self, layer: LayerState) -> None:
        row = self._store.run(layer.run_id)
        metrics = frames.per_epoch([row])
        self._values[row.run_id] = list(self._store.history(row.run_id, metrics))
        self._rows[row.run_id] = row
        self._seen[row.run_id] = (layer.status, layer.epoch)

    def _content(self, rows: Sequence[RunRow], under_way: bool) -> dict[str, Any]:
        values = [
            (row.run_id, row.model, row.layer, setting, row.params.get("seed", ""), epoch, key, y)
            for row, setting in zip(rows, labels(rows), strict=True)
            for key, epoch, y in self._restored(row.run_id)
        ]
        table = pd.DataFrame(values, columns=frames.COLUMNS)
        note, links = frames.describe(rows), run_links(self._store, rows)
        page = Page(table, Path(), self._title, note=note, links=links, under_way=under_way)
        return page_content(page)

    def _restored(self, run_id: str) -> list[tuple[str, int, float]]:
        return [(key, epoch, restored(value)) for key, epoch, value in self._values[run_id]]


def labels(rows: Sequence[RunRow]) -> list[str]:
    """For each run what sets it apart from the others of its layer; every run is a curve.

    Model and settings where they differ; where that isn't enough the seed, and then the run's id.
    """
    found = frames.setting_labels([[row] for row in rows])
    if len({row.model for row in rows}) > 1:
        found = _joined([row.model for row in rows], found)
    for more in (
        [f"seed {row.params.get('seed', '')}" for row in rows],
        [short_name(row.run_id) for row in rows],
    ):
        lines = [(row.layer, label) for row, label in zip(rows, found, strict=True)]
        if len(set(lines)) == len(lines):
            break
        found = _joined(found, more)
    return found


def short_name(run_id: str) -> str:
    return f"run {run_id[:SHORT_ID]}"


def _joined(first: Sequence[str], second: Sequence[str]) -> list[str]:
    return [" · ".join(filter(None, pair)) for pair in zip(first, second, strict=True)]

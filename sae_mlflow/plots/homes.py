"""The run that a picture or page of given runs is logged to."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from sae_mlflow.tracking.contents import RunRow

if TYPE_CHECKING:
    from sae_mlflow.tracking.store import Store


ALL_MODELS = "all models"
"""In a model's place, of what several share."""


class Homes:
    """Finds each run's own, and what runs have in common, asking the store once."""

    def __init__(self, store: "Store", experiment_id: str) -> None:
        self._store, self._experiment_id = store, experiment_id
        self._comparisons: dict[str, str] = {}
        self._there: dict[str, bool] = {}

    def of(self, rows: Sequence[RunRow]) -> str:
        """One run's pictures belong to itself."""
        return rows[0].run_id if len(rows) == 1 else self.shared(rows)

    def shared(self, rows: Sequence[RunRow]) -> str:
        """The parent that all have in common, if it is still there; else the comparison run."""
        parents = {row.parent_id for row in rows}
        parent = parents.pop() if len(parents) == 1 else None
        if parent and parent not in self._there:
            self._there[parent] = self._store.is_there(parent)
        if parent and self._there[parent]:
            return parent
        model = rows[0].model if len({row.model for row in rows}) == 1 else ALL_MODELS
        if model not in self._comparisons:
            run = self._store.comparison_run(self._experiment_id, model)
            self._comparisons[model] = run.run_id
        return self._comparisons[model]

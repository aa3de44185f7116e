"""What is read of the tracking store: experiments, runs, histories, lists of artifacts."""

from collections.abc import Iterator, Sequence

from mlflow.entities import LifecycleStage, Run
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import (
    INVALID_PARAMETER_VALUE,
    ErrorCode,
)
from mlflow.utils import mlflow_tags

from sae_mlflow.errors import UserError, known
from sae_mlflow.terminal import plain, plain_lines
from sae_mlflow.tracking.connection import Connection
from sae_mlflow.tracking.contents import ROLE_LAYER, ROLE_SWEEP, ROLE_TAG, RunRow
from sae_mlflow.tracking.filters import filter_value


class StoreReader(Connection):
    """Queries of a store."""

    def find_experiment(self, name: str) -> str:
        """The id of an experiment that has to be there.

        Raises:
            UserError: it isn't; the names that there are stand in the message.
        """
        found = self._client.get_experiment_by_name(name)
        if found is None or found.lifecycle_stage == "deleted":
            names = sorted(e.name for e in self._client.search_experiments())
            raise UserError(
                f"No experiment {name!r} in {self.shown_uri}. There are: {known(names)}. "
                "Name one of them, or point --tracking-uri at the right store."
            )
        return found.experiment_id

    def layer_runs(
        self,
        experiment_id: str,
        *,
        parent_id: str | None = None,
        finished: bool = True,
        also: str | None = None,
    ) -> list[RunRow]:
        """The SAE trainings of an experiment, newest first.

        Args:
            also: a condition in MLflow's own filter language.

        Raises:
            UserError: MLflow doesn't take the condition.
        """
        where = f"tags.`{ROLE_TAG}` = '{ROLE_LAYER}'"
        if finished:
            where += " and attributes.status = 'FINISHED'"
        if parent_id:
            where += f" and tags.`{mlflow_tags.MLFLOW_PARENT_RUN_ID}` = {filter_value(parent_id)}"
        if not also:
            return list(self._search(experiment_id, where))
        try:
            return list(self._search(experiment_id, f"{where} and {also}"))
        except MlflowException as error:
            if error.error_code != ErrorCode.Name(INVALID_PARAMETER_VALUE):
                raise
            reason = " ".join(str(error).split())
            raise UserError(
                f"--filter {also!r} isn't one of MLflow's: {reason} Write it as "
                "\"params.`sae.k` = '32' and metrics.val_fvu < 0.1\"."
            ) from None

    def parent_runs(self, experiment_id: str, running: bool) -> list[RunRow]:
        """The trainings of an experiment, newest first; those under way, or all of them."""
        where = f"tags.`{ROLE_TAG}` = '{ROLE_SWEEP}'"
        if running:
            where += " and attributes.status = 'RUNNING'"
        return list(self._search(experiment_id, where))

    def run(self, run_id: str) -> RunRow:
        return _row(self._client.get_run(run_id))

    def find_run(self, run_id: str) -> RunRow:
        """A run that a user named, by its id or as `runs:/ID/sae`.

        Raises:
            OutOfReach: the store doesn't answer.
            UserError: it isn't in the store, or was deleted.
        """
        run_id = run_id.removeprefix("runs:").lstrip("/").partition("/")[0]
        try:
            run = self._client.get_run(run_id)
        except MlflowException as error:
            self._raise_if_away(error)
            run = None
        if run is None or run.info.lifecycle_stage != LifecycleStage.ACTIVE:
            raise UserError(
                f"No run {run_id!r} in {self.shown_uri}. Give the whole id, as the run's "
                "page shows it, or point --tracking-uri at the right store."
            )
        return _row(run)

    def data_set_digest(self, run_id: str) -> str | None:
        """The digest of `OpenRun.log_data_set`; None where a run has no data set."""
        inputs = self._client.get_run(run_id).inputs
        data_sets = inputs.dataset_inputs if inputs else []
        return data_sets[0].dataset.digest if data_sets else None

    def history(self, run_id: str, metrics: Sequence[str]) -> Iterator[tuple[str, int, float]]:
        """A run's `(metric, step, value)`, by metric and step; of a step logged twice, the last."""
        for key in metrics:
            entries = self._client.get_metric_history(run_id, key)
            entries.sort(key=lambda entry: (entry.step, entry.timestamp))
            yield from ((key, s, v) for s, v in {e.step: e.value for e in entries}.items())

    def timed_history(self, run_id: str, metric: str) -> list[tuple[int, float, int]]:
        """A metric's steps and values, each with when it was logged, in milliseconds since 1970."""
        entries = self._client.get_metric_history(run_id, metric)
        entries.sort(key=lambda entry: (entry.step, entry.timestamp))
        last = {entry.step: (entry.step, entry.value, entry.timestamp) for entry in entries}
        return list(last.values())

    def logged_steps(self, row: RunRow) -> dict[str, set[int]]:
        """The steps at which each of a run's metrics stands."""
        return {
            key: {entry.step for entry in self._client.get_metric_history(row.run_id, key)}
            for key in row.metrics
        }

    def artifacts(self, run_id: str, folder: str | None = None) -> list[str]:
        """Paths of what lies in a folder of a run's artifacts."""
        return [file.path for file in self._client.list_artifacts(run_id, folder)]

    def _search(self, experiment_id: str, where: str) -> Iterator[RunRow]:
        token = None
        while True:
            page = self._client.search_runs(
                [experiment_id],
                where,
                max_results=1000,
                order_by=["attributes.start_time DESC"],
                page_token=token,
            )
            yield from map(_row, page)
            token = page.token
            if not token:
                return


def _row(run: Run) -> RunRow:
    """Others may have written it: what steers a terminal, and no XML may hold, is left out."""
    return RunRow(
        run_id=run.info.run_id,
        name=plain(run.info.run_name or ""),
        experiment_id=run.info.experiment_id,
        parent_id=run.data.tags.get(mlflow_tags.MLFLOW_PARENT_RUN_ID),
        status=run.info.status,
        start_time=run.info.start_time or 0,
        params={key: plain(value) for key, value in run.data.params.items()},
        metrics={key: value for key, value in run.data.metrics.items() if key.isprintable()},
        tags={key: plain_lines(value) for key, value in run.data.tags.items()},
    )

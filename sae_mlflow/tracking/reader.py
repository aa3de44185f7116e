"""What is read of the tracking store: where things are, experiments, runs, histories, artifacts."""

import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import mlflow
from alembic.util.exc import CommandError
from mlflow.entities import LifecycleStage, Run
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import (
    INVALID_PARAMETER_VALUE,
    RESOURCE_DOES_NOT_EXIST,
    ErrorCode,
)
from mlflow.utils import mlflow_tags
from mlflow.utils.uri import is_models_uri
from sqlalchemy.exc import SQLAlchemyError

from sae_mlflow.errors import OutOfReach, UserError, known
from sae_mlflow.naming import ui_page
from sae_mlflow.terminal import plain, plain_lines
from sae_mlflow.tracking import reach
from sae_mlflow.tracking.client import Client
from sae_mlflow.tracking.contents import ROLE_LAYER, ROLE_SWEEP, RunRow
from sae_mlflow.tracking.filters import filter_value
from sae_mlflow.tracking.models import Models
from sae_mlflow.tracking.refusals import is_away


class StoreReader:
    """The tracking store at `uri`, or where MLflow's own settings say.

    Raises:
        UserError: the store can't be reached or opened; said within seconds, where MLflow's own
            client would retry for minutes.
    """

    def __init__(self, uri: str | None = None) -> None:
        self.uri: str = uri or mlflow.get_tracking_uri()
        reach.check_reachable(self.uri)
        try:
            with reach.opening(self.uri):
                self._client = Client(tracking_uri=self.uri)
                self._client.search_experiments(max_results=1)
        except ModuleNotFoundError as error:
            raise UserError(
                f"The tracking store {self.shown_uri} needs the package {error.name}. Install it, "
                "or name another driver, as in postgresql+psycopg2://..."
            ) from None
        except (MlflowException, SQLAlchemyError, CommandError) as error:
            first = str(error).strip().splitlines()[0]
            kind = OutOfReach if is_away(error) else UserError
            raise kind(
                f"The tracking store {self.shown_uri} can't be opened: "
                f"{reach.hide_password_in(first, self.uri)}"
            ) from None
        self.models = Models(self._client)

    @contextmanager
    def reading(self) -> Iterator[None]:
        """For a reader that asks again: what goes wrong within is an OutOfReach.

        A run that has gone is none: its error is MLflow's own.
        """
        reach.check_reachable(self.uri)
        try:
            yield
        except (MlflowException, SQLAlchemyError) as error:
            if getattr(error, "error_code", "") == ErrorCode.Name(RESOURCE_DOES_NOT_EXIST):
                raise
            raise self._no_answer(error) from None

    def _raise_if_away(self, error: Exception) -> None:
        if is_away(error):
            raise self._no_answer(error) from None

    def _ask(self, error: Exception) -> None:
        """Raise OutOfReach where the store doesn't answer, for an error that can't say: MLflow
        takes whatever goes wrong with a run's artifacts for a wrong path."""
        if not self._answers():
            raise self._no_answer(error) from None

    def _answers(self) -> bool:
        """Whether it does what it is asked, now."""
        try:
            reach.check_reachable(self.uri)
            self._client.search_experiments(max_results=1)
        except (MlflowException, SQLAlchemyError, OutOfReach):
            return False
        return True

    def _no_answer(self, error: Exception) -> OutOfReach:
        first = reach.hide_password_in(str(error).strip().splitlines()[0], self.uri)
        return OutOfReach(f"The tracking store {self.shown_uri} doesn't answer: {first}")

    # -- where things are -------------------------------------------------------------------

    @property
    def shown_uri(self) -> str:
        """Its address without a password."""
        return reach.hide_password(self.uri)

    def address(self, experiment_id: str, run_id: str | None = None) -> str:
        """The page of a run, or of an experiment's runs, in the MLflow UI."""
        web = self.uri if self.uri.startswith("http") else "http://127.0.0.1:5000"
        web = reach.without_user(web)  # the browser asks who one is
        return f"{web.rstrip('/')}/{ui_page(experiment_id, run_id)}"

    def next_steps(self, experiment: str, experiment_id: str) -> list[str]:
        """Where the runs are, and the two commands that open them."""
        shown = self.shown_uri
        is_default = self.uri == mlflow.get_tracking_uri()
        if self.uri.startswith("http"):
            ui = f"open {self.address(experiment_id)}"
        else:
            where = "" if is_default else f" --backend-store-uri {shlex.quote(shown)}"
            ui = f"mlflow ui{where}   then open {self.address(experiment_id)}"
        where = "" if is_default else f" --tracking-uri {shlex.quote(shown)}"
        name = shlex.quote(experiment)
        return [
            f"Store: {shown}, experiment {experiment}",
            f"  {ui}",
            f"  python -m sae_mlflow.plot --experiment {name}{where}",
        ]

    def download(self, artifact_uri: str, into: Path) -> Path:
        """Copy an artifact (`runs:/ID/sae`) or a registered model (`models:/NAME@ALIAS`) into a
        folder; returns the copy.

        Raises:
            OutOfReach: the store doesn't answer.
            UserError: it has nothing of that name, or can't give it.
        """
        try:
            place = self.models.place(artifact_uri) if is_models_uri(artifact_uri) else artifact_uri
            found = mlflow.artifacts.download_artifacts(
                place, dst_path=str(into), tracking_uri=self.uri
            )
        except (MlflowException, OSError) as error:
            self._raise_if_away(error)
            self._ask(error)
            reason = " ".join(str(error).split())
            raise UserError(
                f"{artifact_uri} can't be read from {self.shown_uri}: {reason}"
            ) from None
        return Path(found)

    # -- queries ----------------------------------------------------------------------------

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
        where = f"tags.`sae.role` = '{ROLE_LAYER}'"
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
        where = f"tags.`sae.role` = '{ROLE_SWEEP}'"
        if running:
            where += " and attributes.status = 'RUNNING'"
        return list(self._search(experiment_id, where))

    def run(self, run_id: str) -> RunRow:
        return _row(self._client.get_run(run_id))

    def find_run(self, run_id: str) -> RunRow:
        """A run that a user named.

        Raises:
            OutOfReach: the store doesn't answer.
            UserError: it isn't in the store, or was deleted.
        """
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

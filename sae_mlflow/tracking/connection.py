"""One store that is open: where it is, whether it answers, and files out of it."""

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import mlflow
from alembic.util.exc import CommandError
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST, ErrorCode
from mlflow.utils.uri import is_models_uri
from sqlalchemy.exc import SQLAlchemyError

from sae_mlflow.errors import OutOfReach, UserError
from sae_mlflow.tracking import reach
from sae_mlflow.tracking.client import Client
from sae_mlflow.tracking.contents import ui_page
from sae_mlflow.tracking.models import Models
from sae_mlflow.tracking.refusals import is_away


class Connection:
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
            if "MLFLOW_ALLOW_FILE_STORE" in first:
                raise UserError(
                    f"The tracking store {self.shown_uri} is a folder of files, which MLflow no "
                    "longer writes. Name a database: sqlite:///mlflow.db, for example (MLflow "
                    "reads the folder still with MLFLOW_ALLOW_FILE_STORE=true)."
                ) from None
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

    @contextmanager
    def logging_to(self, run_id: str, what: str, instead: str) -> Iterator[None]:
        """For who logs a file to a run: that its artifacts can't be written is an error with a fix.

        Args:
            instead: what to do where they can't be, as in "look only, with --no-log".

        Raises:
            OutOfReach: the store doesn't answer.
            UserError: the place of the run's artifacts can't be written.
        """
        try:
            yield
        except (MlflowException, OSError) as error:
            self._ask(error)
            raise UserError(
                f"{what} can't be logged to run {run_id}: {error}. See that its artifact location "
                f"can be written from here, or {instead}."
            ) from None

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
            if is_models_uri(artifact_uri):
                reason = f"{reason.rstrip('.')}. {self.models.what_there_is(artifact_uri)}"
            raise UserError(
                f"{artifact_uri} can't be read from {self.shown_uri}: {reason}"
            ) from None
        return Path(found)

"""The tracking store: `StoreReader`, and what is written to it.

Every call names its run: MLflow's global active run is never used, so several runs can be open.
"""

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import mlflow
from mlflow.exceptions import MlflowException
from mlflow.tracking.context.registry import resolve_tags
from mlflow.utils import mlflow_tags
from PIL import Image

from sae_mlflow.errors import UserError
from sae_mlflow.naming import PLOTS_FOLDER
from sae_mlflow.tracking import reach
from sae_mlflow.tracking.contents import FAILURE_TAG, KILLED, ROLE_COMPARISON, ROLE_TAG, RunRow
from sae_mlflow.tracking.open_run import Direct, OpenRun, Outlet
from sae_mlflow.tracking.operations import Operation, new_pending_id, now
from sae_mlflow.tracking.process import process_tags
from sae_mlflow.tracking.reader import StoreReader
from sae_mlflow.tracking.refusals import can_be_written

logging.getLogger("alembic").setLevel(logging.WARNING)  # a new SQLite store tells 40 migrations
logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")  # it would cut ours in two
# a line for each run, with whatever password the store's address has
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")


def existing_store(uri: str | None) -> "Store":
    """A store that a command reads: a SQLite file that isn't there is refused, not made.

    Args:
        uri: unset or empty means MLflow's own setting.
    """
    reach.check_there(uri or mlflow.get_tracking_uri())
    return Store(uri or None)


class Store(StoreReader):
    """A store that is written to as well."""

    def __init__(self, uri: str | None = None) -> None:
        super().__init__(uri)
        self._outlet: Outlet = Direct(self._client)

    def experiment_id(self, name: str) -> str:
        """The experiment of that name, made where there is none."""
        found = self._client.get_experiment_by_name(name)
        if found is None:
            try:
                return self._client.create_experiment(name)
            except MlflowException:  # another process was first
                found = self._client.get_experiment_by_name(name)
                if found is None:
                    raise
        if found.lifecycle_stage == "deleted":
            raise UserError(
                f"Experiment {name!r} was deleted in {self.shown_uri}. Choose another with "
                f"--experiment-name, or run: mlflow experiments restore -x {found.experiment_id}"
            )
        return found.experiment_id

    def experiment_name(self, experiment_id: str) -> str:
        return self._client.get_experiment(experiment_id).name

    def open_run(
        self, experiment_id: str, name: str, tags: Mapping[str, str], parent: OpenRun | None = None
    ) -> OpenRun:
        all_tags = {**resolve_tags(), mlflow_tags.MLFLOW_RUN_NAME: name, **tags}
        if parent is not None:
            all_tags[mlflow_tags.MLFLOW_PARENT_RUN_ID] = parent.run_id
        pending = new_pending_id()
        body = {"experiment_id": experiment_id, "at": now(), "tags": all_tags}
        self._outlet.do(Operation("create", pending, body))
        return OpenRun(self._outlet, pending, experiment_id, name)

    def reopen(self, run_id: str) -> OpenRun:
        """A run that is there already, to log more to it; its status stays as it is."""
        info = self._client.get_run(run_id).info
        return OpenRun(self._outlet, run_id, info.experiment_id, info.run_name or "")

    def flush(self, limit: float | None = None) -> bool:
        """Wait until the store has all that was logged to it; False where it is out of reach.

        Args:
            limit: at most so many seconds; unset means as long as it gets on with it.
        """
        return True

    def resume_run(self, row: RunRow) -> OpenRun:
        """A run that ended before its time: this process's, RUNNING again, and without the reason
        why it ended."""
        self._outlet.do(Operation("resume", row.run_id, {"tags": process_tags()}))
        return OpenRun(self._outlet, row.run_id, row.experiment_id, row.name)

    def close_dead(self, run_id: str, reason: str, ended: int | None) -> None:
        """Mark a run KILLED whose process is gone; what it has stays.

        Args:
            ended: when it was last seen alive, in milliseconds since 1970; None means now.
        """
        # at once: delivered later, it could close a run that goes on by then
        run = OpenRun(Direct(self._client), run_id, "", "")
        run.tag({FAILURE_TAG: reason})
        run.finish(KILLED, ended)

    def comparison_run(self, experiment_id: str, model: str) -> OpenRun:
        """The run that holds a model's plots over several parents; one per model."""
        where = f"tags.`{ROLE_TAG}` = '{ROLE_COMPARISON}'"
        for row in self._search(experiment_id, where):
            if row.model == model:
                return self.reopen(row.run_id)
        tags = {ROLE_TAG: ROLE_COMPARISON, "sae.model": model}
        run = self.open_run(experiment_id, f"{model} comparison", tags)
        run.finish()
        return run

    def is_there(self, run_id: str) -> bool:
        """Whether a run can be written to: it exists, and hasn't been deleted."""
        return can_be_written(self._client, run_id)

    def log_plots(self, run_id: str, folder: Path) -> list[str] | None:
        """Log a folder's pictures to a run; their addresses, or None where it has been deleted.

        Raises:
            UserError: the place of the run's artifacts can't be written.
        """
        if not self.is_there(run_id):
            return None
        with self.logging_to(run_id, "The plots", "draw with --no-log --output-dir DIR"):
            self._client.log_artifacts(run_id, str(folder), PLOTS_FOLDER)
        return [f"runs:/{run_id}/{PLOTS_FOLDER}/{file.name}" for file in sorted(folder.iterdir())]

    def log_page(self, run_id: str, page: str, file: str) -> str:
        """Log a page's HTML to a run; its address.

        Raises:
            UserError: the place of the run's artifacts can't be written.
        """
        with self.logging_to(run_id, file, "use --no-log --output FILE"):
            self._client.log_text(run_id, page, file)
        return f"runs:/{run_id}/{file}"

    def log_image(self, run_id: str, file: Path, key: str, steps: Sequence[int]) -> None:
        """Show a picture in the UI's image panel, on whose slider it stands at these steps."""
        there = {each.path for each in self._client.list_artifacts(run_id, "images")}
        with Image.open(file) as image:
            for step in steps:
                # MLflow would show an image that is logged again beside the first
                if not any(f"/{key}+step+{step}+" in path for path in there):
                    self._client.log_image(run_id, image, key=key, step=step, synchronous=True)

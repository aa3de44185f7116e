"""The run that `mlflow run` made for this process, and the experiment that it chose."""

import logging
import os
from collections.abc import Mapping

from mlflow.exceptions import MlflowException

from sae_mlflow.errors import UserError
from sae_mlflow.secrets import without_secrets
from sae_mlflow.tracking.open_run import OpenRun
from sae_mlflow.tracking.reach import hide_password
from sae_mlflow.tracking.store import Store


def launched_run(store: Store) -> OpenRun | None:
    """The run that `mlflow run` made for this process; None where it didn't start it.

    Raises:
        UserError: it isn't in the store.
    """
    run_id = os.environ.get("MLFLOW_RUN_ID")
    if not run_id:
        return None
    try:
        run = store.reopen(run_id)
        _hide_secrets(run, store.run(run_id).tags)
        return run
    except MlflowException:
        raise UserError(
            f"MLFLOW_RUN_ID names run {run_id}, which isn't in {hide_password(store.uri)}. "
            "Unset it, or point MLFLOW_TRACKING_URI at the store that has it."
        ) from None


def _hide_secrets(run: OpenRun, tags: Mapping[str, str]) -> None:
    """`mlflow run https://TOKEN@host/project` left the address in its run's tags."""
    hidden = {key: without_secrets(value) for key, value in tags.items()}
    changed = {key: value for key, value in hidden.items() if value != tags[key]}
    if changed:
        run.tag(changed)


def launched_experiment_id() -> str | None:
    """The experiment that `mlflow run --experiment-name` chose; None where it wasn't given.

    MLflow hands its child experiment 0, the default one, where no name was given.
    """
    chosen = os.environ.get("MLFLOW_EXPERIMENT_ID")
    return chosen if os.environ.get("MLFLOW_RUN_ID") and chosen != "0" else None


def tag_launcher(tags: Mapping[str, str]) -> None:
    """Tag the run that `mlflow run` made; where that can't be done, nothing is lost but the tag."""
    try:
        launcher = launched_run(Store())
        if launcher is not None:
            launcher.tag(tags)
    except (UserError, MlflowException):
        logging.getLogger(__name__).warning("The launcher's run couldn't be tagged.")

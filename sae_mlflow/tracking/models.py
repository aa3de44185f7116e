"""MLflow's model registry: pyfunc models logged from code, their versions and aliases.

Which SAEs are registered, and under what name, is for `registry` to say.
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import mlflow
from mlflow.entities import LoggedModel, LoggedModelStatus
from mlflow.exceptions import MlflowException
from mlflow.models import Model
from mlflow.protos.databricks_pb2 import RESOURCE_ALREADY_EXISTS, ErrorCode
from mlflow.store.artifact.utils.models import get_model_name_and_version
from mlflow.tracking import MlflowClient

from sae_mlflow.errors import OutOfReach, UserError, did_you_mean, known
from sae_mlflow.tracking.contents import SAE_FOLDER, RunRow
from sae_mlflow.tracking.filters import filter_value
from sae_mlflow.tracking.refusals import is_away

REGISTERED_MODEL = Path(__file__).with_name("registered_model.py")
"""The code that opens a registered SAE."""

# that it waits up to 300 seconds for a model's version, which is there at once
logging.getLogger("mlflow.store.model_registry.abstract_store").setLevel(logging.WARNING)


class Models:
    """The registered models of a store."""

    def __init__(self, client: MlflowClient) -> None:
        self._client = client

    def register(
        self,
        name: str,
        row: RunRow,
        code: Path,
        artifacts: Mapping[str, Path],
        requirements: Sequence[str],
    ) -> str:
        """Log a pyfunc model and register it; its version.

        Args:
            row: the run it comes from; the model is kept apart from the run's artifacts, which may
                be deleted.
            code: the file that MLflow runs to open the model.
            artifacts: what the code finds in its context; copied into the model.
            requirements: as pip writes them; MLflow would take long to find them out.

        Raises:
            UserError: the store or the place of its models refuses.
        """
        try:
            model = self._client.create_logged_model(
                row.experiment_id, name=SAE_FOLDER, source_run_id=row.run_id
            )
            with TemporaryDirectory() as scratch:
                about = Model(run_id=row.run_id, model_id=model.model_id)
                _write_model(Path(scratch) / "model", code, artifacts, requirements, about)
                self._client.log_model_artifacts(model.model_id, str(Path(scratch) / "model"))
            self._client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
            return self._new_version(name, row, model)
        except (MlflowException, OSError) as error:
            reason = " ".join(str(error).split())
            kind = OutOfReach if is_away(error) else UserError
            raise kind(f"Run {row.run_id} can't be registered as {name}: {reason}") from None

    def _new_version(self, name: str, row: RunRow, model: LoggedModel) -> str:
        try:
            self._client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != ErrorCode.Name(RESOURCE_ALREADY_EXISTS):
                raise
        tags = {key: value for key, value in row.tags.items() if key.startswith("sae.")}
        # by its place, since MLflow would look for `models:/ID` in the global store
        place, model_id = model.artifact_location, model.model_id
        created = self._client.create_model_version(
            name, place, run_id=row.run_id, tags=tags, model_id=model_id
        )
        return str(created.version)

    def what_there_is(self, uri: str) -> str:
        """For an address of a registered model that leads nowhere: those that do."""
        name = uri.partition(":")[2].strip("/").partition("@")[0].partition("/")[0]
        models = {each.name: each for each in self._client.search_registered_models()}
        if name not in models:
            return f"{did_you_mean(name, models)}Registered there: {known(models)}."
        where = f"name = {filter_value(name)}"
        versions = [each.version for each in self._client.search_model_versions(where)]
        there = [f"@{alias}" for alias in sorted(models[name].aliases)]
        there += [f"/{version}" for version in sorted(versions, key=int)]
        return f"Of models:/{name} there are: {known(there)}."

    def version_of_run(self, name: str, run_id: str) -> str | None:
        """The newest version of a registered model that comes from a run."""
        where = f"name = {filter_value(name)} and run_id = {filter_value(run_id)}"
        found = self._client.search_model_versions(where)
        return max((str(each.version) for each in found), key=int, default=None)

    def aliased_version(self, name: str, alias: str) -> str | None:
        try:
            return str(self._client.get_model_version_by_alias(name, alias).version)
        except MlflowException:  # no such model yet, or no such alias
            return None

    def move_alias(self, name: str, alias: str, version: str) -> None:
        self._client.set_registered_model_alias(name, alias, version)

    def place(self, uri: str) -> str:
        """Where a registered model's files are; MLflow itself would ask its global registry."""
        found = get_model_name_and_version(self._client, uri)
        if len(found) == 1:  # `models:/ID`, of a model that was logged
            return self._client.get_logged_model(found[0]).artifact_location
        return self._client.get_model_version_download_uri(*found)


def _write_model(
    folder: Path,
    code: Path,
    artifacts: Mapping[str, Path],
    requirements: Sequence[str],
    about: Model,
) -> None:
    """A pyfunc model's files, from code; without a signature, with which it would refuse tensors
    and float64, and without MLflow's warning that there is none."""
    logger = logging.getLogger("mlflow.pyfunc")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        mlflow.pyfunc.save_model(
            folder,
            python_model=str(code),
            artifacts={name: str(path) for name, path in artifacts.items()},
            pip_requirements=list(requirements),
            mlflow_model=about,
        )
    finally:
        logger.setLevel(level)

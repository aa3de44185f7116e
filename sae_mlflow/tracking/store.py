"""The tracking store: runs, metrics, artifacts and queries. Nothing else imports `mlflow`.

Every call names its run: MLflow's global active run is never used, so several runs can be open.
The contract of what stands in the store is the README's table "What stands in the store".
"""

import json
import logging
import os
import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import mlflow
from alembic.util.exc import CommandError
from mlflow.entities import (
    Dataset,
    DatasetInput,
    InputTag,
    LifecycleStage,
    LoggedModel,
    LoggedModelStatus,
    Metric,
    Param,
    Run,
    RunTag,
)
from mlflow.exceptions import MlflowException
from mlflow.models import Model
from mlflow.protos.databricks_pb2 import (
    RESOURCE_ALREADY_EXISTS,
    RESOURCE_DOES_NOT_EXIST,
    ErrorCode,
)
from mlflow.store.artifact.utils.models import get_model_name_and_version
from mlflow.tracking import MlflowClient
from mlflow.tracking.context.registry import resolve_tags
from mlflow.utils import mlflow_tags
from mlflow.utils.uri import is_models_uri
from sqlalchemy.exc import SQLAlchemyError

from sae_mlflow.errors import UserError, known
from sae_mlflow.naming import PLOTS_FOLDER, ui_page
from sae_mlflow.tracking.reach import check_reachable, hide_password

ROLE_SWEEP = "sweep"
ROLE_LAYER = "layer"
ROLE_COMPARISON = "comparison"

SAE_FOLDER = "sae"
EVALUATION_FOLDER = "evaluation"
CONFIG_FILE = "config.yaml"
"""Of a parent: all settings of its training."""

DIGEST_LENGTH = 16
"""Characters of a data set's digest that are kept."""

_NOTE_LIMIT = 8_000  # MLflow cuts a longer tag without a word
_BATCH_LIMIT = 100  # params and tags that one log_batch takes

logging.getLogger("alembic").setLevel(logging.WARNING)  # a new SQLite store tells 40 migrations
logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)
# that it waits up to 300 seconds for a model's version, which is there at once
logging.getLogger("mlflow.store.model_registry.abstract_store").setLevel(logging.WARNING)
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")  # it would cut ours in two


@dataclass(frozen=True)
class RunRow:
    """One run as a query found it."""

    run_id: str
    name: str
    experiment_id: str
    parent_id: str | None
    status: str
    start_time: int
    """Milliseconds since 1970."""
    params: Mapping[str, str]
    metrics: Mapping[str, float]
    """Each metric's last value."""
    tags: Mapping[str, str]

    @property
    def model(self) -> str:
        return self.tags.get("sae.model", "")

    @property
    def layer(self) -> str:
        return self.tags.get("sae.layer", "")


class OpenRun:
    """One run that is being written to."""

    def __init__(self, client: MlflowClient, run: Run) -> None:
        self._client = client
        self.run_id: str = run.info.run_id
        self.experiment_id: str = run.info.experiment_id
        self.name: str = run.info.run_name or ""

    def log_params(self, params: Mapping[str, object]) -> None:
        entries = [Param(key, _param_text(value)) for key, value in params.items()]
        for start in range(0, len(entries), _BATCH_LIMIT):
            self._client.log_batch(self.run_id, params=entries[start : start + _BATCH_LIMIT])

    def log_epoch(self, epoch: int, metrics: Mapping[str, float]) -> None:
        """One value per metric, step = epoch (from 1); visible in the UI at once."""
        now = int(time.time() * 1000)
        entries = [Metric(key, float(value), now, epoch) for key, value in metrics.items()]
        self._client.log_batch(self.run_id, metrics=entries)

    def log_file(self, path: Path, folder: str | None = None) -> None:
        self._client.log_artifact(self.run_id, str(path), folder)

    def log_folder(self, path: Path, folder: str | None = None) -> None:
        self._client.log_artifacts(self.run_id, str(path), folder)

    def log_text(self, text: str, file: str) -> None:
        self._client.log_text(self.run_id, text, file)

    def log_data_set(self, name: str, digest: str, source: Mapping[str, object]) -> None:
        """The text that was trained on, as an MLflow input of the run."""
        data_set = Dataset(
            name=name,
            digest=digest[:DIGEST_LENGTH],
            source_type="sae_mlflow",
            source=json.dumps(source),
            profile=json.dumps({k: v for k, v in source.items() if isinstance(v, int)}),
        )
        context = InputTag(mlflow_tags.MLFLOW_DATASET_CONTEXT, "training")
        self._client.log_inputs(self.run_id, [DatasetInput(data_set, [context])])

    def tag(self, tags: Mapping[str, str]) -> None:
        self._client.log_batch(self.run_id, tags=[RunTag(k, v) for k, v in tags.items()])

    def describe(self, markdown: str) -> None:
        """The description shown above the run; what is too long ends with a line that says so."""
        if len(markdown) > _NOTE_LIMIT:
            end = "\n\n(cut here: a description holds 8,000 characters)"
            lines = markdown[: _NOTE_LIMIT - len(end)].rsplit("\n", 1)[0]
            markdown = lines + end
        self.tag({mlflow_tags.MLFLOW_RUN_NOTE: markdown})

    def finish(self, status: str = "FINISHED") -> None:
        """Close the run: `FINISHED`, `FAILED` or `KILLED`."""
        self._client.set_terminated(self.run_id, status)

    def fail(self, reason: str, status: str = "FAILED") -> None:
        self.tag({"sae.failure": reason[:5_000]})
        self.finish(status)


class Store:
    """The tracking store at `uri`, or where MLflow's own settings say.

    Raises:
        UserError: the store can't be reached or opened; said within seconds, where MLflow's own
            client would retry for minutes.
    """

    def __init__(self, uri: str | None = None) -> None:
        self.uri: str = uri or mlflow.get_tracking_uri()
        check_reachable(self.uri)
        try:
            self._client = MlflowClient(tracking_uri=self.uri)
            self._client.search_experiments(max_results=1)
        except (MlflowException, SQLAlchemyError, CommandError) as error:
            first = str(error).strip().splitlines()[0]
            raise UserError(
                f"The tracking store {hide_password(self.uri)} can't be opened: {first}"
            ) from None

    # -- where things are -------------------------------------------------------------------

    def address(self, experiment_id: str, run_id: str | None = None) -> str:
        """The page of a run, or of an experiment's runs, in the MLflow UI."""
        web = self.uri if self.uri.startswith("http") else "http://127.0.0.1:5000"
        return f"{web.rstrip('/')}/{ui_page(experiment_id, run_id)}"

    def next_steps(self, experiment: str, experiment_id: str) -> list[str]:
        """Where the runs are, and the two commands that open them."""
        shown = hide_password(self.uri)
        is_default = self.uri == mlflow.get_tracking_uri()
        if self.uri.startswith("http"):
            ui = f"open {self.address(experiment_id)}"
        else:
            where = "" if is_default else f" --backend-store-uri {shown}"
            ui = f"mlflow ui{where}   then open {self.address(experiment_id)}"
        where = "" if is_default else f" --tracking-uri {shown}"
        name = shlex.quote(experiment)
        return [
            f"Store: {shown}, experiment {experiment}",
            f"  {ui}",
            f"  python -m sae_mlflow.plot --experiment {name}{where}",
        ]

    def download(self, artifact_uri: str, into: Path) -> Path:
        """Copy an artifact (`runs:/ID/sae`) or a registered model (`models:/NAME@ALIAS`) into a
        folder; returns the copy."""
        try:
            place = self._model_place(artifact_uri) if is_models_uri(artifact_uri) else artifact_uri
            found = mlflow.artifacts.download_artifacts(
                place, dst_path=str(into), tracking_uri=self.uri
            )
        except (MlflowException, OSError) as error:
            reason = " ".join(str(error).split())
            where = hide_password(self.uri)
            raise UserError(f"{artifact_uri} can't be read from {where}: {reason}") from None
        return Path(found)

    def _model_place(self, uri: str) -> str:
        """Where a registered model's files are; MLflow itself would ask its global registry."""
        found = get_model_name_and_version(self._client, uri)
        if len(found) == 1:  # `models:/ID`, of a model that was logged
            return self._client.get_logged_model(found[0]).artifact_location
        return self._client.get_model_version_download_uri(*found)

    # -- writing ----------------------------------------------------------------------------

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
                f"Experiment {name!r} was deleted in {self.uri}. Choose another with "
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
        return OpenRun(self._client, self._client.create_run(experiment_id, tags=all_tags))

    def reopen(self, run_id: str) -> OpenRun:
        """A run that is there already, to log more to it; its status stays as it is."""
        return OpenRun(self._client, self._client.get_run(run_id))

    def launcher(self) -> OpenRun | None:
        """The run that `mlflow run` made for this process; None where it didn't start it."""
        run_id = os.environ.get("MLFLOW_RUN_ID")
        try:
            return self.reopen(run_id) if run_id else None
        except MlflowException:
            raise UserError(
                f"MLFLOW_RUN_ID names run {run_id}, which isn't in {hide_password(self.uri)}. "
                "Unset it, or point MLFLOW_TRACKING_URI at the store that has it."
            ) from None

    def comparison_run(self, experiment_id: str, model: str) -> OpenRun:
        """The run that holds a model's plots over several parents; one per model."""
        where = f"tags.`sae.role` = '{ROLE_COMPARISON}'"
        for row in self._search(experiment_id, where):
            if row.model == model:
                return self.reopen(row.run_id)
        tags = {"sae.role": ROLE_COMPARISON, "sae.model": model}
        run = self.open_run(experiment_id, f"{model} comparison", tags)
        run.finish()
        return run

    def is_there(self, run_id: str) -> bool:
        """Whether a run can be written to: it exists, and hasn't been deleted."""
        try:
            return self._client.get_run(run_id).info.lifecycle_stage == LifecycleStage.ACTIVE
        except MlflowException as error:
            if error.error_code == ErrorCode.Name(RESOURCE_DOES_NOT_EXIST):
                return False
            raise

    def log_plots(self, run_id: str, folder: Path) -> list[str] | None:
        """Log a folder's pictures to a run; their addresses, or None where it has been deleted.

        Raises:
            UserError: the place of the run's artifacts can't be written.
        """
        if not self.is_there(run_id):
            return None
        try:
            self._client.log_artifacts(run_id, str(folder), PLOTS_FOLDER)
        except (MlflowException, OSError) as error:
            raise UserError(
                f"The plots can't be logged to run {run_id}: {error}. See that its artifact "
                "location can be written from here, or draw with --no-log --output-dir DIR."
            ) from None
        return [f"runs:/{run_id}/{PLOTS_FOLDER}/{file.name}" for file in sorted(folder.iterdir())]

    # -- the model registry -----------------------------------------------------------------

    def register_model(
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
            raise UserError(f"Run {row.run_id} can't be registered as {name}: {reason}") from None

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

    def registered_version(self, name: str, run_id: str) -> str | None:
        """The newest version of a registered model that comes from a run."""
        found = self._client.search_model_versions(f"name = '{name}' and run_id = '{run_id}'")
        return max((str(each.version) for each in found), key=int, default=None)

    def aliased_version(self, name: str, alias: str) -> str | None:
        try:
            return str(self._client.get_model_version_by_alias(name, alias).version)
        except MlflowException:  # no such model yet, or no such alias
            return None

    def move_alias(self, name: str, alias: str, version: str) -> None:
        self._client.set_registered_model_alias(name, alias, version)

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
                f"No experiment {name!r} in {self.uri}. There are: {known(names)}. "
                "Name one of them, or point --tracking-uri at the right store."
            )
        return found.experiment_id

    def layer_runs(
        self, experiment_id: str, *, parent_id: str | None = None, finished: bool = True
    ) -> list[RunRow]:
        """The SAE trainings of an experiment, newest first."""
        where = f"tags.`sae.role` = '{ROLE_LAYER}'"
        if finished:
            where += " and attributes.status = 'FINISHED'"
        if parent_id:
            where += f" and tags.`{mlflow_tags.MLFLOW_PARENT_RUN_ID}` = '{parent_id}'"
        return list(self._search(experiment_id, where))

    def run(self, run_id: str) -> RunRow:
        return _row(self._client.get_run(run_id))

    def find_run(self, run_id: str) -> RunRow:
        """A run that a user named.

        Raises:
            UserError: it isn't in the store, or was deleted.
        """
        try:
            run = self._client.get_run(run_id)
        except MlflowException:
            run = None
        if run is None or run.info.lifecycle_stage != LifecycleStage.ACTIVE:
            raise UserError(
                f"No run {run_id!r} in {hide_password(self.uri)}. Give the whole id, as the run's "
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


def launched_experiment_id() -> str | None:
    """The experiment that `mlflow run --experiment-name` chose; None where it wasn't given.

    MLflow hands its child experiment 0, the default one, where no name was given.
    """
    chosen = os.environ.get("MLFLOW_EXPERIMENT_ID")
    return chosen if os.environ.get("MLFLOW_RUN_ID") and chosen != "0" else None


def tag_launcher(tags: Mapping[str, str]) -> None:
    """Tag the run that `mlflow run` made; where that can't be done, nothing is lost but the tag."""
    try:
        launcher = Store().launcher()
        if launcher is not None:
            launcher.tag(tags)
    except (UserError, MlflowException):
        logging.getLogger(__name__).warning("The launcher's run couldn't be tagged.")


def _row(run: Run) -> RunRow:
    return RunRow(
        run_id=run.info.run_id,
        name=run.info.run_name or "",
        experiment_id=run.info.experiment_id,
        parent_id=run.data.tags.get(mlflow_tags.MLFLOW_PARENT_RUN_ID),
        status=run.info.status,
        start_time=run.info.start_time or 0,
        params=run.data.params,
        metrics=run.data.metrics,
        tags=run.data.tags,
    )


def _param_text(value: object) -> str:
    if isinstance(value, list | tuple):
        return ",".join(map(str, value))
    return "" if value is None else str(value)

"""How a run's SAE was trained and where it stands, as the store has it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sae_mlflow.config import Settings
from sae_mlflow.errors import UserError
from sae_mlflow.evaluation.stored_settings import stored_settings
from sae_mlflow.formats.place import hookpoints
from sae_mlflow.formats.sae_files import CONFIG_FILE as SAE_CONFIG_FILE
from sae_mlflow.formats.stored_sae import whole_number
from sae_mlflow.formats.weight_files import read_json
from sae_mlflow.lm.sites import Site
from sae_mlflow.tracking.contents import CONFIG_FILE, SAE_FOLDER, RunRow
from sae_mlflow.tracking.store import Store


@dataclass(frozen=True, eq=False)
class Trained:
    """One run's SAE, before it is opened."""

    row: RunRow
    settings: Settings
    site: Site
    d_sae: int

    @property
    def model_key(self) -> str:
        return self.settings.model.model_dump_json(exclude={"layers", "device"})

    @property
    def key(self) -> tuple[str, ...]:
        """The same for runs that one clean pass serves."""
        ratio = self.settings.activations.max_norm_ratio
        return self.model_key, self.settings.text.model_dump_json(), str(ratio)


def read_trained(store: Store, row: RunRow, scratch: Path, trust_remote_code: bool) -> Trained:
    """Read a run's settings and its SAE's config.

    Args:
        scratch: an empty folder.
        trust_remote_code: as `stored_settings` takes it.

    Raises:
        UserError: the store lacks them, or they aren't whole.
    """
    if row.parent_id is None:
        raise UserError("It has no parent run, which would hold its settings. Train it again.")
    settings = store.download(f"runs:/{row.parent_id}/{CONFIG_FILE}", scratch)
    artifact = f"runs:/{row.run_id}/{SAE_FOLDER}/{SAE_CONFIG_FILE}"
    file = store.download(artifact, scratch)
    try:
        config = read_json(file)
        d_sae = whole_number(config, "d_sae", file)
    except UserError as error:
        raise UserError(str(error).replace(str(file), artifact)) from None
    return Trained(row, stored_settings(settings, trust_remote_code), _site(row, config), d_sae)


def _site(row: RunRow, config: Mapping[str, Any]) -> Site:
    """Where an SAE stands, as its own config says."""
    reads, writes = hookpoints(config, "in"), hookpoints(config, "out")
    if not reads or not writes:
        raise UserError(
            f"Its {SAE_CONFIG_FILE} names no hookpoints_in and hookpoints_out. Train it again."
        )
    return Site(writes[0] if len(writes) == 1 else writes, row.layer, reads, writes)

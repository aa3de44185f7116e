"""A training's settings out of a store that others may write to: its word is not enough for all."""

from pathlib import Path

from sae_mlflow.config import Settings
from sae_mlflow.config_files import read_yaml
from sae_mlflow.config_load import load_settings
from sae_mlflow.errors import UserError
from sae_mlflow.lm.remote_code import SETTING


def stored_settings(file: Path, trust_remote_code: bool) -> Settings:
    """What a training was trained with.

    Args:
        file: the artifact, as it came out of the store.
        trust_remote_code: whether code that models bring along may run here.

    Raises:
        UserError: they aren't settings, read on in files of this machine, or would run code.
    """
    if "extends" in read_yaml(file):
        raise UserError(
            f"{file.name}, as the store has it, extends another file: no training leaves such a "
            "one, and files here aren't read at a store's request. Train again."
        )
    settings = load_settings(str(file))
    if settings.model.trust_remote_code and not trust_remote_code:
        raise UserError(
            f"It was trained with {SETTING}=true on {settings.model.name}, whose Python code could "
            "do anything here. If you trust that model and this store, add --trust-remote-code."
        )
    return settings

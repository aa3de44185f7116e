"""Which settings change a training's numbers: with others it can't go on."""

from collections.abc import Mapping

from sae_mlflow.config import Settings
from sae_mlflow.tracking.open_run import param_text

_OTHERS = ("experiment", "trackers", "register", "model.device", "evaluate.after_training")
_OTHER_SECTIONS = ("plots.", "output.", "checkpoint.", "tracking.")


def number_settings(settings: Settings) -> dict[str, str]:
    """Those that do, as they stand in params."""
    return {
        key: param_text(value)
        for key, value in settings.flat().items()
        if key not in _OTHERS and not key.startswith(_OTHER_SECTIONS)
    }


def differing(settings: Settings, was: Mapping[str, str]) -> list[str]:
    """`sae.k = 64, which was 32`, of each that differs; one that wasn't there then doesn't."""
    return [
        f"{key} = {value or 'unset'}, which was {was[key] or 'unset'}"
        for key, value in number_settings(settings).items()
        if was.get(key, value) != value
    ]

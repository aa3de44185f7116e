"""Which settings change a training's numbers: with others it can't go on."""

from collections.abc import Mapping

from sae_mlflow.config import Settings
from sae_mlflow.secrets import without_secrets
from sae_mlflow.terminal import plain
from sae_mlflow.tracking.open_run import param_text

_OTHERS = ("experiment", "trackers", "register", "model.device", "evaluate.after_training")
_OTHER_SECTIONS = ("plots.", "output.", "checkpoint.", "tracking.")
_PARAM_LIMIT = 6_000  # characters; MLflow cuts a longer one


def number_settings(settings: Settings) -> dict[str, str]:
    """Those that do, as a store gives them back."""
    return {
        key: _given_back(param_text(value))
        for key, value in settings.flat().items()
        if key not in _OTHERS and not key.startswith(_OTHER_SECTIONS)
    }


def differing(settings: Settings, was: Mapping[str, str]) -> list[str]:
    """`sae.k = 64, which was 32`, of each that differs; one that wasn't there then doesn't."""
    return [
        f"{key} = {value or 'unset'}, which was {then or 'unset'}"
        for key, value in number_settings(settings).items()
        if key in was and (then := _given_back(was[key])) != value
    ]


def are_of(settings: Settings, params: Mapping[str, str]) -> bool:
    """Whether a run's params are these settings; one that has none yet may be anybody's."""
    known = number_settings(settings).keys() & params.keys()
    return bool(known) and not differing(settings, params)


def _given_back(param: str) -> str:
    """A param as it was logged, shown without secrets and read, whichever of that is done yet."""
    return plain(without_secrets(param)[:_PARAM_LIMIT])

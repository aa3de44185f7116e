"""When and where a training's state is saved, so that it can go on after it was killed."""

from pydantic import Field

from sae_mlflow.config_section import Section


class CheckpointSettings(Section):
    """The state of a training on disk: the last two of each layer, until its run has finished."""

    every_seconds: float = Field(300.0, gt=0)
    """A layer's state is saved at least this often within an epoch; at an epoch's end always."""
    dir: str | None = Field(None, min_length=1)
    """Folder of checkpoints; unset means `SAE_MLFLOW_STATE`, else the user's state folder."""
    log: bool = False
    """Also keep checkpoints as artifacts of the layer's run (`checkpoint/`), to go on from another
    machine."""

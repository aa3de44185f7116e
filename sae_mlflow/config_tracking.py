"""What a training does where its tracking store is out of reach."""

from pydantic import Field

from sae_mlflow.config_section import Section


class TrackingSettings(Section):
    """The tracking store while it is out of reach."""

    wait_seconds: float = Field(60.0, ge=0)
    """So long a training that is over waits for its store before it leaves the rest to `sae-mlflow
    sync`; so long, too, for what it reads from the store, as the evaluation does."""

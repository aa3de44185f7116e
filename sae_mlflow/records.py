"""What a training says as it goes on, a record a step and an epoch, and how far it is by then."""

import time
from dataclasses import dataclass, field

from torch import Tensor

from sae_mlflow.metrics import Tally


def _now() -> int:
    return time.time_ns() // 1_000_000


@dataclass(frozen=True)
class StepRecord:
    """What one step showed, for a progress bar; numbers stay tensors so that a GPU needn't wait."""

    epoch: int
    tokens: int
    """Tokens in this step."""
    loss: Tensor
    n_dead: Tensor
    so_far: Tally
    """The epoch up to here."""


@dataclass(frozen=True)
class WithinEpochRecord:
    """What the last `log_every_tokens` tokens of a long epoch came to."""

    tokens: int
    """Training tokens since the training began."""
    metrics: dict[str, float]
    """The training's own; what is held out is measured at an epoch's end."""
    made_at: int = field(default_factory=_now)
    """Milliseconds since 1970. Whoever delivers it later says this time again."""


@dataclass(frozen=True)
class EpochRecord:
    """What one epoch came to; `metrics` under the names that stand in the store."""

    epoch: int
    """Counted from 1."""
    metrics: dict[str, float]
    made_at: int = field(default_factory=_now)
    """As of a `WithinEpochRecord`."""


Record = StepRecord | WithinEpochRecord | EpochRecord


@dataclass
class EpochSoFar:
    """How far a training is within an epoch: with the `Trainer`'s own, all there is to go on."""

    epoch: int
    """Counted from 1."""
    order: Tensor | None = None
    """State of the generator that the epoch's order was drawn with."""
    batches: int = 0
    """Of that order, which were trained on."""
    rate: float = 0.0
    """Learning rate of the last step."""
    tally: Tally = field(default_factory=Tally)
    seconds: float = 0.0
    part_tally: Tally = field(default_factory=Tally)
    """As it was when the last part of the epoch was recorded."""
    part_seconds: float = 0.0

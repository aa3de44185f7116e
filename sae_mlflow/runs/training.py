"""What a training works with, and what it has come to."""

from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from sae_mlflow.config import Settings
from sae_mlflow.lm.hookpoints import LanguageModel
from sae_mlflow.lm.loading import load_language_model
from sae_mlflow.plots.choice import Choice
from sae_mlflow.reporting.display import Display
from sae_mlflow.reporting.layer_table import TrainedLayer
from sae_mlflow.reporting.stopwatch import Stopwatch
from sae_mlflow.stopping import Stopping
from sae_mlflow.tracking.contents import RunRow
from sae_mlflow.tracking.journalled import JournalledStore


class Experiment(NamedTuple):
    """Where a training's runs are."""

    name: str
    id: str


@dataclass
class Training:
    """One training of all its layers, while it goes on."""

    settings: Settings
    store: JournalledStore
    experiment: Experiment
    display: Display
    clock: Stopwatch
    device: torch.device
    pictures: Choice
    """How its pictures are drawn, and where they go beside the store."""
    n_layers: int
    """Blocks of the language model."""
    stopping: Stopping
    old: RunRow | None = None
    """Its parent's run, where it goes on in one that was there before."""
    lock: str = ""
    """The name under which this process holds it."""
    earlier: dict[str, RunRow] = field(default_factory=dict)
    """The layers' runs, by their labels, that were there before."""
    begun: bool = False
    """Whether a step of any layer has been made."""
    lm: LanguageModel | None = None
    rows: list[TrainedLayer] = field(default_factory=list)

    def language_model(self) -> LanguageModel:
        """Loaded when it is first needed, since cached activations need none."""
        if self.lm is None:
            with self.clock.stage("load"):
                self.lm = load_language_model(self.settings.model)
        return self.lm

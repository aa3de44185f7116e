"""Real trainings of SAEs on activations whose directions are known, judged by their health."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from recovery import ARCHITECTURES, TRAIN
from synthetic import Synthetic, World

from sae_mlflow.config import Settings
from sae_mlflow.config_health import HealthSettings
from sae_mlflow.health.check import check
from sae_mlflow.health.facts import facts_of
from sae_mlflow.health.finding import Verdict
from sae_mlflow.sae import build_sae
from sae_mlflow.sae.batch import Batch
from sae_mlflow.train import EpochRecord, Trainer, train

NAMES = tuple(ARCHITECTURES)
WORLD = World()
N_TRAIN, N_HELD_OUT, EPOCHS = 16_384, 2_048, 12


class Poisoned(Synthetic):
    """Activations with a NaN in one token, from an epoch on."""

    def __init__(self, world: World, seed: int = 0, *, from_epoch: int) -> None:
        super().__init__(world, N_TRAIN, N_HELD_OUT, seed)
        self.from_epoch = from_epoch
        self.epoch = 0

    def batches(
        self, batch_tokens: int, generator: torch.Generator, skip: int = 0
    ) -> Iterator[Batch]:
        self.epoch += 1
        for n, batch in enumerate(super().batches(batch_tokens, generator, skip), start=skip):
            if self.epoch >= self.from_epoch and n == 0:
                batch.x[0, 0] = torch.nan
            yield batch


def data_for(name: str, seed: int = 0) -> Synthetic:
    """A world that an architecture of `recovery.ARCHITECTURES` can find."""
    transcodes, layers = "transcoder" in name, 2 if name == "crosscoder" else 1
    world = replace(WORLD, transcodes=transcodes, layers=layers)
    return Synthetic(world, N_TRAIN, N_HELD_OUT, seed)


def trained(
    name: str = "topk",
    data: Synthetic | None = None,
    seed: int = 0,
    sae: dict[str, Any] | None = None,
    train_settings: dict[str, Any] | None = None,
) -> tuple[Verdict, list[Verdict]]:
    """The verdict on a training, and those after each of its epochs while it ran."""
    architecture = name.removeprefix("jumprelu ")
    layers = 2 if name == "crosscoder" else 1
    options = {"architecture": architecture, "d_sae": WORLD.n_directions, "k": round(WORLD.l0)}
    settings = Settings.model_validate(
        {
            "sae": options | ARCHITECTURES[name] | (sae or {}),
            "train": TRAIN | {"epochs": EPOCHS} | (train_settings or {}),
        }
    )
    data = data or data_for(name, seed)
    d_out = WORLD.d if "transcoder" in name else None
    model = build_sae(settings.sae, (WORLD.d,) * layers, d_out)
    trainer = Trainer(model, settings.train, data.n_train)
    params = settings.flat() | {
        "d_sae": model.d_sae,
        "train.learning_rate": trainer.peak_learning_rate,
        "data.train_tokens": data.n_train,
    }
    history: dict[str, list[float]] = {}
    live = []
    for record in train(trainer, data, seed):
        if isinstance(record, EpochRecord):
            for key, value in record.metrics.items():
                history.setdefault(key, []).append(value)
            live.append(check(history, facts_of(params, {}, "RUNNING"), HealthSettings()))
    return check(history, facts_of(params, {}, "FINISHED"), HealthSettings()), live

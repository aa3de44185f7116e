"""`benchmarks/train_step.py`: a step of every architecture, with the dead latents asked for."""

import pytest
import torch
from train_step import make_trainer

from sae_mlflow.architectures import ARCHITECTURES
from sae_mlflow.sae import Batch


@pytest.mark.parametrize("dead", [0.0, 0.25])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_step_of_every_architecture_has_the_dead_latents_that_were_asked_for(architecture, dead):
    trainer = make_trainer(architecture, 64, 16, 128, 4, dead)
    x = torch.randn(64, 16, generator=torch.Generator().manual_seed(0))
    for _ in range(2):
        loss = trainer.step(Batch(x, x))
        assert loss.total.isfinite() and 2 < loss.l0 < 8
        assert trainer.dead.sum() == dead * 128

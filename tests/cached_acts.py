"""Activations of the tiny model: planned, filled, opened, and what they should be."""

from collections.abc import Iterable

import numpy as np
import torch

from sae_mlflow.activations.harvest import fill_activations
from sae_mlflow.activations.layer import LayerActivations, open_activations
from sae_mlflow.activations.plan import ActivationPlan, plan_activations
from sae_mlflow.config import Settings
from sae_mlflow.lm.hookpoints import LanguageModel
from sae_mlflow.lm.loading import load_language_model, load_tokenizer
from sae_mlflow.sae.batch import Batch
from sae_mlflow.text.corpus import Windows, token_windows


def windows_of(settings: Settings) -> Windows:
    return token_windows(settings.text, load_tokenizer(settings.model))


def planned(settings: Settings) -> ActivationPlan:
    return plan_activations(settings, windows_of(settings))


def filled(settings: Settings) -> ActivationPlan:
    plan = planned(settings)
    for _ in fill_activations(plan, load_language_model(settings.model)):
        pass
    return planned(settings)


def opened(settings: Settings) -> list[LayerActivations]:
    return open_activations(filled(settings))


def expected_rows(lm: LanguageModel, windows: np.ndarray, block: int) -> np.ndarray:
    """A block's outputs at ordinary positions, from transformers, one window at a time."""
    rows = []
    for window in windows:
        with torch.no_grad():
            ids = torch.from_numpy(window[None]).long()
            hidden = lm.model(ids, output_hidden_states=True).hidden_states[block + 1][0].numpy()
        rows += [hidden[i] for i, token in enumerate(window) if i > 0 and token not in (0, 1)]
    return np.stack(rows)


def in_order(rows: np.ndarray) -> np.ndarray:
    return rows[np.lexsort(rows.T[::-1])]


def epoch(layer: LayerActivations, seed: int, batch: int = 128) -> torch.Tensor:
    return xs(layer.batches(batch, torch.Generator().manual_seed(seed)))


def xs(batches: Iterable[Batch]) -> torch.Tensor:
    return torch.cat([batch.x for batch in batches])


def ys(batches: Iterable[Batch]) -> torch.Tensor:
    return torch.cat([batch.y for batch in batches])


def distances(rows: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """`[n, m]`, exactly 0 between equal rows."""
    return torch.cdist(rows, others, compute_mode="donot_use_mm_for_euclid_dist")

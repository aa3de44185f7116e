"""The definitions, on numbers that can be checked by hand or against NumPy in float64."""

import numpy as np
import pytest
import torch

from sae_mlflow.metrics import Tally, fvu


def test_fvu_is_one_when_the_sae_predicts_the_mean():
    acts = torch.tensor([[0.0], [2.0]])
    recon = torch.tensor([[1.0], [1.0]])
    assert fvu(acts, recon) == 1.0


def test_fvu_is_zero_for_a_perfect_reconstruction_and_above_one_for_a_bad_one():
    acts = torch.tensor([[0.0], [2.0]])
    assert fvu(acts, acts) == 0.0
    assert fvu(acts, -acts) == pytest.approx(16 / 2)


def test_figures_over_batches_are_those_of_the_whole_set_not_the_mean_of_batches():
    """Batches of FVU 1 and 0; together residual 2 against a variation around 3 of 20."""
    tally = Tally()
    tally.add(torch.tensor([[0.0], [2.0]]), torch.tensor([[1.0], [1.0]]))
    tally.add(torch.tensor([[4.0], [6.0]]), torch.tensor([[4.0], [6.0]]))
    assert tally.fvu() == pytest.approx(2 / 20)
    assert tally.reconstruction_loss() == pytest.approx(2 / 4)


def test_the_tally_agrees_with_numpy_on_uneven_batches():
    rng = np.random.default_rng(0)
    acts = rng.normal(3.0, 2.0, (37, 5))
    recon = acts + rng.normal(0, 0.3, acts.shape)
    latents = np.maximum(rng.normal(size=(37, 8)), 0) * (rng.random(8) > 0.5)
    tally = Tally()
    for rows in np.split(np.arange(37), [10, 11, 30]):
        z = torch.tensor(latents[rows])
        l0, fired = (z > 0).sum(1).double().mean(), (z > 0).any(0)
        tally.add(torch.tensor(acts[rows]), torch.tensor(recon[rows]), l0, fired)
    cosine = (acts * recon).sum(1) / np.linalg.norm(acts, axis=1) / np.linalg.norm(recon, axis=1)
    residual = ((acts - recon) ** 2).sum()
    assert tally.fvu() == pytest.approx(residual / ((acts - acts.mean(0)) ** 2).sum(), rel=1e-10)
    assert tally.reconstruction_loss() == pytest.approx(residual / acts.size, rel=1e-10)
    assert tally.cosine_similarity() == pytest.approx(cosine.mean(), rel=1e-10)
    assert tally.l0_norm() == pytest.approx((latents > 0).sum(1).mean(), rel=1e-10)
    assert tally.never_fired_fraction() == pytest.approx(((latents > 0).sum(0) == 0).mean())


def test_what_was_added_since_a_copy_is_what_those_batches_alone_come_to():
    rng = np.random.default_rng(1)
    tally, alone = Tally(), Tally()
    for part in range(3):
        acts = torch.tensor(rng.normal(size=(7 + part, 4)))
        recon, l0 = acts + 0.1 * part, torch.tensor(float(part))
        tally.add(acts, recon, l0)
        tally.accumulate("total_loss", torch.tensor(float(part)))
        if part == 0:
            earlier = tally.copy()
        else:
            alone.add(acts, recon, l0)
            alone.accumulate("total_loss", torch.tensor(float(part)))
    since = tally.since(earlier)
    assert since.tokens == 8 + 9
    for figure in ("fvu", "reconstruction_loss", "cosine_similarity", "l0_norm"):
        assert getattr(since, figure)() == pytest.approx(getattr(alone, figure)(), rel=1e-12)
    assert since.mean("total_loss") == pytest.approx(3 / 17)
    assert earlier.tokens == 7, "a copy stays what it was"

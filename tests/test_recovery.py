"""Against the truth: activations made from a known dictionary (`benchmarks/recovery.py`)."""

import pytest
import torch
from recovery import ARCHITECTURES, WORLDS, found
from synthetic import Synthetic, World, recovery

from sae_mlflow.config_sae import SAESettings
from sae_mlflow.sae import build_sae


@pytest.fixture(autouse=True)
def one_thread():
    """Products this small only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_finds_independent_directions(name):
    """Twice as many directions as dimensions, three on a token, as many latents as directions."""
    made = found(name, WORLDS["independent"])
    assert made.cosine >= 0.95
    assert made.f1 >= 0.65


def test_an_sae_that_is_the_truth_is_found_to_be():
    """Orthogonal directions, decoder and encoder the same: cosine 1, and firing without a miss."""
    world = World(d=8, n_directions=8, noise=0.0)
    data = Synthetic(world, n_train=10, n_held_out=200)
    orthogonal = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(0)))[0]
    coefficients = data.held_out.x @ torch.linalg.inv(data.directions)
    data.directions, x = orthogonal, coefficients @ orthogonal
    data.held_out = type(data.held_out)(x, x)
    sae = build_sae(SAESettings(architecture="standard", d_sae=8), (8,))
    with torch.no_grad():
        sae.W_dec.copy_(orthogonal)
        sae.W_enc.copy_(orthogonal.t())
        sae.b_enc.fill_(-1e-3)
    made = recovery(sae, data)
    assert made.cosine == pytest.approx(1.0, abs=1e-6)
    assert made.f1 == 1.0


def test_random_rows_are_far_from_the_truth():
    data = Synthetic(World(), n_train=10, n_held_out=100)
    sae = build_sae(SAESettings(architecture="topk", k=3, d_sae=64), (32,))
    with torch.no_grad():
        sae.W_dec.copy_(torch.randn(64, 32, generator=torch.Generator().manual_seed(1)))
    assert recovery(sae, data).cosine < 0.6


def test_correlated_directions_fire_together_and_independent_ones_do_not():
    for correlation, together in ((0.0, False), (0.5, True)):
        data = Synthetic(World(correlation=correlation), n_train=10, n_held_out=20_000)
        firing = data.held_out_firing.double()
        both = (firing[:, 0] * firing[:, 1]).mean()
        apart = firing[:, 0].mean() * firing[:, 1].mean()
        assert (both > 2 * apart) == together

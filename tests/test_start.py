"""How often latents fire before anything was learned."""

import pytest
import torch

from sae_mlflow.config_sae import SAESettings
from sae_mlflow.sae import Batch, build_sae
from sae_mlflow.sae.start import best_length, firing_bounds

D_IN, D_SAE, N = 32, 256, 2000


def started(architecture, **settings):
    """An SAE on activations with a mean of 3 in each dimension."""
    chosen = SAESettings(architecture=architecture, d_sae=D_SAE, codes="jumprelu", **settings)
    widths = (D_IN, D_IN) if architecture == "crosscoder" else (D_IN,)
    sae = build_sae(chosen, widths, 7)
    x = torch.randn(N, sum(widths), generator=torch.Generator().manual_seed(0)) + 3
    sae.initialise(Batch(x, x[:, : sae.d_out]), torch.Generator().manual_seed(1))
    return sae, x


def test_a_bound_is_exceeded_on_the_share_of_tokens_that_makes_an_eighth_of_d_in_fire():
    """16 dimensions and 8 latents: 2 of 8 latents fire on a token, each on 2 of 8 tokens."""
    sae = build_sae(SAESettings(architecture="standard", d_sae=8), (16,))
    with torch.no_grad():
        sae.W_enc[0] = torch.tensor([1.0, -1.0, 2.0, 1, 1, 1, 1, 1])
        sae.b_dec.fill_(10.0)
    x = torch.zeros(8, 16)
    x[:, 0] = torch.arange(11.0, 19.0)
    assert firing_bounds(sae, x, torch.tensor([0, 1, 2])).tolist() == [6.0, -3.0, 12.0]
    assert firing_bounds(sae, x[:2], torch.tensor([0])).tolist() == [1.0], "on one at least"
    assert firing_bounds(sae, x[:1], torch.tensor([0])).tolist() == [1.0], "there is no second"
    assert firing_bounds(sae, x, torch.tensor([], dtype=torch.int64)).tolist() == []


@pytest.mark.parametrize(
    ("architecture", "settings", "l0"),
    [
        ("standard", {}, D_IN / 8),
        ("gated", {}, D_IN / 8),
        ("jumprelu", {}, D_IN / 8),
        ("jumprelu", {"target_l0": 20}, D_IN / 8),
        ("transcoder", {}, D_IN / 8),
        ("crosscoder", {}, 2 * D_IN / 8),
    ],
)
def test_each_latent_starts_on_its_share_of_the_sample(architecture, settings, l0):
    sae, x = started(architecture, **settings)
    fires = (sae.encode(x) > 0).sum(dim=0)
    assert (fires == round(l0 / D_SAE * N)).all()


def test_thresholds_start_at_a_hundredth_at_least():
    sae = build_sae(SAESettings(architecture="jumprelu", d_sae=D_SAE), (D_IN,))
    silent = torch.zeros(10, D_IN)
    sae.initialise(Batch(silent, silent), torch.Generator())
    assert (sae.threshold == torch.tensor(0.01)).all()


@pytest.mark.parametrize("architecture", ["gated", "jumprelu"])
def test_no_other_length_of_the_encoder_gives_a_smaller_error_at_the_start(architecture):
    sae, x = started(architecture)

    def error_at(length):
        scaled = sae.decode(length * sae.encode(x))
        return (scaled - x).square().mean().item()

    here = error_at(1.0)
    assert here < error_at(0.95) and here < error_at(1.05)
    assert here < (x - sae.b_dec).square().mean(), "better than nothing"


def test_two_latents_that_say_the_same_get_half_the_length():
    """Both read and write x itself: twice as much as is wanted."""
    sae = build_sae(SAESettings(architecture="standard", d_sae=2), (1,))
    with torch.no_grad():
        sae.W_enc.fill_(1.0)
        sae.W_dec.fill_(1.0)
    x = torch.tensor([[1.0], [3.0]])
    assert best_length(sae, Batch(x, x)) == 0.5


def test_where_nothing_is_written_the_length_stays():
    """A transcoder's decoder starts at 0."""
    sae, _ = started("transcoder")
    torch.testing.assert_close(sae.W_enc.norm(dim=0), torch.ones(D_SAE))

"""BatchTopK codes: a budget of a whole batch in training, one threshold once trained."""

import dense_reference as dense
import pytest
import torch
from random_saes import BATCH, assert_agree, made
from synthetic import Synthetic, World

from sae_mlflow.config_sae import SAESettings
from sae_mlflow.config_train import TrainSettings
from sae_mlflow.errors import UserError
from sae_mlflow.sae import Batch, build_sae, sae_from_config, sparse
from sae_mlflow.train import Trainer, train

pytestmark = pytest.mark.usefixtures("one_thread")


def smallest_kept(sae, x, k):
    pre_acts = dense.pre_acts(dict(sae.named_parameters()), x).detach()
    latents = dense.keep_batch_topk(pre_acts, k)
    return latents[latents > 0].min().double()


@pytest.mark.parametrize("architecture", ["batchtopk", "matryoshka"])
def test_the_threshold_follows_the_smallest_kept_latent_over_a_tenth_of_the_batches(architecture):
    """Each of the first ten batches sets it; from the 1,000th on a batch counts a hundredth."""
    sae, (first, _), dead = made(architecture, k=5, dtype=torch.float32)
    assert sae.threshold.isnan() and sae.threshold.dtype == torch.float64
    smallest = []
    for n in range(1, 31):
        x = first * (1 + 1 / n)
        smallest.append(smallest_kept(sae, x, 5))
        sae.loss(Batch(x, x), dead)
        if n == 10:
            assert_agree(sae.threshold, smallest[-1], 1e-6)
    assert smallest[0] - smallest[-1] > 0.1, "a case of this test that tests little"
    expected = smallest[9]
    for n in range(11, 31):
        expected = expected + (smallest[n - 1] - expected) * 10 / n
    assert_agree(sae.threshold, expected, 1e-6)
    for followed in (999, 5_000):
        sae.followed.fill_(followed)
        expected = 0.99 * sae.threshold + 0.01 * smallest[0]
        sae.loss(Batch(2 * first, 2 * first), dead)
        assert_agree(sae.threshold, expected, 1e-6)


@pytest.mark.parametrize("architecture", ["batchtopk", "matryoshka"])
@pytest.mark.parametrize("n_steps", [20, 70, 300])
def test_a_trained_sae_lets_about_k_latents_fire_on_tokens_it_has_not_seen(architecture, n_steps):
    """However short its training was: pre-activations fall in it, and the threshold with them."""
    batch = 128
    data = Synthetic(World(), n_train=n_steps * batch, n_held_out=2_048)
    settings = SAESettings(architecture=architecture, d_sae=64, k=3)
    training = TrainSettings(epochs=1, batch_tokens=batch, learning_rate=1e-2)
    sae = build_sae(settings, (32,))
    *_, last = train(Trainer(sae, training, data.n_train), data, seed=0)
    assert last.metrics["val_l0_norm"] == pytest.approx(3, rel=0.1)


def test_a_batch_that_keeps_nothing_leaves_the_threshold():
    sae, batch, dead = made("batchtopk", k=5, bias=-100.0)
    sae.loss(batch, dead)
    assert sae.threshold.isnan()
    sae.threshold.fill_(0.5)
    sae.loss(batch, dead)
    assert sae.threshold == 0.5


@pytest.mark.parametrize("architecture", ["batchtopk", "matryoshka"])
@pytest.mark.parametrize("dense_from", [0.0, 1.1])
def test_once_it_has_a_threshold_a_token_is_encoded_without_its_neighbours(
    architecture, dense_from, monkeypatch
):
    monkeypatch.setattr(sparse, "DENSE_FROM", dense_from)
    sae, batch, dead = made(architecture, k=5)
    untrained = sae.encode(batch.x)
    assert (untrained > 0).sum() == 5 * BATCH
    sae.loss(batch, dead)
    pre_acts = dense.pre_acts(dict(sae.named_parameters()), batch.x)
    expected = pre_acts * (pre_acts > sae.threshold)
    assert_agree(sae.encode(batch.x), expected, 1e-12)
    assert_agree(sae.encode(batch.x[3]), expected[3], 1e-12)
    assert (expected > 0).sum() == 5 * BATCH - 1, "the smallest that was kept is not over itself"


def test_the_whole_states_threshold_is_saved_and_loaded():
    sae, batch, dead = made("batchtopk", k=5)
    sae.loss(batch, dead)
    other, _, _ = made("batchtopk", k=5, seed=1)
    other.load_state_dict(sae.state_dict())
    assert_agree(other.encode(batch.x), sae.encode(batch.x), 1e-12)


@pytest.mark.parametrize("architecture", ["batchtopk", "matryoshka", "gated_transcoder"])
def test_what_is_never_stored_is_not_loaded(architecture):
    config = {"architecture": architecture, "d_in": 4, "d_sae": 8, "d_out": 4, "k": 2}
    with pytest.raises(UserError, match=f"architecture '{architecture}' is not known"):
        sae_from_config(config)

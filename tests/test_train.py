"""The training of one SAE: schedule, dead latents, constraints, determinism, and that it learns."""

import math

import pytest
import torch

from sae_mlflow.config import TrainSettings
from sae_mlflow.metrics import fvu
from sae_mlflow.sae import TopKSAE
from sae_mlflow.train import EpochRecord, StepRecord, Trainer, default_learning_rate, train

D_IN, D_SAE, K = 8, 32, 3


class InMemory:
    """Scaled activations of a known sparse dictionary: 3 of 16 unit directions a token."""

    def __init__(self, n_train=1030, n_held_out=200):
        generator = torch.Generator().manual_seed(0)
        directions = torch.randn(16, D_IN, generator=generator)
        directions /= directions.norm(dim=1, keepdim=True)
        n = n_train + n_held_out
        firing = torch.rand(n, 16, generator=generator).topk(3).indices
        codes = torch.zeros(n, 16).scatter(1, firing, 1 + torch.rand(n, 3, generator=generator))
        acts = codes @ directions
        acts /= acts.square().mean().sqrt()
        self.train, self.held_out, self.n_train = acts[:n_train], acts[n_train:], n_train

    def batches(self, batch_tokens, generator):
        order = torch.randperm(self.n_train, generator=generator)
        for rows in order.split(batch_tokens):
            if len(rows) == batch_tokens:
                yield self.train[rows]

    def held_out_batches(self, batch_tokens):
        yield from self.held_out.split(batch_tokens)

    def sample(self, n, generator):
        return self.train[torch.randperm(self.n_train, generator=generator)[:n]]


def run(seed=0, **settings):
    acts = InMemory()
    chosen = TrainSettings(**{"epochs": 8, "batch_tokens": 64, "learning_rate": 1e-2} | settings)
    trainer = Trainer(TopKSAE(D_IN, D_SAE, K), chosen, acts.n_train)
    records = list(train(trainer, acts, seed))
    return trainer, records, acts


def test_it_learns_and_says_so_an_epoch_at_a_time():
    trainer, records, acts = run()
    epochs = [r for r in records if isinstance(r, EpochRecord)]
    steps = [r for r in records if isinstance(r, StepRecord)]
    assert [r.epoch for r in epochs] == list(range(1, 9))
    assert len(steps) == 8 * (1030 // 64) == trainer.n_steps
    assert epochs[-1].metrics["val_fvu"] < 0.5 * epochs[0].metrics["val_fvu"]
    with torch.no_grad():
        expected = fvu(acts.held_out, trainer.sae(acts.held_out))
    assert epochs[-1].metrics["val_fvu"] == pytest.approx(expected, rel=1e-5)


def test_an_epochs_metrics_are_the_ones_of_the_contract():
    _, records, _ = run(epochs=1)
    metrics = records[-1].metrics
    assert set(metrics) == {
        *("total_loss", "reconstruction_loss", "sparsity_loss", "l0_norm", "fvu"),
        *("explained_variance", "cosine_similarity", "dead_fraction", "learning_rate"),
        *("tokens_per_second", "val_reconstruction_loss", "val_fvu", "val_l0_norm"),
        "val_dead_fraction",
    }
    assert metrics["explained_variance"] == 1 - metrics["fvu"]
    assert metrics["sparsity_loss"] == 0.0
    assert 0 < metrics["l0_norm"] <= K


def test_the_same_seed_gives_the_same_weights_to_the_bit_and_another_seed_others():
    one, other, third = run(seed=3)[0], run(seed=3)[0], run(seed=4)[0]
    for name, value in one.sae.state_dict().items():
        assert torch.equal(value, other.sae.state_dict()[name])
        assert not torch.equal(value, third.sae.state_dict()[name])


def test_the_learning_rate_warms_up_stays_and_decays_over_the_last_fifth():
    settings = TrainSettings(
        epochs=10, batch_tokens=10, learning_rate=1.0, warmup_fraction=0.1, decay_fraction=0.2
    )
    trainer = Trainer(TopKSAE(D_IN, D_SAE, K), settings, 100)
    rates = []
    for step in range(trainer.n_steps):
        trainer.steps_done = step
        rates.append(trainer.learning_rate)
    assert rates[:10] == pytest.approx([0.1 * i for i in range(1, 11)])
    assert rates[10:81] == [1.0] * 71
    assert rates[80:] == pytest.approx([1 - i / 20 for i in range(20)])


def test_the_default_rate_follows_the_width():
    assert default_learning_rate(2**14) == pytest.approx(2e-4)
    assert default_learning_rate(2**12) == pytest.approx(4e-4)


def test_decoder_rows_keep_unit_length_and_their_gradient_never_points_along_them():
    trainer, _, acts = run(epochs=1)
    norms = trainer.sae.W_dec.norm(dim=1)
    torch.testing.assert_close(norms, torch.ones(D_SAE))
    trainer.sae.loss(acts.train[:64], trainer.dead).total.backward()
    trainer.sae.project_gradient()
    along = (trainer.sae.W_dec.grad * trainer.sae.W_dec).sum(dim=1)
    torch.testing.assert_close(along, torch.zeros(D_SAE), atol=1e-7, rtol=0)


def test_a_latent_is_dead_once_it_was_silent_for_dead_after_tokens():
    """The third latent points away from every token; the others fire on each."""
    sae = TopKSAE(1, 3, 3)
    with torch.no_grad():
        sae.W_dec.copy_(torch.tensor([[1.0], [1.0], [-1.0]]))
        sae.W_enc.copy_(sae.W_dec.t())
    settings = TrainSettings(epochs=1, batch_tokens=10, dead_after_tokens=20, learning_rate=1e-9)
    trainer = Trainer(sae, settings, 100)
    dead = []
    for _ in range(3):
        trainer.step(torch.rand(10, 1) + 1)
        dead.append(trainer.dead.tolist())
    assert dead == [[False] * 3, [False, False, True], [False, False, True]]


def test_dead_after_tokens_is_half_an_epoch_and_at_most_ten_million():
    sae = TopKSAE(D_IN, D_SAE, K)
    assert Trainer(sae, TrainSettings(batch_tokens=10), 1000).dead_after_tokens == 500
    assert Trainer(sae, TrainSettings(batch_tokens=10), 10**9).dead_after_tokens == 10_000_000


def test_the_gradient_is_clipped_as_a_whole():
    _, _, acts = run(epochs=1)
    settings = TrainSettings(epochs=1, batch_tokens=64, gradient_clip=1e-3)
    trainer = Trainer(TopKSAE(D_IN, D_SAE, K), settings, acts.n_train)
    trainer.sae.initialise(acts.train, torch.Generator().manual_seed(0))
    trainer.step(acts.train[:64])
    norm = math.sqrt(sum(p.grad.square().sum().item() for p in trainer.sae.parameters()))
    assert norm == pytest.approx(1e-3, rel=1e-3)

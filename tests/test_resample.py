"""Dead latents that start anew: from which tokens, with which weights, and what is forgotten."""

import pytest
import torch

from sae_mlflow.config_sae import SAESettings
from sae_mlflow.config_train import TrainSettings
from sae_mlflow.sae import Batch, build_sae
from sae_mlflow.sae.resample import draw_tokens, resample
from sae_mlflow.train import Trainer

D_IN, D_SAE = 4, 6
DEAD = torch.tensor([False, True, False, False, True, False])
LIVING = ~DEAD
ARCHITECTURES = ["standard", "gated", "jumprelu", "crosscoder", "transcoder"]
EXTRAS = {
    "standard": ["b_enc"],
    "gated": ["b_gate", "b_mag", "r_mag"],
    "jumprelu": ["b_enc", "threshold"],
    "crosscoder": ["b_enc"],
    "transcoder": ["b_enc", "threshold"],
}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def trained(architecture, **settings):
    """An SAE, a batch and an optimizer after three steps on random activations."""
    chosen = {"architecture": architecture, "d_sae": D_SAE, "codes": "jumprelu", "k": 2}
    widths = (2, 2) if architecture == "crosscoder" else (D_IN,)
    sae = build_sae(SAESettings(**chosen), widths, 3)
    x = torch.randn(40, D_IN, generator=seeded(1)) + 1
    batch = Batch(x, x[:, :3] - 2 if sae.transcodes else x)
    sae.initialise(batch, seeded())
    trainer = Trainer(sae, TrainSettings(epochs=1, batch_tokens=40, **settings), n_train=4000)
    for _ in range(3):
        trainer.step(batch)
    return trainer, batch


def state_of(trainer):
    """Parameters and the optimizer's moments, by name, latents first."""
    state = {}
    for name, p in trainer.optimized.items():
        kept = trainer.optimizer.state[p]
        for key, value in (("", p), *((k, kept[k]) for k in ("exp_avg", "exp_avg_sq"))):
            state[name, key] = value.detach().clone()
    return state


def test_tokens_are_drawn_in_proportion_to_their_squared_loss():
    """Losses 1, 2 and 0: weights 1, 4 and 0."""
    y = torch.tensor([[1.0, 1.0], [2.0, 0.0], [3.0, 3.0]])
    recon = torch.tensor([[0.0, 0.0], [0.0, 0.0], [3.0, 3.0]])
    generator = seeded()
    drawn = torch.cat([draw_tokens(recon, y, 1, generator) for _ in range(2000)])
    shares = drawn.bincount(minlength=3) / 2000
    assert shares.tolist() == pytest.approx([0.2, 0.8, 0.0], abs=0.03)


def test_no_token_is_drawn_twice_and_none_without_a_finite_loss():
    y = torch.tensor([[1.0], [2.0], [0.0], [torch.nan]])
    drawn = draw_tokens(torch.zeros(4, 1), y, 10, seeded())
    assert sorted(drawn.tolist()) == [0, 1]
    assert draw_tokens(y, y, 3, seeded()).tolist() == []


def test_the_new_directions_are_the_one_tokens_that_the_sae_misses():
    """All tokens are b_dec but one, (0, 3) away: rows (0, 1), and 0.2 times the mean of 2 and 4."""
    sae = build_sae(SAESettings(architecture="standard", d_sae=3), (2,))
    with torch.no_grad():
        sae.b_dec.copy_(torch.tensor([5.0, 5.0]))
        sae.W_enc.copy_(torch.tensor([[2.0, 0.0, 7.0], [0.0, -4.0, 7.0]]))
        sae.b_enc.copy_(torch.tensor([-9.0, -9.0, -9.0]))
    x = torch.tensor([[5.0, 5.0], [5.0, 8.0], [5.0, 5.0]])
    dead = torch.tensor([False, False, True])
    assert resample(sae, Batch(x, x), dead, seeded()).tolist() == [2]
    torch.testing.assert_close(sae.W_dec[2], torch.tensor([0.0, 1.0]))
    torch.testing.assert_close(sae.W_enc[:, 2], torch.tensor([0.0, 0.2 * 3]))
    assert sae.W_enc[:, :2].tolist() == [[2.0, 0.0], [0.0, -4.0]]
    assert sae.b_enc[:2].tolist() == [-9.0, -9.0]
    assert sae.encode(x)[:, 2].tolist() == [0.0, pytest.approx(1.8), 0.0]


def test_in_a_skip_transcoder_they_are_of_what_the_skip_leaves():
    """Targets are (1, 0) from the skip, (5, 5) from b_dec, and of one token (0, 2) from nobody."""
    settings = SAESettings(architecture="skip_transcoder", codes="jumprelu", d_sae=3)
    sae = build_sae(settings, (2,))
    x = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 3.0]])
    with torch.no_grad():
        sae.W_skip.copy_(torch.tensor([[1.0, 0.0], [0.0, 0.0]]))
        sae.b_dec.fill_(5.0)
        sae.b_enc.fill_(-9.0)
    y = torch.tensor([[6.0, 5.0], [6.0, 5.0], [6.0, 7.0]])
    dead = torch.tensor([False, False, True])
    assert resample(sae, Batch(x, y), dead, seeded()).tolist() == [2]
    torch.testing.assert_close(sae.W_dec[2], torch.tensor([0.0, 1.0]))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_dead_latents_alone_start_anew(architecture):
    trainer, batch = trained(architecture)
    before = state_of(trainer)
    trainer.silent_tokens[DEAD] = trainer.dead_after_tokens
    assert trainer.resample(batch).tolist() == [1, 4]
    assert not trainer.dead.any()
    after = state_of(trainer)
    for (name, key), value in after.items():
        if name in ("b_dec", "W_skip"):
            assert torch.equal(value, before[name, key]), "all latents share it"
            continue
        assert torch.equal(value[LIVING], before[name, key][LIVING])
        if key:
            assert before[name, key].abs().sum() > 0
            assert (value[DEAD] == 0).all(), "Adam forgets"
    living = before["W_enc", ""][LIVING].norm(dim=1).mean()
    torch.testing.assert_close(after["W_enc", ""][DEAD].norm(dim=1), 0.2 * living.expand(2))
    torch.testing.assert_close(after["W_dec", ""][DEAD].norm(dim=1), torch.ones(2))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_what_decides_about_firing_is_as_at_the_start(architecture):
    """Another SAE whose directions are the same from the start has the same biases."""
    trainer, batch = trained(architecture)
    sae = trainer.sae
    resample(sae, batch, DEAD, seeded(2))
    found = {name: getattr(sae, name).detach().clone() for name in EXTRAS[architecture]}
    sae.start(batch.x, torch.arange(D_SAE))
    for name, values in found.items():
        torch.testing.assert_close(values[DEAD], getattr(sae, name)[DEAD].detach())
    fires = (sae.encode(batch.x) > 0).sum(dim=0)
    assert (fires[DEAD] > 0).all()
    if architecture == "gated":
        assert (found["b_mag"][DEAD] == 0).all() and (found["r_mag"][DEAD] == 0).all()


def test_the_same_generator_chooses_the_same_and_nobody_dead_draws_nothing():
    choices = []
    for seed in (3, 3, 4):
        trainer, batch = trained("standard")
        resample(trainer.sae, batch, DEAD, seeded(seed))
        choices.append(trainer.sae.W_dec[DEAD].detach())
    assert torch.equal(choices[0], choices[1])
    assert not torch.equal(choices[0], choices[2])

    trainer, batch = trained("standard")
    before, generator = state_of(trainer), seeded(5)
    nobody = torch.zeros(D_SAE, dtype=torch.bool)
    assert not len(resample(trainer.sae, batch, nobody, generator))
    assert torch.equal(generator.get_state(), seeded(5).get_state())
    assert all(torch.equal(value, before[key]) for key, value in state_of(trainer).items())


def test_more_dead_latents_than_tokens_wait_for_another_time():
    trainer, batch = trained("standard")
    few = Batch(batch.x[:2], batch.x[:2])
    everyone = torch.ones(D_SAE, dtype=torch.bool)
    assert resample(trainer.sae, few, everyone, seeded()).tolist() == [0, 1]


def test_an_optimizer_that_keeps_nothing_has_nothing_to_forget():
    trainer, batch = trained("standard", optimizer="sgd")
    trainer.silent_tokens[DEAD] = trainer.dead_after_tokens
    assert trainer.resample(batch).tolist() == [1, 4]


def test_adafactor_forgets_the_one_number_that_it_keeps_of_a_row():
    trainer, batch = trained("standard", optimizer="adafactor")
    kept = trainer.optimizer.state[trainer.sae.W_dec]["row_var"]
    assert kept.shape == (D_SAE, 1) and (kept > 0).all()
    before = kept[LIVING].clone()
    trainer.silent_tokens[DEAD] = trainer.dead_after_tokens
    trainer.resample(batch)
    assert (kept[DEAD] == 0).all() and torch.equal(kept[LIVING], before)
    trainer.step(batch)
    assert all(parameter.isfinite().all() for parameter in trainer.sae.parameters())


def resampled_after(architecture, **settings):
    """After which of 20 steps latent 1, which points away from every token, is back."""
    sae = build_sae(SAESettings(architecture=architecture, d_sae=3), (2,))
    train = TrainSettings(
        epochs=1, batch_tokens=10, dead_after_tokens=20, learning_rate=1e-9, **settings
    )
    trainer = Trainer(sae, train, n_train=200)
    x = torch.rand(10, 2, generator=seeded()) + 1
    sae.initialise(Batch(x, x), seeded())
    with torch.no_grad():
        sae.W_enc[:, 1] = torch.tensor([-1.0, -1.0])
        for name in {"b_enc", "b_gate"} & dict(sae.named_parameters()).keys():
            getattr(sae, name)[1] = -100.0
    for step in range(1, 21):
        trainer.step(Batch(x, x))
        if trainer.silent_tokens[1] == 0:
            return step
    return None


def test_latents_start_anew_where_the_settings_say():
    assert resampled_after("standard", resample_at=(0.05, 0.5)) == 10, "at 1 none is dead yet"


def test_where_the_settings_say_nothing_gated_resamples_and_standard_does_not():
    assert resampled_after("gated") == 5
    assert resampled_after("standard") is None
    assert resampled_after("gated", resample_at=()) is None

"""The training of one SAE: schedule, dead latents, constraints, determinism, and that it learns."""

import math

import pytest
import torch

from sae_mlflow.config_sae import SAESettings
from sae_mlflow.config_train import TrainSettings
from sae_mlflow.errors import UserError
from sae_mlflow.metrics import fvu
from sae_mlflow.sae import Batch, Sizes, build_sae
from sae_mlflow.sae.jumprelu import JumpReLUSAE
from sae_mlflow.sae.topk import TopKSAE
from sae_mlflow.train import (
    EpochRecord,
    StepRecord,
    Trainer,
    WithinEpochRecord,
    default_learning_rate,
    train,
)

D_IN, D_SAE, K = 8, 32, 3


def pair(x):
    return Batch(x, x)


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

    def batches(self, batch_tokens, generator, skip=0):
        order = torch.randperm(self.n_train, generator=generator)
        for rows in order.split(batch_tokens)[skip:]:
            if len(rows) == batch_tokens:
                yield pair(self.train[rows])

    def held_out_batches(self, batch_tokens):
        yield from map(pair, self.held_out.split(batch_tokens))

    def sample(self, n, generator):
        return pair(self.train[torch.randperm(self.n_train, generator=generator)[:n]])


def run(seed=0, **settings):
    acts = InMemory()
    chosen = TrainSettings(**{"epochs": 8, "batch_tokens": 64, "learning_rate": 1e-2} | settings)
    trainer = Trainer(TopKSAE(Sizes(D_IN, D_SAE), K), chosen, acts.n_train)
    records = list(train(trainer, acts, seed))
    return trainer, records, acts


def test_it_learns_and_says_so_an_epoch_at_a_time():
    trainer, records, acts = run()
    epochs = [r for r in records if isinstance(r, EpochRecord)]
    steps = [r for r in records if isinstance(r, StepRecord)]
    assert [r.epoch for r in epochs] == list(range(1, 9))
    assert len(steps) == 8 * (1030 // 64) == trainer.n_steps
    assert epochs[-1].metrics["val_fvu"] < 0.14 < 0.23 < epochs[0].metrics["val_fvu"]
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


def test_parts_of_a_long_epoch_add_up_to_it():
    """Epochs of 16 batches of 64; every 256 tokens are a part, four of equal size."""
    _, records, _ = run(epochs=2, log_every_tokens=256)
    parts = [r for r in records if isinstance(r, WithinEpochRecord)]
    epochs = [r for r in records if isinstance(r, EpochRecord)]
    assert [part.tokens for part in parts] == [256 * n for n in range(1, 9)]
    for epoch, its_parts in zip(epochs, (parts[:4], parts[4:]), strict=True):
        assert its_parts[0].metrics.keys() == epoch.metrics.keys() - {
            *("val_reconstruction_loss", "val_fvu", "val_l0_norm", "val_dead_fraction")
        }
        for name in ("total_loss", "reconstruction_loss", "l0_norm", "cosine_similarity"):
            mean = sum(part.metrics[name] for part in its_parts) / 4
            assert mean == pytest.approx(epoch.metrics[name], rel=1e-9)
        assert its_parts[-1].metrics["learning_rate"] == epoch.metrics["learning_rate"]


def test_an_epoch_that_is_no_longer_than_a_part_has_none():
    for tokens in (1024, 10_000):
        _, records, _ = run(epochs=2, log_every_tokens=tokens)
        assert not any(isinstance(r, WithinEpochRecord) for r in records)


def test_the_same_seed_gives_the_same_weights_to_the_bit_and_another_seed_others():
    one, other, third = run(seed=3)[0], run(seed=3)[0], run(seed=4)[0]
    for name, value in one.sae.state_dict().items():
        assert torch.equal(value, other.sae.state_dict()[name])
        assert not torch.equal(value, third.sae.state_dict()[name])


def rates_of(**settings):
    """The learning rate of each of 100 steps; peak 1, warm-up over the first 10."""
    chosen = TrainSettings(
        epochs=10, batch_tokens=10, learning_rate=1.0, warmup_fraction=0.1, **settings
    )
    trainer = Trainer(TopKSAE(Sizes(D_IN, D_SAE), K), chosen, 100)
    rates = []
    for step in range(trainer.n_steps):
        trainer.steps_done = step
        rates.append(trainer.learning_rate)
    return rates


def test_the_learning_rate_warms_up_stays_and_decays_over_the_last_fifth():
    rates = rates_of(decay_fraction=0.2)
    assert rates[:10] == pytest.approx([0.1 * i for i in range(1, 11)])
    assert rates[10:81] == [1.0] * 71
    assert rates[80:] == pytest.approx([1 - i / 20 for i in range(20)])


def test_a_cosine_falls_by_half_a_wave_and_a_constant_rate_not_at_all():
    cosine, constant = (
        rates_of(schedule="cosine", decay_fraction=0.2),
        rates_of(schedule="constant"),
    )
    assert cosine[80] == 1.0
    assert cosine[90] == pytest.approx(0.5)
    assert cosine[95] == pytest.approx((1 - math.cos(math.pi / 4)) / 2)
    assert constant[10:] == [1.0] * 90


def test_the_sparsity_penalty_warms_up_apart_from_the_learning_rate():
    settings = TrainSettings(epochs=10, batch_tokens=10, sparsity_warmup_fraction=0.5)
    trainer = Trainer(TopKSAE(Sizes(D_IN, D_SAE), K), settings, 100)
    shares = []
    for trainer.steps_done in (0, 24, 49, 99):
        shares.append(trainer.sparsity_warmup)
    assert shares == pytest.approx([0.02, 0.5, 1.0, 1.0])


def test_the_penalty_of_a_step_is_the_warmed_up_one():
    """Two of three latents fire on each token; coefficient 0.5; the first of two warm-up steps."""
    sae = JumpReLUSAE(Sizes(1, 3), l0_coefficient=0.5)
    with torch.no_grad():
        sae.W_enc.copy_(torch.tensor([[1.0, 1.0, -1.0]]))
    settings = TrainSettings(epochs=1, batch_tokens=10, sparsity_warmup_fraction=0.2)
    trainer = Trainer(sae, settings, 100)
    assert trainer.step(pair(torch.rand(10, 1) + 1)).sparsity == pytest.approx(0.5 * 2 / 2)


def rates_by_parameter(sae, **settings):
    """What each parameter's group learns at in a step whose learning rate is 1."""
    settings = TrainSettings(
        epochs=1, batch_tokens=10, learning_rate=1.0, warmup_fraction=0.0, **settings
    )
    trainer = Trainer(sae, settings, 100)
    trainer.step(pair(torch.rand(10, 2)))
    groups = trainer.optimizer.param_groups
    rates = {id(p): group["lr"] for group in groups for p in group["params"]}
    return {name: rates[id(p)] for name, p in trainer.optimized.items()}


def test_what_decides_about_firing_learns_at_a_multiple_of_the_rate():
    sae = JumpReLUSAE(Sizes(2, 4))
    slow = dict.fromkeys(("W_enc", "W_dec", "b_dec"), 1.0)
    assert rates_by_parameter(sae) == slow | {"b_enc": 10.0, "threshold": 10.0}
    assert rates_by_parameter(sae, firing_rate=3) == slow | {"b_enc": 3.0, "threshold": 3.0}


def test_in_a_topk_sae_everything_learns_at_the_same_rate():
    assert set(rates_by_parameter(TopKSAE(Sizes(2, 4), 1)).values()) == {1.0}


def test_all_that_a_training_draws_comes_from_the_trainers_generator():
    """Its state after an epoch gives the next epoch's batches again, and a seed sets it."""
    trainer, _, acts = run(epochs=1, seed=3)
    expected = torch.Generator().manual_seed(3)
    acts.sample(1, expected)
    trainer.sae.initialise(pair(acts.train), expected)
    next(acts.batches(64, expected))
    assert torch.equal(trainer.generator.get_state(), expected.get_state())


@pytest.mark.parametrize("architecture", ["topk", "jumprelu", "gated", "transcoder"])
@pytest.mark.parametrize("d_sae", [4, 200])
def test_steps_are_those_of_adam_on_the_sae_itself(architecture, d_sae):
    """The optimizer sees W_enc's transpose, which is contiguous: torch 2.13's fused Adam goes wrong
    without a word on a transposed parameter whose gradient is not laid out as it is."""
    chosen = SAESettings(architecture=architecture, d_sae=d_sae, k=2, codes="jumprelu")
    x = torch.randn(3, 50, 6, generator=torch.Generator().manual_seed(0))
    settings = TrainSettings(epochs=1, batch_tokens=50, learning_rate=0.01, firing_rate=1)
    trained = []
    for fused in (True, False):
        sae = build_sae(chosen, (6,), 6)
        sae.initialise(pair(x[0]), torch.Generator().manual_seed(1))
        trainer = Trainer(sae, settings, 500)
        if not fused:
            trainer.optimizer = torch.optim.Adam(sae.parameters(), fused=False, foreach=False)
            trainer.optimizer.param_groups[0]["rate_multiple"] = 1.0
        trained.append((trainer, sae))
    for batch in x:
        for trainer, _ in trained:
            trainer.step(pair(batch))
            assert trainer.encoder_rows.is_contiguous()
            assert trainer.encoder_rows.data_ptr() == trainer.sae.W_enc.data_ptr()
            gradient = trainer.sae.W_enc.grad
            assert gradient.stride() == trainer.sae.W_enc.stride()
            assert trainer.encoder_rows.grad.data_ptr() == gradient.data_ptr(), "not a copy"
    for name, parameter in trained[0][1].named_parameters():
        torch.testing.assert_close(parameter, dict(trained[1][1].named_parameters())[name])


@pytest.mark.parametrize("name", ["adam", "AdamW", "sgd", "RMSprop", "NAdam", "Adafactor"])
def test_optimizers_of_torch_go_by_their_names(name):
    trainer, records, _ = run(optimizer=name, epochs=2, learning_rate=1e-3)
    assert type(trainer.optimizer).__name__.lower() == name.lower()
    assert math.isfinite(records[-1].metrics["val_fvu"])


def test_an_optimizers_own_options_are_passed_on():
    trainer, *_ = run(epochs=1, optimizer_options={"betas": [0.0, 0.999]})
    assert trainer.optimizer.defaults["betas"] == (0.0, 0.999)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"optimizer": "adamm"}, "'adamm' is not in torch. Did you mean adam"),
        ({"optimizer": "lbfgs"}, "'lbfgs' can't be used here"),
        ({"optimizer": "muon"}, "'muon' can't be used here"),
        ({"optimizer_options": {"beta": 1}}, "Adam doesn't take beta. It takes amsgrad, betas"),
        ({"optimizer_options": {"betas": 7}}, "'adam' can't be used here"),
    ],
)
def test_an_optimizer_that_cannot_be_used_is_refused(settings, message):
    with pytest.raises(UserError, match=message):
        run(**settings)


def test_bfloat16_products_train_much_the_same():
    _, wide, _ = run(seed=1)
    _, narrow, _ = run(seed=1, precision="bfloat16")
    one, other = wide[-1].metrics["val_fvu"], narrow[-1].metrics["val_fvu"]
    assert one != other
    assert other == pytest.approx(one, rel=0.1)


def test_the_default_rate_follows_the_width():
    assert default_learning_rate(2**14) == pytest.approx(1e-3)
    assert default_learning_rate(2**12) == pytest.approx(2e-3)


def test_decoder_rows_keep_unit_length_and_their_gradient_never_points_along_them():
    trainer, _, acts = run(epochs=1)
    norms = trainer.sae.W_dec.norm(dim=1)
    torch.testing.assert_close(norms, torch.ones(D_SAE))
    trainer.sae.loss(pair(acts.train[:64]), trainer.dead).total.backward()
    trainer.sae.project_gradient()
    along = (trainer.sae.W_dec.grad * trainer.sae.W_dec).sum(dim=1)
    torch.testing.assert_close(along, torch.zeros(D_SAE), atol=1e-7, rtol=0)


def test_a_latent_is_dead_once_it_was_silent_for_dead_after_tokens():
    """The third latent points away from every token; the others fire on each."""
    sae = TopKSAE(Sizes(1, 3), 3)
    with torch.no_grad():
        sae.W_dec.copy_(torch.tensor([[1.0], [1.0], [-1.0]]))
        sae.W_enc.copy_(sae.W_dec.t())
    settings = TrainSettings(epochs=1, batch_tokens=10, dead_after_tokens=20, learning_rate=1e-9)
    trainer = Trainer(sae, settings, 100)
    dead = []
    for _ in range(3):
        trainer.step(pair(torch.rand(10, 1) + 1))
        dead.append(trainer.dead.tolist())
    assert dead == [[False] * 3, [False, False, True], [False, False, True]]


def test_dead_after_tokens_is_half_an_epoch_and_at_most_ten_million():
    sae = TopKSAE(Sizes(D_IN, D_SAE), K)
    assert Trainer(sae, TrainSettings(batch_tokens=10), 1000).dead_after_tokens == 500
    assert Trainer(sae, TrainSettings(batch_tokens=10), 10**9).dead_after_tokens == 10_000_000


def test_in_one_epoch_dead_latents_can_start_anew_at_the_first_time_already():
    """Half an epoch of silence can't be over after a quarter of it."""
    sae = build_sae(SAESettings(architecture="gated", d_sae=D_SAE), [D_IN])
    settings = TrainSettings(epochs=1, batch_tokens=10)
    trainer = Trainer(sae, settings, 1_003)
    assert trainer.resampling_steps == {25, 50}
    assert trainer.dead_after_tokens == 250
    longer = Trainer(sae, settings.model_copy(update={"epochs": 10}), 1_003)
    assert longer.dead_after_tokens == 501


def test_auxk_is_for_latents_that_were_silent_for_a_twentieth_of_an_epoch():
    """The first latent is always the stronger one; the second learns by AuxK alone, from what the
    first one misses, long before it counts as dead."""
    sae = TopKSAE(Sizes(1, 2), k=1)
    with torch.no_grad():
        sae.W_enc.copy_(torch.tensor([[0.8, 0.5]]))
        sae.W_dec.fill_(1.0)
    settings = TrainSettings(epochs=1, batch_tokens=10, learning_rate=1e-9)
    trainer = Trainer(sae, settings, 1000)
    assert (trainer.aux_k_after_tokens, trainer.dead_after_tokens) == (50, 500)
    learns = []
    for _ in range(7):
        trainer.step(pair(torch.rand(10, 1) + 1))
        learns.append(sae.W_enc.grad[0, 1].item() != 0)
    assert learns == [False] * 5 + [True] * 2
    assert not trainer.dead.any()


@pytest.mark.parametrize(
    ("given", "tokens"),
    [
        ({}, 50),
        ({"batch_tokens": 20}, 80),
        ({"dead_after_tokens": 30}, 30),
        ({"aux_k_after_tokens": 7}, 7),
    ],
)
def test_auxk_waits_for_four_batches_and_no_longer_than_until_a_latent_is_dead(given, tokens):
    settings = TrainSettings(**({"batch_tokens": 10} | given))
    trainer = Trainer(TopKSAE(Sizes(D_IN, D_SAE), K), settings, 1000)
    assert trainer.aux_k_after_tokens == tokens


def test_the_gradient_is_clipped_as_a_whole():
    _, _, acts = run(epochs=1)
    settings = TrainSettings(epochs=1, batch_tokens=64, gradient_clip=1e-3)
    trainer = Trainer(TopKSAE(Sizes(D_IN, D_SAE), K), settings, acts.n_train)
    trainer.sae.initialise(pair(acts.train), torch.Generator().manual_seed(0))
    trainer.step(pair(acts.train[:64]))
    norm = math.sqrt(sum(p.grad.square().sum().item() for p in trainer.sae.parameters()))
    assert norm == pytest.approx(1e-3, rel=1e-3)

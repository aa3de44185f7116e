"""SAELens 6.54.12 on the same weights and batch: latents, reconstruction, loss terms, gradients.

SAELens sums the squared error over the D dimensions where ours is a mean, so its losses and
gradients are D times ours once its coefficients are D times ours. Other differences are named
where they are. It has no crosscoder, and trains no transcoder.
"""

import pytest
import torch
from peers import peer
from random_saes import D_IN, D_SAE, assert_agree, gradients, made

from sae_mlflow.sae import Batch

pytestmark = pytest.mark.usefixtures("one_thread")

sae_lens = peer("sae_lens")
registry = peer("sae_lens.registry")
peers_sae = peer("sae_lens.saes.sae")

K, L1, L0, BANDWIDTH = 5, 0.3, 0.02, 0.4
SEEDS = [0, 1]


def ours(architecture, *, unit_rows=False, **settings):
    """One of ours in float32, with a batch and dead latents."""
    sae, batch, dead = made(architecture, dtype=torch.float32, **settings)
    if unit_rows:
        sae.constrain()
    return sae, batch, dead


def theirs(architecture, sae, **config):
    """SAELens's training SAE with our weights."""
    cls, config_cls = registry.get_sae_training_class(architecture)
    other = cls(config_cls(d_in=sae.d_in, d_sae=sae.d_sae, **config))
    return with_weights_of(sae, other)


def with_weights_of(sae, other):
    state = {name: p.detach().clone().contiguous() for name, p in sae.named_parameters()}
    missing = other.load_state_dict(state, strict=False)
    assert not missing.unexpected_keys and set(missing.missing_keys) <= {"topk_threshold"}
    return other


def step(other, x, dead=None):
    """SAELens's own training step, up to the gradients."""
    coefficients = {
        name: getattr(value, "value", value) for name, value in other.get_coefficients().items()
    }
    return other.training_forward_pass(
        peers_sae.TrainStepInput(
            sae_in=x,
            coefficients=coefficients,
            dead_neuron_mask=dead,
            n_training_steps=0,
            is_logging_step=False,
        )
    )


def assert_gradients_agree(got, wanted, factor):
    """Ours, times a factor, are theirs."""
    assert got.keys() == wanted.keys()
    for name, gradient in got.items():
        assert gradient.abs().max() > 0, f"nothing is learnt by {name}"
        assert_agree(factor * gradient, wanted[name], what=name)


def assert_codes_agree(sae, other, x):
    latents = sae.encode(x)
    assert (latents > 0).any()
    assert_agree(latents, other.encode(x))
    assert_agree(sae.decode(latents), other.decode(latents))
    assert_agree(sae(x), other(x))


def reconstruction_loss(loss, batch):
    return (batch.y - loss.recon).square().mean()


# -- the penalties ----------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
def test_standard(seed):
    """No difference but the factor D."""
    sae, batch, dead = ours("standard", seed=seed, l1_coefficient=L1)
    other = theirs("standard", sae, l1_coefficient=L1 * D_IN)
    assert_codes_agree(sae, other, batch.x)
    loss, step_of = sae.loss(batch, dead), step(other, batch.x)
    assert_agree(D_IN * loss.total, step_of.loss)
    assert_agree(D_IN * loss.sparsity, step_of.losses["l1_loss"])
    assert_agree(D_IN * reconstruction_loss(loss, batch), step_of.losses["mse_loss"])
    assert_gradients_agree(gradients(sae, loss.total), gradients(other, step_of.loss), D_IN)


@pytest.mark.parametrize("seed", SEEDS)
def test_jumprelu(seed):
    """No difference but the factor D: thresholds themselves are trained, with a rectangle."""
    sae, batch, dead = ours("jumprelu", seed=seed, l0_coefficient=L0, bandwidth=BANDWIDTH)
    other = theirs("jumprelu", sae, l0_coefficient=L0 * D_IN, jumprelu_bandwidth=BANDWIDTH)
    assert_codes_agree(sae, other, batch.x)
    loss, step_of = sae.loss(batch, dead), step(other, batch.x)
    assert_agree(D_IN * loss.total, step_of.loss)
    assert_agree(D_IN * loss.sparsity, step_of.losses["l0_loss"])
    assert_agree(D_IN * reconstruction_loss(loss, batch), step_of.losses["mse_loss"])
    assert_gradients_agree(gradients(sae, loss.total), gradients(other, step_of.loss), D_IN)


@pytest.mark.parametrize("seed", SEEDS)
def test_jumprelu_to_a_target(seed):
    """SAELens penalises each token's own miss, `2 / target (l0 - target)^2`, ours the batch's as a
    share of the target: they are the same on one token, up to the factor `2 target`."""
    target = 9.0
    sae, batch, dead = ours(
        "jumprelu",
        seed=seed,
        batch=1,
        l0_coefficient=L0,
        bandwidth=BANDWIDTH,
        target_l0=target,
    )
    other = theirs(
        "jumprelu",
        sae,
        l0_coefficient=L0 * D_IN / (2 * target),
        jumprelu_bandwidth=BANDWIDTH,
        jumprelu_sparsity_loss_mode="quadratic",
        target_l0=target,
    )
    loss, step_of = sae.loss(batch, dead), step(other, batch.x)
    assert loss.sparsity > 0
    assert_agree(D_IN * loss.sparsity, step_of.losses["l0_loss"])
    assert_gradients_agree(gradients(sae, loss.total), gradients(other, step_of.loss), D_IN)


@pytest.mark.parametrize("seed", SEEDS)
def test_gated(seed):
    """SAELens doesn't detach the decoder in the auxiliary reconstruction, as the paper does and
    ours: W_dec and b_dec learn from it too there, and by just that their gradients differ."""
    sae, batch, dead = ours("gated", seed=seed, l1_coefficient=L1)
    other = theirs("gated", sae, l1_coefficient=L1 * D_IN)
    assert_codes_agree(sae, other, batch.x)
    loss, step_of = sae.loss(batch, dead), step(other, batch.x)
    assert_agree(D_IN * loss.total, step_of.loss)
    assert_agree(D_IN * loss.sparsity, step_of.losses["l1_loss"])
    assert_agree(D_IN * reconstruction_loss(loss, batch), step_of.losses["mse_loss"])
    auxiliary = loss.total - loss.sparsity - reconstruction_loss(loss, batch)
    assert_agree(D_IN * auxiliary, step_of.losses["auxiliary_reconstruction_loss"])

    gates = ((batch.x - sae.b_dec) @ sae.W_enc + sae.b_gate).relu().detach()
    undetached = (batch.x - gates @ sae.W_dec - sae.b_dec).square().mean()
    by_decoder = torch.autograd.grad(undetached, (sae.W_dec, sae.b_dec))
    got = gradients(sae, loss.total)
    for name, extra in zip(("W_dec", "b_dec"), by_decoder, strict=True):
        assert extra.abs().max() > 1e-3 * got[name].abs().max(), "less than is tolerated"
        got[name] = got[name] + extra
    assert_gradients_agree(got, gradients(other, step_of.loss), D_IN)


# -- the topk family --------------------------------------------------------------------------

FAMILY = {
    "topk": ("topk", {}),
    "batchtopk": ("batchtopk", {}),
    "matryoshka": ("matryoshka_batchtopk", {"prefixes": (7, 20, 50, D_SAE)}),
}


def pair(name, **settings):
    """Ours, theirs, a batch, dead latents, and how many prefixes are summed there."""
    architecture, extra = FAMILY[name]
    config = settings.pop("config", {})
    if extra:
        config["matryoshka_widths"] = list(extra["prefixes"])
    sae, batch, dead = ours(name, k=K, **settings, **extra)
    other = theirs(architecture, sae, k=K, **config)
    return sae, other, batch, dead, len(extra.get("prefixes", [D_SAE]))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("rescale", [False, True])
@pytest.mark.parametrize("name", FAMILY)
def test_topk_family(name, rescale, seed):
    """SAELens sums the G prefixes of a matryoshka where ours is their mean: a factor G. By default
    it picks latents by pre-activation times decoder norm: no difference for our unit rows."""
    sae, other, batch, _, n_prefixes = pair(
        name,
        seed=seed,
        unit_rows=rescale,
        config={"rescale_acts_by_decoder_norm": rescale},
    )
    nobody = torch.zeros(D_SAE, dtype=torch.bool)
    assert_codes_agree(sae, other, batch.x)
    loss, step_of = sae.loss(batch, nobody), step(other, batch.x)
    assert_agree(loss.l0, (step_of.feature_acts > 0).sum(dim=1).float().mean())
    assert_agree(D_IN * n_prefixes * loss.total, step_of.loss)
    assert_agree(D_IN * reconstruction_loss(loss, batch), step_of.losses["mse_loss"])
    assert len(step_of.losses) == 1 + n_prefixes, "an inner prefix, or AuxK, isn't in it"
    assert_gradients_agree(
        gradients(sae, loss.total), gradients(other, step_of.loss), D_IN * n_prefixes
    )


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", FAMILY)
def test_auxk(name, seed):
    """SAELens weighs AuxK by 1 where the paper and ours have `Var(x) / Var(e) / 32`, doesn't divide
    it by the number of prefixes, and leaves out relu. With that weight as its coefficient, and dead
    latents whose pre-activations are positive, it is the same."""
    sae, other, batch, dead, n_prefixes = pair(
        name, seed=seed, bias=0.0, config={"rescale_acts_by_decoder_norm": False}
    )
    aux_k = D_IN // 2
    assert sae.aux_k == aux_k
    for n_dead in (2, aux_k, int(dead.sum())):  # fewer than AuxK revives at once, as many, more
        some = dead & (dead.cumsum(0) <= n_dead)
        for one in (sae, other):
            with torch.no_grad():
                one.b_enc[some] = 20.0  # positive whatever the activations
        loss = sae.loss(batch, some)
        error = batch.x - loss.recon
        weight = variance(batch.x) / variance(error) / 32
        other.cfg.aux_loss_coefficient = float(n_prefixes * weight)
        step_of = step(other, batch.x, some)
        assert step_of.losses["auxiliary_reconstruction_loss"] > 0
        assert_agree(D_IN * n_prefixes * loss.total, step_of.loss)
        assert_gradients_agree(
            gradients(sae, loss.total), gradients(other, step_of.loss), D_IN * n_prefixes
        )


def variance(acts):
    return (acts - acts.mean(dim=0)).square().mean()


@pytest.mark.parametrize("name", ["batchtopk", "matryoshka"])
def test_the_threshold_is_a_running_mean_here_and_there(name):
    """SAELens's starts at 0 and always moves by a hundredth; ours moves by more in the first 1,000
    batches. From there on, and from the same value, both go the same way."""
    config = {"rescale_acts_by_decoder_norm": False}
    sae, other, batch, dead, _ = pair(name, config=config)
    assert other.topk_threshold == 0
    sae.loss(batch, dead)
    sae.followed.fill_(1_000)
    other.topk_threshold.copy_(sae.threshold)
    for n in range(1, 4):
        x = batch.x.roll(n, dims=1) * n
        sae.loss(Batch(x, x), dead)
        step(other, x)
        assert_agree(sae.threshold, other.topk_threshold)


@pytest.mark.parametrize("name", ["batchtopk", "matryoshka"])
def test_a_trained_batchtopk_is_their_jumprelu(name):
    """What we save is what SAELens loads: latents over one threshold."""
    sae, batch, dead = ours(name, k=K)
    sae.loss(batch, dead)
    cls, config_cls = registry.get_sae_class("jumprelu")
    other = cls(config_cls(d_in=D_IN, d_sae=D_SAE))
    other.load_state_dict(sae.fold_scale(torch.ones(D_IN), torch.ones(D_IN)))
    assert_codes_agree(sae, other, batch.x)


# -- once trained -----------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["standard", "topk", "gated", "jumprelu"])
def test_a_trained_one_is_their_inference_sae(architecture):
    sae, batch, _ = ours(architecture, k=K)
    cls, config_cls = registry.get_sae_class(architecture)
    k = {"k": K} if architecture == "topk" else {}
    other = with_weights_of(sae, cls(config_cls(d_in=D_IN, d_sae=D_SAE, **k)))
    assert_codes_agree(sae, other, batch.x)


def test_a_threshold_below_zero_is_one_of_zero_there_too():
    sae, batch, _ = ours("jumprelu")
    with torch.no_grad():
        sae.threshold.sub_(3.0)
    assert (sae.threshold < 0).any()
    cls, config_cls = registry.get_sae_class("jumprelu")
    assert_codes_agree(sae, with_weights_of(sae, cls(config_cls(d_in=D_IN, d_sae=D_SAE))), batch.x)


@pytest.mark.parametrize("architecture", ["transcoder", "skip_transcoder"])
def test_jumprelu_transcoders(architecture):
    """SAELens has them for inference alone: its thresholds learn nothing, it has no penalty, and
    `decode` leaves out the skip connection, which `forward` adds."""
    sae, batch, dead = ours(architecture, codes="jumprelu", l0_coefficient=0.0)
    cls, config_cls = registry.get_sae_class(f"jumprelu_{architecture}")
    config = config_cls(d_in=sae.d_in, d_sae=sae.d_sae, d_out=sae.d_out, apply_b_dec_to_input=False)
    other = with_weights_of(sae, cls(config))
    latents = sae.encode(batch.x)
    assert_agree(latents, other.encode(batch.x))
    skip = 0 if sae.W_skip is None else batch.x @ sae.W_skip.T
    assert_agree(sae.decode(latents, batch.x) - skip, other.decode(latents))
    recon = other(batch.x)
    assert_agree(sae(batch.x), recon)

    loss, other_loss = sae.loss(batch, dead).total, (batch.y - recon).square().sum(dim=1).mean()
    assert_agree(sae.d_out * loss, other_loss)
    got = gradients(sae, loss)
    assert got.pop("threshold").abs().max() > 0
    other.threshold.requires_grad_(False)
    learning = {name: p for name, p in other.named_parameters() if p.requires_grad}
    wanted = torch.autograd.grad(other_loss, learning.values())
    assert_gradients_agree(got, dict(zip(learning, wanted, strict=True)), sae.d_out)

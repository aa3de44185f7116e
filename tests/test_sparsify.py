"""EleutherAI's sparsify 1.3.3 on the same weights and batch: latents, loss, gradients.

Its loss is the fraction of variance unexplained, `||y - y_hat||^2 / ||y - mean y||^2`: ours divided
by Var(y), a constant. Its fused encoder gives the codes' gradient alone and skips relu's mask, so
it is compared without AuxK and where at least k pre-activations of each token are positive. It has
topk and its transcoders; these read as many dimensions as they write.
"""

import os

import pytest
import torch
from peers import peer
from random_saes import D_IN, D_SAE, assert_agree, gradients, made

from sae_mlflow.config_sae import SAESettings
from sae_mlflow.sae import Batch, build_sae

pytestmark = pytest.mark.usefixtures("one_thread")

os.environ.setdefault("SPARSIFY_DISABLE_TRITON", "1")  # read once, as it is imported
sparsify = peer("sparsify")

K = 5
ARCHITECTURES = ["topk", "transcoder", "skip_transcoder"]
NAMES = {"W_enc": "encoder.weight", "b_enc": "encoder.bias"}


def pair(architecture, dtype=torch.float32, **settings):
    """One of ours, theirs with the same weights, a batch and dead latents."""
    sae, batch, dead = made(architecture, dtype=dtype, k=K, d_out=D_IN, **{"bias": 0.0, **settings})
    config = sparsify.SparseCoderConfig(
        num_latents=D_SAE,
        k=K,
        transcode=architecture != "topk",
        skip_connection=architecture == "skip_transcoder",
    )
    other = sparsify.SparseCoder(D_IN, config, dtype=dtype)
    other.load_state_dict({theirs(n): as_theirs(n, p) for n, p in sae.named_parameters()})
    return sae, other, batch, dead


def theirs(name):
    return NAMES.get(name, name)


def as_theirs(name, tensor):
    return (tensor.t() if name == "W_enc" else tensor).detach().clone().contiguous()


def variance(acts):
    return (acts - acts.mean(dim=0)).square().mean()


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_codes_loss_and_gradients(architecture, seed):
    sae, other, batch, _ = pair(architecture, seed=seed)
    out = other(batch.x, batch.y)
    top_acts, top_indices, pre_acts = other.encode(batch.x)
    assert ((pre_acts > 0).sum(dim=1) >= K).all(), "relu's mask would matter"
    latents = torch.zeros_like(pre_acts).scatter(1, top_indices, top_acts)
    assert_agree(sae.encode(batch.x), latents)
    skip = 0 if sae.W_skip is None else batch.x @ sae.W_skip.T
    assert_agree(sae.decode(latents, batch.x) - skip, other.decode(top_acts, top_indices))
    assert_agree(sae(batch.x), out.sae_out)

    loss = sae.loss(batch, torch.zeros(D_SAE, dtype=torch.bool))
    assert_agree(loss.total, out.fvu * variance(batch.y))
    wanted = gradients(other, out.fvu)
    got = gradients(sae, loss.total)
    assert {theirs(name) for name in got} == wanted.keys()
    for name, gradient in got.items():
        assert gradient.abs().max() > 0, f"nothing is learnt by {name}"
        expected = variance(batch.y) * wanted[theirs(name)]
        assert_agree(as_theirs(name, gradient), expected, what=name)


def test_its_encoder_learns_nothing_from_auxk():
    """Why AuxK isn't compared: the fused encoder drops its gradient, so there only the decoder of
    dead latents learns to revive them. Ours moves both."""
    sae, other, batch, dead = pair("topk")
    auxk = other(batch.x, dead_mask=dead).auxk_loss
    assert auxk > 0
    got = gradients(other, auxk)
    assert got["W_dec"][dead].abs().max() > 0
    assert got["encoder.weight"].abs().max() == 0
    dead &= ~sae.loss(batch, dead).fired  # these learn from AuxK alone
    assert gradients(sae, sae.loss(batch, dead).total)["W_enc"][:, dead].abs().max() > 0


def test_a_latent_that_relu_closed_learns_there():
    """Why k pre-activations have to be positive: with fewer, the others' codes are 0 in both, and
    their encoders get a gradient in sparsify that relu has none of."""
    sae, other, batch, _ = pair("topk", bias=-100.0)
    out = other(batch.x)
    assert (sae.encode(batch.x) == 0).all() and (out.latent_acts == 0).all()
    assert gradients(other, out.fvu)["encoder.weight"].abs().max() > 0
    loss = sae.loss(batch, torch.zeros(D_SAE, dtype=torch.bool))
    assert gradients(sae, loss.total)["W_enc"].abs().max() == 0


def test_the_decoders_rows_are_held_alike():
    sae, other, batch, dead = pair("topk")
    sae.constrain()
    other.set_decoder_norm_to_unit_norm()
    assert_agree(sae.W_dec, other.W_dec)
    sae.loss(batch, dead).total.backward()
    other.W_dec.grad = sae.W_dec.grad.clone()
    sae.project_gradient()
    other.remove_gradient_parallel_to_decoder_directions()
    assert_agree(sae.W_dec.grad, other.W_dec.grad)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_both_start_with_the_encoders_transpose_or_for_a_transcoder_with_zero(architecture):
    sae = build_sae(SAESettings(architecture=architecture, d_sae=D_SAE, k=K), [D_IN])
    x = torch.randn(20, D_IN, generator=torch.Generator().manual_seed(0))
    config = sparsify.SparseCoderConfig(
        num_latents=D_SAE, k=K, transcode=sae.transcodes, skip_connection=sae.W_skip is not None
    )
    other = sparsify.SparseCoder(D_IN, config)
    sae.initialise(Batch(x, x), torch.Generator().manual_seed(0))
    for W_enc, W_dec, W_skip in (
        (sae.W_enc.t(), sae.W_dec, sae.W_skip),
        (other.encoder.weight, other.W_dec, other.W_skip),
    ):
        if sae.transcodes:
            assert (W_dec == 0).all()
        else:
            assert_agree(W_dec, W_enc / W_enc.norm(dim=1, keepdim=True))
        assert W_skip is None or (W_skip == 0).all()

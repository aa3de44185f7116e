"""TopK with AuxK against a plain, dense, float64 autograd reference written from the paper."""

import pytest
import torch

from sae_mlflow.config_sae import SAESettings
from sae_mlflow.errors import UserError
from sae_mlflow.sae import Batch, Sizes, build_sae
from sae_mlflow.sae.topk import TopKSAE

D_IN, D_SAE, K, AUX_K = 6, 40, 4, 3


def random_sae(seed=0):
    generator = torch.Generator().manual_seed(seed)
    sae = TopKSAE(Sizes(D_IN, D_SAE), K, aux_k=AUX_K, aux_k_coefficient=1 / 32).double()
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return sae, torch.randn(20, D_IN, generator=generator, dtype=torch.float64)


def reference_loss(sae, x, dead):
    """Gao et al. 2024, equations 1-5 and appendix A.2, in DESIGN's normalisation."""
    pre_acts = (x - sae.b_dec) @ sae.W_enc + sae.b_enc
    kth = pre_acts.sort(dim=1, descending=True).values[:, K - 1 : K]
    latents = torch.where(pre_acts >= kth, pre_acts, 0.0).clamp_min(0)
    recon = latents @ sae.W_dec + sae.b_dec
    reconstruction = ((x - recon) ** 2).mean()
    if not dead.any():
        return recon, reconstruction, torch.zeros(())
    error = (x - recon).detach()
    only_dead = torch.where(dead, pre_acts, -torch.inf)
    n_dead = int(dead.sum())
    aux_kth = only_dead.sort(dim=1, descending=True).values[:, min(AUX_K, n_dead) - 1, None]
    aux_latents = torch.where(only_dead >= aux_kth, pre_acts, 0.0).clamp_min(0)
    missed = ((error - aux_latents @ sae.W_dec) ** 2).mean()
    var_x, var_e = (((t - t.mean(0)) ** 2).mean() for t in (x, error))
    return recon, reconstruction, var_x * min(n_dead / AUX_K, 1) * missed / var_e / 32


@pytest.mark.parametrize("n_dead", [0, 1, 2, 3, 10, D_SAE])
def test_the_loss_and_every_gradient_are_those_of_the_dense_reference(n_dead):
    sae, x = random_sae()
    dead = torch.arange(D_SAE) < n_dead
    recon, reconstruction, aux = reference_loss(sae, x, dead)
    expected = torch.autograd.grad(reconstruction + aux, list(sae.parameters()))
    loss = sae.loss(Batch(x, x), dead)
    got = torch.autograd.grad(loss.total, list(sae.parameters()))
    torch.testing.assert_close(loss.total, reconstruction + aux, rtol=1e-10, atol=0)
    torch.testing.assert_close(loss.recon, recon, rtol=1e-10, atol=1e-12)
    assert loss.sparsity == 0.0
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def test_auxk_is_off_at_a_coefficient_of_zero():
    sae, x = random_sae()
    sae.aux_k_coefficient = 0.0
    everyone = torch.ones(D_SAE, dtype=torch.bool)
    _, reconstruction, _ = reference_loss(sae, x, everyone)
    torch.testing.assert_close(sae.loss(Batch(x, x), everyone).total, reconstruction)


def gradients_of_everyone_dead(sae, x):
    sae.zero_grad()
    loss = sae.loss(Batch(x, x), torch.ones(sae.d_sae, dtype=torch.bool))
    loss.total.backward()
    return loss, [p.grad.clone() for p in sae.parameters()]


def test_a_perfect_reconstruction_has_an_aux_loss_of_zero_not_nan():
    sae = TopKSAE(Sizes(2, 4), 1)
    with torch.no_grad():
        sae.b_dec.copy_(torch.tensor([1.0, 2.0]))
    loss, gradients = gradients_of_everyone_dead(sae, torch.tensor([[1.0, 2.0]]))
    assert loss.total == 0.0
    assert all((g == 0).all() for g in gradients)


def test_dead_latents_learn_nothing_where_no_variance_is_missed():
    """Latent 0 is x itself, so nothing is left, but dead latents would say something."""
    sae = TopKSAE(Sizes(1, 3), 1, aux_k=2)
    with torch.no_grad():
        sae.W_enc.copy_(torch.tensor([[1.0, 0.5, 0.5]]))
        sae.W_dec.fill_(1.0)
    loss, gradients = gradients_of_everyone_dead(sae, torch.tensor([[1.0], [2.0]]))
    assert loss.total == 0.0
    assert all((g == 0).all() for g in gradients)


def test_one_token_has_no_variance_and_so_no_aux_loss_and_finite_gradients():
    sae, x = random_sae()
    nobody = torch.zeros(D_SAE, dtype=torch.bool)
    expected = torch.autograd.grad(
        sae.loss(Batch(x[:1], x[:1]), nobody).total, list(sae.parameters())
    )
    _, gradients = gradients_of_everyone_dead(sae, x[:1])
    for one, other in zip(gradients, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_encode_gives_at_most_k_latents_for_any_leading_shape():
    sae, x = random_sae()
    latents = sae.encode(x.view(4, 5, D_IN))
    assert latents.shape == (4, 5, D_SAE)
    assert (latents > 0).sum(dim=-1).max() <= K
    torch.testing.assert_close(latents.view(20, D_SAE), sae.encode(x))
    torch.testing.assert_close(sae(x), sae.decode(sae.encode(x)))
    assert sae.encode(x[0]).shape == (D_SAE,)


def test_l0_and_fired_count_latents_above_zero():
    """Two latents along +x and -x: each token fires one of them although k = 2."""
    sae = TopKSAE(Sizes(1, 3), 2)
    with torch.no_grad():
        sae.W_enc.copy_(torch.tensor([[1.0, -1.0, 0.0]]))
    x = torch.tensor([[2.0], [5.0], [3.0]])
    loss = sae.loss(Batch(x, x), torch.zeros(3, dtype=torch.bool))
    assert loss.l0 == 1.0
    assert loss.fired.tolist() == [True, False, False]


def test_the_start_is_unit_rows_their_transpose_shorter_and_the_samples_mean():
    sae = TopKSAE(Sizes(5, 20), 2)
    sample = torch.randn(100, 5, generator=torch.Generator().manual_seed(0)) + 3
    sae.initialise(Batch(sample, sample), torch.Generator().manual_seed(1))
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(20))
    torch.testing.assert_close(sae.W_enc, 0.6 * sae.W_dec.t())
    torch.testing.assert_close(sae.b_dec, sample.mean(0))


def test_widths_come_from_the_settings():
    assert build_sae(SAESettings(k=3, expansion_factor=4), [6]).d_sae == 24
    assert build_sae(SAESettings(k=3, d_sae=7), [6]).d_sae == 7
    assert build_sae(SAESettings(k=3), [6]).aux_k == 3
    assert build_sae(SAESettings(k=3, aux_k=5), [6]).aux_k == 5
    for widths in ([4, 6], [6, 4]):  # whichever layer is named first
        assert build_sae(SAESettings(architecture="crosscoder"), widths).d_sae == 8 * 6
    with pytest.raises(UserError, match="sae.k = 30 is larger than d_sae = 24"):
        build_sae(SAESettings(k=30, expansion_factor=4), [6])

"""SAEs with random weights, and what it means that two of them agree."""

import torch

from sae_mlflow.config_sae import SAESettings
from sae_mlflow.sae import Batch, build_sae

D_IN, D_OUT, D_SAE, BATCH = 10, 7, 96, 37
SPARSER = -3.0
"""Mean of the biases where nothing else keeps latents from firing."""


def made(
    architecture="topk",
    *,
    seed=0,
    dtype=torch.float64,
    batch=BATCH,
    d_sae=D_SAE,
    d_out=D_OUT,
    widths=(D_IN,),
    bias=SPARSER,
    **settings,
):
    """An SAE whose every parameter is random, a batch for it, and some dead latents.

    The numbers are those of float32 whatever the dtype.
    """
    chosen = SAESettings(architecture=architecture, d_sae=d_sae, **settings)
    sae = build_sae(chosen, widths, d_out if chosen.transcodes else None)
    if dtype == torch.float64:
        sae.double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sae.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if name == "threshold":
                noise = 1.5 + 0.3 * noise  # high enough that few latents fire
            elif name in ("b_enc", "b_gate"):
                noise = bias + 0.3 * noise
            parameter.copy_(noise if parameter.ndim == 1 else 0.6 * noise)
    x = torch.randn(batch, sae.d_in, generator=generator).to(dtype)
    y = torch.randn(batch, sae.d_out, generator=generator).to(dtype) if chosen.transcodes else x
    dead = torch.rand(d_sae, generator=generator) < 0.3
    return sae, Batch(x, y), dead


def gradients(sae, total):
    """Every parameter's gradient of a loss, by name."""
    names, parameters = zip(*sae.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(total, parameters), strict=True))


def assert_agree(got, wanted, relative=1e-4, what=None):
    """Equal to a share of the largest number in it, which is what sums of many terms can hold."""
    largest = wanted.detach().abs().max().item() if wanted.numel() else 0.0
    torch.testing.assert_close(
        got,
        wanted,
        rtol=0,
        atol=relative * largest,
        check_dtype=False,
        msg=what and (lambda text: f"{what}: {text}"),
    )

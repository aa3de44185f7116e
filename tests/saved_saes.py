"""SAEs with random weights, saved as a training on scaled activations saves them."""

import json
from dataclasses import dataclass

import torch
from random_saes import made
from torch import Tensor

from sae_mlflow.config import Settings
from sae_mlflow.formats.sae_files import save_sae
from sae_mlflow.lm.sites import Site, sites

SCALE_IN, SCALE_OUT = 0.037, 0.5
TOPK = {"k": 5, "bias": 0.0}
CASES = {
    "standard": {"architecture": "standard"},
    "topk": {"architecture": "topk", **TOPK},
    "batchtopk": {"architecture": "batchtopk", **TOPK},
    "matryoshka": {"architecture": "matryoshka", **TOPK},
    "jumprelu": {"architecture": "jumprelu", "bias": 0.0},
    "gated": {"architecture": "gated"},
    "topk_transcoder": {"architecture": "transcoder", **TOPK},
    "topk_skip_transcoder": {"architecture": "skip_transcoder", **TOPK},
    "jumprelu_transcoder": {"architecture": "transcoder", "codes": "jumprelu", "bias": 0.0},
    "jumprelu_skip_transcoder": {
        "architecture": "skip_transcoder",
        "codes": "jumprelu",
        "bias": 0.0,
    },
    "crosscoder": {"architecture": "crosscoder", "widths": (4, 6)},
}
AT_REST = {"batchtopk": "jumprelu", "matryoshka": "jumprelu"}


@dataclass
class Acts:
    """What `save_sae` asks of a layer's activations."""

    site: Site
    scale_in: Tensor
    scale_out: Tensor


def saved(folder, case="topk", **changes):
    """Save one; returns it as trained, for scaled activations, and raw ones `[37, d_in]`."""
    arguments = CASES[case] | changes
    sae, batch, _ = made(dtype=torch.float32, **arguments)
    if case in AT_REST:
        sae.threshold.fill_(1.25)
    settings = Settings.model_validate(
        {
            "model": {"name": "org/model", "layers": [10, 15] if case == "crosscoder" else [10]},
            "sae": {
                key: value
                for key, value in arguments.items()
                if key in ("architecture", "k", "codes")
            },
        }
    )
    scale_out = torch.full((sae.d_out,), SCALE_OUT if sae.transcodes else SCALE_IN).double()
    scale_in = torch.full((sae.d_in,), SCALE_IN).double()
    save_sae(sae, folder, Acts(sites(settings)[0], scale_in, scale_out), settings)
    return sae.requires_grad_(False), batch.x / SCALE_IN


def assert_same_latents(got, wanted):
    """To within 1e-5 of the largest; and none fires in one alone."""
    assert 0.01 < (wanted > 0).double().mean() < 0.5, "a case that tests little"
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-5 * wanted.abs().max().item())
    assert torch.equal(got > 0, wanted > 0)


def assert_same_recon(got, wanted):
    """To within 1e-5 of the raw activations' scale."""
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-5 * wanted.abs().max().item())


def change_config(folder, **changes):
    """Change a saved SAE's config on purpose, None to leave a key away: its checksum goes too."""
    file = folder / "cfg.json"
    config = json.loads(file.read_text()) | {"sha256": None} | changes
    file.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))

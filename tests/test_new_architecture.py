"""A new architecture is one file and one line: all the rest works with it as it is."""

import re
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from random_saes import assert_agree, gradients, made

from sae_mlflow import architectures, load_sae
from sae_mlflow.config import Settings
from sae_mlflow.config_load import load_settings
from sae_mlflow.formats.sae_files import save_sae
from sae_mlflow.lm.sites import Site, sites
from sae_mlflow.pipeline import run_training
from sae_mlflow.reporting.display import Display

L1 = 0.3


@pytest.fixture(autouse=True)
def known(monkeypatch):
    """The one line."""
    monkeypatch.setitem(architectures.ARCHITECTURES, "tanh", "tanh_sae.TanhSAE")
    monkeypatch.setattr(architectures, "NAMES", (*architectures.NAMES, "tanh"))


@pytest.mark.parametrize("bias", [-3.0, 0.0], ids=["sparse", "dense"])
def test_its_loss_is_what_it_says_of_the_model_that_it_is(bias):
    sae, batch, dead = made("tanh", l1_coefficient=L1, bias=bias)
    loss = sae.loss(batch, dead, sparsity_warmup=0.5)
    latents = ((batch.x - sae.b_dec) @ sae.W_enc + sae.b_enc).relu()
    recon = latents @ sae.W_dec + sae.b_dec
    penalty = 0.5 * L1 * (latents * sae.W_dec.norm(dim=1)).tanh().sum(dim=1).mean()
    assert_agree(loss.recon, sae(batch.x), 1e-12)
    assert_agree(loss.recon, recon, 1e-12)
    assert_agree(loss.sparsity, penalty, 1e-12)
    assert_agree(loss.total, (batch.x - recon).square().mean() + penalty, 1e-12)


@pytest.mark.parametrize("bias", [-3.0, 0.0], ids=["sparse", "dense"])
def test_its_gradients_are_those_of_finite_differences(bias):
    sae, batch, dead = made("tanh", l1_coefficient=L1, bias=bias)
    exact = gradients(sae, sae.loss(batch, dead).total)
    for name, parameter in sae.named_parameters():
        direction, start = torch.randn_like(parameter), parameter.detach().clone()
        ends = []
        for step in (1e-6, -1e-6):
            parameter.data = start + step * direction
            ends.append(sae.loss(batch, dead).total.item())
        parameter.data = start
        slope = (exact[name] * direction).sum().item()
        assert (ends[0] - ends[1]) / 2e-6 == pytest.approx(slope, rel=1e-5, abs=1e-7), name


@dataclass
class Acts:
    site: Site
    scale_in: torch.Tensor
    scale_out: torch.Tensor


def test_it_is_stored_and_loaded_like_the_others(tmp_path):
    settings = Settings.model_validate({"sae": {"architecture": "tanh", "d_sae": 96}})
    sae, (x, _), _ = made("tanh", dtype=torch.float32)
    scale = torch.full((sae.d_in,), 0.5, dtype=torch.float64)
    save_sae(sae, tmp_path, Acts(sites(settings)[0], scale, scale), settings)
    torch.testing.assert_close(load_sae(tmp_path)(2 * x), 2 * sae(x).detach())


def test_it_is_trained_evaluated_stored_and_loaded_like_the_others(
    tiny_model, text_file, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    settings = Settings.model_validate(
        {
            "model": {"name": str(tiny_model), "layers": [1]},
            "text": {"source": str(text_file), "tokens": 4096, "context": 32},
            "sae": {"architecture": "tanh", "expansion_factor": 4},
            "train": {"epochs": 3, "batch_tokens": 256},
            "plots": {"after_training": False},
        }
    )
    training = run_training(settings, Display(), tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")
    (run,) = training.store.layer_runs(training.experiment.id)
    losses = training.rows[0].history["total_loss"]
    assert losses[-1] < losses[0] and "ce_loss_recovered" in run.metrics
    loaded = load_sae(f"runs:/{run.run_id}/sae", tracking_uri=training.store.uri)
    assert loaded.architecture == "tanh"
    assert loaded(torch.randn(5, loaded.d_in)).shape == (5, loaded.d_in)


def test_it_may_read_any_setting(tmp_path):
    (tmp_path / "x.yaml").write_text("seed: 1")
    overrides = {"sae.architecture": "tanh", "sae.k": 3, "sae.l1_coefficient": 1.0}
    assert load_settings(str(tmp_path / "x.yaml"), overrides).sae.k == 3


def test_the_readme_shows_this_file():
    root = Path(__file__).parents[1]
    shown = re.search(r"(class TanhSAE.*?)\n```", (root / "README.md").read_text(), re.DOTALL)[1]
    assert shown in (root / "tests" / "tanh_sae.py").read_text()

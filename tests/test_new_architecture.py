"""A new architecture is one file and one line: all the rest works with it as it is."""

import re
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from sae_mlflow import architectures, load_sae
from sae_mlflow.config import Settings, load_settings
from sae_mlflow.formats.sae_files import save_sae
from sae_mlflow.lm.sites import Site, sites
from sae_mlflow.sae import Batch, build_sae


@dataclass
class Acts:
    site: Site
    scale_in: torch.Tensor
    scale_out: torch.Tensor


@pytest.fixture
def settings(monkeypatch):
    """Settings that name the new architecture, which the one line makes known."""
    monkeypatch.setitem(architectures.ARCHITECTURES, "abstopk", "abstopk.AbsTopKSAE")
    monkeypatch.setattr(architectures, "NAMES", (*architectures.NAMES, "abstopk"))
    return Settings.model_validate({"sae": {"architecture": "abstopk", "k": 2, "d_sae": 24}})


def test_it_is_built_trained_stored_and_loaded_like_the_others(settings, tmp_path):
    sae = build_sae(settings.sae, (6,))
    x = torch.randn(50, 6, generator=torch.Generator().manual_seed(0))
    sae.initialise(Batch(x, x), torch.Generator().manual_seed(0))
    loss = sae.loss(Batch(x, x), torch.zeros(24, dtype=torch.bool))
    loss.total.backward()
    assert sae.W_enc.grad.abs().sum() > 0 and loss.l0 == 2
    scale = torch.full((6,), 0.5, dtype=torch.float64)
    save_sae(sae, tmp_path, Acts(sites(settings)[0], scale, scale), settings)
    loaded = load_sae(tmp_path)
    assert loaded.architecture == "abstopk"
    torch.testing.assert_close(loaded(2 * x), 2 * sae(x).detach())


def test_it_may_read_any_setting(settings, tmp_path):
    (tmp_path / "x.yaml").write_text("seed: 1")
    overrides = {"sae.architecture": "abstopk", "sae.k": 3, "sae.l1_coefficient": 1.0}
    assert load_settings(str(tmp_path / "x.yaml"), overrides).sae.k == 3


def test_the_readme_shows_this_file():
    root = Path(__file__).parents[1]
    shown = re.search(r"(class AbsTopKSAE.*?)\n```", (root / "README.md").read_text(), re.DOTALL)[1]
    assert shown in (root / "tests" / "abstopk.py").read_text()

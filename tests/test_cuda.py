"""A training step on a GPU against the same on the CPU; where there is none these are skipped."""

from pathlib import Path

import pytest
import torch
from random_saes import assert_agree, gradients, made
from test_architectures import CASES

from sae_mlflow.activations.norms import NormCheck
from sae_mlflow.config import ModelSettings
from sae_mlflow.errors import UserError
from sae_mlflow.lm.loading import load_language_model

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def on_cuda(sae, batch, dead):
    return sae.to("cuda"), type(batch)(*(acts.to("cuda") for acts in batch)), dead.to("cuda")


@pytest.mark.parametrize("case", CASES)
def test_a_gpu_gives_the_cpus_loss_and_gradients(case):
    sae, batch, dead = made(**CASES[case], dtype=torch.float32)
    expected = sae.loss(batch, dead)
    wanted = {name: g.clone() for name, g in gradients(sae, expected.total).items()}
    sae, batch, dead = on_cuda(*made(**CASES[case], dtype=torch.float32))
    loss = sae.loss(batch, dead)
    assert_agree(loss.total.cpu(), expected.total)
    assert_agree(loss.recon.cpu(), expected.recon)
    for name, gradient in gradients(sae, loss.total).items():
        assert_agree(gradient.cpu(), wanted[name], 1e-4, name)


@pytest.mark.parametrize("case", CASES)
def test_a_step_in_bfloat16_is_finite(case):
    sae, batch, dead = on_cuda(*made(**CASES[case], dtype=torch.float32))
    with torch.autocast("cuda", torch.bfloat16):
        loss = sae.loss(batch, dead)
    loss.total.backward()
    assert loss.total.isfinite()
    assert all(p.grad.isfinite().all() for p in sae.parameters())


def test_a_gpu_is_asked_for_changed_rows_at_the_end_and_now_and_then():
    """Asking makes it wait; on a CPU each batch is asked."""
    norms, rows = torch.ones(8), torch.arange(4)
    whole = torch.eye(8, device="cuda")
    check = NormCheck(Path("layers.1.acts"), norms)
    check.see(rows, whole[:4])
    check.confirm()
    changed = whole[4:].clone()
    changed[2] *= 2
    check.see(rows + 4, changed)
    with pytest.raises(UserError, match=r"layers\.1\.acts: row 6 is not what was written"):
        check.confirm()
    with pytest.raises(UserError, match="row 6"):
        for _ in range(64):
            check.see(rows, whole[:4])


def test_a_model_that_the_gpu_has_no_room_for_is_bad_input(tiny_model):
    model = ModelSettings(name=str(tiny_model), layers=(1,), device="cuda")
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(0.0)
    try:
        with pytest.raises(UserError, match="can't be loaded: .*memory.*Choose a smaller"):
            load_language_model(model)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)

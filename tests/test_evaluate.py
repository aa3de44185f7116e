"""What the LM loses when an SAE stands in: known answers, and a plain computation as oracle."""

import math

import numpy as np
import pytest
import torch
from spliced_models import (
    ANY_NORM,
    CONTEXT,
    D_MODEL,
    SPECIAL_ID,
    identity_sae,
    random_sae,
    residual,
    tiny_lm,
    transcoder,
    windows,
    zero_sae,
)

from sae_mlflow.errors import UserError
from sae_mlflow.evaluation.evaluate import StandIn, evaluate, site_caps
from sae_mlflow.evaluation.predictions import Predictions, recovered_share
from sae_mlflow.evaluation.splice import Splicer
from sae_mlflow.text.corpus import Windows

pytestmark = pytest.mark.usefixtures("one_thread")
TOKENS = 6 * CONTEXT


def stand_in(site, sae, cap=ANY_NORM):
    return StandIn(site, sae, dict.fromkeys(site.hookpoints, cap))


def upper_quartile_norms(lm, site):
    """Caps that a quarter of the tokens is over."""
    ids = torch.from_numpy(windows().held_out).long()
    acts = lm.activations(ids, site.hookpoints)
    return {h: a.norm(dim=1).quantile(0.75).item() for h, a in acts.items()}


def metrics_of(lm, *stand_ins, tokens=TOKENS):
    return [e.metrics for e in evaluate(Splicer(lm), windows(), stand_ins, tokens=tokens)]


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("site", [residual(1), residual(3), residual(0, 2)], ids=lambda s: s.label)
def test_the_identity_recovers_everything_and_zeros_recover_nothing(architecture, site):
    lm, d = tiny_lm(architecture), D_MODEL * len(site.reads)
    identity, zero = metrics_of(lm, stand_in(site, identity_sae(d)), stand_in(site, zero_sae(d)))
    assert identity["ce_loss_recovered"] == 1.0
    assert identity["kl_divergence"] == 0.0
    assert identity["ce_loss_spliced"] == identity["ce_loss_original"]
    assert zero["ce_loss_recovered"] == 0.0
    assert zero["ce_loss_spliced"] == zero["ce_loss_zero_ablated"]
    assert zero["kl_divergence"] > 0.001


def test_a_transcoder_of_zeros_is_a_zero_ablated_module():
    lm, site = tiny_lm("llama"), transcoder(1)
    (found,) = metrics_of(lm, stand_in(site, zero_sae(D_MODEL, D_MODEL)))
    assert found["ce_loss_recovered"] == 0.0
    assert found["ce_loss_zero_ablated"] != found["ce_loss_original"]
    assert "encoder_decoder_cosine" not in found


def dense_oracle(lm, site, sae, caps):
    """Everything in one pass, float64 NumPy behind the logits, with a hook of the test's own."""
    held_out = windows().held_out
    ids = torch.from_numpy(held_out).long()
    acts = {h: a.view(*ids.shape, -1) for h, a in lm.activations(ids, site.hookpoints).items()}
    passes = ids == SPECIAL_ID
    passes[:, 0] = True
    for hookpoint, each in acts.items():
        passes |= each.norm(dim=-1) > caps[hookpoint]
    recon = sae(torch.cat([acts[h] for h in site.reads], dim=-1)).split(D_MODEL, dim=-1)

    def log_probs(outputs):
        def hook(values):
            return lambda _m, _a, out: torch.where(passes[..., None], out, values)

        handles = [lm.module(h).register_forward_hook(hook(v)) for h, v in outputs.items()]
        with torch.no_grad():
            logits = lm.model(ids, use_cache=False).logits.double().numpy()
        for handle in handles:
            handle.remove()
        logits -= logits.max(axis=-1, keepdims=True)
        return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))

    targets, counted = held_out[:, 1:], held_out[:, 1:] != SPECIAL_ID
    spliced_with = dict(zip(site.writes, recon, strict=True))
    zeros = {h: torch.zeros_like(v) for h, v in spliced_with.items()}
    original, spliced, zero = (log_probs(o)[:, :-1] for o in ({}, spliced_with, zeros))
    loss = [
        -np.take_along_axis(p, targets[..., None], axis=-1)[..., 0][counted].mean()
        for p in (original, spliced, zero)
    ]
    kl = (np.exp(original) * (original - spliced)).sum(axis=-1)[counted].mean()
    return loss, kl, int((~passes).sum())


@pytest.mark.parametrize("giants", [False, True], ids=["no giants", "giants"])
@pytest.mark.parametrize(
    "site", [residual(1), residual(0, 2), transcoder(2)], ids=["layer", "crosscoder", "transcoder"]
)
def test_losses_and_divergence_are_those_of_a_plain_computation(site, giants):
    lm = tiny_lm("llama")
    sae = random_sae(D_MODEL * len(site.reads), D_MODEL if site.reads != site.writes else None)
    any_norm = dict.fromkeys(site.hookpoints, ANY_NORM)
    caps = upper_quartile_norms(lm, site) if giants else any_norm
    (original, spliced, zero), kl, n_spliced = dense_oracle(lm, site, sae, caps)
    (found,) = evaluate(Splicer(lm), windows(), [StandIn(site, sae, caps)], tokens=TOKENS)
    expected = {
        "ce_loss_original": original,
        "ce_loss_spliced": spliced,
        "ce_loss_zero_ablated": zero,
        "ce_loss_recovered": (zero - spliced) / (zero - original),
        "kl_divergence": kl,
    }
    for key, value in expected.items():
        assert found.metrics[key] == pytest.approx(value, rel=1e-4), key
    assert found.spliced_tokens == n_spliced
    n_kept = windows().kept(windows().held_out).sum()
    assert (0 < n_spliced < n_kept) if giants else (n_spliced == n_kept)


def test_saes_evaluated_together_are_those_evaluated_one_by_one():
    lm = tiny_lm("llama")
    both = [stand_in(residual(1), random_sae(D_MODEL)), stand_in(residual(2), zero_sae(D_MODEL))]
    assert metrics_of(lm, *both) == [metrics_of(lm, one)[0] for one in both]


def test_windows_go_through_in_batches_and_no_more_are_read_than_asked(monkeypatch):
    lm = tiny_lm("llama")
    one = stand_in(residual(1), random_sae(D_MODEL))
    (whole,) = metrics_of(lm, one)
    monkeypatch.setattr("sae_mlflow.evaluation.evaluate._LOGIT_BYTES", 1)  # a window at a time
    (single,) = metrics_of(lm, one)
    for key, value in whole.items():
        assert single[key] == pytest.approx(value, rel=1e-5), key
    assert whole["evaluation_tokens"] == TOKENS
    (fewer,) = metrics_of(lm, one, tokens=2 * CONTEXT + 1)
    assert fewer["evaluation_tokens"] == 2 * CONTEXT


def test_special_tokens_are_not_predicted_but_predict():
    ids = torch.tensor([[3, SPECIAL_ID, 4, 2]])
    predictions = Predictions(ids, frozenset({SPECIAL_ID}))
    assert predictions.n == 2  # token 4, after the special one, and token 2
    uniform = torch.zeros(1, 4, 8)
    total = predictions.cross_entropy(predictions.log_probs(uniform))
    assert total == pytest.approx(2 * math.log(8))


def test_the_recovered_share():
    assert recovered_share(original=2.0, spliced=2.5, zero_ablated=4.0) == 0.75
    assert recovered_share(original=2.0, spliced=5.0, zero_ablated=4.0) == -0.5
    assert math.isnan(recovered_share(original=2.0, spliced=2.0, zero_ablated=2.0))


def test_density_counts_only_tokens_that_do_not_pass_through():
    (found,) = evaluate(
        Splicer(tiny_lm("llama")),
        windows(),
        [stand_in(residual(1), identity_sae(D_MODEL))],
        tokens=TOKENS,
    )
    n_kept = 6 * (CONTEXT - 1) - 3
    assert found.spliced_tokens == n_kept
    # x or -x fires, on each token
    assert np.allclose(found.density[:D_MODEL] + found.density[D_MODEL:], 1.0)


def test_the_caps_of_sites_are_a_multiple_of_the_median_of_what_is_evaluated():
    lm, site = tiny_lm("llama"), transcoder(2)
    ids = torch.from_numpy(windows().held_out[:2]).long()
    kept = torch.from_numpy(windows().kept(windows().held_out[:2]).reshape(-1))
    found = site_caps(lm, windows(), [site], tokens=2 * CONTEXT, max_norm_ratio=10.0)
    for hookpoint in site.hookpoints:
        norms = lm.activations(ids, [hookpoint])[hookpoint][kept].norm(dim=1)
        assert found[hookpoint] == pytest.approx(10 * norms.median().item())


def test_text_without_a_token_to_evaluate_on_is_refused():
    with pytest.raises(UserError, match="layer1: none of the 72 held-out tokens .* more tokens"):
        metrics_of(tiny_lm("llama"), stand_in(residual(1), zero_sae(D_MODEL), cap=0.0))
    special = np.full((2, CONTEXT), SPECIAL_ID, np.int32)
    nothing = Windows(special, special, frozenset({SPECIAL_ID}), "special", "0" * 64)
    with pytest.raises(UserError, match="special tokens"):
        splicer, zeros = Splicer(tiny_lm("llama")), stand_in(residual(1), zero_sae(D_MODEL))
        evaluate(splicer, nothing, [zeros], tokens=24)

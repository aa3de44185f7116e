"""Trainings made to fail are each caught with the right code; healthy ones raise no alarm."""

import pytest
from health_trainings import NAMES, WORLD, Poisoned, trained


@pytest.fixture(autouse=True)
def alone(one_thread):
    """Products this small only wait for each other."""


def codes(verdict):
    return {finding.code for finding in verdict.findings}


# With as many latents as directions (64), an eighth of a JumpReLU SAE's are dead: that is said.
NARROWER = {"jumprelu": {"d_sae": 48}}


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", NAMES)
def test_a_healthy_short_training_raises_no_alarm(name, seed):
    """Ten kinds of SAE, two seeds: nothing at the end, and nothing that would stop one before."""
    verdict, live = trained(name, seed=seed, sae=NARROWER.get(name))
    assert verdict.reasons == "" and verdict.status == "ok"
    assert "failed" not in {each.status for each in live}


def test_a_learning_rate_a_thousand_times_too_large_diverges():
    """The default for 64 latents is 1e-3 / sqrt(64 / 2^14) = 0.016."""
    verdict, live = trained(train_settings={"learning_rate": 16.0})
    assert verdict.status == "failed" and {"diverged", "learning_rate"} <= codes(verdict)
    (rate,) = (f for f in verdict.findings if f.code == "learning_rate")
    assert rate.number == 16.0 and rate.advice == "train.learning_rate=0.016"
    assert "failed" in {each.status for each in live[:3]}, "while there is something to save"


def test_a_nan_in_the_activations_is_found_at_its_epoch():
    verdict, live = trained(data=Poisoned(WORLD, from_epoch=4))
    worst = verdict.findings[0]
    assert (worst.code, worst.epoch, worst.severity) == ("not_finite", 4, "failed")
    assert [each.status for each in live[:4]] == ["ok", "ok", "ok", "failed"]


def test_one_latent_a_token_is_a_collapse():
    verdict, _ = trained(sae={"k": 1})
    (collapse,) = (f for f in verdict.findings if f.code == "l0_collapsed")
    assert collapse.number == 1.0 and collapse.advice == "sae.k=32"
    assert verdict.status == "failed"


def test_an_l1_penalty_that_is_far_too_heavy_is_a_collapse():
    verdict, _ = trained("standard", sae={"l1_coefficient": 30.0})
    assert "l0_collapsed" in codes(verdict)


@pytest.mark.parametrize("name", ["topk", "batchtopk", "transcoder"])
def test_two_epochs_alone_have_not_converged(name):
    verdict, live = trained(name, train_settings={"epochs": 2})
    assert codes(verdict) == {"not_converged"} and verdict.status == "warning"
    assert verdict.findings[0].advice == "train.epochs=4"
    assert [each.status for each in live] == ["ok", "ok"], "an epoch may not be the last"

"""What goes wrong with latents: dead ones, dense ones, and how many fire on a token."""

from collections.abc import Iterator
from itertools import pairwise

from sae_mlflow.config_health import HealthSettings
from sae_mlflow.health.curves import Curves, lasting
from sae_mlflow.health.facts import Facts
from sae_mlflow.health.finding import Finding
from sae_mlflow.health.loss import lower_rate

_RISE_EPOCHS = 3


def dead_latents(curves: Curves, facts: Facts, thresholds: HealthSettings) -> Iterator[Finding]:
    """A share of dead latents that is too large, up to the end."""
    points = curves.points("dead_fraction", "val_dead_fraction")
    began = lasting(points, lambda value: value > thresholds.max_dead_fraction)
    if began:
        yield Finding(
            "dead_latents",
            f"{points[-1].value:.1%} of the latents are dead",
            _revive(facts),
            points[-1].value,
            began.epoch,
        )


def dead_latents_rising(
    curves: Curves, facts: Facts, thresholds: HealthSettings
) -> Iterator[Finding]:
    """A share of dead latents that rose in each of the last three epochs, by much in all."""
    points = curves.points("dead_fraction", "val_dead_fraction")[-_RISE_EPOCHS - 1 :]
    steps = [b.value - a.value for a, b in pairwise(points)]
    if len(steps) == _RISE_EPOCHS and min(steps) > 0 and sum(steps) > thresholds.max_dead_rise:
        yield Finding(
            "dead_latents_rising",
            f"dead latents rose from {points[0].value:.1%} to {points[-1].value:.1%} "
            f"in {_RISE_EPOCHS} epochs",
            _revive(facts),
            sum(steps),
            points[1].epoch,
        )


def dense_latents(curves: Curves, facts: Facts, thresholds: HealthSettings) -> Iterator[Finding]:
    """Latents that fire on over a tenth of the tokens mean little on any one of them."""
    share = facts.dense_fraction
    if share is not None and share > thresholds.max_dense_fraction:
        yield Finding(
            "dense_latents",
            f"{share:.1%} of the latents fire on over 10% of the tokens",
            _sparser(facts),
            share,
        )


def l0_collapsed(curves: Curves, facts: Facts, thresholds: HealthSettings) -> Iterator[Finding]:
    """Next to nothing fires: with one latent a token an SAE is no more than a clustering."""
    points = curves.points("l0_norm", "val_l0_norm")
    if facts.running and len(points) < 2:
        return
    began = lasting(points, lambda value: value < thresholds.min_l0)
    if began:
        yield Finding(
            "l0_collapsed",
            f"{points[-1].value:.3g} latents fire on a token",
            _denser(facts),
            points[-1].value,
            began.epoch,
        )


def l0_off_target(curves: Curves, facts: Facts, thresholds: HealthSettings) -> Iterator[Finding]:
    """The L0 that was asked for isn't met, on held-out tokens where those were measured."""
    l0, target = curves.last("val_l0_norm", "l0_norm"), facts.l0_target
    if facts.running or l0 is None or not target:
        return
    off = abs(l0 / target - 1)
    if off > thresholds.l0_tolerance:
        yield Finding(
            "l0_off_target",
            f"L0 is {l0:.3g}, {off:.0%} off its target of {target:g}",
            _to_target(facts, l0),
            l0,
        )


def _revive(facts: Facts) -> str:
    tried = lower_rate(facts, 2)
    if not facts.resamples:
        tried += ", or train.resample_at=[0.25,0.5]"
    return tried + (f", or sae.d_sae={facts.d_sae // 2}" if facts.d_sae else "")


def _sparser(facts: Facts) -> str:
    wider = f", or sae.d_sae={2 * facts.d_sae}" if facts.d_sae else ""
    if facts.k is not None:
        return f"sae.k={max(facts.k // 2, 1)}{wider}"
    if facts.target_l0 is not None:
        return f"sae.target_l0={facts.target_l0 / 2:g}{wider}"
    key, value = facts.penalty or ("sae.l1_coefficient", 0.01)
    return f"{key}={2 * value:.2g}{wider}"


def _denser(facts: Facts) -> str:
    if facts.k is not None:
        return f"sae.k={max(8 * facts.k, 32)}"
    if facts.target_l0 is not None and facts.target_l0 < 8:
        return "sae.target_l0=32"
    key, value = facts.penalty or ("sae.l1_coefficient", 0.01)
    return f"{key}={value / 4:.2g}"


def _to_target(facts: Facts, l0: float) -> str:
    if facts.k is not None:
        return f"sae.k={max(round(l0), 1)}" if l0 < facts.k else f"{lower_rate(facts, 2)}"
    weight = f"sae.l0_coefficient={2 * facts.penalty[1]:.2g}" if facts.penalty else ""
    epochs = f"train.epochs={2 * facts.epochs}" if facts.epochs else ""
    # a few dozen steps end under the target whatever its weight (see docs/health.md)
    return ", or ".join(filter(None, (epochs, weight)))

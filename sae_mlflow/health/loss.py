"""What goes wrong with the loss: numbers that are none, divergence, spikes, an FVU above 1."""

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise

from sae_mlflow.config_health import HealthSettings
from sae_mlflow.health.curves import Curves, Point, lasting
from sae_mlflow.health.facts import Facts
from sae_mlflow.health.finding import Finding
from sae_mlflow.schedule import default_learning_rate

_LEAST_SPIKE = 0.05  # of the activations' power: a smaller rise of a tiny loss is no spike


def not_finite(curves: Curves, facts: Facts, thresholds: HealthSettings) -> Iterator[Finding]:
    """The first epoch at which a metric is NaN or infinite."""
    bad = [
        (point.epoch, metric, point.value)
        for metric in curves.history
        for point in curves.all_points(metric)
        if not math.isfinite(point.value)
    ]
    if not bad:
        return
    first = min(epoch for epoch, *_ in bad)
    metrics = [metric for epoch, metric, _ in bad if epoch == first]
    value = next(value for epoch, _, value in bad if epoch == first)
    name = "total_loss" if "total_loss" in metrics else metrics[0]
    yield Finding(
        "not_finite",
        f"{name} is {'NaN' if math.isnan(value) else 'infinite'}"
        + (f", and {len(metrics) - 1} more metrics" if metrics[1:] else ""),
        f"{lower_rate(facts)} and train.gradient_clip=0.1; if the activations hold NaN, "
        "model.dtype=float32 and activations.dtype=float32",
        value,
        first,
    )


def diverged(curves: Curves, facts: Facts, thresholds: HealthSettings) -> Iterator[Finding]:
    """FVU that stands far above its lowest, or above the 1 that predicting the mean has."""
    points = curves.points("val_fvu", "fvu")
    if not points:
        return
    lowest = min(1.0, *(point.value for point in points))
    began = lasting(points, lambda value: value - lowest > thresholds.divergence_rise)
    if began:
        yield Finding(
            "diverged",
            _at_the_end(points, began) + (f", after {lowest:.3g}" if lowest < 1 else ""),
            f"{lower_rate(facts)} and train.warmup_fraction=0.1",
            points[-1].value,
            began.epoch,
        )


def fvu_above_1(curves: Curves, facts: Facts, thresholds: HealthSettings) -> Iterator[Finding]:
    """Worse than predicting the mean, at the end; a first epoch of many may be that bad."""
    points = curves.points("val_fvu", "fvu")
    if facts.running and len(points) < 2:
        return
    began = lasting(points, lambda value: value > thresholds.max_fvu)
    if began:
        yield Finding(
            "fvu_above_1",
            f"{_at_the_end(points, began)}: predicting the mean would give 1",
            lower_rate(facts),
            points[-1].value,
            began.epoch,
        )


def _at_the_end(points: Sequence[Point], began: Point) -> str:
    """`FVU is 4e+07 at epoch 5, 5.9 at epoch 4`: its last value, and the one where it began."""
    last = points[-1]
    first = f", {began.value:.3g} at epoch {began.epoch}" if began != last else ""
    return f"FVU is {last.value:.3g} at epoch {last.epoch}{first}"


def loss_spike(curves: Curves, facts: Facts, thresholds: HealthSettings) -> Iterator[Finding]:
    """The largest jump of the loss from one epoch to the next."""
    points = curves.points("total_loss")
    jumps = [
        (after.value / before.value, after.epoch)
        for before, after in pairwise(points)
        if before.value > 0 and after.value - before.value > _LEAST_SPIKE
    ]
    ratio, epoch = max(jumps, default=(0.0, 0))
    if ratio > thresholds.spike_ratio:
        yield Finding(
            "loss_spike",
            f"total_loss is {ratio:.3g} times that of the epoch before",
            f"{lower_rate(facts, 2)}, or train.gradient_clip=0.1",
            ratio,
            epoch,
        )


def lower_rate(facts: Facts, divisor: float = 10) -> str:
    """A learning rate to try: a part of this one's, at most the default for the width."""
    rates = [facts.learning_rate / divisor] if facts.learning_rate else []
    rates += [default_learning_rate(facts.d_sae)] if facts.d_sae else []
    return f"train.learning_rate={min(rates, default=1e-4):.2g}"

"""Whether a training was long enough, got anywhere, and holds on text it hasn't seen.

These are about a training that has ended: an epoch that isn't the last can't be the end.
"""

from collections.abc import Iterator

from sae_mlflow.config_health import HealthSettings
from sae_mlflow.health.curves import Curves, lasting
from sae_mlflow.health.facts import Facts
from sae_mlflow.health.finding import Finding
from sae_mlflow.schedule import default_learning_rate

_LOSS = ("total_loss", "reconstruction_loss")
_STANDS_STILL = 0.02  # of the last loss
_EARLY = 1 / 3  # of the epochs
_LEAST_EPOCHS = 6  # two of them are a third


def not_converged(curves: Curves, facts: Facts, thresholds: HealthSettings) -> Iterator[Finding]:
    """What the last epoch still took off the loss, and off the held-out FVU: what it takes off the
    loss alone is memory of the training tokens, and the learning rate that goes to 0."""
    both = [curves.points(*_LOSS), curves.points("val_fvu")]
    falls = [1 - p[-1].value / p[-2].value for p in both if len(p) > 1 and p[-2].value > 0]
    if facts.running or not falls or min(falls) <= thresholds.last_fall:
        return
    epochs = max(facts.epochs or 0, curves.n_epochs)
    yield Finding(
        "not_converged",
        f"the loss still fell by {falls[0]:.0%} in the last epoch"
        + (f", and held-out FVU by {falls[1]:.0%}" if falls[1:] else ""),
        f"train.epochs={2 * epochs}",
        min(falls),
    )


def plateau_too_early(
    curves: Curves, facts: Facts, thresholds: HealthSettings
) -> Iterator[Finding]:
    """A loss that stood still from the first third of the epochs on, with much unexplained."""
    points, fvu = curves.points(*_LOSS), curves.last("val_fvu", "fvu")
    if facts.running or len(points) < _LEAST_EPOCHS or fvu is None:
        return
    level = points[-1].value
    began = lasting(points, lambda value: abs(value - level) <= _STANDS_STILL * level)
    assert began is not None, "the last point is on its own level"
    if began.epoch <= _EARLY * points[-1].epoch and fvu > thresholds.plateau_fvu:
        yield Finding(
            "plateau_too_early",
            f"the loss stands still from epoch {began.epoch} of {points[-1].epoch} on, "
            f"at an FVU of {fvu:.3g}",
            _more_capacity(facts),
            fvu,
            began.epoch,
        )


def validation_gap(curves: Curves, facts: Facts, thresholds: HealthSettings) -> Iterator[Finding]:
    """How much more of the variance is missed on held-out tokens than in training."""
    held_out, seen = curves.points("val_fvu"), curves.points("fvu")
    if facts.running or not held_out or not seen or held_out[-1].epoch != seen[-1].epoch:
        return
    gap = held_out[-1].value - seen[-1].value
    if gap > thresholds.max_validation_gap:
        tokens = facts.train_tokens + facts.held_out_tokens + facts.left_out_tokens
        more = f"text.tokens={4 * tokens}" if tokens else "four times text.tokens"
        best = min(held_out, key=lambda point: point.value).epoch
        stop = f", or train.epochs={best}" if best < held_out[-1].epoch else ""
        yield Finding(
            "validation_gap",
            f"held-out FVU is {held_out[-1].value:.3g}, the training's {seen[-1].value:.3g}",
            more + stop,
            gap,
        )


def _more_capacity(facts: Facts) -> str:
    """More latents a token; and the learning rate for the width where another was set."""
    if facts.k is not None:
        tried = f"sae.k={2 * facts.k}"
    elif facts.target_l0 is not None:
        tried = f"sae.target_l0={2 * facts.target_l0:g}"
    elif facts.penalty is not None:
        tried = f"{facts.penalty[0]}={facts.penalty[1] / 2:.2g}"
    else:
        tried = "sae.expansion_factor=16"
    default = default_learning_rate(facts.d_sae) if facts.d_sae else None
    if default and facts.learning_rate and abs(facts.learning_rate / default - 1) > 0.01:
        tried += f", or train.learning_rate={default:.2g}"
    return tried

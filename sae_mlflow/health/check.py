"""The one function: a training's history, and what is wrong with it."""

from collections.abc import Callable, Iterator, Sequence

from sae_mlflow.config_health import HealthSettings
from sae_mlflow.health import convergence, latents, loss, setup
from sae_mlflow.health.curves import Curves, History
from sae_mlflow.health.facts import Facts
from sae_mlflow.health.finding import Finding, Verdict, verdict

_Check = Callable[[Curves, Facts, HealthSettings], Iterator[Finding]]

_BROKEN: tuple[_Check, ...] = (
    loss.not_finite,
    loss.diverged,
    loss.fvu_above_1,
    latents.l0_collapsed,
)
_COURSE: tuple[_Check, ...] = (
    loss.loss_spike,
    convergence.not_converged,
    convergence.plateau_too_early,
    convergence.validation_gap,
    latents.dead_latents,
    latents.dead_latents_rising,
    latents.dense_latents,
    latents.l0_off_target,
    setup.ended_badly,
)
_SETUP: tuple[_Check, ...] = (setup.giant_norms, setup.tokens_left_out, setup.learning_rate)


def check(history: History, facts: Facts, thresholds: HealthSettings) -> Verdict:
    """What is wrong with a training, as far as it has come.

    Of one that is broken (`not_finite`, `diverged`, ...) nothing finer is said than why it may be;
    what is about a training's end isn't said while it runs.
    """
    curves = Curves(history)

    def found(checks: Sequence[_Check]) -> list[Finding]:
        return [each for one in checks for each in one(curves, facts, thresholds)]

    return verdict((found(_BROKEN) or found(_COURSE)) + found(_SETUP))

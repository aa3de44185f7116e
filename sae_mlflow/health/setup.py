"""What is wrong beside the curves: the tokens' norms, the learning rate, how the run ended."""

from collections.abc import Iterator

from sae_mlflow.config_health import HealthSettings
from sae_mlflow.health.curves import Curves
from sae_mlflow.health.facts import Facts
from sae_mlflow.health.finding import Finding
from sae_mlflow.schedule import default_learning_rate
from sae_mlflow.tracking.contents import FAILED, KILLED


def giant_norms(curves: Curves, facts: Facts, thresholds: HealthSettings) -> Iterator[Finding]:
    """Tokens with giant norms that were left in: a handful carries most of a layer's power."""
    ratio, most = facts.largest_norm_ratio, thresholds.largest_norm_ratio
    if ratio is not None and ratio > most:
        yield Finding(
            "giant_norms",
            f"a token that was trained on has a norm {ratio:,.3g} times the median",
            f"activations.max_norm_ratio={most:g}",
            ratio,
        )


def tokens_left_out(curves: Curves, facts: Facts, thresholds: HealthSettings) -> Iterator[Finding]:
    """So many tokens over the cap that they aren't outliers."""
    n_tokens = facts.train_tokens + facts.held_out_tokens + facts.left_out_tokens
    share = facts.left_out_tokens / n_tokens if n_tokens else 0.0
    if share > thresholds.max_left_out_fraction:
        cap = facts.max_norm_ratio or 10.0
        yield Finding(
            "tokens_left_out",
            f"{share:.1%} of the tokens were left out for their norm or as no numbers",
            f"activations.max_norm_ratio={2 * cap:g}, or another of model.layers; "
            "model.dtype=float32 if they are NaN",
            share,
        )


def learning_rate(curves: Curves, facts: Facts, thresholds: HealthSettings) -> Iterator[Finding]:
    """A rate far from the one for the width; known of Adam and its kin alone."""
    if not facts.learning_rate or not facts.d_sae or "adam" not in facts.optimizer.lower():
        return
    default = default_learning_rate(facts.d_sae)
    ratio, most = facts.learning_rate / default, thresholds.learning_rate_factor
    if not 1 / most <= ratio <= most:
        yield Finding(
            "learning_rate",
            f"the learning rate, {facts.learning_rate:.3g}, is {ratio:.3g} times the default for "
            f"{facts.d_sae:,} latents",
            f"train.learning_rate={default:.2g}",
            facts.learning_rate,
        )


def ended_badly(curves: Curves, facts: Facts, thresholds: HealthSettings) -> Iterator[Finding]:
    """A run that ended before its training did."""
    done = curves.n_epochs
    epochs = f"epoch {done} of {facts.epochs}" if facts.epochs else f"epoch {done}"
    if facts.status == FAILED:
        reason = f": {facts.failure.splitlines()[0][:200]}" if facts.failure else ""
        yield Finding(
            "run_failed", f"the run failed after {epochs}{reason}", "the training again", done
        )
    elif facts.status == KILLED:
        again = "the same training with --resume auto, which goes on from its last checkpoint"
        yield Finding("interrupted", f"interrupted after {epochs}", again, done)

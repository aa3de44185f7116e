"""The learning rate for a width, and how it and the sparsity penalty's coefficient move."""

import math

from sae_mlflow.config_train import TrainSettings


def default_learning_rate(d_sae: int) -> float:
    """Peak learning rate for a width: it falls with its root, as in Gao et al. 2024, appendix A.3.

    Their constant is 2e-4, for trainings of many thousands of steps. In 210 steps five times as
    much reaches a held-out FVU a tenth below that of half of this rate, and twice as much kills
    latents (3% never fire; here under 0.5%): see benchmarks/README.md.
    """
    return 1e-3 / (d_sae / 2**14) ** 0.5


def learning_rate_share(settings: TrainSettings, step: int, n_steps: int) -> float:
    """Share of the peak learning rate at a step (from 0): a linear warm-up, a plateau, the fall."""
    rising = warmed_up(settings.warmup_fraction, step, n_steps)
    decay_steps = settings.decay_fraction * n_steps
    left = min((n_steps - step) / decay_steps, 1.0) if decay_steps else 1.0
    match settings.schedule:
        case "linear":
            falling = left
        case "cosine":
            falling = (1 - math.cos(math.pi * left)) / 2
        case "constant":
            falling = 1.0
    return min(rising, falling)


def warmed_up(fraction: float, step: int, n_steps: int) -> float:
    """Rises in a line to 1 over a fraction of the steps; above 0 from the first step on."""
    steps = fraction * n_steps
    return min((step + 1) / steps, 1.0) if steps else 1.0

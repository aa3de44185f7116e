"""When a training is called unhealthy: one threshold a check, and what a failed one costs."""

from typing import Literal

from pydantic import Field

from sae_mlflow.config_section import Section


class HealthSettings(Section):
    """What is looked for in a training's history; docs/health.md has the reasons for each value."""

    on_failure: Literal["warn", "stop"] = "warn"
    """What a failed finding costs a layer: a warning, or its training, whose run ends FAILED with
    its history and the last good weights; the other layers go on."""
    divergence_rise: float = Field(0.5, gt=0)
    """`diverged`: the FVU stands this far above its lowest, or above 1 where it never was lower."""
    spike_ratio: float = Field(1.5, gt=1)
    """`loss_spike`: an epoch's loss is over this many times the one before."""
    last_fall: float = Field(0.05, gt=0, lt=1)
    """`not_converged`: the last epoch still took more than this share off the loss and off the
    held-out FVU."""
    plateau_fvu: float = Field(0.5, gt=0)
    """`plateau_too_early`: the loss stood still (within 2%) after a third of the epochs, at an FVU
    above this."""
    max_fvu: float = Field(1.0, gt=0)
    """`fvu_above_1`: the FVU at the end is above this; predicting the mean gives 1."""
    max_dead_fraction: float = Field(0.1, ge=0, le=1)
    """`dead_latents`: a larger share of the latents than this is dead."""
    max_dead_rise: float = Field(0.05, gt=0, le=1)
    """`dead_latents_rising`: over the last three epochs the share of dead latents rose by more
    than this."""
    max_dense_fraction: float = Field(0.05, ge=0, le=1)
    """`dense_latents`: a larger share of the latents than this fires on over 10% of the evaluated
    tokens."""
    l0_tolerance: float = Field(0.25, gt=0)
    """`l0_off_target`: L0 is this share of its target away from it (`sae.k`, `sae.target_l0`)."""
    min_l0: float = Field(1.5, ge=0)
    """`l0_collapsed`: fewer latents than this fire on a token, on average."""
    max_validation_gap: float = Field(0.1, gt=0)
    """`validation_gap`: held-out FVU is this far above the training's."""
    largest_norm_ratio: float = Field(10.0, gt=1)
    """`giant_norms`: a token that was trained on has a norm over this many times the median."""
    max_left_out_fraction: float = Field(0.01, ge=0, le=1)
    """`tokens_left_out`: a larger share of the tokens than this was left out for their norm."""
    learning_rate_factor: float = Field(10.0, gt=1)
    """`learning_rate`: the rate is over this many times the default for the width, or under that
    part of it; Adam and its kin alone."""

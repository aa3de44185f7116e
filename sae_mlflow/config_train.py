"""The settings of a training: how long, how fast, and what dead latents are."""

import math
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Field

from sae_mlflow.config_section import Section


def _finite(value: Any) -> Any:
    """Options, or a part of them, as they are."""
    for part in value.values() if isinstance(value, dict) else value:
        if isinstance(part, dict | list):
            _finite(part)
        elif isinstance(part, float) and not math.isfinite(part):
            raise ValueError("its numbers have to be finite")
    return value


class TrainSettings(Section):
    """The training of one SAE."""

    model_config = ConfigDict(allow_inf_nan=False)

    epochs: int = Field(10, gt=0)
    """Passes over the training tokens."""
    batch_tokens: int = Field(1024, gt=0)
    """Tokens in a step."""
    learning_rate: float | None = Field(None, gt=0)
    """Peak of the learning rate; unset means `1e-3 / sqrt(d_sae / 2^14)`."""
    optimizer: str = "adam"
    """Any optimizer of torch.optim but LBFGS, Rprop and SparseAdam, by name."""
    optimizer_options: Annotated[dict[str, Any], AfterValidator(_finite)] = Field({})
    """What else the optimizer is made with, for example `{betas: [0.0, 0.999]}`."""
    warmup_fraction: float = Field(0.05, ge=0, lt=1)
    """Share of the steps over which the learning rate rises from 0."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """How the learning rate ends: falling to 0 in a line or a half cosine, or not at all."""
    decay_fraction: float = Field(0.2, ge=0, le=1)
    """Share of the steps, at the end, over which the learning rate falls."""
    sparsity_warmup_fraction: float = Field(0.05, ge=0, lt=1)
    """Share of the steps over which L1 and L0 coefficients rise from 0."""
    firing_rate: float = Field(10.0, gt=0)
    """`jumprelu`: learning rate of thresholds and encoder biases, as a multiple of `learning_rate`.
    They have a unit or more to go, and move by about their rate a step."""
    resample_at: tuple[Annotated[float, Field(gt=0, lt=1)], ...] | None = None
    """Shares of the steps, such as `[0.25, 0.5]`, after which dead latents start anew from tokens
    that are reconstructed badly; unset means what the architecture's paper does: `gated` at a
    quarter and a half of the steps, the others never."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Number format of the large products; `bfloat16` (autocast) is for GPUs."""
    gradient_clip: float = Field(1.0, gt=0, allow_inf_nan=True)
    """Largest norm of the whole gradient; `.inf` leaves it as it is."""
    log_every_tokens: int = Field(1_000_000, gt=0)
    """Longer epochs log within the epoch as well: the training's metrics over the last so many
    tokens, as `within_epoch/total_loss` ..., whose steps are training tokens."""
    dead_after_tokens: int | None = Field(None, gt=0)
    """A latent that hasn't fired for this many tokens is dead; unset means half an epoch, at most
    10,000,000, and no longer than it is between two times that dead latents start anew."""
    aux_k_after_tokens: int | None = Field(None, gt=0)
    """A latent that hasn't fired for this many tokens learns by AuxK (`topk`, `batchtopk`,
    `matryoshka`, transcoders with `topk` codes); unset means a twentieth of an epoch, four batches
    at least, and no more than `dead_after_tokens`."""

"""What is known of a training beside its curves: its sizes and settings, its data, how it ended."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from sae_mlflow.architectures import TOPK_FAMILY, activation_of
from sae_mlflow.tracking.contents import FINISHED, RUNNING


@dataclass(frozen=True)
class Facts:
    """The plain facts of a run; None, and 0 of a count, is what it doesn't say."""

    architecture: str = ""
    d_in: int | None = None
    d_sae: int | None = None
    k: int | None = None
    """Where it sets the L0."""
    target_l0: float | None = None
    penalty: tuple[str, float] | None = None
    """The setting that weighs sparsity, and its value: `("sae.l1_coefficient", 0.003)`."""
    learning_rate: float | None = None
    """The peak."""
    optimizer: str = "adam"
    epochs: int | None = None
    """Asked for."""
    resamples: bool = False
    """Whether dead latents start anew."""
    train_tokens: int = 0
    left_out_tokens: int = 0
    """For their norm, held-out ones among them."""
    held_out_tokens: int = 0
    max_norm_ratio: float | None = None
    """Of the setting `activations.max_norm_ratio`."""
    largest_norm_ratio: float | None = None
    """The largest norm that was trained on, over the median."""
    dense_fraction: float | None = None
    """Share of the latents that fire on over 10% of the evaluated tokens."""
    status: str = FINISHED
    """MLflow's."""
    failure: str = ""
    """Why the run failed."""

    @property
    def running(self) -> bool:
        return self.status == RUNNING

    @property
    def l0_target(self) -> float | None:
        return self.target_l0 if self.k is None else float(self.k)


def facts_of(
    params: Mapping[str, object],
    metrics: Mapping[str, float],
    status: str,
    failure: str = "",
) -> Facts:
    """A layer run's facts.

    Args:
        params: the run's, as text or as they were logged.
        metrics: last values.
        status: MLflow's.
    """
    numbers = {key: _number(value) for key, value in params.items()}

    def whole(key: str) -> int | None:
        value = numbers.get(key)
        return None if value is None else round(value)

    architecture = str(params.get("sae.architecture") or "")
    codes = activation_of(architecture, codes=str(params.get("sae.codes") or ""))
    return Facts(
        architecture=architecture,
        d_in=whole("d_in"),
        d_sae=whole("d_sae"),
        k=whole("sae.k") if codes in TOPK_FAMILY else None,
        target_l0=numbers.get("sae.target_l0") if codes == "jumprelu" else None,
        penalty=_penalty(codes, numbers),
        learning_rate=numbers.get("train.learning_rate"),
        optimizer=str(params.get("train.optimizer") or "adam"),
        epochs=whole("train.epochs"),
        resamples=params.get("train.resample_at") not in (None, "", (), []),
        train_tokens=whole("data.train_tokens") or 0,
        held_out_tokens=whole("data.held_out_tokens") or 0,
        left_out_tokens=(whole("data.giant_norm_train_tokens") or 0)
        + (whole("data.giant_norm_held_out_tokens") or 0),
        max_norm_ratio=numbers.get("activations.max_norm_ratio"),
        largest_norm_ratio=numbers.get("data.largest_norm_ratio"),
        dense_fraction=metrics.get("latents_over_10_percent"),
        status=status,
        failure=failure,
    )


def _penalty(codes: str, numbers: Mapping[str, float | None]) -> tuple[str, float] | None:
    key = "sae.l0_coefficient" if codes == "jumprelu" else "sae.l1_coefficient"
    value = numbers.get(key)
    return None if codes in TOPK_FAMILY or value is None else (key, value)


def _number(value: object) -> float | None:
    try:
        number = float(str(value))
    except ValueError:
        return None
    return number if math.isfinite(number) else None

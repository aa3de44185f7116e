"""One line of a panel, as data: its values over epochs, its range over seeds, how it is drawn."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from sae_mlflow.plots.style_parts import Smoothing
from sae_mlflow.plots.style_values import Dash


@dataclass(frozen=True)
class Curve:
    """One line, and the range over seeds around it."""

    values: pd.DataFrame
    """`epoch, mean, low, high, seeds`, by epoch."""
    colour: str
    label: str = ""
    dash: Dash = "solid"

    @property
    def finite(self) -> pd.DataFrame:
        return self.values[np.isfinite(self.values["mean"])]


def without_number(curve: Curve, epochs: Iterable[int]) -> list[int]:
    """The epochs at which a curve has nothing to draw: not logged, NaN or infinite."""
    return sorted(set(epochs) - set(curve.finite["epoch"]))


def smoothed(means: pd.Series, how: Smoothing) -> pd.Series:
    """A running mean over epochs as far as they have come; no number stays no number.

    Args:
        means: by epoch, NaN where there is no number.
    """
    means = means.astype(float)
    over = (
        means.rolling(how.epochs, min_periods=1)
        if how.kind == "rolling"
        else means.ewm(span=how.epochs, ignore_na=True)
    )
    return over.mean().where(means.notna())

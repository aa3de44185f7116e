"""A history as the checks read it: points of a metric, and where a state began that lasts."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from sae_mlflow.history import restored

History = Mapping[str, Sequence[float | None]]
"""Metric names to a value an epoch; index 0 is epoch 1, and None is an epoch that wasn't logged."""


class Point(NamedTuple):
    epoch: int
    value: float


@dataclass(frozen=True)
class Curves:
    """The metrics of one training over its epochs so far."""

    history: History

    @property
    def n_epochs(self) -> int:
        return max(map(len, self.history.values()), default=0)

    def all_points(self, metric: str) -> list[Point]:
        """What was logged of a metric, NaN and infinity among it (a store's infinity restored)."""
        values = enumerate(self.history.get(metric, ()), start=1)
        return [Point(epoch, restored(value)) for epoch, value in values if value is not None]

    def points(self, *metrics: str) -> list[Point]:
        """The finite values of the first of these metrics that has any."""
        for metric in metrics:
            finite = [point for point in self.all_points(metric) if math.isfinite(point.value)]
            if finite:
                return finite
        return []

    def last(self, *metrics: str) -> float | None:
        points = self.points(*metrics)
        return points[-1].value if points else None


def lasting(points: Sequence[Point], holds: Callable[[float], bool]) -> Point | None:
    """The point at which a state begins that lasts to the end; None where it doesn't hold there."""
    began = None
    for point in reversed(points):
        if not holds(point.value):
            break
        began = point
    return began

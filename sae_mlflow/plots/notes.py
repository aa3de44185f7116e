"""What a picture or page has to say in words: what is missing, and what can't be seen."""

from collections.abc import Sequence

import pandas as pd

from sae_mlflow.errors import known
from sae_mlflow.plots.curve import Curve, without_number
from sae_mlflow.plots.numbers import ranges
from sae_mlflow.plots.style_parts import MetricStyle
from sae_mlflow.plots.value_axis import NOT_ON_LOG, OFF_THE_AXIS, not_shown

SEEDS = "line: mean over seeds, band: their range"


def with_seeds(note: str, table: pd.DataFrame) -> str:
    """A note, and what a line means where runs differ in the seed."""
    most = table.groupby(["layer", "setting"])["run_id"].nunique().max()
    seeds = SEEDS if most > 1 else ""
    return " · ".join(filter(None, (note, seeds)))


def incomplete(
    curves: Sequence[Curve],
    absent: Sequence[str],
    epochs: Sequence[int],
    look: MetricStyle | None = None,
) -> list[str]:
    """Lines that name the layers whose numbers are missing or not shown, all of them or in part.

    Args:
        look: of the axis that they are drawn on; without one it shows every number.
    """
    found: dict[str, list[str]] = {"No number": [f"{name} (all)" for name in absent]}
    for curve in curves:
        there = set(map(int, curve.finite["epoch"]))
        for reason, missing in {
            "No number": without_number(curve, epochs),
            **(not_shown(curve, look) if look else {}),
        }.items():
            which = "all" if reason != "No number" and set(missing) == there else ranges(missing)
            words = f"{curve.label} ({which if which == 'all' else f'epochs {which}'})"
            found.setdefault(reason, []).extend([words] if missing else [])
    names = {NOT_ON_LOG: "0 or less, not on a log axis", OFF_THE_AXIS: "Off the axis"}
    return [f"{names.get(r, r)}: {known(parts, limit=4)}" for r, parts in found.items() if parts]


def hidden(curves: Sequence[Curve]) -> str:
    """A line that names what can't be seen because it lies under another: TopK's L0, for one."""
    alike: dict[tuple[float, ...], list[str]] = {}
    for curve in curves:
        points = curve.finite[["epoch", "mean"]].to_numpy().ravel()
        alike.setdefault(tuple(points.tolist()), []).append(curve.label)
    if len(curves) > 1 and len(alike) == 1:
        return f"The {len(curves)} lines are the same: they lie on each other."
    shared = [" = ".join(labels) for points, labels in alike.items() if points and labels[1:]]
    return f"Lying on each other: {known(shared, limit=3)}" if shared else ""

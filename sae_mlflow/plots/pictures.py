"""Which pictures a table becomes, and what their files are called."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from sae_mlflow import naming
from sae_mlflow.plots.marks import NO_MARKS, Marks

if TYPE_CHECKING:  # pandas takes a second to import
    import pandas as pd

OVERLAY_METRICS = ("reconstruction_loss", "total_loss", "l0_norm")

_LONGEST_STEM = 180  # characters: file systems take 255 bytes, and the kind of picture is added


@dataclass(frozen=True)
class Picture:
    """What is to be drawn, and the file that it becomes."""

    kind: Literal["training_history", "single_metric", "all_layers"]
    table: "pd.DataFrame"
    path: Path
    metric: str = ""
    note: str = ""
    marks: Marks = NO_MARKS

    @property
    def has_data(self) -> bool:
        there = self.table["metric"]
        return bool((there == self.metric).any() if self.metric else len(there))

    def at(self, path: Path) -> "Picture":
        return replace(self, path=path)


def stem(model: str, layer: str = "", setting: str = "") -> str:
    """The start of a picture's file name: `{model}_{layer}`, and the setting where one is given."""
    parts = [naming.sanitise(part) for part in (model, layer, setting) if part]
    longest = _LONGEST_STEM - sum(len(part) + 1 for part in parts[1:2])
    return "_".join([parts[0][:longest], *parts[1:]])[:_LONGEST_STEM]


def distinct(stems: Iterable[str]) -> list[str]:
    """The same names, with `-2`, `-3` ... added to those that came before."""
    taken: dict[str, None] = {}
    for name in stems:
        unique, n = name, 1
        while unique in taken:
            n += 1
            unique = f"{name}-{n}"
        taken[unique] = None
    return list(taken)


def layer_pictures(
    table: "pd.DataFrame",
    folder: Path,
    stem: str,
    metric: str | None = None,
    note: str = "",
    marks: Marks = NO_MARKS,
) -> list[Picture]:
    """A layer's two pictures; with a metric the one of that metric alone.

    Args:
        table: `frames.COLUMNS`, of one model, layer and setting.
    """
    single = metric or "reconstruction_loss"
    path = folder / f"{stem}_{naming.sanitise(single)}.png"
    alone = Picture("single_metric", table, path, single, note, marks)
    if metric:
        return [alone]
    history = folder / f"{stem}_training_history.png"
    return [Picture("training_history", table, history, note=note, marks=marks), alone]


def overlay_pictures(
    table: "pd.DataFrame", folder: Path, stem: str, metrics: Sequence[str], note: str = ""
) -> list[Picture]:
    """One picture a metric, of all layers in the table.

    Args:
        table: `frames.COLUMNS`, of one model.
    """
    return [
        Picture(
            "all_layers", table, folder / f"{stem}_all_layers_{naming.sanitise(m)}.png", m, note
        )
        for m in metrics
    ]

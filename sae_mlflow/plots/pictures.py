"""Which pictures a table becomes, and what their files are called."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from sae_mlflow import naming
from sae_mlflow.plots.formats import DEFAULT_FORMATS
from sae_mlflow.plots.marks import NO_MARKS, Marks
from sae_mlflow.plots.style import Style, load_style

if TYPE_CHECKING:  # pandas takes a second to import
    import pandas as pd

OVERLAY_METRICS = ("reconstruction_loss", "total_loss", "l0_norm")

_LONGEST_STEM = 180  # characters: file systems take 255 bytes, and the kind of picture is added


Kind = Literal[
    "training_history",
    "single_metric",
    "all_layers",
    "facets",
    "by_depth",
    "heat_map",
    "pareto",
    "final_metrics_by_layer",
    "dead_latents",
    "ridges",
]
"""Of the last seven see `compare.plan`."""


@dataclass(frozen=True)
class Picture:
    """What is to be drawn, how, and the files that it becomes."""

    kind: Kind
    table: "pd.DataFrame"
    path: Path
    """Of its files, without their ending."""
    metric: str = ""
    note: str = ""
    style: Style = field(default_factory=load_style)
    formats: tuple[str, ...] = DEFAULT_FORMATS
    title: tuple[str, str] = ("", "")
    """Of a comparison: what stands for the model, and what is compared; `words` says of what."""
    marks: Marks = NO_MARKS
    left_out: str = ""
    """Of several runs: what isn't among them, and why; said whatever the style."""
    page: str = ""
    """Of a comparison: the interactive page that shows it, without its ending."""

    @property
    def files(self) -> list[Path]:
        return [self.path.with_name(f"{self.path.name}.{ending}") for ending in self.formats]

    @property
    def words(self) -> str:
        """Of a comparison's title: what is compared, by its metric's name if it shows one alone."""
        label = self.style.metric(self.metric).label if self.metric else ""
        return " ".join(filter(None, (label, self.title[1])))

    @property
    def has_data(self) -> bool:
        if "metric" not in self.table:
            return len(self.table) > 0
        there = self.table["metric"]
        return bool((there == self.metric).any() if self.metric else len(there))

    def at(self, path: Path) -> "Picture":
        return replace(self, path=path)

    def drawn(self, style: Style, formats: Iterable[str]) -> "Picture":
        """The same in this style, as files of these formats."""
        return replace(self, style=style, formats=tuple(formats))


def stem(model: str, layer: str = "", setting: str = "") -> str:
    """The start of a picture's file name: `{model}_{layer}`, and the setting where one is given.

    What would be over 180 characters is cut and told apart by a hash.
    """
    parts = [naming.sanitise(part) for part in (model, layer) if part]
    if setting:
        parts.append(naming.sanitise(setting, longest=len(setting)))
    whole = "_".join(parts)
    if len(whole) <= _LONGEST_STEM:
        return whole
    longest = _LONGEST_STEM - naming.HASH_LENGTH
    model_part = parts[0][: longest - sum(len(part) + 1 for part in parts[1:2])]
    cut = "_".join([model_part, *parts[1:]])[:longest].rstrip("-._")
    return naming.told_apart(cut, whole)


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
    file = folder / f"{stem}_{naming.sanitise(single)}"
    alone = Picture("single_metric", table, file, single, note, marks=marks)
    if metric:
        return [alone]
    history = folder / f"{stem}_training_history"
    return [Picture("training_history", table, history, note=note, marks=marks), alone]


def overlay_pictures(
    table: "pd.DataFrame", folder: Path, stem: str, metrics: Sequence[str], note: str = ""
) -> list[Picture]:
    """One picture a metric, of all layers in the table.

    Args:
        table: `frames.COLUMNS`, of one model.
    """
    return [
        Picture("all_layers", table, folder / f"{stem}_all_layers_{naming.sanitise(m)}", m, note)
        for m in metrics
    ]

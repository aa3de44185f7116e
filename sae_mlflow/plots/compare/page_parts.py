"""What the views of a comparison's page are made of: its runs, its legend, panels and lines."""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from sae_mlflow.plots.page_shell import dashes, rounded
from sae_mlflow.plots.pages import RunLink
from sae_mlflow.plots.style_values import Dash

View = dict[str, Any]

RUN_KEYS = ["model", "layer", "label"]
"""What tells the rows of `tables.over_seeds_of` apart, and those of `pareto.points`."""


class Runs:
    """The runs that a page can open, called by their place."""

    def __init__(self, links: Sequence[RunLink]) -> None:
        self.shown = [
            {"id": run.run_id, "name": run.name, "address": run.address, "apart": run.apart}
            for run in links
        ]
        self._places = {link.run_id: place for place, link in enumerate(links)}

    def places(self, run_ids: Iterable[str]) -> list[int]:
        found = (self._places.get(run_id) for run_id in dict.fromkeys(run_ids))
        return [place for place in found if place is not None]

    def by(self, table: pd.DataFrame, keys: list[str]) -> dict[Hashable, list[int]]:
        """The places of the runs of a table's rows, by these columns."""
        grouped = table.groupby(keys if len(keys) > 1 else keys[0], sort=False)["run_id"]
        return {key: self.places(ids) for key, ids in grouped}


class Entries:
    """A page's legend, in groups; what is drawn says to which entries it belongs."""

    def __init__(self) -> None:
        self.shown: list[dict[str, str]] = []
        self._places: dict[tuple[str, Hashable], int] = {}

    def add(
        self,
        group: str,
        key: Hashable,
        colour: str,
        dash: Dash = "solid",
        *,
        label: str = "",
        symbol: str = "",
    ) -> None:
        self._places[group, key] = len(self.shown)
        look = {"colour": colour, "dash": dashes(dash), "symbol": symbol}
        self.shown.append({"group": group, "label": label or str(key), **look})

    def place(self, group: str, key: Hashable) -> int:
        return self._places[group, key]


def view(
    title: str,
    panels: list[dict[str, Any]],
    traces: list[dict[str, Any]],
    said: Iterable[str],
    log: bool | None = None,
    **layout: Any,
) -> View:
    """Args: `log` is whether it opens with a log axis; without one there is none."""
    shown = {"title": title, "panels": panels, "traces": traces, "log": log}
    return {**shown, "said": list(filter(None, said)), **layout}


def panel(title: str, x: Mapping[str, Any], y: Mapping[str, Any]) -> dict[str, Any]:
    return {"title": title, "x": dict(x), "y": dict(y)}


def line_of(
    panel: int,
    entries: Entries,
    name: str,
    line: pd.DataFrame,
    x: str,
    runs: Sequence[int] = (),
    each: Sequence[Sequence[int]] = (),
) -> dict[str, Any]:
    """A mean, with its range where there are several seeds.

    Args:
        runs: of the whole line.
        each: of each of its points.
    """
    place = entries.place("lines", name)
    made = {**values_of(line, x, "mean"), "panel": panel, "entries": [place], "name": name}
    if (line["seeds"] > 1).any():
        made |= {"low": numbers(line["low"]), "high": numbers(line["high"])}
    look = {key: entries.shown[place][key] for key in ("colour", "dash")}
    return made | look | ({"each": list(each)} if each else {"runs": list(runs)})


def values_of(line: pd.DataFrame, x: str, y: str) -> dict[str, Any]:
    return {"x": numbers(line[x]), "y": numbers(line[y])}


def numbers(values: Iterable[float]) -> list[float | None]:
    return [rounded(value) for value in values]

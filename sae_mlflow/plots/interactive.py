"""A page that draws a table in the browser, in the shell of all pages."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sae_mlflow.errors import known
from sae_mlflow.plots.curve import Curve
from sae_mlflow.plots.figures import HISTORY_METRICS
from sae_mlflow.plots.frames import by_epoch, over_seeds
from sae_mlflow.plots.layer_key import LayerKey
from sae_mlflow.plots.notes import hidden, incomplete, with_seeds
from sae_mlflow.plots.numbers import ranges
from sae_mlflow.plots.page_shell import beside, dashes, filled_shell, rounded, write_html
from sae_mlflow.plots.pages import Page, RunLink
from sae_mlflow.plots.style import Style
from sae_mlflow.plots.value_axis import is_log, zero_text


def write_page(page: Page) -> Path:
    """Write one page; its file is there whole, or not at all.

    Raises:
        UserError: the file can't be written.
    """
    (file,) = page.files
    return write_html(page_html(page), file)


def page_html(page: Page) -> str:
    """A page as HTML, with one curve for each layer and setting of its table."""
    return filled_shell(page_content(page), page.title, curves_script())


def curves_script() -> str:
    """What draws `page_content`."""
    return beside("page_shell.js") + beside("interactive.js")


Line = tuple[str, str]
"""A curve's layer and setting."""


def page_content(page: Page) -> dict[str, Any]:
    """What the page's script draws, as JSON takes it."""
    table = by_epoch(page.table)
    key, means = LayerKey(table, page.style), over_seeds(table)
    values = {
        str(metric): {
            (str(layer), str(setting)): mine
            for (layer, setting), mine in rows.groupby(["layer", "setting"], sort=False)
        }
        for metric, rows in means.groupby("metric", sort=False)
    }
    return {
        "title": page.title,
        "note": with_seeds(page.note, table),
        "start": page.metric or HISTORY_METRICS[0],
        "metrics": [
            _metric(page, metric, key, values[metric], once=_is_once(values[metric], means))
            for metric in _ordered(values, page.style)
        ],
        "curves": [_curve(line, key, values, table, page.links) for line in key.lines],
    }


def _metric(
    page: Page, metric: str, key: LayerKey, by_line: Mapping[Line, pd.DataFrame], *, once: bool
) -> dict[str, Any]:
    """A metric's words, and what has to be said where it is drawn."""
    look = page.style.metric(metric)
    curves = [key.curve(line, by_line[line]) for line in key.lines if line in by_line]
    absent = [" · ".join(filter(None, line)) for line in key.lines if line not in by_line]
    epochs = sorted({int(epoch) for curve in curves for epoch in curve.values["epoch"]})
    if page.under_way:
        reached = min(int(curve.values["epoch"].max()) for curve in curves)
        absent, epochs = [], [epoch for epoch in epochs if epoch <= reached]
    said = [*incomplete(curves, absent, epochs), hidden(curves)]
    if all((curve.values["mean"] == 0).all() for curve in curves):
        said = [zero_text(metric).replace("\n", " ")]
    return {
        "key": metric,
        "title": look.label,
        "axis": look.unit,
        "log": is_log(look, pd.concat([rows["mean"] for rows in by_line.values()])),
        "once": once,
        "said": list(filter(None, said)),
        "said_log": list(filter(None, [_not_on_log_axis(curves)])),
    }


def _curve(
    line: Line,
    key: LayerKey,
    values: Mapping[str, Mapping[Line, pd.DataFrame]],
    table: pd.DataFrame,
    links: Sequence[RunLink],
) -> dict[str, Any]:
    """A line of the legend: its runs, and what is drawn of each metric."""
    layer, setting = line
    mine = table[(table["layer"] == layer) & (table["setting"] == setting)]
    seeds = dict(zip(mine["run_id"], mine["seed"], strict=True))
    runs = [_run(link, seeds[link.run_id]) for link in links if link.run_id in seeds]
    by_metric = {metric: lines[line] for metric, lines in values.items() if line in lines}
    if len(seeds) > 1:
        for run in runs:
            own = mine[mine["run_id"] == run["id"]]
            run["series"] = {m: _series(rows, "value") for m, rows in own.groupby("metric")}
    look = key.curve(line, mine)
    columns = ("mean", "low", "high") if len(seeds) > 1 else ("mean",)
    return {
        "label": look.label,
        "colour": look.colour,
        "dash": dashes(look.dash),
        "runs": runs,
        "means": {metric: _series(rows, *columns) for metric, rows in by_metric.items()},
    }


def _run(link: RunLink, seed: str) -> dict[str, Any]:
    return {
        "id": link.run_id,
        "name": link.name,
        "address": link.address,
        "apart": link.apart,
        "seed": seed,
    }


def _series(rows: pd.DataFrame, *columns: str) -> dict[str, list[Any]]:
    """Values by epoch, without the epochs where they are 1, 2, 3 ...; null is no number."""
    epochs = rows["epoch"].tolist()
    series: dict[str, list[Any]] = (
        {} if epochs == [*range(1, len(epochs) + 1)] else {"epochs": epochs}
    )
    for column in columns:
        name = column if column in ("low", "high") else "values"
        series[name] = [rounded(value) for value in rows[column].tolist()]
    return series


def _is_once(by_line: Mapping[Line, pd.DataFrame], means: pd.DataFrame) -> bool:
    """Whether a metric was measured once where others were after every epoch."""
    return means["epoch"].nunique() > 1 and max(map(len, by_line.values())) == 1


def _ordered(metrics: Iterable[str], style: Style) -> list[str]:
    """The pictures' four first, the others as the style lists them, and then those it doesn't."""
    listed = list(dict.fromkeys((*HISTORY_METRICS, *style.metrics)))
    places = {name: place for place, name in enumerate(listed)}
    return sorted(metrics, key=lambda metric: (places.get(metric, len(places)), metric))


def _not_on_log_axis(curves: Sequence[Curve]) -> str:
    parts = []
    for curve in curves:
        mean = curve.values["mean"].to_numpy()
        epochs = curve.values["epoch"].to_numpy()[np.isfinite(mean) & (mean <= 0)]
        if len(epochs):
            where = "all" if len(epochs) == len(mean) else f"epochs {ranges(epochs.tolist())}"
            parts.append(f"{curve.label} ({where})")
    return f"0 or less, not on a log axis: {known(parts, limit=4)}" if parts else ""

"""A comparison as a page for the browser: what its script draws, of the tables of the pictures.

A page has views (the metrics that one chooses from), a view has panels and what is drawn in them
(`page_views`), and one legend is for all.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sae_mlflow.plots.compare.by_layer import DEAD_METRICS, lines_of
from sae_mlflow.plots.compare.depth import depth_lines
from sae_mlflow.plots.compare.legends import category_looks
from sae_mlflow.plots.compare.page_parts import Entries, Runs
from sae_mlflow.plots.compare.page_views import (
    by_layer_view,
    depth_view,
    facet_view,
    heat_view,
    ridge_view,
)
from sae_mlflow.plots.compare.pages import ComparisonPage
from sae_mlflow.plots.compare.pareto import FRONTIER, has_frontier, points
from sae_mlflow.plots.compare.pareto_looks import looks_of
from sae_mlflow.plots.compare.pareto_view import SYMBOLS, pareto_view
from sae_mlflow.plots.compare.tables import FINAL_METRICS
from sae_mlflow.plots.page_shell import Around, beside, filled_shell, write_html
from sae_mlflow.plots.pictures import Picture


def write_comparison(page: ComparisonPage) -> Path:
    """Write one page; its file is there whole, or not at all.

    Raises:
        UserError: the file can't be written.
    """
    (file,) = page.files
    return write_html(comparison_html(page), file)


def comparison_html(page: ComparisonPage) -> str:
    """A page as HTML."""
    script = beside("page_shell.js") + beside("compare/page.js")
    around = Around(style=beside("compare/page.css"))
    return filled_shell(page_content(page), page.title, script, around)


def page_content(page: ComparisonPage) -> dict[str, Any]:
    """What the page's script draws."""
    runs, entries = Runs(page.links), _entries(page)
    return {
        "title": page.title,
        "note": " · ".join(filter(None, (page.pictures[0].note, page.pictures[0].left_out))),
        "entries": entries.shown,
        "runs": runs.shown,
        "views": [_view(page, picture, entries, runs) for picture in page.pictures],
    }


def _view(page: ComparisonPage, picture: Picture, entries: Entries, runs: Runs) -> dict[str, Any]:
    style, table, metric = page.style, picture.table, picture.metric
    match picture.kind:
        case "facets":
            return facet_view(table, style.metric(metric), metric, entries, runs)
        case "by_depth":
            return depth_view(table, style.metric(metric), metric, entries, runs)
        case "heat_map":
            return heat_view(table, style.metric(metric), metric, runs)
        case "pareto":
            return pareto_view(table, looks_of(points(table), style), style, entries, runs)
        case "final_metrics_by_layer":
            return by_layer_view(table, FINAL_METRICS.values(), style, entries, runs)
        case "dead_latents":
            return by_layer_view(table, DEAD_METRICS, style, entries, runs)
        case "ridges":
            return ridge_view(table, style, runs)
        case kind:
            raise AssertionError(f"{kind} is no comparison")


def _entries(page: ComparisonPage) -> Entries:
    """The legend: what has the same name has the same look in every view."""
    entries = Entries()
    match page.pictures[0].kind:
        case "facets":
            drawn = [p.table[p.table["metric"] == p.metric] for p in page.pictures]
            _add_categories(page, entries, [n for rows in drawn for n in rows["setting"].unique()])
        case "by_depth":
            lines = [depth_lines(p.table, p.metric) for p in page.pictures]
            _add_categories(page, entries, [name for names in lines for name in names])
        case "final_metrics_by_layer" | "dead_latents":
            _add_categories(page, entries, list(lines_of(page.table)))
        case "pareto":
            _add_pareto(page, entries)
    return entries


def _add_categories(page: ComparisonPage, entries: Entries, names: Sequence[str]) -> None:
    for name, (colour, dash) in category_looks(page.style, list(dict.fromkeys(names))).items():
        entries.add("lines", name, colour, dash)


def _add_pareto(page: ComparisonPage, entries: Entries) -> None:
    table = points(page.table)
    looks = looks_of(table, page.style)
    faint = page.style.colours.faint
    for (kind, look), label in zip(looks.kinds.items(), looks.names, strict=True):
        if looks.key:
            entries.add("kinds", kind, faint, label=label, symbol=SYMBOLS[look])
        else:
            entries.add("kinds", kind, look, label=label)
    for layer, look in looks.layers.items():
        colour, symbol = (look, "circle") if looks.key else (faint, SYMBOLS[look])
        entries.add("layers", layer, colour, symbol=symbol)
    if has_frontier(table):
        entries.add("frontier", FRONTIER, faint)

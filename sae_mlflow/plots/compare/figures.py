"""A comparison's picture as a figure."""

from matplotlib.figure import Figure

from sae_mlflow.plots.compare.by_layer import DEAD_METRICS, by_layer
from sae_mlflow.plots.compare.depth import by_depth
from sae_mlflow.plots.compare.facets import facets
from sae_mlflow.plots.compare.heat_map import heat_map
from sae_mlflow.plots.compare.pareto import pareto
from sae_mlflow.plots.compare.ridges import ridges
from sae_mlflow.plots.compare.tables import FINAL_METRICS
from sae_mlflow.plots.pictures import Picture
from sae_mlflow.plots.style import Style

_TWO_COLUMNS = 2.1  # with the gutter between them


def comparison(picture: Picture) -> Figure:
    """The figure of one of `plan.comparisons`."""
    table, metric, style = picture.table, picture.metric, _wide(picture.style)
    title = (picture.title[0], picture.words)
    note = picture.note if style.titles.note else ""
    note = " · ".join(filter(None, (note, picture.left_out)))
    match picture.kind:
        case "facets":
            return facets(table, metric, title, note, style)
        case "by_depth":
            return by_depth(table, metric, title, note, style)
        case "heat_map":
            return heat_map(table, metric, title, note, style)
        case "pareto":
            return pareto(table, title, note, style)
        case "final_metrics_by_layer":
            return by_layer(table, FINAL_METRICS.values(), title, note, style)
        case "dead_latents":
            return by_layer(table, DEAD_METRICS, title, note, style)
        case "ridges":
            return ridges(table, title, note, style)
        case kind:
            raise AssertionError(f"{kind} is no comparison")


def _wide(style: Style) -> Style:
    """Panels and a legend beside them need two columns where the width is set."""
    width = style.sizes.page_width
    if width is None:
        return style
    wide = {"page_width": _TWO_COLUMNS * width, "history_columns": 2}
    return style.model_copy(update={"sizes": style.sizes.model_copy(update=wide)})

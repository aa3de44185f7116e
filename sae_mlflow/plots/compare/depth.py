"""Models of different depths against each other: what each layer came to, over relative depth."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator

from sae_mlflow.plots.compare.legends import category_looks, draw_legend, handles, legend_room
from sae_mlflow.plots.compare.tables import over_seeds_of
from sae_mlflow.plots.panels import label_lines, place_axis_labels
from sae_mlflow.plots.sheet import Rooms, comparison_title, new_sheet
from sae_mlflow.plots.style import Style
from sae_mlflow.plots.value_axis import fit_values


def by_depth(
    ends: pd.DataFrame, metric: str, title: tuple[str, str], note: str, style: Style
) -> Figure:
    """A line for each model (and label, where there are several), from its first block to its last.

    Args:
        ends: of `tables.ends_table`; runs without a depth aren't in it.
    """
    lines = depth_lines(ends, metric)
    looks = category_looks(style, list(lines))
    with style.theme():
        room, panel = legend_room(style, list(lines)), style.sizes.overlay_panel
        words = len(label_lines(style, metric, True, panel[1]))
        sheet = new_sheet(
            style,
            1,
            1,
            panel,
            comparison_title(style, title),
            [note],
            label_lines=words,
            right=Rooms(style, words).right + room,
        )
        (axes,) = sheet.panels
        width = style.lines.width * style.factor
        for name, line in lines.items():
            axes.plot(
                line["depth"],
                line["mean"],
                color=looks[name][0],
                linestyle=looks[name][1],
                linewidth=width,
                marker="o",
                markersize=2.6 * width,
                markeredgecolor=style.colours.panel,
            )
        axes.set_title(style.metric(metric).label, loc="center", x=0, ha="left")
        axes.set_ylabel("\n".join(label_lines(style, metric, True, panel[1])))
        axes.set_xlabel("relative depth (0: first block, 1: last)")
        axes.set_xlim(-0.03, 1.03)
        axes.xaxis.set_major_locator(FixedLocator([0, 0.25, 0.5, 0.75, 1]))
        fit_values(axes, pd.concat(lines.values())["mean"].to_numpy(dtype=float))
        place_axis_labels(style, [axes])
        draw_legend(sheet, handles(looks), room)
    return sheet.figure


def depth_lines(ends: pd.DataFrame, metric: str) -> dict[str, pd.DataFrame]:
    """The rows of `over_seeds_of` that are numbers, by depth, for each line by its name."""
    values = over_seeds_of(ends, metric)
    keys = ["model", "label"] if ends["label"].nunique() > 1 else ["model"]
    return {
        " · ".join(map(str, key)): line[np.isfinite(line["mean"])].sort_values("depth")
        for key, line in values.groupby(keys, sort=False)
    }

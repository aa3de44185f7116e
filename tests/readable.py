"""Whether a figure can be read: nothing is cut, and no text lies on another."""

import itertools

from matplotlib.figure import Figure
from matplotlib.text import Text

from sae_mlflow.plots.style import Style, load_style


def texts(figure: Figure, style: Style | None = None) -> list[Text]:
    """Everything written on the figure, as it is when saved."""
    with (style or load_style()).theme():
        figure.canvas.draw()
    found = [
        text
        for text in figure.findobj(Text)
        if text.get_text().strip() and text.get_visible() and text.get_figure() is not None
    ]
    axes_ticks = {
        label
        for axes in figure.axes
        for axis, (low, high) in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim()))
        for tick in [*axis.get_major_ticks(), *axis.get_minor_ticks()]
        if not min(low, high) <= tick.get_loc() <= max(low, high)
        for label in (tick.label1, tick.label2)
    }
    return [text for text in found if text not in axes_ticks]


def assert_readable(figure: Figure, style: Style | None = None) -> None:
    """No text is cut by the page's edge, and none lies on another."""
    page = figure.bbox
    boxes = [(text.get_text(), text.get_window_extent()) for text in texts(figure, style)]
    for name, box in boxes:
        inside = box.x0 >= 0 and box.y0 >= 0 and box.x1 <= page.x1 and box.y1 <= page.y1
        assert inside, f"{name!r} is cut"
    for (name, box), (other, its_box) in itertools.combinations(boxes, 2):
        apart = (
            box.x1 <= its_box.x0
            or its_box.x1 <= box.x0
            or box.y1 <= its_box.y0
            or its_box.y1 <= box.y0
        )
        assert apart, f"{name!r} lies on {other!r}"

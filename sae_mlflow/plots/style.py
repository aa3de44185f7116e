"""How pictures look: a style file over the shipped default, typed and validated once."""

import functools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import BaseModel, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from sae_mlflow.config_files import find_style, merged, read_config
from sae_mlflow.errors import UserError, did_you_mean, known
from sae_mlflow.plots import style_parts as parts
from sae_mlflow.plots.style_parts import MetricStyle, Part
from sae_mlflow.plots.style_values import CONTEXTS, Palette

if TYPE_CHECKING:  # takes a second to import
    from matplotlib.colors import Colormap

_HELD_OUT = "val_"
_FALLBACK_FONT = "DejaVu Sans"  # comes with matplotlib, and has most letters there are

TextKind = Literal["title", "note", "panel", "label", "tick", "legend"]


class Style(Part):
    """The look of every picture; see `configs/plots/default.yaml`."""

    seaborn_style: Literal["darkgrid", "whitegrid", "dark", "white", "ticks"]
    context: Literal["paper", "notebook", "talk", "poster"]
    palette: Palette
    dpi: int = Field(ge=30, le=1200)
    layers: parts.Layers
    fonts: parts.Fonts
    colours: parts.Colours
    lines: parts.Lines
    sizes: parts.Sizes
    titles: parts.Titles
    smoothing: parts.Smoothing
    metrics: Mapping[str, MetricStyle]

    @model_validator(mode="after")
    def _room_for_panels(self) -> Self:
        width, columns = self.sizes.page_width, self.sizes.history_columns
        least = 0.2 * self.points("label") * columns
        if width is not None and width < least:
            raise ValueError(
                f"sizes.page_width = {width:g} is too narrow for {columns} panels with labels of "
                f"{self.points('label'):g} points: take {least:.1f} or more, or smaller fonts"
            )
        return self

    @property
    def factor(self) -> float:
        """By how much the context scales letters and lines."""
        return CONTEXTS[self.context]

    def points(self, kind: TextKind) -> float:
        """A text's size."""
        return float(getattr(self.fonts, kind)) * self.factor

    @property
    def tick_length(self) -> float:
        """Of the marks outside the axes, in inches; most styles have none."""
        return 3.5 * self.factor / 72 if self.seaborn_style == "ticks" else 0.0

    def metric(self, name: str) -> MetricStyle:
        """How a metric is drawn, its colour resolved; one that isn't known is called by its key."""
        found = self.metrics.get(name) or MetricStyle(label=name.replace("_", " "), unit=name)
        if isinstance(found.colour, int):
            found = found.model_copy(update={"colour": self.colour(found.colour)})
        return found

    def colour(self, place: int) -> str:
        """Of the palette; after its last one it begins anew."""
        colours = self._palette()
        return colours[place % len(colours)]

    def layer_colours(self) -> "Colormap":
        """From the first layer's colour (0) to the last one's (1)."""
        import matplotlib
        import seaborn  # noqa: F401  (adds its own maps)
        from matplotlib.colors import LinearSegmentedColormap

        layers = self.layers
        whole = (
            matplotlib.colormaps[layers.map]
            if isinstance(layers.map, str)
            else LinearSegmentedColormap.from_list("whole", list(layers.map))
        )
        span = layers.stop - layers.start
        shades = whole([layers.start + span * i / 255 for i in range(256)])
        return LinearSegmentedColormap.from_list("layers", shades)

    @contextmanager
    def theme(self) -> Iterator[None]:
        """In which a figure has to be both built and saved: ticks are made while saving."""
        import matplotlib
        import seaborn

        rc = {**seaborn.axes_style(self.seaborn_style), **self._rc()}
        with matplotlib.rc_context(rc):
            yield

    def _palette(self) -> list[str]:
        if not isinstance(self.palette, str):
            return list(self.palette)
        import seaborn

        return list(seaborn.color_palette(self.palette).as_hex())

    def _rc(self) -> dict[Any, Any]:
        colours, lines = self.colours, self.lines
        return {
            "text.parse_math": False,  # `$` and `_` in a model's name are drawn as they are
            "font.family": list(_installed(self.fonts.family)),
            "text.color": colours.ink,
            "figure.facecolor": colours.page,
            "axes.facecolor": colours.panel,
            "savefig.facecolor": colours.page,
            "axes.labelcolor": colours.ink,
            "axes.edgecolor": colours.edge,
            "axes.titlesize": self.points("panel"),
            "axes.titleweight": "bold",
            "axes.titlepad": 8 * self.factor,
            "axes.titley": 1.0,  # by itself it looks for a free place, a third of the drawing time
            "axes.labelsize": self.points("label"),
            "axes.linewidth": lines.frame * self.factor,
            "xtick.labelsize": self.points("tick"),
            "ytick.labelsize": self.points("tick"),
            "xtick.major.size": 3.5 * self.factor,
            "ytick.major.size": 3.5 * self.factor,
            "xtick.color": colours.ink,
            "ytick.color": colours.ink,
            "grid.color": colours.grid,
            "grid.linewidth": lines.grid * self.factor,
            "legend.fontsize": self.points("legend"),
            "legend.labelcolor": colours.ink,
            "savefig.dpi": self.dpi,
            "figure.dpi": self.dpi,
            "pdf.fonttype": 42,  # TrueType: text stays text
            "svg.fonttype": "none",
            "svg.hashsalt": "sae_mlflow",  # the same picture, the same file
        }


def load_style(style: str | Path | None = None) -> Style:
    """A style by its name (`paper`) or its file's path; None is the default.

    Raises:
        UserError: there is no such style; its file isn't YAML, has an unknown key or a bad value.
    """
    if style is None or str(style) == "default":
        return _default_style()
    path = find_style(str(style))
    data = merged(_default_data(), read_config(path))
    _check_metrics(data.get("metrics"), path)
    try:
        return Style.model_validate(_with_held_out(data))
    except ValidationError as error:
        raise UserError(_explain(error.errors()[0], path)) from None


@functools.cache
def _default_style() -> Style:
    return Style.model_validate(_with_held_out(_default_data()))


@functools.cache
def _default_data() -> dict[str, Any]:
    return read_config(find_style("default", shipped=True))


@functools.cache
def _installed(families: tuple[str, ...]) -> tuple[str, ...]:
    """Those that are there; matplotlib would complain of the others at every text."""
    from matplotlib.font_manager import fontManager

    there = {*fontManager.get_font_names(), "serif", "sans-serif", "monospace"}
    found = [family for family in families if family in there]
    return tuple(dict.fromkeys([*found, _FALLBACK_FONT]))


def _check_metrics(metrics: object, path: Path) -> None:
    """A misspelt metric would be one that no picture shows."""
    if not isinstance(metrics, dict):
        return
    names = list(_default_data()["metrics"])
    for name in metrics:
        if str(name).removeprefix(_HELD_OUT) not in names:
            hint = did_you_mean(str(name), [*names, *(_HELD_OUT + n for n in names)])
            raise UserError(
                f"{path}: unknown metric {name!r}. {hint}Known are: {known(names, 30)}."
            )


def _with_held_out(data: dict[str, Any]) -> dict[str, Any]:
    """The same, with the held-out twin of each metric: like it, but for what is said of it."""
    metrics = data.get("metrics")
    if not isinstance(metrics, dict):
        return data
    twins = {}
    for name, metric in metrics.items():
        own = metrics.get(_HELD_OUT + str(name))
        if isinstance(metric, dict) and not str(name).startswith(_HELD_OUT):
            label = _held_out_label(str(metric.get("label", name)))
            twins[_HELD_OUT + str(name)] = merged({**metric, "label": label}, own or {})
    return {**data, "metrics": {**metrics, **twins}}


def _held_out_label(label: str) -> str:
    """`Held-out dead latents`, `Held-out L0 norm`."""
    return f"Held-out {label if label[:2].isupper() else label[:1].lower() + label[1:]}"


def _explain(error: ErrorDetails, path: Path) -> str:
    """One of pydantic's findings as what, where and how to fix."""
    names = [str(part) for part in error["loc"]]
    if error["type"] == "extra_forbidden":
        there = _keys_at(names[:-1])
        hint = did_you_mean(names[-1], there) or f"Known here: {known(there, 20)}."
        return f"{path}: unknown key {'.'.join(names)!r}. {hint}".rstrip()
    key = ".".join(_without_branches(names))
    message = error["msg"].removeprefix("Value error, ")
    if isinstance(error["input"], dict):  # about a section, or about the whole file
        return f"{path}: {f'{key}: ' if key else ''}{message}."
    return f"{path}: {key} = {error['input']!r}, but {message[0].lower()}{message[1:]}."


def _keys_at(names: list[str]) -> list[str]:
    """The keys that a section has."""
    if names[:1] == ["metrics"]:
        return list(MetricStyle.model_fields)
    model: type[BaseModel] = Style
    for name in names:
        model = next(f.annotation for n, f in model.model_fields.items() if n == name)  # type: ignore[assignment]
    return [field.alias or name for name, field in model.model_fields.items()]


def _without_branches(names: list[str]) -> list[str]:
    """Without pydantic's own words for the branch of a union: `palette`, not `palette.str`."""
    own = {*Style.model_fields, *MetricStyle.model_fields, *_default_data()["metrics"]}
    for section in _default_data().values():
        own |= set(section) if isinstance(section, dict) else set()
    while len(names) > 1 and names[-1].removeprefix(_HELD_OUT) not in own:
        names = names[:-1]
    return names

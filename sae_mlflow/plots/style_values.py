"""Values of a style file: colours, dashes, palettes and colour maps, each refused with a reason.

Names that are usual are known here: matplotlib and seaborn take seconds to import, and a style is
read before they are needed.
"""

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator

from sae_mlflow.errors import did_you_mean, known

CONTEXTS = {"paper": 0.8, "notebook": 1.0, "talk": 1.5, "poster": 2.0}
"""Seaborn's, and by how much each scales letters and lines."""

PALETTES = ("deep", "muted", "bright", "pastel", "dark", "colorblind")
_USUAL_MAPS = ("plasma", "viridis", "cividis", "inferno", "magma")
_DASH_NAMES = ("solid", "dashed", "dotted", "dashdot")

Dash = Literal["solid"] | tuple[float, tuple[float, ...]]
_BY_NAME: dict[str, Dash] = {
    "solid": "solid",
    "dashed": (0, (5, 2)),
    "dotted": (0, (1.2, 1.6)),
    "dashdot": (0, (6, 1.6, 1.2, 1.6)),
}


def _colour(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is no colour. Write a name, or '#rrggbb' in quotes")
    if not re.fullmatch(r"#[0-9a-fA-F]{6}", value):
        from matplotlib.colors import CSS4_COLORS, is_color_like

        if not is_color_like(value):
            hint = did_you_mean(value, CSS4_COLORS)
            raise ValueError(f"{value!r} is no colour. {hint}Write a name, or '#rrggbb' in quotes")
    return value


def _dash(value: object) -> Dash:
    if isinstance(value, str) and value in _BY_NAME:
        return _BY_NAME[value]
    if isinstance(value, str):
        hint = did_you_mean(value, _DASH_NAMES)
        raise ValueError(f"there is none. {hint}There are: {known(_DASH_NAMES)}, or [on, off, ...]")
    if isinstance(value, list) and len(value) > 1 and len(value) % 2 == 0:
        numbers = [n for n in value if isinstance(n, int | float) and not isinstance(n, bool)]
        if len(numbers) == len(value) and min(numbers) > 0:
            return (0, tuple(map(float, numbers)))
    raise ValueError("write a name, or [on, off, ...], an even number of lengths above 0")


def _palette(value: object) -> object:
    if isinstance(value, str) and value not in PALETTES:
        raise ValueError(
            f"there is none. {did_you_mean(value, PALETTES)}There are: {known(PALETTES)}, "
            "or a list of colours"
        )
    return value if isinstance(value, str) else _colours(value, least=1)


def _colours(value: object, least: int) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or len(value) < least:
        raise ValueError(f"write a name, or a list of {least} colours or more")
    return tuple(map(_colour, value))


def _place_or_colour(value: object) -> int | str:
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    return _colour(value)


def _colour_map(value: object) -> object:
    if isinstance(value, str) and value not in _USUAL_MAPS:
        import matplotlib
        import seaborn  # noqa: F401  (adds its own maps)

        if value not in matplotlib.colormaps:
            hint = did_you_mean(value, matplotlib.colormaps)
            raise ValueError(
                f"there is none. {hint}There are {known(_USUAL_MAPS)} and the others of matplotlib "
                "and seaborn, or a list of colours"
            )
    return value if isinstance(value, str) else _colours(value, least=2)


def _families(value: object) -> object:
    """One name or several; one of them at least is installed."""
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list) or not names or not all(isinstance(n, str) for n in names):
        raise ValueError("write a font's name, or a list of names")
    if not set(names) & {"DejaVu Sans", "DejaVu Serif", "STIXGeneral"}:  # of matplotlib itself
        from matplotlib.font_manager import fontManager

        there = [*fontManager.get_font_names(), "serif", "sans-serif", "monospace"]
        if not set(names) & set(there):
            hint = did_you_mean(names[0], there)
            raise ValueError(f"no such font is installed here. {hint}Add DejaVu Sans to the list")
    return tuple(names)


def _ascending(value: tuple[float | None, float | None]) -> tuple[float | None, float | None]:
    low, high = value
    if low is not None and high is not None and low >= high:
        raise ValueError("the first has to be the lower one")
    return value


Colour = Annotated[str, BeforeValidator(_colour)]
PlaceOrColour = Annotated[int | str, BeforeValidator(_place_or_colour)]
DashValue = Annotated[Any, BeforeValidator(_dash)]
Palette = Annotated[str | tuple[str, ...], BeforeValidator(_palette)]
ColourMap = Annotated[str | tuple[str, ...], BeforeValidator(_colour_map)]
Families = Annotated[tuple[str, ...], BeforeValidator(_families)]
Limits = Annotated[tuple[float | None, float | None], AfterValidator(_ascending)]

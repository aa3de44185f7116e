"""A figure as a file: PNG, or PDF and SVG whose text is text, with its fonts inside."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae_mlflow.errors import UserError, did_you_mean, known
from sae_mlflow.plots.style import Style

if TYPE_CHECKING:  # takes a second to import
    from matplotlib.figure import Figure

FORMATS = ("png", "pdf", "svg")
DEFAULT_FORMATS = ("png",)

# nothing of when it was drawn: the same picture gives the same file
_OPTIONS: dict[str, dict[str, Any]] = {
    # 3 instead of 6 saves 30 ms of 400 and costs a tenth more bytes
    "png": {"pil_kwargs": {"compress_level": 3}},
    "pdf": {"metadata": {"CreationDate": None, "ModDate": None}},
    "svg": {"metadata": {"Date": None}},
}


def parse_formats(formats: str | Iterable[str]) -> tuple[str, ...]:
    """`png,pdf` or a list as it is meant: each of `FORMATS`, once.

    Raises:
        UserError: one isn't known, or none is named.
    """
    names = formats.split(",") if isinstance(formats, str) else list(formats)
    found = tuple(dict.fromkeys(filter(None, (n.strip().lower().lstrip(".") for n in names))))
    for name in found:
        if name not in FORMATS:
            hint = did_you_mean(name, FORMATS)
            raise UserError(f"There is no format {name!r}. {hint}There are: {known(FORMATS)}.")
    if not found:
        raise UserError(f"No format is named. There are: {known(FORMATS)}.")
    return found


def save(figure: "Figure", style: Style, file: Path) -> None:
    """Write a figure that was built in this style; the file's ending says the format."""
    format_ = file.suffix.removeprefix(".")
    with style.theme():
        figure.savefig(file, dpi=style.dpi, format=format_, **_OPTIONS[format_])
    if format_ == "svg":
        from sae_mlflow.plots.svg_fonts import embed_fonts

        embed_fonts(file)

"""How pictures look: the words for each metric, the colours, and seaborn's whitegrid."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import matplotlib
import seaborn as sns
from matplotlib.colors import Colormap, LinearSegmentedColormap

DPI = 150
INK, FAINT_INK = "#222222", "#6b6b6b"

_RC: dict[Any, Any] = {
    "text.parse_math": False,  # `$` and `_` in a model's name are drawn as they are
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": "#b0b0b0",
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlepad": 8,
    "axes.titley": 1.0,  # by itself it looks for a free place, a third of the drawing time
    "axes.labelsize": 9.5,
    "axes.linewidth": 0.8,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": "#e3e3e3",
    "grid.linewidth": 0.8,
    "legend.fontsize": 9,
    "legend.title_fontsize": 9.5,
    "savefig.dpi": DPI,
    "figure.dpi": DPI,
}

# From seaborn's "colorblind" palette.
_PALETTE = sns.color_palette("colorblind").as_hex()
_BLUE, _ORANGE, _GREEN, _PURPLE = (_PALETTE[i] for i in (0, 3, 2, 4))

# Layers are an order, so their colours are one too: even steps of lightness, also in grey and for
# colour-blind eyes; the map's palest end is left out because it drowns on white.
LAYER_COLOURS: Colormap = LinearSegmentedColormap.from_list(
    "layers", matplotlib.colormaps["plasma"]([i / 255 * 0.8 for i in range(256)])
)

Dash = Literal["solid"] | tuple[float, tuple[float, ...]]
DASHES: tuple[Dash, ...] = (
    "solid",
    (0, (5, 1.6)),
    (0, (1.2, 1.4)),
    (0, (6, 1.6, 1.2, 1.6)),
    (0, (3, 3)),
    (0, (6, 1.4, 1.2, 1.4, 1.2, 1.4)),
)


@dataclass(frozen=True)
class Look:
    """The words for one metric."""

    title: str
    axis: str
    """The unit, and which way is better."""
    colour: str = _BLUE


_POWER = "MSE / mean square (lower is better)"
_LOOKS = {
    "reconstruction_loss": Look("Reconstruction loss", _POWER),
    "total_loss": Look("Total loss", "all loss terms, MSE scale (lower is better)", _ORANGE),
    "sparsity_loss": Look("Sparsity loss", "penalty, MSE scale (lower is better)", _GREEN),
    "l0_norm": Look("L0 norm", "active latents per token (lower is sparser)", _PURPLE),
    "fvu": Look("Variance unexplained (FVU)", "fraction of the variance (lower is better)"),
    "explained_variance": Look("Explained variance", "1 - FVU (higher is better)"),
    "cosine_similarity": Look("Cosine similarity", "cosine, -1 to 1 (higher is better)"),
    "dead_fraction": Look("Dead latents", "fraction of the latents (lower is better)", _PURPLE),
    "learning_rate": Look("Learning rate", "Adam's step size", _GREEN),
    "tokens_per_second": Look("Speed", "tokens per second (higher is faster)", _GREEN),
    "ce_loss_recovered": Look("CE loss recovered", "fraction, 1 is all (higher is better)"),
}


def look_of(metric: str) -> Look:
    """The words for a metric; one that isn't known is called by its key."""
    if metric in _LOOKS:
        return _LOOKS[metric]
    if (plain := metric.removeprefix("val_")) in _LOOKS:
        look = _LOOKS[plain]
        title = look.title if look.title[:2].isupper() else look.title[0].lower() + look.title[1:]
        return Look(f"Held-out {title}", look.axis, look.colour)
    return Look(metric.replace("_", " "), metric)


@contextmanager
def theme() -> Iterator[None]:
    """The style in which a figure has to be both built and saved: ticks are made while saving."""
    with matplotlib.rc_context({**sns.axes_style("whitegrid"), **_RC}):
        yield

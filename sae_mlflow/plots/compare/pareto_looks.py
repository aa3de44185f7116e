"""How the points of a Pareto picture are told apart: by colour and by marker."""

from dataclasses import dataclass

import pandas as pd

from sae_mlflow.plots.compare.tables import layers_of
from sae_mlflow.plots.layer_key import MOST_LEGEND_ENTRIES, LayerKey
from sae_mlflow.plots.style import Style

MARKERS = "osD^vP*X<>ph"


@dataclass(frozen=True)
class Looks:
    """Colours of what was trained and markers of the layers; of many layers the other way round."""

    kinds: dict[tuple[str, str], str]
    """Of each model and architecture the colour, or the marker."""
    layers: dict[str, str]
    """Of each layer the marker, or the colour."""
    key: LayerKey | None
    """Whose colour bar names the layers, where they are many."""

    @property
    def names(self) -> list[str]:
        """Of the kinds, in their order; with the model where there are several."""
        several = len({model for model, _ in self.kinds}) > 1
        return [" · ".join(kind if several else kind[1:]) for kind in self.kinds]

    def of(self, model: str, architecture: str, layer: str) -> tuple[str, str]:
        """A point's colour and marker."""
        kind, place = self.kinds[model, architecture], self.layers[layer]
        return (place, kind) if self.key else (kind, place)


def looks_of(table: pd.DataFrame, style: Style) -> Looks:
    """Of the `pareto.points`."""
    kinds = list(table[["model", "architecture"]].drop_duplicates().itertuples(index=False))
    layers = layers_of(table)
    if len(layers) > MOST_LEGEND_ENTRIES:
        key = LayerKey(table.assign(setting=""), style)
        markers = {tuple(kind): MARKERS[i % len(MARKERS)] for i, kind in enumerate(kinds)}
        return Looks(markers, {layer: key.colour_of(layer) for layer in layers}, key)
    colours = {tuple(kind): style.colour(i) for i, kind in enumerate(kinds)}
    return Looks(colours, dict(zip(layers, MARKERS, strict=False)), None)

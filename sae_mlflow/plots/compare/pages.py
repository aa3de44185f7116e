"""Which interactive pages the comparisons become: one for pictures that differ in the metric."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from sae_mlflow.plots.pages import RunLink
from sae_mlflow.plots.pictures import Picture
from sae_mlflow.plots.style import Style, load_style

if TYPE_CHECKING:  # pandas takes a second to import
    import pandas as pd


@dataclass(frozen=True)
class ComparisonPage:
    """Pictures of one kind, of which the browser shows one after another."""

    pictures: tuple[Picture, ...]
    path: Path
    """Of its file, without its ending."""
    links: tuple[RunLink, ...] = ()
    """Of the pictures' runs."""
    style: Style = field(default_factory=load_style)
    kind: Literal["comparison_page"] = "comparison_page"

    @property
    def title(self) -> str:
        """What its pictures' titles have in common."""
        first, *others = (" · ".join(picture.title).split(" · ") for picture in self.pictures)
        return " · ".join(part for part in first if all(part in other for other in others))

    @property
    def metric(self) -> str:
        """The one that it opens with; empty where it shows several at once."""
        return self.pictures[0].metric

    @property
    def table(self) -> "pd.DataFrame":
        """Of the first picture."""
        return self.pictures[0].table

    @property
    def files(self) -> list[Path]:
        return [self.path.with_name(f"{self.path.name}.html")]

    @property
    def has_data(self) -> bool:
        return any(picture.has_data for picture in self.pictures)

    def at(self, path: Path) -> "ComparisonPage":
        return replace(self, path=path)

    def drawn(self, style: Style, _formats: Iterable[str]) -> "ComparisonPage":
        """The same in this style; there is one format."""
        return replace(self, style=style)


def comparison_pages(
    pictures: Sequence[Picture], links: tuple[RunLink, ...]
) -> list[ComparisonPage]:
    """A page for each picture, and one for those that stand on the same page.

    Args:
        pictures: of `plan.comparisons`.
        links: of the runs that they show.
    """
    return [
        ComparisonPage(tuple(alike), Path(name), links)
        for name, alike in groupby(pictures, lambda picture: picture.page)
    ]

"""Which pages a table becomes, what their files are called, and where their runs are to be seen."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit, urlunsplit

from sae_mlflow.plots.style import Style, load_style
from sae_mlflow.tracking.contents import RunRow

if TYPE_CHECKING:  # pandas takes a second to import
    import pandas as pd

    from sae_mlflow.tracking.store import Store


@dataclass(frozen=True)
class RunLink:
    """A run as a page names it."""

    run_id: str
    name: str
    address: str | None = None
    """Of its page in the MLflow UI; None where the store isn't served."""
    apart: str = ""
    """What sets it apart from others of its name: `sae.k=32 · seed 1`."""


@dataclass(frozen=True)
class Page:
    """A table to be looked at in the browser, and the file that it becomes."""

    table: "pd.DataFrame"
    path: Path
    """Of its file, without its ending."""
    title: str
    metric: str = ""
    """The one that it opens with; empty means reconstruction loss."""
    note: str = ""
    links: tuple[RunLink, ...] = ()
    """Of the table's runs; none where it comes from files."""
    style: Style = field(default_factory=load_style)
    """Of its colours, dashes and words."""
    under_way: bool = False
    """Whether runs go on: then epochs that only some have had aren't missing from the others."""
    kind: Literal["page"] = "page"

    @property
    def files(self) -> list[Path]:
        return [self.path.with_name(f"{self.path.name}.html")]

    @property
    def has_data(self) -> bool:
        return len(self.table) > 0

    def at(self, path: Path) -> "Page":
        return replace(self, path=path)

    def drawn(self, style: Style, _formats: Iterable[str]) -> "Page":
        """The same in this style; there is one format."""
        return replace(self, style=style)


def layer_page(
    table: "pd.DataFrame",
    folder: Path,
    stem: str,
    metric: str | None = None,
    note: str = "",
    links: tuple[RunLink, ...] = (),
) -> Page:
    """A layer's page, beside its pictures.

    Args:
        table: `frames.COLUMNS`, of one model, layer and setting.
        metric: the one that it opens with.
    """
    file = folder / f"{stem}_training_history"
    return Page(table, file, _title(table, "layer", "setting"), metric or "", note, links)


def all_layers_page(
    table: "pd.DataFrame",
    folder: Path,
    stem: str,
    metric: str | None = None,
    note: str = "",
    links: tuple[RunLink, ...] = (),
) -> Page:
    """The page of all layers in the table.

    Args:
        table: `frames.COLUMNS`, of one model.
        metric: the one that it opens with.
    """
    title = f"{_title(table)} · all layers"
    return Page(table, folder / f"{stem}_all_layers", title, metric or "", note, links)


def run_links(store: "Store", rows: Iterable[RunRow]) -> tuple[RunLink, ...]:
    """The runs with their pages in the UI, where the store has a web address."""
    from sae_mlflow.plots.frames import told_apart

    rows = list(rows)
    return tuple(
        RunLink(row.run_id, row.name, web_address(store, row.experiment_id, row.run_id), apart)
        for row, apart in zip(rows, told_apart(rows), strict=True)
    )


def web_address(store: "Store", experiment_id: str, run_id: str) -> str | None:
    """A run's page in the UI, without a user; None where the store isn't served."""
    parts = urlsplit(store.uri)
    if parts.scheme not in ("http", "https"):
        return None
    whole = urlsplit(store.address(experiment_id, run_id))
    # a page is passed on: no user and no password in it
    return urlunsplit(whole._replace(netloc=whole.netloc.rpartition("@")[2]))


def _title(table: "pd.DataFrame", *more: str) -> str:
    columns = ("model", *more)
    return " · ".join(filter(None, map(str, table.iloc[0][list(columns)]))) if len(table) else ""

"""Pieces of HTML. Whatever comes out of a store is escaped here, and nowhere else."""

from collections.abc import Iterable
from html import escape

from sae_mlflow.plots.pages import RunLink


class Html(str):
    """Text that is HTML already."""

    __slots__ = ()


def text(content: object) -> Html:
    """As it is read: escaped, unless it is HTML."""
    return content if isinstance(content, Html) else Html(escape(str(content)))


def element(tag: str, content: object = "", **attributes: str) -> Html:
    """One element; `class_` is its class, and an attribute of empty text is left out."""
    written = "".join(
        f' {name.rstrip("_")}="{escape(value)}"' for name, value in attributes.items() if value
    )
    return Html(f"<{tag}{written}>{text(content)}</{tag}>")


def joined(parts: Iterable[object], between: str = "") -> Html:
    return Html(between.join(map(text, parts)))


def number(content: object) -> Html:
    """A table's cell whose digits stand under each other."""
    return element("td", content, class_="number")


def cell(content: object, class_: str = "") -> Html:
    return element("td", content, class_=class_)


def table(heads: Iterable[object], rows: Iterable[Iterable[Html]], class_: str = "") -> Html:
    """A table of whole cells; a head may be a whole `th`."""
    head = element(
        "tr",
        joined(h if str(h).startswith("<th") else element("th", h, scope="col") for h in heads),
    )
    body = joined((element("tr", joined(row)) for row in rows), "\n")
    inner = joined([element("thead", head), element("tbody", body)])
    return element("div", element("table", inner, class_=class_), class_="wide")


def run_link(link: RunLink, words: str = "") -> Html:
    """To the run in the MLflow UI; where the store isn't served, its name and id."""
    name = words or link.name or link.run_id
    if link.address is None:
        return joined([text(name), " ", element("code", link.run_id)])
    return element("a", name, href=link.address, target="_blank", rel="noopener noreferrer")

"""A report as a reader finds it in the HTML: its tables, pictures, links and words."""

import base64
import io
from html.parser import HTMLParser

from PIL import Image


class ReportPage(HTMLParser):
    """What stands in a report's page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.html = html
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.tables: list[list[list[str]]] = []
        """Of each table its rows, heads first, as lists of words."""
        self.words: list[str] = []
        self._cell: list[str] | None = None
        self._style = False
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._style = tag == "style"
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self._cell = []

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self.tables[-1][-1].append(" ".join(self._cell or ()))
            self._cell = None
        self._style = False

    def handle_data(self, data):
        if not self._style and data.strip():
            self.words.append(data)
            if self._cell is not None:
                self._cell.append(data.strip())

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def attributes(self, tag: str, name: str) -> list[str]:
        return [found[name] or "" for each, found in self.tags if each == tag and name in found]

    def table(self, *heads: str) -> list[dict[str, str]]:
        """The rows of the table that has these heads, by the first word of each head."""
        for first, *rows in self.tables:
            if set(heads) <= set(first):
                return [dict(zip(first, row, strict=True)) for row in rows]
        raise AssertionError(f"no table with {heads}")

    def settings(self) -> dict[str, dict[str, str]]:
        """The settings that all runs share, by section."""
        return {t[0][0]: dict(row for row in t[1:]) for t in self.tables if len(t[0]) == 1}

    @property
    def layers(self) -> list[dict[str, str]]:
        return self.table("layer", "status", "health")

    @property
    def images(self) -> list[tuple[str, Image.Image]]:
        """Each with its alternative text; decoded to its last pixel."""
        found = []
        for tag, attributes in self.tags:
            if tag == "img":
                kind, _, data = attributes["src"].partition(",")
                assert kind == "data:image/png;base64"
                image = Image.open(io.BytesIO(base64.b64decode(data, validate=True)))
                image.load()
                found.append((attributes["alt"], image))
        return found

"""The fonts of an SVG inside it: shown right where they aren't installed, its text still text."""

import base64
import functools
import io
import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

from fontTools import subset
from fontTools.ttLib import TTFont
from matplotlib.font_manager import FontProperties, findfont
from matplotlib.ft2font import FT2Font

_TABLES = {
    *("GlyphOrder", "cmap", "head", "hhea", "hmtx", "maxp", "name", "post", "OS/2"),
    *("glyf", "loca", "CFF ", "GDEF", "GPOS", "GSUB", "kern"),
}
_SVG = "{http://www.w3.org/2000/svg}"


class _Face(NamedTuple):
    """What a text asks of a font."""

    family: str
    weight: str
    slant: str


def embed_fonts(file: Path) -> None:
    """Put the letters that a drawing of matplotlib uses of each font into its file.

    Args:
        file: an SVG that was written with `svg.fonttype: none`.
    """
    text = file.read_text(encoding="utf-8")
    rules = [_rule(face, letters) for face, letters in sorted(_letters(text).items())]
    style = "<style>\n" + "\n".join(rules) + "\n</style>"
    # its own <defs> is the first thing that matplotlib writes behind the metadata
    file.write_text(text.replace("<defs>", f"<defs>\n{style}", 1), encoding="utf-8")


def _letters(svg: str) -> Mapping[_Face, set[str]]:
    """The letters of each face: of the families that a text lists, the first one that has it."""
    found: dict[_Face, set[str]] = defaultdict(set)
    for element in ElementTree.fromstring(svg).iter(f"{_SVG}text"):
        css = dict(
            part.strip().split(": ", 1)
            for part in element.get("style", "").split(";")
            if ": " in part
        )
        weight, slant = css.get("font-weight", "400"), css.get("font-style", "normal")
        families = re.findall(r"'([^']+)'", css.get("font-family", ""))
        faces = [_Face(family, weight, slant) for family in families]
        for letter in set("".join(element.itertext())) - {"\n"}:
            face = next((face for face in faces if ord(letter) in _has(face)), None)
            if face is not None:
                found[face].add(letter)
    return found


def _font(face: _Face) -> str:
    """The font's file, as matplotlib finds it."""
    slant: Any = face.slant
    return str(findfont(FontProperties(family=face.family, weight=int(face.weight), style=slant)))


@functools.cache
def _has(face: _Face) -> frozenset[int]:
    """The letters of a font, as code points."""
    return frozenset(FT2Font(_font(face)).get_charmap())


def _rule(face: _Face, letters: set[str]) -> str:
    """A @font-face with those letters alone."""
    font = TTFont(_font(face), fontNumber=0, recalcTimestamp=False)
    options = subset.Options(layout_features=["kern", "liga"], hinting=False)
    options.drop_tables = [table for table in font.keys() if table not in _TABLES]  # noqa: SIM118
    subsetter = subset.Subsetter(options)
    subsetter.populate(text="".join(sorted(letters)))
    subsetter.subset(font)
    font.flavor = "woff"
    data = io.BytesIO()
    font.save(data)
    encoded = base64.b64encode(data.getvalue()).decode()
    return (
        f"@font-face {{font-family: '{face.family}'; font-weight: {face.weight}; "
        f"font-style: {face.slant}; src: url(data:font/woff;base64,{encoded}) format('woff');}}"
    )

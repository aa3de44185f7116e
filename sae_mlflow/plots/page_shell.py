"""The shell of a page that draws in the browser: one HTML file with all that it needs.

plotly.js makes 4.8 MB; gzipped in the page and inflated by the browser, the whole page is 2 MB. It
loads nothing, and its policy lets no script run but plotly and its own, whose hashes it names.
Names may hold anything: they stand in the page as JSON, and are shown as text.
"""

import base64
import functools
import gzip
import html
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

from sae_mlflow.plots.style_values import Dash
from sae_mlflow.whole_file import whole_file

_DIGITS = 6  # of a value in the page; the store has them all
_DASH_SCALE = 2.0  # pixels for the width that dashes are measured in


@dataclass(frozen=True)
class Around:
    """What a page has beside its chart and that chart's script."""

    above: str = ""
    """HTML over the chart."""
    style: str = ""
    """CSS, after that of all pages."""
    script: str = ""
    """A second one."""
    policy: str = ""
    """What it may do besides."""


def filled_shell(
    content: Mapping[str, Any], title: str, script: str, around: Around | None = None
) -> str:
    """A whole HTML page.

    Args:
        content: what its script finds as JSON.
    """
    around = around or Around()
    data = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return Template(beside("interactive.html")).substitute(
        policy=content_policy(script, around),
        title=html.escape(title),
        style=beside("interactive.css") + around.style,
        above=around.above,
        data=data.replace("<", r"\u003c"),  # no tag can begin, or end, within it
        plotly=_plotly()[0],
        script=script,
        below=f"<script>{around.script}</script>\n" if around.script else "",
    )


def write_html(html: str, file: Path) -> Path:
    """Write a page's one file; it is there whole, or not at all.

    Raises:
        UserError: it can't be written.
    """
    with whole_file(file) as temporary:
        temporary.write_text(html, encoding="utf-8", newline="\n")
    return file


def content_policy(script: str, around: Around) -> str:
    """A page's Content-Security-Policy: no script but plotly and its own, by their hashes."""
    codes = filter(None, (script, around.script))
    scripts = " ".join(f"'{each}'" for each in (*map(_hash, codes), _plotly()[1]))
    return (
        f"default-src 'none'; script-src {scripts}; "
        f"style-src 'unsafe-inline'; img-src data: blob:{around.policy}"
    )


def beside(name: str) -> str:
    """A file of this folder."""
    return resources.files("sae_mlflow.plots").joinpath(name).read_text(encoding="utf-8")


def rounded(value: float) -> float | None:
    """As a page holds it; None is no number."""
    return float(f"{value:.{_DIGITS}g}") if math.isfinite(value) else None


def dashes(dash: Dash) -> str:
    """As plotly and SVG call it."""
    if dash == "solid":
        return dash
    return ",".join(f"{length * _DASH_SCALE:g}px" for length in dash[1])


@functools.cache
def _plotly() -> tuple[str, str]:
    """plotly.js, gzipped and in base64, and the hash that a policy names it by."""
    library = resources.files("plotly").joinpath("package_data", "plotly.min.js").read_bytes()
    packed = gzip.compress(library, compresslevel=9, mtime=0)
    return base64.b64encode(packed).decode(), _hash(library.decode())


def _hash(script: str) -> str:
    return f"sha256-{base64.b64encode(sha256(script.encode()).digest()).decode()}"

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
from hashlib import sha256
from importlib import resources
from string import Template
from typing import Any

from sae_mlflow.plots.style_values import Dash

_DIGITS = 6  # of a value in the page; the store has them all
_DASH_SCALE = 2.0  # pixels for the width that dashes are measured in


def filled_shell(title: str, content: Mapping[str, Any], script: str, style: str = "") -> str:
    """A page as HTML.

    Args:
        content: what its script finds as JSON.
        style: CSS, after that of all pages.
    """
    data = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    plotly, plotly_hash = _plotly()
    policy = (
        f"default-src 'none'; script-src '{_hash(script)}' '{plotly_hash}'; "
        "style-src 'unsafe-inline'; img-src data: blob:"
    )
    return Template(beside("interactive.html")).substitute(
        policy=policy,
        title=html.escape(title),
        style=beside("interactive.css") + style,
        data=data.replace("<", r"\u003c"),  # no tag can begin, or end, within it
        plotly=plotly,
        script=script,
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

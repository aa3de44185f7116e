"""A report as one HTML page: no script, nothing loaded, to be read on a screen and on paper."""

import base64
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from string import Template

from sae_mlflow.errors import known
from sae_mlflow.health.finding import words
from sae_mlflow.plots.frames import describe
from sae_mlflow.plots.style import Style
from sae_mlflow.report import tables
from sae_mlflow.report.contents import Contents
from sae_mlflow.report.markup import Html, element, joined, run_link, text
from sae_mlflow.report.pictures import Shown

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"

FINDINGS = "Findings about health, and what to try"

_INCH = 96  # CSS pixels
_SHORT_NAME = 14  # characters
_MANY = 6  # layers, from which on the contents name each


@dataclass(frozen=True)
class Drawn:
    """A picture with its PNG."""

    shown: Shown
    png: bytes


@dataclass(frozen=True)
class Pictures:
    """Those of a report, by section."""

    overlays: Sequence[Drawn] = ()
    compared: Sequence[Drawn] = ()
    histories: Sequence[Drawn] = ()


@dataclass(frozen=True)
class Section:
    anchor: str
    title: str
    content: Html


def page_html(contents: Contents, pictures: Pictures, style: Style, made: str) -> str:
    """The whole page.

    Args:
        made: when, in words.
    """
    sections = [s for s in _sections(contents, pictures, style) if s.content]
    return Template(_beside("page.html")).substitute(
        policy=POLICY,
        title=text(f"{contents.experiment}: SAE report"),
        colours=_colours(style),
        style=_beside("page.css"),
        look="dark" if _is_dark(style.colours.page) else "light",
        header=_header(contents, made),
        nav=_nav(sections, pictures),
        main=joined((_section(section) for section in sections), "\n"),
    )


def _header(contents: Contents, made: str) -> Html:
    starts = [run.row.start_time for run in contents.runs]
    days = dict.fromkeys([tables.day(min(starts)), tables.day(max(starts))])
    lines = [
        element("h1", contents.experiment),
        element("p", known(contents.models), class_="models"),
        element("p", describe(run.row for run in contents.runs)),
        element("p", f"{tables.counted(contents)}. Health: {tables.ailing(contents)}."),
        element("p", f"Trained {' to '.join(days)}; as of {made}.", class_="faint"),
    ]
    return joined(lines, "\n")


def _nav(sections: Sequence[Section], pictures: Pictures) -> Html:
    items = []
    for section in sections:
        inner = element("a", section.title, href=f"#{section.anchor}")
        if section.anchor == "histories" and len(pictures.histories) >= _MANY:
            inner = joined([inner, _names([drawn.shown.short for drawn in pictures.histories])])
        items.append(element("li", inner))
    return element("ul", joined(items, "\n"))


def _names(names: Sequence[str]) -> Html:
    """Of the histories, in columns."""
    links = (element("a", name, href=f"#history-{n}") for n, name in enumerate(names))
    long = max(map(len, names)) > _SHORT_NAME
    return element("div", joined(links, "\n"), class_="names long" if long else "names")


def _sections(contents: Contents, pictures: Pictures, style: Style) -> list[Section]:
    anchors = {
        run.row.run_id: f"history-{n}"
        for n, drawn in enumerate(pictures.histories)
        for run in drawn.shown.runs
    }
    ill = any(run.verdict.findings for run in contents.runs)
    layers = [_p(_about(contents)), tables.layers_table(contents, anchors)]
    settings = [
        element("h3", "The same in all runs"),
        element("div", tables.shared_tables(contents.runs), class_="columns"),
    ]
    if differing := tables.differing_tables(contents.runs, anchors):
        settings += [element("h3", "What differs by run"), differing]
    findings = tables.findings_table(contents, anchors) if ill else _p("None: all is well.")
    return [
        Section("layers", "Layers", joined(layers)),
        Section("findings", FINDINGS, joined([findings, *tables.failures(contents)])),
        Section("overlays", "All layers", _overlays(contents, pictures, style)),
        Section("comparisons", "Comparisons", _figures(pictures.compared, style)),
        Section("histories", "Training histories", _histories(contents, pictures, style)),
        Section("settings", "Settings", joined(settings)),
        Section("runs", "Runs", tables.runs_table(contents, anchors)),
    ]


def _p(words: str) -> Html:
    return element("p", words)


def _about(contents: Contents) -> str:
    said = "Last values, as they stand in the store; where a run lacks a column's metric, its own "
    said += "is named. Failed and unfinished trainings are here as far as they came."
    if any(run.repeated for run in contents.runs):
        said += " Pictures show the last training of each layer, settings and seed."
    return said


def _section(section: Section) -> Html:
    return element(
        "section", joined([element("h2", section.title), section.content]), id=section.anchor
    )


def _overlays(contents: Contents, pictures: Pictures, style: Style) -> Html:
    if not contents.finished:
        return _p("No training has finished, so there is nothing to lay over each other.")
    return _figures(pictures.overlays, style)


def _figures(pictures: Sequence[Drawn], style: Style) -> Html:
    return joined((_figure(drawn, style) for drawn in pictures), "\n")


def _histories(contents: Contents, pictures: Pictures, style: Style) -> Html:
    figures = (_figure(drawn, style, f"history-{n}") for n, drawn in enumerate(pictures.histories))
    drawn_ids = {run.row.run_id for drawn in pictures.histories for run in drawn.shown.runs}
    bare = [r.link.name for r in contents.runs if r.row.run_id not in drawn_ids and not r.repeated]
    said = [_p(f"Without any epoch in the store: {known(bare, 30)}.")] if bare else []
    return joined([*figures, *said], "\n")


def _figure(drawn: Drawn, style: Style, anchor: str = "") -> Html:
    shown = drawn.shown
    width, height = _size(drawn.png, style.dpi)
    source = f"data:image/png;base64,{base64.b64encode(drawn.png).decode()}"
    alt = text(f"{shown.title}. {shown.text}")
    image = Html(f'<img src="{source}" width="{width}" height="{height}" alt="{alt}">')
    caption = joined([element("b", shown.title), ". ", text(shown.text), *_said_of_runs(shown)])
    class_ = "tall" if height > width else ""
    return element(
        "figure", joined([image, element("figcaption", caption)]), id=anchor, class_=class_
    )


def _said_of_runs(shown: Shown) -> list[Html]:
    """How they ended where they didn't finish, their health, and where they are."""
    said = []
    for run in shown.runs:
        parts = [run_link(run.link)]
        if not run.finished:
            parts.append(text(f"{tables.status_words(run)}, epochs: {tables.epochs_words(run)}"))
        codes = [words(finding.code) for finding in run.verdict.findings]
        parts.append(
            text(f"health {run.verdict.status}" + (f": {', '.join(codes)}" if codes else ""))
        )
        said.append(joined([" ", element("span", joined(["Run ", joined(parts, ", "), "."]))]))
    return said


def _size(png: bytes, dpi: int) -> tuple[int, int]:
    """In CSS pixels, as large as it was drawn; a PNG's first chunk begins with its size."""
    return tuple(round(n * _INCH / dpi) for n in struct.unpack(">II", png[16:24]))


def _colours(style: Style) -> Html:
    from matplotlib.colors import to_hex

    names = ("ink", "faint", "edge", "grid", "page", "panel", "warning", "failed")
    return joined((f"--{name}: {to_hex(getattr(style.colours, name))};" for name in names), " ")


def _is_dark(colour: str) -> bool:
    from matplotlib.colors import rgb_to_hsv, to_rgb

    return bool(rgb_to_hsv(to_rgb(colour))[2] < 0.5)


def _beside(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")

"""A report's tables: layers with their final figures, findings, settings, runs."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime

from sae_mlflow.errors import known
from sae_mlflow.health.finding import shown, words
from sae_mlflow.plots.compare.tables import FINAL_METRICS
from sae_mlflow.plots.numbers import number_text
from sae_mlflow.report.contents import Contents, Final, LayerRun
from sae_mlflow.report.markup import Html, cell, element, joined, number, run_link, table, text
from sae_mlflow.report.settings import UNSET, differing_settings, shared_settings
from sae_mlflow.tracking.contents import FAILURE_TAG

SYMBOLS = {"ok": "✓", "warning": "▼", "failed": "✗"}
"""Apart in shape as well as in colour; the last two as in pictures."""

_FORMATS = {"FVU": ".4f", "L0": ".1f", "dead": ".1%", "CE recovered": ".1%"}
_LARGE = 1e5  # from here on a number is written in powers of ten
_LONGEST_REASON = 500  # characters
_COLUMNS = 5  # of settings that differ, side by side on paper

Anchors = dict[str, str]
"""By run id: where on the page its pictures are."""


def layers_table(contents: Contents, anchors: Anchors) -> Html:
    """A row for each run, however it ended."""
    usual = {name: _usual(contents.runs, name) for name in FINAL_METRICS}
    differ, several = contents.settings_differ, len(contents.models) > 1
    heads: list[object] = [*(["model"] if several else []), "layer", "architecture"]
    heads += ["setting"] if differ else []
    heads += [_number_head("seed"), "status", _number_head("epochs")]
    heads += [_number_head(name, usual[name]) for name in FINAL_METRICS] + ["health"]
    rows = [
        [
            *([cell(run.row.model, "name")] if several else []),
            cell(layer_link(run, anchors, run.row.layer), "layer"),
            cell(run.row.architecture),
            *([cell(run.setting, "name")] if differ else []),
            number(run.seed),
            cell(status_words(run), "word"),
            number(epochs_words(run)),
            *(number(_final(run.final(name), usual[name])) for name in FINAL_METRICS),
            cell(_health(run), run.verdict.status),
        ]
        for run in contents.runs
    ]
    return table(heads, rows, "layers")


def findings_table(contents: Contents, anchors: Anchors) -> Html:
    """A row for each finding, the worst of each run first."""
    heads = ["layer", "severity", "finding", _number_head("epoch"), "what to try"]
    rows = [
        [
            name,
            cell(f"{SYMBOLS[finding.severity]} {finding.severity}", f"word {finding.severity}"),
            cell(joined([element("b", words(finding.code)), f": {finding.message}"])),
            number("" if finding.epoch is None else finding.epoch),
            cell(finding.advice),
        ]
        for run, name in zip(contents.runs, _named(contents.runs, anchors), strict=True)
        for finding in run.verdict.findings
    ]
    return table(heads, rows, "findings")


def failures(contents: Contents) -> Iterator[Html]:
    """Why runs have failed, where no finding says so."""
    for run in contents.runs:
        reason = run.row.tags.get(FAILURE_TAG, "")
        if reason and not any(finding.code == "run_failed" for finding in run.verdict.findings):
            words_of_it = f" {run.row.status.lower()}: {reason[:_LONGEST_REASON]}"
            yield element("p", joined([element("b", run.label), words_of_it]))


def shared_tables(runs: Sequence[LayerRun]) -> Html:
    """What all runs were trained with, a small table a section."""
    return joined(
        table(
            [element("th", section or "in general", scope="colgroup", colspan="2")],
            ([cell(name, "key"), cell(value)] for name, value in values.items()),
            "settings",
        )
        for section, values in shared_settings(runs).items()
    )


def differing_tables(runs: Sequence[LayerRun], anchors: Anchors) -> Html:
    """What isn't the same in all runs, as many tables as fit on paper; often it is the data."""
    columns = list(differing_settings(runs).items())
    chunks = (columns[first : first + _COLUMNS] for first in range(0, len(columns), _COLUMNS))
    named = _named(runs, anchors)
    return joined(_differing(named, dict(chunk)) for chunk in chunks)


def _differing(named: Sequence[Html], columns: Mapping[str, Sequence[str]]) -> Html:
    digits = {key: all(map(_is_number, values)) for key, values in columns.items()}
    rows = [
        [name, *(number(v[n]) if digits[key] else cell(v[n]) for key, v in columns.items())]
        for n, name in enumerate(named)
    ]
    heads = [_number_head(key) if digits[key] else key for key in columns]
    return table(["layer", *heads], rows, "differing")


def runs_table(contents: Contents, anchors: Anchors) -> Html:
    """Every run with its id, and its address where there is one; the parents first."""
    links = [(link, cell("parent")) for link in contents.parents]
    named = _named(contents.runs, anchors)
    links += [(run.link, name) for run, name in zip(contents.runs, named, strict=True)]
    served = any(link.address for link, _ in links)
    rows = [
        [
            cell(link.name, "name"),
            what,
            cell(element("code", link.run_id)),
            *([cell(run_link(link, link.address or ""), "address")] if served else []),
        ]
        for link, what in links
    ]
    return table(["run", "layer", "id", *(["in the MLflow UI"] if served else [])], rows, "runs")


def layer_link(run: LayerRun, anchors: Anchors, words: str = "") -> Html:
    """To its picture on the page."""
    words, anchor = words or run.label, anchors.get(run.row.run_id)
    return element("a", words, href=f"#{anchor}") if anchor else text(words)


def status_words(run: LayerRun) -> str:
    status = run.row.status.lower()
    return f"{status}, trained again later" if run.repeated else status


def epochs_words(run: LayerRun) -> str:
    """`8`, or `3 of 8` where it is not all of them."""
    asked = run.epochs_asked
    return str(run.epochs) if asked in ("", str(run.epochs)) else f"{run.epochs} of {asked}"


def day(milliseconds: int) -> str:
    return f"{datetime.fromtimestamp(milliseconds / 1000, UTC):%Y-%m-%d}"


def counted(contents: Contents) -> str:
    """`4 trainings of 3 layers: 3 finished, 1 failed`."""
    states = [run.row.status.lower() for run in contents.runs]
    layers = len({(run.row.model, run.row.layer) for run in contents.runs})
    counts = [f"{states.count(state)} {state}" for state in dict.fromkeys(sorted(states))]
    counts.sort(key=lambda count: not count.endswith(" finished"))
    return f"{_plural(len(states), 'training')} of {_plural(layers, 'layer')}: {', '.join(counts)}"


def ailing(contents: Contents) -> str:
    """How many runs are well, and which aren't."""
    by_status = {
        status: [run.label for run in contents.runs if run.verdict.status == status]
        for status in SYMBOLS
    }
    parts = [
        f"{SYMBOLS[status]} {len(layers)} {status}"
        + (f" ({known(dict.fromkeys(layers), 6)})" if status != "ok" else "")
        for status, layers in by_status.items()
        if layers
    ]
    return ", ".join(parts)


def _plural(n: int, what: str) -> str:
    return f"{n} {what}" if n == 1 else f"{n} {what}s"


def _number_head(name: object, metric: str = "") -> Html:
    small = [element("small", metric)] if metric else []
    return element("th", joined([text(name), *small]), scope="col", class_="number")


def _is_number(value: str) -> bool:
    """Whether a setting's value is one, or is unset."""
    return value == UNSET or value.replace(".", "", 1).replace("e-", "", 1).isdecimal()


def _usual(runs: Sequence[LayerRun], name: str) -> str:
    """The metric that a column's figures are; the first that any run has."""
    there = {final.metric for run in runs if (final := run.final(name))}
    return next((metric for metric in FINAL_METRICS[name] if metric in there), "")


def _final(final: Final | None, usual: str) -> Html:
    """A figure; where it is another metric than the column's, which one."""
    if final is None:
        return text("-")
    name = next(name for name, metrics in FINAL_METRICS.items() if final.metric in metrics)
    value = final.value
    plain = math.isfinite(value) and abs(value) < _LARGE
    shown_value = format(value, _FORMATS[name]) if plain else number_text(value)
    other = [element("small", final.metric)] if final.metric != usual else []
    return joined([text(shown_value), *other])


def _health(run: LayerRun) -> str:
    found = shown([(finding.code, finding.epoch) for finding in run.verdict.findings])
    status = f"{SYMBOLS[run.verdict.status]} {run.verdict.status}"
    return f"{status}: {found}" if found else status


def _named(runs: Sequence[LayerRun], anchors: Anchors) -> list[Html]:
    """For each run a cell with its layer, and what tells it from others of that layer."""
    labels = Counter(run.label for run in runs)
    return [
        cell(
            joined([layer_link(r, anchors), *(_telling(r) if labels[r.label] > 1 else ())]), "layer"
        )
        for r in runs
    ]


def _telling(run: LayerRun) -> Iterator[Html]:
    """In small letters."""
    said = (run.row.architecture, run.setting, f"seed {run.seed}")
    yield element("small", " · ".join(filter(None, said)))

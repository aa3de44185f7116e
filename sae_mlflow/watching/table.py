"""Where trainings stand, for a terminal: a table of layers, or lines of what has changed."""

import math
from collections.abc import Iterator, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from sae_mlflow.errors import known
from sae_mlflow.health.finding import parse_reasons, shown
from sae_mlflow.health.table import HEALTH_COLOURS
from sae_mlflow.history import restored
from sae_mlflow.terminal import plain
from sae_mlflow.tracking.contents import FAILED, FINISHED, KILLED, RUNNING
from sae_mlflow.watching.state import WAITING, LayerState, TrainingState

_BARS = "▁▂▃▄▅▆▇█"
_WIDTH, _NARROW_WIDTH = 16, 8  # of a sparkline, in characters
_REASON_LINES = 6
_WIDE = 100  # columns of a terminal that leave room for the wide one
_COLOURS = {FINISHED: "green", FAILED: "red", KILLED: "red", RUNNING: "cyan", WAITING: "dim"}


def tables(
    trainings: Sequence[TrainingState], addresses: Sequence[str], note: str = "", width: int = 80
) -> Group:
    """All trainings, each under the address of its run; a note stands below them.

    Args:
        width: of the terminal, in characters.
    """
    curve = _WIDTH if width >= _WIDE else _NARROW_WIDTH
    parts: list[RenderableType] = []
    for training, address in zip(trainings, addresses, strict=True):
        parts += [
            Text(title(training), style="bold"),
            Text(address, style="dim", overflow="fold"),
            _table(training, curve),
            *(Text(line, style="yellow") for line in reasons(training)),
        ]
    return Group(*parts, *([Text(note, style="yellow")] if note else []))


def news(before: Sequence[TrainingState], now: Sequence[TrainingState]) -> Iterator[str]:
    """A line for each layer that had another epoch or another status since, and for a training that
    has failed."""
    failed = {t.run_id for t in before if t.failure}
    known = {(t.run_id, x.layer): (x.status, x.epoch) for t in before for x in t.layers}
    for training in now:
        for layer in training.layers:
            if layer.status == WAITING:
                continue
            if known.get((training.run_id, layer.layer)) != (layer.status, layer.epoch):
                facts = (f"{name} {text}" if name else text for name, text in _facts(layer))
                yield plain("  ".join(facts))
        if training.failure and training.run_id not in failed:
            yield plain(f"{training.model or training.run_id}  {_failure(training)}")


def sparkline(values: Sequence[float], width: int = _WIDTH) -> str:
    """A curve in one line of text, from its lowest value to its highest; `x` is not a number.

    More values than there is width for are averaged in groups of as equal a size as can be.
    """
    n = min(len(values), width)
    means = [_mean(values[len(values) * i // n : len(values) * (i + 1) // n]) for i in range(n)]
    finite = [value for value in means if math.isfinite(value)]
    low = min(finite, default=0.0)
    span = max(finite, default=0.0) - low
    return "".join(_bar((value - low) / span if span else 0.0 * value) for value in means)


def duration(seconds: float | None) -> str:
    """`45 s`, `3 min`, `2 h 05 min`."""
    if seconds is None:
        return ""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02} min"


def title(training: TrainingState) -> str:
    """A training in a line: its model, how far it is, the time left."""
    done = sum(layer.status not in (WAITING, RUNNING) for layer in training.layers)
    parts = [plain(training.model) or training.run_id, training.status.lower()]
    parts.append(f"{done} of {len(training.layers)} layers done")
    if training.is_running and training.seconds_left is not None:
        parts.append(f"about {duration(training.seconds_left)} left")
    return " · ".join(parts)


def _table(training: TrainingState, curve: int) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold underline")
    for name in ("layer", "state", "epoch", "loss", "", "val FVU", "L0", "dead", "health", "left"):
        left = name in ("layer", "state", "", "health")
        table.add_column(name, justify="left" if left else "right", no_wrap=True)
    for layer in training.layers:
        facts = cells(layer)
        table.add_row(
            Text(facts["layer"]),
            Text(facts["state"], style=_COLOURS.get(layer.status, "")),
            facts["epoch"],
            facts["loss"],
            Text(sparkline(layer.losses, curve)),
            *(facts[name] for name in ("val FVU", "L0", "dead")),
            Text(facts["health"], style=HEALTH_COLOURS.get(layer.health, "")),
            facts["left"],
        )
    return table


def cells(layer: LayerState) -> dict[str, str]:
    """What a table says of a layer, by the names of its columns."""
    figures = layer.figures or {}
    return {
        "layer": plain(layer.layer),
        "state": plain(layer.status.lower()),
        "epoch": _epoch(layer),
        "loss": _number(figures.get("total_loss"), ".4f"),
        "val FVU": _number(figures.get("val_fvu"), ".4f"),
        "L0": _number(figures.get("l0_norm"), ".1f"),
        "dead": _number(figures.get("dead_fraction"), ".1%"),
        "health": plain(layer.health),
        "left": duration(layer.seconds_left) if layer.status == RUNNING else "",
    }


def reasons(training: TrainingState) -> list[str]:
    """A line for a training that has failed, and for each layer that isn't well; many that ail of
    the same share one."""
    by_reasons: dict[str, list[str]] = {}
    for layer in training.layers:
        if found := _why(layer):
            by_reasons.setdefault(found, []).append(plain(layer.layer))
    lines = [f"{found}: {known(layers, 4)}" for found, layers in by_reasons.items()]
    more = [f"and {len(lines) - _REASON_LINES} more"] if len(lines) > _REASON_LINES else []
    failure = [plain(_failure(training))] if training.failure else []
    return failure + lines[:_REASON_LINES] + more


def _failure(training: TrainingState) -> str:
    return f"{training.status.lower()}: {_first_line(training.failure)}"


def _why(layer: LayerState) -> str:
    """What was found in a layer, and why it ended before its time."""
    found, failure = shown(parse_reasons(layer.reasons)), _first_line(layer.failure)
    return plain(f"{found} ({failure})" if found and failure else found or failure)


def _first_line(text: str) -> str:
    return next(iter(text.splitlines()), "")


def _facts(layer: LayerState) -> list[tuple[str, str]]:
    figures, found = layer.figures or {}, _why(layer)
    facts = [("", layer.layer), ("", layer.status.lower()), ("epoch", _epoch(layer))]
    facts += [
        ("loss", _number(figures.get("total_loss"), ".4f")),
        ("held-out FVU", _number(figures.get("val_fvu"), ".4f")),
        ("L0", _number(figures.get("l0_norm"), ".1f")),
        ("dead", _number(figures.get("dead_fraction"), ".1%")),
        ("health", f"{layer.health} ({found})" if found else layer.health),
        ("time left", duration(layer.seconds_left) if layer.status == RUNNING else ""),
    ]
    return [(name, text) for name, text in facts if text]


def _epoch(layer: LayerState) -> str:
    if layer.status == WAITING:
        return ""
    return f"{layer.epoch}/{layer.epochs}" if layer.epochs else str(layer.epoch)


def _number(value: float | None, form: str) -> str:
    if value is None:
        return ""
    if math.isnan(value):
        return "NaN"
    return format(value, form) if math.isfinite(restored(value)) else "infinity"


def _bar(height: float) -> str:
    """Of a height from 0 to 1."""
    return _BARS[round(height * (len(_BARS) - 1))] if math.isfinite(height) else "x"


def _mean(values: Sequence[float]) -> float:
    held = [value if math.isfinite(restored(value)) else math.nan for value in values]
    return sum(held) / len(held)

"""What a watch has to show in a browser: its page, and the newest state behind it."""

import json
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from importlib import resources
from typing import Any

from sae_mlflow.plots.interactive import curves_script
from sae_mlflow.plots.page_shell import Around, content_policy, filled_shell
from sae_mlflow.plots.pages import web_address
from sae_mlflow.tracking.store import Store
from sae_mlflow.watching.curves import Curves, short_name
from sae_mlflow.watching.state import LayerState, TrainingState
from sae_mlflow.watching.table import cells, reasons, title

PAGE, STATE, CURVES = "/", "/state", "/curves"
_OWN_REQUESTS = "; connect-src 'self'; base-uri 'none'; form-action 'none'"
_UNFRAMED = "; frame-ancestors 'none'"  # a header alone can say so
NOTHING = f"default-src 'none'{_UNFRAMED}"


@dataclass(frozen=True)
class Answer:
    """A body, and the tag by which a page knows that it has it already."""

    body: bytes
    kind: str
    policy: str = NOTHING
    """What it may do in a browser."""

    @cached_property
    def tag(self) -> str:
        return f'"{sha256(self.body).hexdigest()[:32]}"'


class Board:
    """What is shown, by path. One thread writes; any may read.

    The page is the same throughout. It asks for the state, which is small, and for the curves
    when the state names others than it has.
    """

    def __init__(self, store: Store, heading: str) -> None:
        self._store = store
        self._curves = Curves(store, heading)
        self._trainings: Sequence[TrainingState] = ()
        self._trouble, self._since = "", 0.0
        self._ended = False
        self._drawn: Mapping[str, Any] | None = None
        self.answers: Mapping[str, Answer] = {PAGE: _page(self._curves.content, heading)}
        self._delivered = threading.Condition()
        self._taken: set[str] = set()
        self._show()

    def read(self, trainings: Sequence[TrainingState]) -> None:
        """Show where trainings stand, with their curves.

        Raises:
            OutOfReach: the store doesn't answer.
        """
        self._curves.read(trainings)
        self._trainings, self._trouble = trainings, ""
        self._show()

    def out_of_reach(self, trouble: str) -> None:
        """Show what is wrong with the store, over what was last read."""
        if not self._trouble:
            self._since = time.time()
        self._trouble = trouble
        self._show()

    def end(self, wait_seconds: float) -> None:
        """Show that all has ended; returns when a page has got that, or after a while."""
        self._ended = True
        self._show()
        last = {self.answers[path].tag for path in (STATE, CURVES)}
        with self._delivered:
            self._delivered.wait_for(lambda: last <= self._taken, wait_seconds)

    def taken(self, tag: str) -> None:
        """A page has got an answer, or said that it has it."""
        with self._delivered:
            self._taken &= {answer.tag for answer in self.answers.values()}
            self._taken.add(tag)
            self._delivered.notify_all()

    def _show(self) -> None:
        """Put all answers in place at once: no page gets a state and the curves of another."""
        new = dict(self.answers)
        if self._drawn is not self._curves.content:
            self._drawn = self._curves.content
            new[CURVES] = _json(self._drawn)
        new[STATE] = _json(
            {
                "curves": new[CURVES].tag,
                "trainings": [self._training(training) for training in self._trainings],
                "trouble": self._trouble,
                "since": self._since if self._trouble else None,
                "ended": self._ended,
            }
        )
        self.answers = new

    def _training(self, training: TrainingState) -> dict[str, Any]:
        parts = [title(training)]
        if len(self._trainings) > 1:
            parts.append(short_name(training.run_id))
        return {
            "run": training.run_id,
            "title": " · ".join(parts),
            "address": web_address(self._store, training.experiment_id, training.run_id),
            "layers": [self._layer(training, layer) for layer in training.layers],
            "reasons": reasons(training),
        }

    def _layer(self, training: TrainingState, layer: LayerState) -> dict[str, Any]:
        address = (
            web_address(self._store, training.experiment_id, layer.run_id) if layer.run_id else None
        )
        return {"address": address, "cells": cells(layer)}


def _json(content: Mapping[str, Any]) -> Answer:
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return Answer(text.encode(errors="replace"), "application/json; charset=utf-8")


def _page(content: Mapping[str, Any], heading: str) -> Answer:
    """The curves' page, with what stands above them and the script that keeps both up."""
    names = ("page.html", "page.css", "page.js")
    above, style, script = (
        resources.files("sae_mlflow.watching").joinpath(name).read_text(encoding="utf-8")
        for name in names
    )
    around = Around(above, style, script, _OWN_REQUESTS)
    curves = curves_script()
    html = filled_shell(content, heading, curves, around)
    policy = content_policy(curves, around) + _UNFRAMED
    return Answer(html.encode(errors="replace"), "text/html; charset=utf-8", policy)

"""A chromium for tests, and what is done in it to a plotly chart."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

CHROMIUM = Path("/usr/bin/chromium")
MUST_RUN = os.environ.get("SAE_MLFLOW_BROWSER") == "1"
"""Then a missing browser is a failure."""

PATIENCE = 60_000  # milliseconds that a machine with other work may take


@contextmanager
def chromium() -> Iterator:
    """A browser; where there is none, the test is skipped unless it must run."""
    if not MUST_RUN:
        pytest.importorskip("playwright", reason="the extra `browser` isn't installed")
        if not CHROMIUM.exists():
            pytest.skip(f"there is no {CHROMIUM}")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM,
            args=["--no-sandbox"],  # as root it can't have one
        )
        yield browser
        browser.close()


class Tab:
    """A browser's tab that keeps what goes wrong in it, and what it asks of the network."""

    def __init__(self, browser, width: int = 1280, height: int = 800) -> None:
        self.context = browser.new_context(viewport={"width": width, "height": height})
        self.context.set_default_timeout(PATIENCE)
        self.page = self.context.new_page()
        self.errors: list[tuple[str, str]] = []
        """Where and what: errors and warnings in the console, and exceptions, of any frame."""
        self.requests: list[str] = []
        self.page.on("console", self._said)
        self.page.on("pageerror", lambda error: self.errors.append((error.stack or "", str(error))))
        self.page.on("request", lambda request: self.requests.append(request.url))

    def _said(self, message) -> None:
        if message.type in ("error", "warning"):
            self.errors.append((message.location["url"], message.text))

    def open(self, address: str) -> None:
        self.page.goto("about:blank")  # where only what follows # differs, nothing would load
        self.page.goto(address)

    def errors_beside(self, server: str) -> list[tuple[str, str]]:
        """Those that aren't of the MLflow UI's own scripts and requests."""
        return [(where, what) for where, what in self.errors if f"{server}/" not in where]

    def point(self, frame, curve: int, epoch: int) -> tuple[float, float]:
        """Where a chart's marker is on the screen; both counted from 0."""
        marker = frame.locator(".scatterlayer .trace").nth(curve).locator(".point").nth(epoch)
        marker.wait_for()
        box = marker.bounding_box()
        return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2

    def hover(self, frame, curve: int, epoch: int) -> list[str]:
        """Points at a chart's marker; the lines of the label that shows then."""
        label = frame.locator(".hoverlayer .hovertext")
        frame.locator("#title").hover()
        label.wait_for(state="detached")  # of what was pointed at before
        self.page.mouse.move(*self.point(frame, curve, epoch))
        label.wait_for()
        return label.locator("tspan.line").all_text_contents()

    def click(self, frame, curve: int, epoch: int) -> None:
        """Clicks on a chart's marker."""
        self.hover(frame, curve, epoch)
        self.page.mouse.click(*self.point(frame, curve, epoch))

"""What a person sees while a training runs: bars in a terminal, plain lines anywhere else."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.logging import RichHandler
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from sae_mlflow.records import EpochRecord, StepRecord
from sae_mlflow.terminal import ShownLines, plain, shown

_MAX_LINES_PER_LAYER = 10
_PLAIN_WIDTH = 120
_BAR_WIDTH_NEEDED = 110


class Display:
    """Reports to a console; `lines` where it is not a terminal."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(highlight=False)
        if not self.console.is_terminal:
            self.console = Console(file=self.console.file, width=_PLAIN_WIDTH, highlight=False)
        handler = RichHandler(console=self.console, show_time=False, show_path=False)
        handler.addFilter(ShownLines())
        logging.getLogger("sae_mlflow").handlers = [handler]
        logging.getLogger("sae_mlflow").setLevel(logging.INFO)

    def say(self, text: str) -> None:
        self.console.print(shown(text), markup=False, soft_wrap=True)

    def warn(self, text: str) -> None:
        line = shown(f"warning: {text}")
        self.console.print(line, style="yellow", markup=False, soft_wrap=True)

    @contextmanager
    def harvest(self, n_tokens: int) -> Iterator[Callable[[int], None]]:
        """Progress of reading text with the LM; the function takes the tokens read so far."""
        with self._progress("{task.fields[note]}") as progress:
            task = progress.add_task("activations", total=n_tokens, note="")

            def update(done: int) -> None:
                speed = progress.tasks[task].speed or 0.0
                progress.update(task, completed=done, note=f"{speed:,.0f} tokens/s")

            yield update
        if not self.console.is_terminal:
            self.say(f"activations: {n_tokens:,} tokens read")

    @contextmanager
    def layer(self, label: str, epochs: int, epoch_tokens: int) -> Iterator["LayerDisplay"]:
        """Progress of one SAE's training."""
        if not self.console.is_terminal:
            yield LineLayer(self, label, epochs)
            return
        with self._progress("{task.fields[note]}") as progress:
            yield BarLayer(progress, label, epochs, epoch_tokens)

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        table = Table(title=Text(plain(title), style="table.title"), title_justify="left")
        for column in columns:
            table.add_column(column, justify="left" if column in {"layer", "run"} else "right")
        for row in rows:
            table.add_row(*(Text(plain(cell)) for cell in row))
        self.console.print(table)

    def _progress(self, note: str) -> Progress:
        bar: list[ProgressColumn] = []
        if self.console.width >= _BAR_WIDTH_NEEDED:  # 80 columns are just enough for the figures
            bar = [BarColumn(bar_width=20), TextColumn("{task.percentage:>3.0f}%")]
        return Progress(
            TextColumn("{task.description}", style="bold"),
            *bar,
            TimeRemainingColumn(),
            TextColumn(note),
            console=self.console,
            disable=not self.console.is_terminal,
        )


class LayerDisplay:
    """Takes each record of a training."""

    def resume(self, tokens: int) -> None:
        """So many were trained on before."""

    def step(self, record: StepRecord) -> None: ...

    def epoch(self, record: EpochRecord) -> None: ...


class BarLayer(LayerDisplay):
    """One bar a layer, with the running figures of the epoch beside it."""

    def __init__(self, progress: Progress, label: str, epochs: int, epoch_tokens: int) -> None:
        self._progress = progress
        self._epochs = epochs
        self._task = progress.add_task(label, total=epochs * epoch_tokens, note="")

    def resume(self, tokens: int) -> None:
        self._progress.update(self._task, completed=tokens)

    def step(self, record: StepRecord) -> None:
        so_far = record.so_far
        speed = self._progress.tasks[self._task].speed or 0.0
        note = (
            f"epoch {record.epoch}/{self._epochs} loss {record.loss.item():.3f} "
            f"FVU {so_far.fvu():.3f} L0 {so_far.l0_norm():.0f} "
            f"dead {record.n_dead.item():,.0f} {speed:,.0f} tok/s"
        )
        self._progress.update(self._task, advance=record.tokens, note=note)


class LineLayer(LayerDisplay):
    """One line an epoch, at most ten a layer."""

    def __init__(self, display: Display, label: str, epochs: int) -> None:
        self._display = display
        self._label = label
        self._epochs = epochs

    def epoch(self, record: EpochRecord) -> None:
        every = -(-self._epochs // _MAX_LINES_PER_LAYER)
        if record.epoch % every and record.epoch != self._epochs:
            return
        m = record.metrics
        self._display.say(
            f"{self._label}  epoch {record.epoch}/{self._epochs}  loss {m['total_loss']:.4f}  "
            f"FVU {m['fvu']:.4f}  held-out FVU {m['val_fvu']:.4f}  L0 {m['l0_norm']:.1f}  "
            f"dead {m['dead_fraction']:.1%}  {m['tokens_per_second']:,.0f} tokens/s"
        )

"""`sae-mlflow watch`: where trainings stand, read from the store until they end."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address
from typing import TYPE_CHECKING, Annotated, NamedTuple
from urllib.parse import urlsplit

import typer

from sae_mlflow.commands.cli import TRACKING_URI, check_one_of
from sae_mlflow.errors import OutOfReach, UserError
from sae_mlflow.stopping import Stopping
from sae_mlflow.terminal import shown
from sae_mlflow.tracking.contents import FAILED, KILLED

if TYPE_CHECKING:  # rich takes a tenth of a second to import, mlflow two
    from rich.console import Console

    from sae_mlflow.tracking.store import Store
    from sae_mlflow.watching.board import Board
    from sae_mlflow.watching.state import TrainingState, Watch

EXIT_SOME_FAILED = 1
_LAST_LOOK_SECONDS = 10.0  # that a page has for the end; a browser that is only starting needs some
_OTHER_PAGES_SECONDS = 1.5  # that others have then: they ask once a second


class Place(NamedTuple):
    """Where a page is served."""

    port: int | None
    host: str
    names: tuple[str, ...]


def watch_command(
    experiment: Annotated[
        str | None, typer.Option(help="Watch all trainings of this MLflow experiment that run.")
    ] = None,
    run: Annotated[
        str | None, typer.Option(help="Watch this run alone: a training's parent, or a layer.")
    ] = None,
    every: Annotated[
        float, typer.Option(min=0.1, help="Seconds between two looks into the store.")
    ] = 2.0,
    browser: Annotated[
        bool,
        typer.Option(
            "--browser",
            help="Also show a page, on this machine alone (127.0.0.1), whose curves grow with "
            "every epoch.",
        ),
    ] = False,
    port: Annotated[
        int | None,
        typer.Option(min=1, max=65535, help="The page's; unset means a free one."),
    ] = None,
    host: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="With --browser: an address of this machine to serve the page at, to whoever "
            "reaches it. [default: 127.0.0.1, this machine alone]",
        ),
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help="Another name that browsers may call it by; again for more."
        ),
    ] = None,
    open_page: Annotated[
        bool | None,
        typer.Option(
            "--open/--no-open", help="With --browser: open the page, or only print its address."
        ),
    ] = None,
    tracking_uri: Annotated[str | None, TRACKING_URI] = None,
) -> None:
    """Show where trainings stand until they end.

    Reads the tracking store alone. A store that is out of reach for a while is waited for. Where
    none runs, the newest training is shown as it ended. Exits 1 if a training failed.
    """
    check_one_of(experiment, run)
    if not browser and not {port, open_page, host, *(allow_host or ())} <= {None}:
        raise UserError(
            "--port, --host, --allow-host and --open/--no-open are of the page: add --browser."
        )
    from rich.console import Console

    from sae_mlflow.tracking.reach import answer_quickly
    from sae_mlflow.tracking.store import existing_store
    from sae_mlflow.watching.state import Watch

    answer_quickly()
    store = existing_store(tracking_uri)
    watch, console = Watch(store, experiment, run), Console(highlight=False)
    if browser:
        from sae_mlflow.watching.server import LOOPBACK

        heading = f"Experiment {experiment}" if experiment else f"Run {run}"
        place = Place(port, host or LOOPBACK, tuple(allow_host or ()))
        with _page(store, heading, place, open_page is not False, console) as board:
            trainings = _follow(store, watch, console, every, board)
    else:
        trainings = _follow(store, watch, console, every)
    if any(training.status in (FAILED, KILLED) for training in trainings):
        raise typer.Exit(EXIT_SOME_FAILED)


@contextmanager
def _page(
    store: "Store", heading: str, place: Place, opened: bool, console: "Console"
) -> "Iterator[Board]":
    """A board that is served while the block runs, and until a page has got its end."""
    import webbrowser

    from sae_mlflow.watching.board import Board
    from sae_mlflow.watching.server import serving

    board = Board(store, heading)
    with serving(board, *place) as address:
        if not ip_address(place.host).is_loopback:
            console.print(
                f"warning: whoever reaches port {urlsplit(address).port} of {place.host} can read "
                "this page, unencrypted.",
                style="yellow",
            )
        console.print(f"Page: {address}", markup=False, soft_wrap=True)
        if opened and not webbrowser.open(address):
            console.print("No browser could be started here: open that address in one.")
        yield board
        board.end(_LAST_LOOK_SECONDS)
        time.sleep(_OTHER_PAGES_SECONDS)


def _follow(
    store: "Store", watch: "Watch", console: "Console", every: float, board: "Board | None" = None
) -> "list[TrainingState]":
    """Show every change until all trainings have ended; where they stood then."""
    from rich.live import Live

    from sae_mlflow.watching.table import news, tables

    trainings: list[TrainingState] = []
    note = ""
    stopping = Stopping()
    stopping.listen(signal.SIGINT)
    with Live(console=console, auto_refresh=False, transient=False) as live:
        while True:
            stopping.check()
            before, trouble = trainings, note
            trainings, note = _look(watch, board, before, f"Trying again every {every:g} s.")
            if console.is_terminal:
                addresses = [store.address(t.experiment_id, t.run_id) for t in trainings]
                live.update(tables(trainings, addresses, note, console.width), refresh=True)
            else:
                for line in [note] * (note != trouble) if note else news(before, trainings):
                    console.print(shown(line), markup=False, soft_wrap=True)
            if not note and not any(training.is_running for training in trainings):
                return trainings
            time.sleep(every)


def _look(
    watch: "Watch", board: "Board | None", before: "list[TrainingState]", again: str
) -> "tuple[list[TrainingState], str]":
    """Where trainings stand, shown on the board too; where the store is out of reach, a note."""
    try:
        trainings = watch.look()
        if board:
            board.read(trainings)
        return trainings, ""
    except OutOfReach as error:
        note = shown(f"{error} {again}")
        if board:
            board.out_of_reach(note)
        return before, note

"""What the command lines share: one plain line for an error, and the exit statuses."""

import os
import sys
import traceback
from typing import Any, NoReturn

import typer

from sae_mlflow.errors import UserError
from sae_mlflow.terminal import say

TRACKING_URI = typer.Option(help="MLflow tracking store; unset means MLflow's own setting.")

EXIT_FAULT = 1  # as Python itself has it
EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells count
EXIT_BROKEN_PIPE = 141  # 128 + SIGPIPE


def check_one_of(experiment: str | None, run: str | None) -> None:
    """Raise a UserError unless a user named an experiment or a run, and not both."""
    if bool(experiment) == bool(run):
        raise UserError("Give one of --experiment NAME and --run ID.")


def make_app(**options: Any) -> typer.Typer:
    """A typer app in plain text: no rich boxes around messages, no decorated tracebacks."""
    plain = {
        "rich_markup_mode": None,
        "pretty_exceptions_enable": False,
        "add_completion": False,
        "no_args_is_help": False,
    }
    return typer.Typer(**(plain | options))


def run_cli(app: typer.Typer) -> NoReturn:
    """Run an app and end the process with its exit status.

    A UserError is printed as `error: ...` on stderr, with status 2 and no traceback; Ctrl-C ends
    with 130; a reader that has gone (`| head`) ends it quietly.
    """
    status = EXIT_BAD_INPUT
    try:
        status = _status(app)
        sys.stdout.flush()
    except UserError as error:
        say(f"error: {error}", sys.stderr)
    except KeyboardInterrupt:
        status = EXIT_INTERRUPTED
    except BrokenPipeError:
        # what is still buffered would raise again when the interpreter closes stdout
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = EXIT_BROKEN_PIPE
    except Exception:  # a fault of ours; what it quotes may hold a password
        say(traceback.format_exc().rstrip(), sys.stderr)
        status = EXIT_FAULT
    sys.exit(status)


def _status(app: typer.Typer) -> int:
    try:
        app()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(bool(end.code))
    return 0

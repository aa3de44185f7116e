"""The `{layer}_training_history.json` format: metric names to lists, one number an epoch each."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sae_mlflow import naming
from sae_mlflow.errors import UserError, known
from sae_mlflow.whole_file import whole_file

REQUIRED_KEYS = ("total_loss", "reconstruction_loss", "sparsity_loss", "l0_norm")
FILE_SUFFIX = "_training_history.json"

_STORED_INFINITY = 1.797e308
"""MLflow's SQL store gives infinity back as the largest float; from here on it means infinity."""

LARGEST_DRAWN = 1e100
"""An axis needs room to compute in: matplotlib's own arithmetic ends at 1.8e308."""


def restored(value: float) -> float:
    """A metric's value as it was logged, infinity included."""
    return math.copysign(math.inf, value) if abs(value) >= _STORED_INFINITY else value


def drawable(value: float) -> float:
    """The same for a figure: what is too large for an axis is infinite there, a gap with a word."""
    return math.copysign(math.inf, value) if abs(value) >= LARGEST_DRAWN else value


def read_history(path: Path) -> dict[str, list[float]]:
    """A history file's lists; index 0 is epoch 1. Keys that don't hold lists are left out.

    Raises:
        UserError: the file is missing, not JSON, or fails `check_history`.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} doesn't exist. {_there_are(path)}") from None
    except OSError as error:
        raise UserError(f"{path} can't be read: {error.strerror}.") from None
    except (ValueError, RecursionError) as error:  # JSON's and UTF-8's errors are both ValueError
        raise UserError(
            f"{path} is not JSON: {str(error).splitlines()[0]}. It should hold "
            f'{{"{REQUIRED_KEYS[0]}": [0.5, 0.4], ...}}.'
        ) from None
    return check_history(data, str(path))


def check_history(
    history: Any, where: str, needed: Sequence[str] = REQUIRED_KEYS
) -> dict[str, list[float]]:
    """The history as plain lists of floats, all of one length, at least one epoch long.

    Args:
        history: metric names to sequences of numbers.
        where: what an error message calls it, a path for example.
        needed: the keys that have to be there.

    Raises:
        UserError: a key is missing, the lengths differ or are 0, or a value isn't a finite number.
    """
    if not isinstance(history, Mapping):
        raise UserError(
            f"{where} holds a {type(history).__name__}, but a history maps metric names to lists."
        )
    missing = [key for key in needed if key not in history]
    if missing:
        raise UserError(
            f"{where} lacks {known(missing)}. It needs {known(list(needed))}; "
            f"it has {known(sorted(map(str, history)))}."
        )
    lists = {
        str(key): _numbers(values, str(key), where)
        for key, values in history.items()
        if key in needed or _is_list(values)
    }
    _check_lengths(lists, where)
    return lists


def write_history(path: Path, history: Mapping[str, Sequence[float]]) -> None:
    """Write a history, all of it or nothing; a value that isn't finite becomes null.

    Raises:
        UserError: the folder can't be written.
    """
    lists = {key: [_or_null(value) for value in values] for key, values in history.items()}
    text = json.dumps(lists, indent=1, allow_nan=False) + "\n"
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def layer_of(path: Path) -> str:
    """The layer in a history file's name: `layer10_training_history.json` -> `layer10`."""
    return naming.layer_label(path.name.removesuffix(FILE_SUFFIX).removesuffix(".json"))


def _is_list(values: object) -> bool:
    """A JSON list, a tuple, or an array; not text, and not a mapping."""
    return isinstance(values, Iterable) and not isinstance(values, str | bytes | Mapping)


def _numbers(values: Any, key: str, where: str) -> list[float]:
    if not _is_list(values):
        raise UserError(
            f"{where}: {key} is {_shown(values)}, but it takes a list with one number an epoch."
        )
    return [_number(value, key, epoch, where) for epoch, value in enumerate(values, start=1)]


def _number(value: Any, key: str, epoch: int, where: str) -> float:
    value = value.item() if hasattr(value, "item") else value  # NumPy's and torch's scalars
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            if math.isfinite(value):
                return float(value)
        except OverflowError:
            pass  # a whole number beyond any float
    raise UserError(
        f"{where}: {key} at epoch {epoch} is {_shown(value)}, but it has to be a finite number. "
        "Correct the value, or draw the run from the store, where gaps are allowed."
    )


def _check_lengths(lists: Mapping[str, list[float]], where: str) -> None:
    lengths = {key: len(values) for key, values in lists.items()}
    if len(set(lengths.values())) > 1:
        shown = known([f"{key} has {n}" for key, n in lengths.items()])
        raise UserError(f"{where}: the lists differ in length: {shown}. Each epoch needs them all.")
    if not any(lengths.values()):
        raise UserError(f"{where}: the lists are empty. A history needs at least one epoch.")


def _or_null(value: float) -> float | None:
    return float(value) if abs(value) < _STORED_INFINITY else None  # NaN compares as False


def _shown(value: object, limit: int = 40) -> str:
    text = "null" if value is None else repr(value)
    return text if len(text) <= limit else f"{text[:limit]}..."


def _there_are(path: Path) -> str:
    if not path.parent.is_dir():
        return f"There is no folder {path.parent}."
    names = sorted(p.name for p in path.parent.glob(f"*{FILE_SUFFIX}"))
    return f"Histories in {path.parent}: {known(names)}."

"""How often latents fire, out of the runs' evaluations."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import pandas as pd

from sae_mlflow.errors import UserError
from sae_mlflow.plots.compare.ridges import COLUMNS
from sae_mlflow.tracking.contents import DENSITY_TABLE, EVALUATED, EVALUATION_FOLDER

if TYPE_CHECKING:  # at run time it would import mlflow
    from sae_mlflow.tracking.contents import RunRow
    from sae_mlflow.tracking.store import Store


def density_table(
    store: "Store", rows: Sequence["RunRow"], names: Mapping[str, str]
) -> tuple[pd.DataFrame, list[str]]:
    """The densities of the runs that were evaluated, in the rows' order.

    Args:
        names: of the runs' ridges.

    Returns:
        `ridges.COLUMNS`, and the names of those whose table can't be read.
    """
    parts, unread = [pd.DataFrame(columns=COLUMNS)], []
    with TemporaryDirectory() as scratch:
        for row in rows:
            if EVALUATED not in row.metrics:
                continue
            uri = f"runs:/{row.run_id}/{EVALUATION_FOLDER}/{DENSITY_TABLE}"
            try:
                parts.append(_read(store.download(uri, Path(scratch)), row.run_id, names))
            except (UserError, ValueError, KeyError, IndexError):
                unread.append(names[row.run_id])
    found = [part for part in parts if len(part)]
    return (pd.concat(found, ignore_index=True) if found else parts[0]), unread


def _read(file: Path, run_id: str, names: Mapping[str, str]) -> pd.DataFrame:
    """The bins of one table, whose first row is of the latents that never fired."""
    read = pd.read_csv(file)
    bins = read.iloc[1:]
    made = pd.DataFrame(
        {
            "run_id": run_id,
            "ridge": names[run_id],
            "low": bins["log10_density_from"].astype(float),
            "high": bins["log10_density_to"].astype(float),
            "share": bins["share_of_latents"].astype(float),
            "never_fired": float(read["share_of_latents"].iloc[0]),
        }
    )
    return made[COLUMNS]

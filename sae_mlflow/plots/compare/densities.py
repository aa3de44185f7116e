"""How often latents fire, out of the runs' evaluations."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import pandas as pd

from sae_mlflow.density import DensityTable, read_density_table
from sae_mlflow.errors import UserError
from sae_mlflow.plots.compare.ridges import COLUMNS
from sae_mlflow.tracking.contents import DENSITY_TABLE, EVALUATED, EVALUATION_FOLDER, RunRow

if TYPE_CHECKING:
    from sae_mlflow.tracking.store import Store


def ridge_table(
    store: "Store", rows: Sequence[RunRow], names: Mapping[str, str]
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
                table = read_density_table(store.download(uri, Path(scratch)))
                parts.append(_bins(table, row.run_id, names[row.run_id]))
            except UserError:
                unread.append(names[row.run_id])
    found = [part for part in parts if len(part)]
    return (pd.concat(found, ignore_index=True) if found else parts[0]), unread


def _bins(table: DensityTable, run_id: str, ridge: str) -> pd.DataFrame:
    made = {
        "run_id": run_id,
        "ridge": ridge,
        "low": table.edges[:-1],
        "high": table.edges[1:],
        "share": table.latents / table.d_sae,
        "never_fired": table.never_fired / table.d_sae,
    }
    return pd.DataFrame(made, columns=COLUMNS)

"""How often latents fire: a latent's density is the share of tokens on which it is > 0.

Over few tokens a rare latent looks dead: a share of dead latents belongs to a number of tokens.
"""

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sae_mlflow.errors import UserError

DENSE, VERY_DENSE = 0.01, 0.1

# Three bins a factor of 10: firing once and firing twice then never have an empty bin between.
_BINS_PER_DECADE = 3


@dataclass(frozen=True, eq=False)
class DensityTable:
    """The histogram of log10 density, and the latents that have none."""

    edges: np.ndarray
    """`[n_bins + 1]`, log10 of a density, rising to 0. A bin holds its lower edge, and the last one
    its upper edge as well."""
    latents: np.ndarray
    """int `[n_bins]`."""
    never_fired: int
    tokens: int
    """That the densities were counted over."""

    @property
    def d_sae(self) -> int:
        return int(self.latents.sum()) + self.never_fired


def density_table(density: np.ndarray, tokens: int) -> DensityTable:
    """Count latents by the logarithm of their density, from one firing to one on every token.

    Args:
        density: `[d_sae]`, 0 to 1.
    """
    n_bins = int(np.ceil(np.log10(max(tokens, 2)) * _BINS_PER_DECADE))
    edges = np.arange(-n_bins, 1) / _BINS_PER_DECADE
    fired = density[density > 0]
    latents, _ = np.histogram(np.log10(fired), edges)
    return DensityTable(edges, latents, len(density) - len(fired), tokens)


def density_metrics(density: np.ndarray) -> dict[str, float]:
    """Shares of the latents, 0 to 1: dense ones, very dense ones, and those that never fired."""
    return {
        "latents_over_1_percent": float((density > DENSE).mean()),
        "latents_over_10_percent": float((density > VERY_DENSE).mean()),
        "latents_dead_fraction": float((density == 0).mean()),
    }


def read_density_table(file: Path) -> DensityTable:
    """What `write_density_table` wrote; how many tokens it was counted over isn't in it: 0.

    Raises:
        UserError: the file isn't such a table.
    """
    try:
        with file.open(newline="", encoding="utf-8") as stream:
            never, *bins = list(csv.reader(stream))[1:]
        edges = np.array([float(low) for low, *_ in bins] + [float(bins[-1][1])])
        latents = np.array([int(n) for _, _, n, _ in bins], dtype=np.int64)
        table = DensityTable(edges, latents, int(never[2]), tokens=0)
        if table.d_sae < 1 or not np.isfinite(edges).all():
            raise ValueError("it has no latents, or edges that aren't numbers")
        return table
    except (OSError, ValueError, OverflowError, IndexError, csv.Error) as error:
        raise UserError(f"{file.name} is not a table of densities: {error}.") from None


def write_density_table(table: DensityTable, file: Path) -> None:
    """As CSV: a row a bin, before them one of the latents that never fired, without edges."""
    with file.open("w", newline="", encoding="utf-8") as out:
        writer = csv.writer(out)
        writer.writerow(["log10_density_from", "log10_density_to", "latents", "share_of_latents"])
        writer.writerow(["", "", table.never_fired, f"{table.never_fired / table.d_sae:.6g}"])
        for low, high, n in zip(table.edges, table.edges[1:], table.latents, strict=False):
            writer.writerow([f"{low:.4f}", f"{high:.4f}", n, f"{n / table.d_sae:.6g}"])

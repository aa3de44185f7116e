"""Random numbers and ragged codes, for the tests of what is done to them."""

import numpy as np
import torch


def random(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def with_ties(*shape, dtype=torch.float32):
    """Whole numbers from -2 to 2."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(-2, 3, shape, generator=generator).to(dtype)


def ragged(batch, d_sae, seed=0, most=None):
    """Distinct latents of each token, some of none: latents, starts."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(0, (most or d_sae) + 1, batch)
    counts[rng.random(batch) < 0.2] = 0
    rows = [rng.permutation(d_sae)[:n] for n in counts]
    latents = np.concatenate([*rows, np.empty(0, np.int64)]).astype(np.int64)
    return torch.tensor(latents), torch.tensor(np.concatenate([[0], counts.cumsum()]))


def rows_of(starts):
    """The row of each member."""
    starts = np.asarray(starts)
    return np.arange(len(starts) - 1).repeat(np.diff(starts))

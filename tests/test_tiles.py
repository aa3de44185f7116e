"""Products of codes in tiles against NumPy in float64."""

import numpy as np
import pytest
import torch

from sae_mlflow.sae import kernels, tiles
from sae_mlflow.sae.support import SparseSupport, TiledSupport

pytestmark = pytest.mark.usefixtures("one_thread")

# tokens, latents, dimensions: less than a tile, one, several with a short last one, no token
SHAPES = [(5, 7, 3), (128, 9, 5), (300, 33, 17), (0, 4, 2)]
RELATIVE = {torch.float32: 1e-5, torch.float64: 1e-13}


def codes(batch, d_sae, dtype, seed=0):
    """A support of random codes, their values, and both as a dense float64 matrix."""
    rng = np.random.default_rng(seed)
    mask = rng.random((batch, d_sae)) < rng.random((1, d_sae))  # some latents fire more often
    mask[::4] = False
    dense = np.where(mask, rng.standard_normal((batch, d_sae)), 0)
    starts = torch.from_numpy(np.concatenate([[0], mask.sum(axis=1).cumsum()]).astype(np.int64))
    latents = torch.from_numpy(mask.nonzero()[1].copy())
    return TiledSupport(latents, starts, d_sae), torch.from_numpy(dense[mask]).to(dtype), dense


@pytest.mark.parametrize("dtype", RELATIVE)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_products_are_those_of_a_dense_matrix(shape, dtype):
    batch, d_sae, d = shape
    support, values, dense = codes(batch, d_sae, dtype)
    generator = torch.Generator().manual_seed(1)
    rows = torch.randn(d_sae, d, generator=generator).to(dtype)
    acts = torch.randn(batch, d, generator=generator).to(dtype)
    where = (support.tokens.numpy(), support.latents.numpy())
    exact_rows, exact_acts = rows.double().numpy(), acts.double().numpy()
    for got, wanted in (
        (support.times(values, rows), dense @ exact_rows),
        (support.transposed_times(values, acts), dense.T @ exact_acts),
        (support.sampled(acts, rows), (exact_acts @ exact_rows.T)[where]),
    ):
        assert got.dtype == dtype
        assert got.shape == wanted.shape
        scale = np.abs(wanted).max(initial=1.0)
        assert np.abs(got.double().numpy() - wanted).max(initial=0.0) <= RELATIVE[dtype] * scale


def test_a_tiles_codes_are_sorted_by_latent_and_then_by_token():
    """Two tiles; tokens 0, 1 and 128 have latents 1, 0 | 1 | 0."""
    counts = torch.zeros(130, dtype=torch.int64)
    counts[torch.tensor([0, 1, 128])] = torch.tensor([2, 1, 1])
    starts = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
    made = tiles.sort(torch.tensor([1, 0, 1, 0]), starts, 3)
    assert made.starts.tolist() == [[0, 1, 3, 3], [3, 4, 4, 4]]
    assert made.tokens.tolist() == [0, 0, 1, 128]
    assert made.places.tolist() == [1, 0, 2, 3]


@pytest.mark.parametrize(("n_tokens", "tall"), [(1024, False), (1025, True), (4096, True)])
def test_tall_tiles_are_for_more_tokens_than_one_has_and_latents_that_fire_five_times_in_it(
    n_tokens, tall
):
    starts = torch.arange(n_tokens + 1)
    often = SparseSupport(torch.arange(n_tokens) % 200, starts, 200)
    seldom = SparseSupport(torch.arange(n_tokens) % 210, starts, 210)
    assert (often.tall_tiles is not None) == tall
    assert seldom.tall_tiles is None


def test_the_number_of_threads_doesnt_change_a_bit(in_threads):
    support, values, _ = codes(700, 50, torch.float32)
    rows = torch.randn(50, 40, generator=torch.Generator().manual_seed(2))
    acts = torch.randn(700, 40, generator=torch.Generator().manual_seed(3))

    def products():
        fresh = TiledSupport(support.latents, support.starts, 50)
        return (
            fresh.times(values, rows),
            fresh.transposed_times(values, acts),
            fresh.sampled(acts, rows),
        )

    for one, two in zip(in_threads(1, products), in_threads(2, products), strict=True):
        assert torch.equal(one, two)


def test_where_nothing_is_compiled_tiles_do_what_lists_do(monkeypatch):
    support, values, _ = codes(300, 33, torch.float32)
    rows = torch.randn(33, 8, generator=torch.Generator().manual_seed(2))
    acts = torch.randn(300, 8, generator=torch.Generator().manual_seed(3))
    plain = SparseSupport(support.latents, support.starts, 33)
    monkeypatch.setattr(kernels, "compiled", lambda _: False)
    assert torch.equal(support.times(values, rows), plain.times(values, rows))
    assert torch.equal(support.transposed_times(values, acts), plain.transposed_times(values, acts))
    assert torch.equal(support.sampled(acts, rows), plain.sampled(acts, rows))

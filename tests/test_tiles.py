"""Products of codes in tiles against NumPy in float64."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from sae_mlflow.sae import kernels
from sae_mlflow.sae.kernels import tile_above, tiles
from sae_mlflow.sae.support import SparseSupport, Support
from sae_mlflow.sae.tiled_support import TiledSupport, sparse_support

pytestmark = pytest.mark.usefixtures("one_thread")

# tokens, latents, dimensions: less than a tile, one, several with a short last one, no token
SHAPES = [(5, 7, 3), (128, 9, 5), (300, 33, 17), (0, 4, 2)]
RELATIVE = {torch.float32: 1e-5, torch.float64: 1e-13}


# tokens 0, 1 and 128 of 130 have two codes, one and one
STARTS = torch.tensor([0, 2, 3] + [3] * 126 + [4, 4])


class Plain(SparseSupport):
    """A tiled support's codes in its order, by standard operators."""

    def __init__(self, support):
        self.latents, self.tokens = support.latents, support.tokens
        self.n_tokens, self.d_sae = support.n_tokens, support.d_sae


def matrix(n, d, seed, dtype):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed)).to(dtype)


def codes(batch, d_sae, dtype, silent=False, seed=0):
    """A support of random codes, their values, and both as a dense float64 matrix; where some are
    silent, also which of the matrix."""
    rng = np.random.default_rng(seed)
    mask = rng.random((batch, d_sae)) < rng.random((1, d_sae))  # some latents fire more often
    mask[::4] = False
    dense = np.where(mask, rng.standard_normal((batch, d_sae)), 0)
    starts = torch.from_numpy(np.concatenate([[0], mask.sum(axis=1).cumsum()]).astype(np.int64))
    latents = torch.from_numpy(mask.nonzero()[1].copy())
    values = torch.from_numpy(dense[mask])
    bounds = torch.from_numpy(rng.standard_normal(d_sae))
    made, places = tiles.sort(latents, starts, d_sae, silent=(values, bounds) if silent else None)
    support = TiledSupport(made)
    values = values[places].to(dtype)
    if not silent:
        return support, values, dense
    return support, values, dense, mask & (dense <= bounds.numpy())


def places_of(support):
    """Tokens and latents of a support's values."""
    return support.tokens.numpy(), support.latents.numpy()


def assert_near(got, wanted, dtype):
    assert got.dtype == dtype
    assert got.shape == wanted.shape
    scale = np.abs(wanted).max(initial=1.0)
    assert np.abs(got.double().numpy() - wanted).max(initial=0.0) <= RELATIVE[dtype] * scale


@pytest.mark.parametrize("dtype", RELATIVE)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_products_are_those_of_a_dense_matrix(shape, dtype):
    batch, d_sae, d = shape
    support, values, dense = codes(batch, d_sae, dtype)
    rows, acts = matrix(d_sae, d, 1, dtype), matrix(batch, d, 2, dtype)
    exact_rows, exact_acts = rows.double().numpy(), acts.double().numpy()
    where = places_of(support)
    np.testing.assert_array_equal(values, dense.astype(str(dtype)[6:])[where])
    assert_near(support.times(values, rows), dense @ exact_rows, dtype)
    assert_near(support.transposed_times(values, acts), dense.T @ exact_acts, dtype)
    assert_near(support.sampled(acts, rows), (exact_acts @ exact_rows.T)[where], dtype)


@pytest.mark.parametrize("dtype", RELATIVE)
@pytest.mark.parametrize("shape", SHAPES)
def test_silent_codes_are_left_out_of_sums_and_have_their_dots(shape, dtype):
    batch, d_sae, d = shape
    support, values, dense, silent = codes(batch, d_sae, dtype, silent=True)
    assert not batch or 0 < silent.sum() < len(values)
    rows, acts = matrix(d_sae, d, 1, dtype), matrix(batch, d, 2, dtype)
    exact_rows, exact_acts = rows.double().numpy(), acts.double().numpy()
    heard = np.where(silent, 0, dense)
    where = places_of(support)
    np.testing.assert_array_equal(values, dense.astype(str(dtype)[6:])[where])
    assert_near(support.times(values, rows), heard @ exact_rows, dtype)
    assert_near(support.transposed_times(values, acts), heard.T @ exact_acts, dtype)
    assert_near(support.sampled(acts, rows), (exact_acts @ exact_rows.T)[where], dtype)
    recon, error, missed, dots = support.reconstruct(values, rows, rows[0], acts)
    exact = heard @ exact_rows + exact_rows[0]
    assert_near(recon, exact, dtype)
    assert_near(error, exact - exact_acts, dtype)
    np.testing.assert_allclose(missed, ((exact - exact_acts) ** 2).sum(axis=1), rtol=1e-5)
    assert_near(dots, ((exact - exact_acts) @ exact_rows.T)[where], dtype)


@pytest.mark.parametrize("dtype", RELATIVE)
@pytest.mark.parametrize("silent", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_what_is_done_to_each_code_is_what_a_list_by_token_does(shape, silent, dtype):
    """Tiles against standard operators on the same codes, in the same order, in float64."""
    batch, d_sae, _ = shape
    support, values, *_ = codes(batch, d_sae, dtype, silent)
    plain = Plain(support)
    own, other, grad = (
        matrix(1, n, i, dtype)[0] for i, n in enumerate((d_sae, d_sae, len(values)))
    )
    wide = [t.double() for t in (values, own, other, grad)]
    assert torch.equal(support.spread(own), plain.spread(own))
    assert_near(support.gathered(values), plain.gathered(wide[0]).numpy(), dtype)
    assert torch.equal(support.dense(values), plain.dense(values))
    fired = support.fired(values)
    assert fired.tolist() == (plain.dense(values) > 0).any(dim=0).tolist()
    made, n = support.jump(values, own)
    wanted, wanted_n = Support.jump(plain, values, own)
    assert torch.equal(made, wanted) and n == wanted_n
    got = support.jump_gradients(values, own, grad, torch.tensor(0.7), 0.5)
    wanted = Support.jump_gradients(plain, wide[0], wide[1], wide[3], torch.tensor(0.7), 0.5)
    for one, two in zip(got, wanted, strict=True):
        assert_near(one, two.numpy(), dtype)


@pytest.mark.parametrize("dtype", RELATIVE)
@pytest.mark.parametrize("shape", SHAPES)
def test_gradients_of_what_is_done_to_each_code_are_autograds(shape, dtype):
    batch, d_sae, _ = shape
    support, values, *_ = codes(batch, d_sae, dtype)
    scale, shift, weights = (
        matrix(1, n, i, dtype)[0] for i, n in enumerate((d_sae, d_sae, len(values)))
    )

    def learnt(support, *tensors):
        values, scale, shift, weights = (t.clone().requires_grad_() for t in tensors)
        made = support.rescaled(values, scale, shift)
        total = (made * weights).sum() + (support.gathered(values) * shift).sum()
        total = total + (support.spread(scale) * weights).sum()
        return made.detach(), *torch.autograd.grad(total, (values, scale, shift, weights))

    got = learnt(support, values, scale, shift, weights)
    wanted = learnt(Plain(support), *(t.double() for t in (values, scale, shift, weights)))
    for one, two in zip(got, wanted, strict=True):
        assert_near(one, two.numpy(), dtype)


def test_what_isnt_a_number_isnt_hidden_by_a_rescaling():
    support, values, _ = codes(5, 7, torch.float32)
    nan = torch.full((7,), torch.nan)
    assert support.rescaled(values, nan, nan)[values > 0].isnan().all()
    assert support.rescaled(values * torch.nan, nan.zero_(), nan).isnan().all()


@pytest.mark.parametrize(("first", "end"), [(0, 33), (0, 1), (5, 20), (32, 33)])
def test_columns_are_some_latents_alone(first, end):
    support, values, dense = codes(300, 33, torch.float64)
    where, part = support.columns(first, end)
    assert part.d_sae == end - first
    np.testing.assert_array_equal(part.dense(values[where]), dense[:, first:end])
    rows = matrix(end - first, 4, 1, torch.float64)
    assert_near(part.times(values[where], rows), dense[:, first:end] @ rows.numpy(), torch.float64)


@pytest.mark.parametrize("dtype", RELATIVE)
@pytest.mark.parametrize("silent", [False, True])
@pytest.mark.parametrize(("batch", "d_sae"), [(0, 5), (1, 64), (70, 63), (300, 130), (513, 33)])
def test_what_is_over_a_bound_goes_into_the_tiles_that_a_sort_makes(batch, d_sae, silent, dtype):
    """In chunks of two tiles of 128, against NumPy's comparison and `tiles.sort`."""
    product, (bias, lower) = matrix(batch, d_sae, 1, dtype), matrix(2, d_sae, 2, dtype)
    product[::7, ::3] = torch.nan
    lower[::5] = torch.inf
    lower[1::5] = -torch.inf
    loud = lower + matrix(1, d_sae, 3, dtype)[0] if silent else None  # under it for some
    values, got = tile_above.above(product.split(256), bias, lower, loud, 128)
    pre_acts = (product + bias).numpy()
    over = pre_acts > lower.numpy()
    starts = torch.from_numpy(np.concatenate([[0], over.sum(axis=1).cumsum()]))
    kept, latents = torch.from_numpy(pre_acts[over]), torch.from_numpy(over.nonzero()[1])
    codes = (kept, loud) if silent else None
    wanted, places = tiles.sort(latents, starts, d_sae, 128, codes)
    assert torch.equal(values, kept[places])
    assert torch.equal(got.starts, wanted.starts) and torch.equal(got.tokens, wanted.tokens)
    assert got[2:] == wanted[2:] == (batch, d_sae, 128)


def test_a_tiles_codes_are_sorted_by_latent_and_then_by_token():
    """Two tiles; tokens 0, 1 and 128 have latents 1, 0 | 1 | 0."""
    made, places = tiles.sort(torch.tensor([1, 0, 1, 0]), STARTS, 3)
    assert made.starts.tolist() == [[0, 1, 3, 3], [3, 4, 4, 4]]
    assert made.tokens.tolist() == [0, 0, 1, 128]
    assert places.tolist() == [1, 0, 2, 3]


def test_a_tiles_silent_codes_come_last():
    """The same codes with values 5, 6 | 7 | 8; latent 0 is silent up to 6, latent 1 up to 4."""
    silent = torch.tensor([5.0, 6.0, 7.0, 8.0]), torch.tensor([6.0, 4.0, 0.0])
    made, places = tiles.sort(torch.tensor([1, 0, 1, 0]), STARTS, 3, silent=silent)
    assert made.starts.tolist() == [[0, 0, 2, 2, 3, 3, 3], [3, 4, 4, 4, 4, 4, 4]]
    assert made.tokens.tolist() == [0, 1, 0, 128]
    assert places.tolist() == [0, 2, 1, 3]


@pytest.mark.parametrize("parts", [1, 2, 3, 8])
def test_latents_are_shared_out_by_how_many_codes_they_have(parts):
    """Latent 4 of 10 has half of all codes."""
    counts = torch.ones(10, dtype=torch.int64)
    counts[4] = 9
    starts = torch.zeros(1, 11, dtype=torch.int64)
    starts[0, 1:] = counts.cumsum(0)
    bounds = tiles.shares(tiles.Tiles(starts, torch.zeros(18), 128, 10, 128), parts)
    assert len(bounds) == parts + 1 and bounds[0] == 0 and bounds[-1] == 10
    assert (np.diff(bounds) >= 0).all()
    most = max(counts[a:b].sum() for a, b in pairwise(bounds.tolist()))
    assert most <= 18 / parts + 9


@pytest.mark.parametrize(("n_tokens", "tall"), [(1024, False), (1025, True), (4096, True)])
def test_tall_tiles_are_for_more_tokens_than_one_has_and_latents_that_fire_five_times_in_it(
    n_tokens, tall
):
    starts = torch.arange(n_tokens + 1)
    often = SparseSupport(torch.arange(n_tokens) % 200, starts, 200)
    seldom = SparseSupport(torch.arange(n_tokens) % 210, starts, 210)
    assert (often.tall_tiles is not None) == tall
    assert seldom.tall_tiles is None


def over_zero(acts, silent):
    """What is over 0, silent up to 0.5: values, starts, tokens."""
    zeros = torch.zeros(acts.shape[1])
    loud = zeros + 0.5 if silent else None
    values, codes = tile_above.above([acts], zeros, zeros, loud, 128)
    return values, codes.starts, codes.tokens


@pytest.mark.parametrize("silent", [False, True])
def test_the_number_of_threads_doesnt_change_a_bit(silent, in_threads):
    support, values, *_ = codes(700, 50, torch.float32, silent)
    rows, acts = matrix(50, 40, 2, torch.float32), matrix(700, 40, 3, torch.float32)
    own, grad = rows[:, 0].contiguous(), values.flip(0)

    def products():
        scale, wanted = own.clone().requires_grad_(), values.clone().requires_grad_()
        rescaled = support.rescaled(wanted, scale, own)
        return (
            support.times(values, rows),
            support.transposed_times(values, acts),
            support.sampled(acts, rows),
            *support.reconstruct(values, rows, rows[0], acts),
            support.spread(own),
            support.gathered(values),
            support.fired(values),
            *support.jump(values, own),
            *support.jump_gradients(values, own, grad, torch.tensor(0.3), 1.0),
            rescaled,
            *torch.autograd.grad(rescaled.square().sum(), (wanted, scale)),
            *over_zero(acts, silent),
        )

    for n in (2, 3, 60):
        for one, other in zip(in_threads(1, products), in_threads(n, products), strict=True):
            assert torch.equal(one, other)


def test_where_nothing_is_compiled_there_are_no_tiles(monkeypatch):
    latents, starts = torch.arange(33).repeat(300), 33 * torch.arange(301)
    values = torch.ones(len(latents))
    assert type(sparse_support(values, latents, starts, 33)[1]) is TiledSupport
    assert type(sparse_support(values.half(), latents, starts, 33)[1]) is SparseSupport
    monkeypatch.setattr(kernels, "compiled", lambda _: False)
    assert type(sparse_support(values, latents, starts, 33)[1]) is SparseSupport

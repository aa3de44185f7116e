"""Encoding and decoding of sparse codes, with gradients, against plain dense autograd."""

import math

import pytest
import torch
from random_saes import assert_agree, gradients, made

from sae_mlflow.sae import Batch, kernels, sparse, support, tiled_support
from sae_mlflow.sae.kernels import tiles
from sae_mlflow.sae.select import Above, BatchTopK, TopK
from sae_mlflow.sae.support import DenseSupport, SparseSupport
from sae_mlflow.sae.tiled_support import TiledSupport

pytestmark = pytest.mark.usefixtures("one_thread")

# batch, d_in, d_sae, k: odd sizes, one row, no row, k = 1, k = d_sae, a two-stage top-k, and more
# rows than a chunk has
SHAPES = [
    (7, 6, 33, 3),
    (1, 5, 10, 1),
    (9, 8, 96, 4),
    (5, 4, 16, 16),
    (0, 4, 16, 2),
    (37, 8, 192, 5),
]
RELATIVE = {torch.float32: 1e-4, torch.float64: 1e-10}


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """Ten rows at once, so that small batches are several chunks."""
    monkeypatch.setattr(sparse, "CHUNK_ELEMENTS", 1)
    monkeypatch.setattr(sparse, "MIN_CHUNK_ROWS", 10)


@pytest.fixture(params=["compiled", "tiled", "in tall tiles", "standard operators", "dense"])
def way(request, monkeypatch):
    """The sparse way in all kinds of kernels, and the dense one, whatever share is kept."""
    monkeypatch.setattr(sparse, "DENSE_FROM", 0.0 if request.param == "dense" else 1.1)
    monkeypatch.setattr(tiled_support, "TILED_FROM", 0.0 if request.param == "tiled" else math.inf)
    if request.param == "in tall tiles":
        monkeypatch.setattr(support, "TALL_FROM", 0.0)
        monkeypatch.setattr(tiles, "TALL", 3)
    if request.param == "standard operators":
        monkeypatch.setattr(kernels, "compiled", lambda _: False)
    return request.param


def problem(batch, d_in, d_sae, dtype=torch.float64, seed=0):
    """x, W_enc, b_enc, W_dec, b_dec."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(batch, d_in), (d_in, d_sae), (d_sae,), (d_sae, d_in), (d_in,)]
    return [torch.randn(*s, generator=generator).to(dtype).requires_grad_() for s in shapes]


def rule_and_mask(kind, pre_acts, k):
    """A rule, and what it keeps of `[batch, d_sae]` by a sort."""
    pre_acts = pre_acts.detach()
    match kind:
        case "topk":
            kept = torch.zeros_like(pre_acts, dtype=torch.bool)
            return TopK(k), kept.scatter(1, pre_acts.topk(k).indices, True)
        case "batchtopk":
            flat = pre_acts.flatten()
            best = flat.topk(k * len(pre_acts)).indices
            kept = torch.zeros_like(flat, dtype=torch.bool).scatter(0, best, True)
            return BatchTopK(k), kept.view_as(pre_acts) & (pre_acts > 0)
        case "above":
            bounds = torch.linspace(-0.5, 2.0, pre_acts.shape[1], dtype=pre_acts.dtype)
            return Above(bounds), pre_acts > bounds


def recon_of(x, W_enc, b_enc, W_dec, b_dec, rule, centred=True):
    values, support = sparse.encode(x, W_enc, b_enc, b_dec if centred else None, rule)
    # a bound lets through what the architecture's own activation then removes
    latents = values.relu()
    if isinstance(rule, Above):
        latents = latents * (values > support.spread(rule.lower))
    return support.dense(latents), sparse.decode(latents, support, W_dec) + b_dec


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("dtype", RELATIVE)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", ["topk", "batchtopk", "above"])
def test_values_and_gradients_are_those_of_the_dense_computation(kind, shape, dtype, centred, way):
    batch, d_in, d_sae, k = shape
    tensors = problem(batch, d_in, d_sae, dtype)
    exact = [t.detach().double().requires_grad_() for t in tensors]
    x, W_enc, b_enc, W_dec, b_dec = exact
    weights = torch.linspace(-1, 1, batch * d_in, dtype=torch.float64).view(batch, d_in)

    pre_acts = (x - b_dec if centred else x) @ W_enc + b_enc
    rule, kept = rule_and_mask(kind, pre_acts, k)
    if kind == "above":
        rule = Above(rule.lower.to(dtype))
    expected_latents = (pre_acts * kept).relu()
    expected = expected_latents @ W_dec + b_dec
    expected_grads = torch.autograd.grad((expected * weights).sum(), exact)

    latents, recon = recon_of(*tensors, rule, centred)
    grads = torch.autograd.grad((recon * weights).sum(), tensors)
    assert latents.dtype == recon.dtype == dtype
    assert_agree(latents, expected_latents, RELATIVE[dtype])
    assert_agree(recon, expected, RELATIVE[dtype])
    for name, got, wanted in zip(
        ("x", "W_enc", "b_enc", "W_dec", "b_dec"), grads, expected_grads, strict=True
    ):
        assert got.dtype == dtype
        assert_agree(got, wanted, RELATIVE[dtype], name)


@pytest.mark.parametrize("dtype", RELATIVE)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", ["topk", "above"])
def test_the_error_of_a_reconstruction_and_its_gradients_are_the_dense_ones(
    kind, shape, dtype, way
):
    batch, d_in, d_sae, k = shape
    tensors = problem(batch, d_in, d_sae, dtype)
    exact = [t.detach().double().requires_grad_() for t in tensors]
    x, W_enc, b_enc, W_dec, b_dec = exact
    y = torch.linspace(-2, 2, batch * d_in, dtype=torch.float64).view(batch, d_in)
    pre_acts = (x - b_dec) @ W_enc + b_enc
    rule, kept = rule_and_mask(kind, pre_acts, k)
    if kind == "above":
        rule = Above(rule.lower.to(dtype))
    expected_recon = (pre_acts * kept).relu() @ W_dec + b_dec
    expected = (expected_recon - y).square().sum() / max(y.numel(), 1)
    expected_grads = torch.autograd.grad(3 * expected, exact)

    x, W_enc, b_enc, W_dec, b_dec = tensors
    values, support = sparse.encode(x, W_enc, b_enc, b_dec, rule)
    latents = values.relu()
    if kind == "above":
        latents = latents * (values > support.spread(rule.lower))
    recon, loss = sparse.reconstruct(latents, support, W_dec, b_dec, y.to(dtype))
    assert recon.dtype == loss.dtype == dtype and not recon.requires_grad
    assert_agree(recon, expected_recon, RELATIVE[dtype])
    if batch:  # torch's own mean of nothing is not a number
        assert_agree(loss, expected, RELATIVE[dtype])
        grads = torch.autograd.grad(3 * loss, tensors)
        for got, wanted in zip(grads, expected_grads, strict=True):
            assert_agree(got, wanted, RELATIVE[dtype])


def test_the_gradient_agrees_with_finite_differences(way):
    tensors = problem(4, 3, 12)

    def loss(x, *parameters):
        return (recon_of(x, *parameters, TopK(3))[1] - x).square().mean()

    assert torch.autograd.gradcheck(loss, tensors, eps=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", ["topk", "batchtopk", "above"])
def test_strided_input_and_weights_give_the_same(kind, way):
    tensors = problem(16, 4, 64)
    rule, _ = rule_and_mask(kind, (tensors[0] - tensors[4]) @ tensors[1] + tensors[2], 4)
    strided = [
        torch.stack([t, t], dim=-1)[..., 0].detach().requires_grad_() for t in tensors
    ]  # every second number of its storage
    transposed = [t.detach().t().contiguous().t().requires_grad_() for t in tensors]
    wanted, *others = [recon_of(*ts, rule)[1] for ts in (tensors, strided, transposed)]
    grads = torch.autograd.grad(wanted.square().sum(), tensors)
    for recon, ts in zip(others, (strided, transposed), strict=True):
        assert not all(t.is_contiguous() for t in ts)
        assert_agree(recon, wanted, 1e-12)
        got = torch.autograd.grad(recon.square().sum(), ts)
        assert all(
            torch.allclose(a, b, rtol=1e-10, atol=1e-10) for a, b in zip(got, grads, strict=True)
        )


@pytest.mark.parametrize("rule", [TopK(3), BatchTopK(3), TopK(8)])
def test_of_equal_pre_activations_the_kept_ones_learn(rule, way):
    """Whole numbers, so ties are certain; which of them are kept is free, how many isn't."""
    generator = torch.Generator().manual_seed(0)
    whole = [
        torch.randint(-1, 2, shape, generator=generator).double().requires_grad_()
        for shape in [(30, 4), (4, 40), (40,), (40, 4), (4,)]
    ]
    latents, recon = recon_of(*whole, rule)
    x, W_enc, b_enc, W_dec, b_dec = whole
    pre_acts = ((x - b_dec) @ W_enc + b_enc).relu()
    if isinstance(rule, TopK):
        best = pre_acts.sort(dim=1, descending=True).values[:, : rule.k]
        assert torch.equal(latents.sort(dim=1, descending=True).values[:, : rule.k], best)
        assert ((latents > 0).sum(dim=1) <= rule.k).all()
    else:
        best = pre_acts.flatten().sort(descending=True).values[: rule.k * 30]
        assert torch.equal(latents.flatten().sort(descending=True).values[: rule.k * 30], best)
        assert (latents > 0).sum() == (best > 0).sum()

    expected = (pre_acts * (latents > 0)) @ W_dec + b_dec
    assert_agree(recon, expected, 1e-12)
    wanted = torch.autograd.grad(expected.square().sum(), whole)
    for got, want in zip(torch.autograd.grad(recon.square().sum(), whole), wanted, strict=True):
        assert_agree(got, want, 1e-12)


@pytest.mark.parametrize("rule", [TopK(2), BatchTopK(2)])
def test_fewer_positive_pre_activations_than_k_leave_zeros_without_gradient(rule, way):
    """One latent has a positive pre-activation, k = 2: the second stays 0 and learns nothing."""
    x = torch.ones(1, 1)
    W_enc = torch.tensor([[1.0, -1.0, -2.0]], requires_grad=True)
    zeros = torch.zeros(3)
    latents, recon = recon_of(x, W_enc, zeros, torch.ones(3, 1), torch.zeros(1), rule)
    assert latents.tolist() == [[1.0, 0.0, 0.0]]
    recon.sum().backward()
    assert W_enc.grad.tolist() == [[1.0, 0.0, 0.0]]


def test_the_way_is_sparse_below_a_share_of_latents_and_dense_from_there_on():
    x, W_enc, b_enc, _, b_dec = problem(20, 4, 100)

    def way(rule):
        return type(sparse.encode(x, W_enc, b_enc, b_dec, rule)[1])

    assert DenseSupport not in (way(TopK(14)), way(BatchTopK(14)))
    assert way(TopK(15)) is way(BatchTopK(15)) is DenseSupport
    assert way(Above(torch.full((100,), 9.0))) is SparseSupport
    assert way(Above(torch.full((100,), -9.0))) is DenseSupport


def test_tiles_are_for_latents_that_fire_twice_in_one():
    """20 tokens are one tile: 10 of 100 latents a token are 2 codes of each, 9 are 1.8."""
    x, W_enc, b_enc, _, b_dec = problem(20, 4, 100)
    for k, kind in ((10, TiledSupport), (9, SparseSupport)):
        assert type(sparse.encode(x, W_enc, b_enc, b_dec, TopK(k))[1]) is kind


@pytest.mark.parametrize("silent", [False, True])
def test_chunks_of_whole_tiles_hold_what_one_product_does(silent):
    """300 tokens in chunks of at least ten rows are three of one tile; a tenth is kept."""
    x, W_enc, b_enc, _, b_dec = problem(300, 4, 40)
    pre_acts = (x - b_dec) @ W_enc + b_enc
    lower = pre_acts.detach().quantile(0.9, dim=0)
    loud = lower + 0.1 if silent else None
    values, where = sparse.encode(x, W_enc, b_enc, b_dec, Above(lower), loud)
    assert type(where) is TiledSupport and where.codes.starts.shape == (3, 81 if silent else 41)
    assert_agree(where.dense(values), pre_acts * (pre_acts > lower), 1e-12)


# -- supports ---------------------------------------------------------------------------------


@pytest.fixture
def codes():
    """Three tokens over five latents, the second without any: values, sparse support, dense Z."""
    values = torch.tensor([2.0, -1.0, 3.0, 4.0])
    support = SparseSupport(torch.tensor([4, 0, 1, 4]), torch.tensor([0, 2, 2, 4]), 5)
    dense = torch.tensor(
        [[-1.0, 0.0, 0.0, 0.0, 2.0], [0.0, 0.0, 0.0, 0.0, 0.0], [0.0, 3.0, 0.0, 0.0, 4.0]]
    )
    return values, support, dense


def test_a_sparse_support_says_what_the_dense_one_says(codes):
    values, support, dense = codes
    every = DenseSupport(3, 5)
    assert torch.equal(support.dense(values), dense)
    assert support.tokens.tolist() == [0, 0, 2, 2]
    assert support.fired(values).tolist() == every.fired(dense).tolist()
    assert support.fired(values).tolist() == [False, True, False, False, True]
    assert support.l0(values) == every.l0(dense) == 1.0
    assert support.spread(torch.arange(5.0)).tolist() == [4.0, 0.0, 1.0, 4.0]
    rows = torch.arange(10.0).view(5, 2)
    acts = torch.arange(6.0).view(3, 2)
    assert torch.equal(support.times(values, rows), every.times(dense, rows))
    assert torch.equal(support.transposed_times(values, acts), every.transposed_times(dense, acts))
    expected = every.sampled(acts, rows)[support.tokens, support.latents]
    assert torch.equal(support.sampled(acts, rows), expected)
    recon, error, missed, dots = support.reconstruct(values, rows, rows[1], acts)
    assert torch.equal(recon, dense @ rows + rows[1])
    assert torch.equal(error, recon - acts)
    assert torch.equal(missed, error.double().square().sum(dim=1))
    assert torch.equal(dots, (error @ rows.t())[support.tokens, support.latents])


@pytest.mark.parametrize("ways", ["compiled", "standard operators"])
def test_a_jump_and_its_gradients_by_hand(ways, monkeypatch):
    """Thresholds 1 and 2, a bandwidth of 1: 1.25 and 1.75 are near theirs, 3.0 and 0.0 aren't; of
    0.75 the value is 0 and yet its threshold learns. (grad * threshold + 10) / -1 for each."""
    if ways == "standard operators":
        monkeypatch.setattr(kernels, "compiled", lambda _: False)
    values = torch.tensor([1.25, 1.75, 3.0, 0.0, 0.75])
    sparse_one = SparseSupport(torch.tensor([0, 1, 1, 0, 0]), torch.tensor([0, 2, 3, 4, 5]), 2)
    threshold, grad = torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0])
    made, n = sparse_one.jump(values, threshold)
    assert made.tolist() == [1.25, 0.0, 3.0, 0.0, 0.0] and n == 2
    by_value, by_threshold = sparse_one.jump_gradients(
        values, threshold, grad, torch.tensor(10.0), bandwidth=1.0
    )
    assert by_value.tolist() == [1.0, 0.0, 4.0, 0.0, 0.0]
    assert by_threshold.tolist() == [-(1 + 10) - (16 + 10), -(2 * 2 + 10)]


@pytest.mark.parametrize(("first", "end"), [(0, 5), (0, 1), (1, 4), (2, 4), (4, 5)])
def test_columns_are_some_latents_alone(first, end, codes):
    values, support, dense = codes
    where, part = support.columns(first, end)
    assert torch.equal(part.dense(values[where]), dense[:, first:end])
    where, part = DenseSupport(3, 5).columns(first, end)
    assert torch.equal(part.dense(dense[where]), dense[:, first:end])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("architecture", ["topk", "standard", "gated"])
def test_on_a_cpu_an_sae_works_in_narrow_numbers_too(architecture, dtype):
    sae, (x, _), dead = made(architecture, dtype=torch.float32)
    sae, x = sae.to(dtype), x.to(dtype)
    latents = sae.encode(x)
    wide = latents.float() @ sae.W_dec.float() + sae.b_dec.float()
    assert sae(x).dtype == dtype
    assert_agree(sae(x).float(), wide, 0.02)
    learnt = gradients(sae, sae.loss(Batch(x, x), dead).total)
    assert all(gradient.isfinite().all() for gradient in learnt.values())

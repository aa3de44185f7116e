"""The sparse kernels against plain dense autograd, and the top-k against a sort."""

import numpy as np
import pytest
import torch

from sae_mlflow.sae import sparse

# batch, d_in, d_sae, k: odd sizes, one row, no row, k = 1, k = d_sae, and sizes at which the
# two-stage top-k and more than one chunk of rows are used
SHAPES = [(7, 6, 33, 3), (1, 5, 10, 1), (9, 8, 96, 4), (5, 4, 16, 16), (0, 4, 16, 2)]
TWO_STAGE = (sparse.CHUNK_ROWS + 5, 8, 192, 5)


def problem(batch, d_in, d_sae, dtype):
    generator = torch.Generator().manual_seed(0)
    shapes = [(batch, d_in), (d_in, d_sae), (d_sae,), (d_sae, d_in), (d_in,)]
    tensors = [torch.randn(*s, generator=generator, dtype=dtype) for s in shapes]
    weights = torch.randn(batch, d_in, generator=generator, dtype=dtype)
    return [t.requires_grad_() for t in tensors], weights


def dense_step(x, W_enc, b_enc, W_dec, b_dec, k):
    pre_acts = (x - b_dec) @ W_enc + b_enc
    values, indices = pre_acts.topk(k)
    latents = torch.zeros_like(pre_acts).scatter(1, indices, values.relu())
    return latents, latents @ W_dec + b_dec


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [*SHAPES, TWO_STAGE])
def test_values_and_gradients_are_those_of_the_dense_computation(shape, dtype):
    batch, d_in, d_sae, k = shape
    tensors, weights = problem(batch, d_in, d_sae, dtype)
    x, W_enc, b_enc, W_dec, b_dec = tensors
    expected_latents, expected = dense_step(*tensors, k)
    expected_grads = torch.autograd.grad((expected * weights).sum(), tensors)
    latents = sparse.encode_topk(x, W_enc, b_enc, b_dec, k)
    recon = sparse.decode(latents, W_dec, b_dec)
    grads = torch.autograd.grad((recon * weights).sum(), tensors)
    tolerance = (
        {"rtol": 1e-4, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 1e-10, "atol": 1e-10}
    )
    torch.testing.assert_close(latents.dense(), expected_latents, **tolerance)
    torch.testing.assert_close(recon, expected, **tolerance)
    for got, wanted in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(got, wanted, **tolerance)


def test_the_gradient_agrees_with_finite_differences():
    tensors, _ = problem(4, 3, 12, torch.float64)

    def loss(x, W_enc, b_enc, W_dec, b_dec):
        latents = sparse.encode_topk(x, W_enc, b_enc, b_dec, 3)
        return (sparse.decode(latents, W_dec, b_dec) - x).square().mean()

    assert torch.autograd.gradcheck(loss, tensors, eps=1e-6, atol=1e-6)


def test_a_strided_encoder_and_strided_input_give_the_same():
    tensors, _ = problem(6, 4, 64, torch.float64)
    x, W_enc, b_enc, _, b_dec = (t.detach() for t in tensors)
    strided_W = W_enc.t().contiguous().t()
    strided_x = torch.stack([x, x], dim=2)[:, :, 0]
    one = sparse.encode_topk(x, W_enc, b_enc, b_dec, 4).dense()
    other = sparse.encode_topk(strided_x, strided_W, b_enc, b_dec, 4).dense()
    torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("d_sae", "k"), [(192, 5), (96, 4), (64, 4), (100, 7), (33, 33), (16, 1)])
def test_topk_keeps_the_values_that_a_sort_puts_first(d_sae, k):
    rows = np.random.default_rng(1).normal(size=(50, d_sae))
    values, indices = sparse.topk(torch.tensor(rows), k)
    np.testing.assert_array_equal(np.sort(values.numpy()), np.sort(rows)[:, -k:])
    np.testing.assert_array_equal(np.take_along_axis(rows, indices.numpy(), 1), values.numpy())


@pytest.mark.parametrize("d_sae", [192, 33])
def test_topk_with_ties_picks_distinct_latents_with_the_right_values(d_sae):
    rows = torch.randint(0, 3, (40, d_sae), generator=torch.Generator().manual_seed(0)).double()
    values, indices = sparse.topk(rows, 6)
    assert all(len(set(row)) == 6 for row in indices.tolist())
    np.testing.assert_array_equal(values.sort().values, rows.sort().values[:, -6:])


def test_fewer_positive_pre_activations_than_k_leave_zeros_without_gradient():
    """One latent has a positive pre-activation, k = 2: the second stays 0 and learns nothing."""
    x = torch.ones(1, 1)
    W_enc = torch.tensor([[1.0, -1.0, -2.0]], requires_grad=True)
    latents = sparse.encode_topk(x, W_enc, torch.zeros(3), torch.zeros(1), 2)
    assert latents.dense().tolist() == [[1.0, 0.0, 0.0]]
    sparse.decode(latents, torch.ones(3, 1), torch.zeros(1)).sum().backward()
    assert W_enc.grad.tolist() == [[1.0, 0.0, 0.0]]


def test_nothing_as_large_as_batch_times_latents_is_kept_for_backward():
    batch, d_in, d_sae, k = 64, 8, 256, 4
    tensors, _ = problem(batch, d_in, d_sae, torch.float32)
    x, W_enc, b_enc, W_dec, b_dec = tensors
    kept = []
    hooks = torch.autograd.graph.saved_tensors_hooks(
        lambda t: kept.append(t.numel()) or t, lambda t: t
    )
    with hooks:
        sparse.decode(sparse.encode_topk(x, W_enc, b_enc, b_dec, k), W_dec, b_dec)
    assert kept and max(kept) < batch * d_sae

"""Every architecture's loss as its paper writes it: dense, plain autograd, nothing of ours.

`p` maps parameter names to tensors; x is `[batch, d_in]`, y the target. All return
`(total, recon, latents)`.
"""

import torch


def mse(error):
    return error.square().mean()


def variance(x):
    return (x - x.mean(dim=0)).square().mean()


def pre_acts(p, x, centred=True):
    return (x - p["b_dec"] if centred else x) @ p["W_enc"] + p["b_enc"]


def decoded(p, latents, x):
    recon = latents @ p["W_dec"] + p["b_dec"]
    return recon + x @ p["W_skip"].T if "W_skip" in p else recon


def keep_topk(pre, k):
    values, indices = pre.topk(k)
    return torch.zeros_like(pre).scatter(1, indices, values.relu())


def keep_batch_topk(pre, k):
    flat = pre.relu().flatten()
    values, indices = flat.topk(min(k * pre.shape[0], len(flat)))
    return torch.zeros_like(flat).scatter(0, indices, values).view_as(pre)


def auxk(p, pre, y, recon, dead, aux_k):
    n_dead = int(dead.sum())
    if not n_dead:
        return torch.zeros((), dtype=y.dtype)
    error = (y - recon).detach()
    k = min(aux_k, n_dead)
    values, indices = pre.masked_fill(~dead, -torch.inf).topk(k)
    missed = torch.zeros_like(pre).scatter(1, indices, values.relu()) @ p["W_dec"]
    return variance(y) * min(n_dead / aux_k, 1.0) * mse(error - missed) / variance(error)


def topk(p, x, y, *, k, dead, aux_k, aux_k_coefficient=1 / 32, centred=True, batch=False):
    pre = pre_acts(p, x, centred)
    latents = (keep_batch_topk if batch else keep_topk)(pre, k)
    recon = decoded(p, latents, x)
    aux = auxk(p, pre, y, recon, dead, aux_k)
    return mse(y - recon) + aux_k_coefficient * aux, recon, latents


def matryoshka(p, x, y, *, k, prefixes, dead, aux_k, aux_k_coefficient=1 / 32):
    pre = pre_acts(p, x)
    latents = keep_batch_topk(pre, k)
    losses = []
    for m in prefixes:
        recon = latents[:, :m] @ p["W_dec"][:m] + p["b_dec"]
        losses.append(mse(y - recon))
    aux = auxk(p, pre, y, recon, dead, aux_k)
    return sum(losses) / len(losses) + aux_k_coefficient * aux, recon, latents


def standard(p, x, y, *, l1, centred=True):
    latents = pre_acts(p, x, centred).relu()
    recon = decoded(p, latents, x)
    penalty = (latents * p["W_dec"].norm(dim=1)).sum(dim=1).mean()
    return mse(y - recon) + l1 * penalty, recon, latents


def crosscoder(p, x, y, *, l1, widths):
    latents = pre_acts(p, x, centred=False).relu()
    recon = decoded(p, latents, x)
    by_layer = zip(x.split(widths, 1), recon.split(widths, 1), strict=True)
    norms = sum(W.norm(dim=1) for W in p["W_dec"].split(widths, 1))
    penalty = (latents * norms).sum(dim=1).mean()
    return sum(mse(a - b) for a, b in by_layer) + l1 * penalty, recon, latents


def gated(p, x, y, *, l1):
    centred = x - p["b_dec"]
    gate = centred @ p["W_enc"] + p["b_gate"]
    magnitude = centred @ (p["W_enc"] * p["r_mag"].exp()) + p["b_mag"]
    latents = (gate > 0) * magnitude.relu()
    recon = decoded(p, latents, x)
    penalty = (gate.relu() * p["W_dec"].norm(dim=1)).sum(dim=1).mean()
    from_gate = gate.relu() @ p["W_dec"].detach() + p["b_dec"].detach()
    return mse(y - recon) + l1 * penalty + mse(y - from_gate), recon, latents


class _Kernel(torch.autograd.Function):
    """JumpReLU or step with the paper's straight-through gradients."""

    @staticmethod
    def forward(ctx, pre, theta, eps, jump):
        ctx.save_for_backward(pre, theta)
        ctx.eps, ctx.jump = eps, jump
        on = (pre > theta).to(pre.dtype)
        return pre * on if jump else on

    @staticmethod
    def backward(ctx, grad):
        pre, theta = ctx.saved_tensors
        rect = (((pre - theta) / ctx.eps).abs() < 0.5).to(pre.dtype)
        scale = theta / ctx.eps if ctx.jump else 1 / ctx.eps
        grad_theta = (-scale * rect * grad).sum(dim=0)
        return grad * (pre > theta) if ctx.jump else None, grad_theta, None, None


def jumprelu(p, x, y, *, l0, eps, target=None, centred=True):
    pre = pre_acts(p, x, centred)
    latents = _Kernel.apply(pre, p["threshold"], eps, True)
    recon = decoded(p, latents, x)
    count = _Kernel.apply(pre, p["threshold"], eps, False).sum(dim=1).mean()
    sparsity = l0 * (count if target is None else (count / target - 1) ** 2)
    return mse(y - recon) + sparsity, recon, latents

"""AuxK: dead latents learn from what the living ones miss (Gao et al. 2024, appendix A.2)."""

from torch import Tensor

from sae_mlflow.sae import sparse
from sae_mlflow.sae.base import SAE, Batch
from sae_mlflow.sae.select import TopK


def auxk_loss(sae: SAE, batch: Batch, recon: Tensor, dead: Tensor, aux_k: int) -> Tensor:
    """Var(y) min(n_dead / aux_k, 1) ||e - e_hat||^2 / Var(e), e = y - recon; 0 where none is dead.

    e_hat decodes, without `b_dec`, the `aux_k` largest pre-activations of dead latents, relu.

    Args:
        recon: `[batch, d_out]`, what the living latents make of the batch; detached.
        dead: `[d_sae]` bool.
    """
    latents = dead.nonzero().squeeze(1)
    n_dead = len(latents)
    if not n_dead:
        return recon.new_zeros(())
    error = batch.y - recon
    values, support = sparse.encode(
        batch.x,
        sae.W_enc.t()[latents].t(),
        sae.b_enc[latents],
        sae.centre,
        TopK(min(aux_k, n_dead)),
    )
    missed = error - sparse.decode(values.relu(), support, sae.W_dec[latents])
    share = min(n_dead / aux_k, 1.0)
    # what isn't a number becomes 0 before it meets a gradient: 0 * NaN would be NaN again
    weight = (share * variance(batch.y) / variance(error)).nan_to_num(0.0, posinf=0.0)
    return weight * missed.square().mean()


def variance(acts: Tensor) -> Tensor:
    """Mean over tokens and dimensions of the squared distance to the tokens' mean."""
    return (acts - acts.mean(dim=0)).square().mean()

"""Giant norms: a handful of tokens can carry half of a layer's power; no SAE should see them."""

from torch import Tensor


def norm_cap(norms: Tensor, max_norm_ratio: float) -> float:
    """The largest norm that isn't giant: `max_norm_ratio` times the median of the finite ones.

    Where there are none it is below 0, and nothing is within it.
    """
    finite = norms[norms.isfinite()]
    return max_norm_ratio * finite.median().item() if len(finite) else -1.0

"""The definitions of the metrics, each once; over a whole set, never as the mean of batches."""

from collections.abc import Mapping

import torch
from torch import Tensor


def fvu(acts: Tensor, recon: Tensor) -> float:
    """Fraction of variance unexplained: 0 is perfect, 1 is predicting the mean; may exceed 1.

    sum (a - a_hat)^2 / sum (a - mean a)^2, both over tokens and dimensions.

    Args:
        acts: LM activations `[batch, d_in]`.
        recon: SAE output `[batch, d_in]`.
    """
    tally = Tally()
    tally.add(acts, recon)
    return tally.fvu()


class Tally:
    """Sums over the batches of one epoch, or of the held-out set, kept in float64."""

    def __init__(self) -> None:
        self.tokens = 0
        self._sums: dict[str, Tensor] = {}
        self._fired: Tensor | None = None

    @torch.no_grad()
    def add(
        self, acts: Tensor, recon: Tensor, l0: Tensor | None = None, fired: Tensor | None = None
    ) -> None:
        """Count one batch.

        Args:
            acts: LM activations `[batch, d_in]`.
            recon: SAE output `[batch, d_in]`.
            l0: mean number of latents > 0 a token of this batch.
            fired: `[d_sae]` bool, latents > 0 on some token of this batch.
        """
        self.tokens += acts.shape[0]
        self.accumulate("residual", (acts - recon).square().sum())
        self.accumulate("square", acts.square().sum())
        self.accumulate("acts", acts.sum(dim=0))
        self.accumulate("cosine", torch.cosine_similarity(acts, recon, dim=1).sum())
        if l0 is not None:
            self.accumulate("l0", l0 * acts.shape[0])
        if fired is not None:
            self._fired = fired.clone() if self._fired is None else self._fired | fired

    def accumulate(self, name: str, value: Tensor) -> None:
        """Add a batch's sum to a running one; `mean` divides it by the tokens."""
        wide = value.detach().double()
        self._sums[name] = self._sums[name] + wide if name in self._sums else wide

    @property
    def tensors(self) -> dict[str, Tensor]:
        """All that it holds beside the number of tokens."""
        return self._sums | ({} if self._fired is None else {"fired": self._fired})

    @classmethod
    def of(cls, tokens: int, tensors: Mapping[str, Tensor]) -> "Tally":
        """What `tokens` and `tensors` were taken from, to be added to."""
        tally = cls()
        tally.tokens, tally._sums = tokens, dict(tensors)
        tally._fired = tally._sums.pop("fired", None)
        return tally

    def copy(self) -> "Tally":
        """The sums as they are now."""
        copied = Tally()
        copied.tokens, copied._sums, copied._fired = self.tokens, dict(self._sums), self._fired
        return copied

    def since(self, earlier: "Tally") -> "Tally":
        """What was added after `earlier = tally.copy()`; which latents fired isn't known of it."""
        added = Tally()
        added.tokens = self.tokens - earlier.tokens
        added._sums = {
            name: total - earlier._sums.get(name, torch.zeros_like(total))
            for name, total in self._sums.items()
        }
        return added

    def mean(self, name: str) -> float:
        return self._sums[name].item() / self.tokens

    def reconstruction_loss(self) -> float:
        """Mean over tokens and dimensions of the squared error."""
        return self.mean("residual") / self._sums["acts"].numel()

    def fvu(self) -> float:
        """Fraction of variance unexplained; see `fvu`."""
        mean_square = self._sums["acts"].square().sum() / self.tokens
        return (self._sums["residual"] / (self._sums["square"] - mean_square)).item()

    def cosine_similarity(self) -> float:
        """Mean over tokens of the cosine between activation and reconstruction, -1 to 1."""
        return self.mean("cosine")

    def l0_norm(self) -> float:
        """Mean over tokens of the number of latents > 0."""
        return self.mean("l0")

    def never_fired_fraction(self) -> float:
        """Share of latents that fired on no token, 0 to 1."""
        assert self._fired is not None
        return 1.0 - self._fired.double().mean().item()

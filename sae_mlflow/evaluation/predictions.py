"""Next-token predictions held against the text, and against another model's.

Cross-entropy and KL divergence are means over all predictions within the windows but those whose
target is a special token: where a document ends is packing's doing, not the text's. They are in
nats, from float32 log-probabilities, summed in float64.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class LossSums:
    """Sums over predictions; `cross_entropy()` and `kl_divergence()` are their means."""

    predictions: int = 0
    _cross_entropy: float = 0.0
    _kl_divergence: float = 0.0

    def add(self, cross_entropy: float, predictions: int, kl_divergence: float = 0.0) -> None:
        self._cross_entropy += cross_entropy
        self._kl_divergence += kl_divergence
        self.predictions += predictions

    def cross_entropy(self) -> float:
        """Nats a prediction, >= 0."""
        return self._cross_entropy / self.predictions

    def kl_divergence(self) -> float:
        """KL(original || changed), nats a prediction; 0 where nothing has changed."""
        return self._kl_divergence / self.predictions


class Predictions:
    """The predictions of a batch of windows that count; gone through one window at a time, since
    log-probabilities of all tokens at once are too large to keep."""

    def __init__(self, token_ids: Tensor, special_ids: frozenset[int]) -> None:
        """
        Args:
            token_ids: `[batch, context]`.
        """
        targets = token_ids[:, 1:]
        special = torch.tensor(sorted(special_ids), dtype=targets.dtype, device=targets.device)
        self._counted = torch.isin(targets, special, invert=True)
        self._targets = [t[c] for t, c in zip(targets, self._counted, strict=True)]
        self.n = int(self._counted.sum())

    def log_probs(self, logits: Tensor) -> Iterator[Tensor]:
        """Of logits `[batch, context, vocabulary]`: for each window float32 `[n, vocabulary]`."""
        for window, counted in zip(logits, self._counted, strict=True):
            yield window[:-1][counted.to(window.device)].float().log_softmax(dim=-1)

    def score(self, logits: Tensor, original: Sequence[Tensor]) -> tuple[float, float]:
        """Sums of the cross-entropy, and of KL(original || changed).

        Args:
            logits: the changed model's, `[batch, context, vocabulary]`.
            original: `log_probs` of the model as it is.
        """
        cross_entropy = kl_divergence = 0.0
        changed_windows = self.log_probs(logits)
        for clean, changed, targets in zip(original, changed_windows, self._targets, strict=True):
            cross_entropy += _cross_entropy(changed, targets)
            kl_divergence += _sum64((clean.exp() * (clean - changed)).sum(dim=-1))
        return cross_entropy, kl_divergence

    def cross_entropy(self, log_probs: Iterator[Tensor] | Sequence[Tensor]) -> float:
        """Sum of the cross-entropy."""
        pairs = zip(log_probs, self._targets, strict=True)
        return sum(_cross_entropy(window, targets) for window, targets in pairs)


def recovered_share(original: float, spliced: float, zero_ablated: float) -> float:
    """The share of what zero ablation loses that the stand-in wins back: 1 is all, 0 is none.

    Negative where it is worse than zeros; not a number where zero ablation loses nothing.
    """
    lost = zero_ablated - original
    return (zero_ablated - spliced) / lost if lost else float("nan")


def _cross_entropy(log_probs: Tensor, targets: Tensor) -> float:
    return -_sum64(log_probs.gather(1, targets.to(log_probs.device)[:, None]))


def _sum64(values: Tensor) -> float:
    return values.double().sum().item()

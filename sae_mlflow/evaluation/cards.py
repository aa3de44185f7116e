"""What `latents.html` shows: which latents, their examples as text, and where they point."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from sae_mlflow import naming
from sae_mlflow.evaluation.evaluate import Evaluation, StandIn
from sae_mlflow.evaluation.firings import Example, choose_latents
from sae_mlflow.evaluation.logit_lens import is_of_residual_stream, nearest_tokens
from sae_mlflow.evaluation.page import Card, ShownExample
from sae_mlflow.evaluation.splice import Splicer
from sae_mlflow.sae.crosscoder import CrosscoderSAE

# 200 latents with these stay under 1.5 MB where latents are sparse, and under 3 MB where each one
# fires on every token.
_EXAMPLES, _AROUND = 8, 12
_NEAREST = 10


def latent_cards(
    splicer: Splicer,
    tokenizer: Any,
    windows: np.ndarray,
    stand_in: StandIn,
    evaluation: Evaluation,
    *,
    n_latents: int,
    named: Sequence[int] = (),
) -> list[Card]:
    """The named latents, and `n_latents` more: half the most frequent, half random.

    Args:
        splicer: that the evaluation was made with.
        windows: int `[n, context]`, which the evaluation was on (`evaluate.held_out`).
        evaluation: with its firings kept.

    Raises:
        UserError: there is no latent of a named index.
    """
    assert evaluation.firings is not None
    chosen = choose_latents(evaluation.density, n_latents, named)
    latents = [each.latent for each in chosen]
    examples = evaluation.firings.examples(windows, latents, _EXAMPLES, _AROUND)
    nearest = _nearest(splicer, stand_in, latents)
    text = TokenText(tokenizer)
    return [
        Card(
            latent=each.latent,
            reason=each.reason,
            density=float(evaluation.density[each.latent]),
            nearest=[text(token) for token in tokens],
            examples=[_shown(example, text) for example in found],
        )
        for each, found, tokens in zip(chosen, examples, nearest, strict=True)
    ]


class TokenText:
    """The text of single tokens as they stand within a sentence."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        # alone, a token of some tokenizers loses the space that it begins with
        self._before = tokenizer("a", add_special_tokens=False).input_ids[-1:]
        self._prefix = self._decode([])
        self._texts: dict[int, str] = {}

    def __call__(self, token: int) -> str:
        """Part of a character, which is what some tokens are, is shown as a replacement mark."""
        if token not in self._texts:
            text = self._decode([token])
            self._texts[token] = text.removeprefix(self._prefix)
        return self._texts[token]

    def _decode(self, tokens: list[int]) -> str:
        ids = [*self._before, *tokens]
        text = self._tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        return str(text)


def _nearest(splicer: Splicer, stand_in: StandIn, latents: Sequence[int]) -> list[list[int]]:
    """Of a decoder the part that writes to the residual stream, of a crosscoder's the deepest."""
    writes, sae = stand_in.site.writes, stand_in.sae
    widths = sae.widths if isinstance(sae, CrosscoderSAE) else [sae.d_out]
    parts = dict(zip(writes, sae.W_dec[list(latents)].split(widths, dim=1), strict=True))
    readable = [hookpoint for hookpoint in writes if is_of_residual_stream(hookpoint)]
    if not readable:
        return [[] for _ in latents]
    return nearest_tokens(splicer, parts[max(readable, key=naming.depth)], _NEAREST)


def _shown(example: Example, text: TokenText) -> ShownExample:
    tokens = [text(token) for token in example.token_ids]
    return ShownExample(tokens, example.activations, example.peak)

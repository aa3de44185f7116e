"""What the LM loses when an SAE stands in at its site, and what its latents do on that text.

Several SAEs are evaluated together: the LM as it is reads each window once for all of them.
A reconstruction is always that of the clean activations, also of a crosscoder's deeper layers.

Special tokens, each window's first position and giant norms pass through, spliced and zero-ablated
alike: no SAE has seen them in training, and replacing them alone would wreck the LM.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from sae_mlflow.density import density_metrics
from sae_mlflow.errors import UserError
from sae_mlflow.evaluation.firings import Firings
from sae_mlflow.evaluation.latent_stats import FiringCounts, weight_metrics
from sae_mlflow.evaluation.predictions import LossSums, Predictions, recovered_share
from sae_mlflow.evaluation.splice import Splicer, block_output, norm_caps, spliced_rows
from sae_mlflow.lm.hookpoints import LanguageModel
from sae_mlflow.lm.sites import Site
from sae_mlflow.sae import SAE
from sae_mlflow.text.corpus import Windows

# Of one batch's logits in float32. They are the largest tensor here, and there are three of them.
_LOGIT_BYTES = 128 * 1024 * 1024
_LATENT_BYTES = 128 * 1024 * 1024


@dataclass(frozen=True, eq=False)
class StandIn:
    """An SAE, where it stands, and the norms that are too large for it."""

    site: Site
    sae: SAE
    """For raw activations, as `load_sae` gives it, on the LM's device."""
    caps: Mapping[str, float]
    """The largest norm at each of `site.hookpoints` (`site_caps`, or the training's own)."""


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What was found out about one SAE."""

    metrics: dict[str, float]
    density: np.ndarray
    """Share of the spliced tokens on which each latent fires: float64 `[d_sae]`."""
    spliced_tokens: int
    """Tokens that didn't pass through."""
    firings: Firings | None


def evaluate(
    splicer: Splicer,
    windows: Windows,
    stand_ins: Sequence[StandIn],
    *,
    tokens: int,
    keep_firings: bool = False,
) -> list[Evaluation]:
    """Evaluate SAEs on the first held-out windows.

    Args:
        splicer: around the LM; one for all evaluations of an LM finds out about it once.
        tokens: that the LM reads, rounded down to whole windows (one at least).
        keep_firings: also keep which latents fired where.

    Returns:
        One for each of `stand_ins`. Metrics: `ce_loss_original`, `ce_loss_spliced`,
        `ce_loss_zero_ablated`, `ce_loss_recovered`, `kl_divergence`, `latents_over_1_percent`,
        `latents_over_10_percent`, `latents_dead_fraction`, `decoder_max_cosine`,
        `encoder_decoder_cosine` (not of a transcoder), `evaluation_tokens`.

    Raises:
        UserError: there is no token to splice at, or to predict.
    """
    original = LossSums()
    tallies = [_Tally(s, splicer, Firings() if keep_firings else None) for s in stand_ins]
    with torch.inference_mode():
        for batch in _batches(splicer.lm, windows, tokens):
            _add_batch(splicer, batch, original, tallies)
    n_tokens = held_out(windows, tokens).size
    return [tally.evaluation(original, n_tokens) for tally in tallies]


def held_out(windows: Windows, tokens: int) -> np.ndarray:
    """The held-out windows that are evaluated on: int32 `[n, context]`."""
    return windows.held_out[: max(1, tokens // windows.context)]


def site_caps(
    lm: LanguageModel,
    windows: Windows,
    sites: Sequence[Site],
    *,
    tokens: int,
    max_norm_ratio: float,
) -> dict[str, float]:
    """The largest norm that isn't giant at each hookpoint of the sites.

    `max_norm_ratio` times the median over the evaluated tokens themselves, where training takes
    that over its own tokens: a median differs little from one text to another. Costs a forward
    pass down to the deepest site.
    """
    batches = ((b.token_ids, b.kept) for b in _batches(lm, windows, tokens))
    hookpoints = dict.fromkeys(h for site in sites for h in site.hookpoints)
    return norm_caps(lm, batches, hookpoints, max_norm_ratio)


@dataclass(frozen=True, eq=False)
class _Batch:
    token_ids: Tensor
    """`[batch, context]`."""
    kept: Tensor
    """bool `[batch * context]`: neither special nor first."""
    start: int
    """Position of its first token in all evaluated windows, flattened."""
    special_ids: frozenset[int]


def _batches(lm: LanguageModel, windows: Windows, tokens: int) -> Iterator[_Batch]:
    chosen = held_out(windows, tokens)
    vocabulary = lm.model.config.get_text_config().vocab_size
    at_once = max(1, _LOGIT_BYTES // (4 * vocabulary * windows.context))
    for start in range(0, len(chosen), at_once):
        batch = chosen[start : start + at_once]
        yield _Batch(
            token_ids=torch.from_numpy(batch).long().to(lm.device),
            kept=torch.from_numpy(windows.kept(batch).reshape(-1)).to(lm.device),
            start=start * windows.context,
            special_ids=windows.special_ids,
        )


def _add_batch(
    splicer: Splicer, batch: _Batch, original: LossSums, tallies: Sequence["_Tally"]
) -> None:
    hookpoints = dict.fromkeys(h for tally in tallies for h in tally.hookpoints)
    acts = splicer.lm.activations(batch.token_ids, hookpoints)
    predictions = Predictions(batch.token_ids, batch.special_ids)
    blocks = [tally.resume for tally in tallies if tally.resume is not None]
    # the clean pass was stopped at the deepest hookpoint: this goes on with it
    resume = _known(acts, max(blocks)) if blocks else None
    clean = list(predictions.log_probs(splicer.logits(batch.token_ids, resume=resume)))
    original.add(predictions.cross_entropy(clean), predictions.n)
    zero_ablated: dict[object, float] = {}  # the same for all SAEs of one site
    for tally in tallies:
        tally.add(batch, acts, predictions, clean, zero_ablated)


def _known(acts: Mapping[str, Tensor], block: int) -> tuple[int, Tensor]:
    return block, acts[block_output(block)]


@dataclass(eq=False)
class _Tally:
    """One SAE's sums over the batches."""

    stand_in: StandIn
    splicer: Splicer
    firings: Firings | None
    spliced: LossSums = field(default_factory=LossSums)
    zero_ablated: LossSums = field(default_factory=LossSums)

    def __post_init__(self) -> None:
        self.counts = FiringCounts(self.stand_in.sae.d_sae)
        self.resume = self.splicer.resume_block(self.stand_in.site.writes)

    @property
    def hookpoints(self) -> tuple[str, ...]:
        start = () if self.resume is None else (block_output(self.resume),)
        return self.stand_in.site.hookpoints + start

    def add(
        self,
        batch: _Batch,
        acts: Mapping[str, Tensor],
        predictions: Predictions,
        clean: Sequence[Tensor],
        zero_ablated: dict[object, float],
    ) -> None:
        site, caps = self.stand_in.site, self.stand_in.caps
        rows = spliced_rows(acts, batch.kept, caps)
        resume = None if self.resume is None else _known(acts, self.resume)
        recon = self._reconstruct(acts, rows, batch.start)
        logits = self.splicer.logits(batch.token_ids, recon, rows, resume)
        cross_entropy, kl_divergence = predictions.score(logits, clean)
        self.spliced.add(cross_entropy, predictions.n, kl_divergence)
        same = (site.writes, *sorted(caps.items()))
        if same not in zero_ablated:
            zeros = {h: torch.zeros_like(values) for h, values in recon.items()}
            logits = self.splicer.logits(batch.token_ids, zeros, rows, resume)
            zero_ablated[same] = predictions.cross_entropy(predictions.log_probs(logits))
        self.zero_ablated.add(zero_ablated[same], predictions.n)

    def _reconstruct(
        self, acts: Mapping[str, Tensor], rows: Tensor, start: int
    ) -> dict[str, Tensor]:
        """What the SAE makes of the clean activations at `rows`, by hookpoint; counts latents."""
        site, sae = self.stand_in.site, self.stand_in.sae
        x = torch.cat([acts[h][rows].float() for h in site.reads], dim=1)
        positions = start + rows.nonzero().flatten()
        at_once = max(1, _LATENT_BYTES // (4 * sae.d_sae))
        recon = []
        for some, where in zip(x.split(at_once), positions.split(at_once), strict=True):
            latents = sae.encode(some)
            self.counts.add(latents)
            if self.firings is not None:
                self.firings.add(latents, where)
            recon.append(sae.decode(latents, some))
        widths = [acts[h].shape[1] for h in site.writes]
        parts = torch.cat(recon).split(widths, dim=1)
        return dict(zip(site.writes, parts, strict=True))

    def evaluation(self, original: LossSums, n_tokens: int) -> Evaluation:
        site, sae = self.stand_in.site, self.stand_in.sae
        if not self.counts.tokens or not original.predictions:
            raise UserError(
                f"{site.label}: none of the {n_tokens:,} held-out tokens read can be evaluated on; "
                "they are special tokens or have giant norms. Evaluate on more tokens."
            )
        clean, density = original.cross_entropy(), self.counts.density()
        spliced, zeros = self.spliced.cross_entropy(), self.zero_ablated.cross_entropy()
        metrics = {
            "ce_loss_original": clean,
            "ce_loss_spliced": spliced,
            "ce_loss_zero_ablated": zeros,
            "ce_loss_recovered": recovered_share(clean, spliced, zeros),
            "kl_divergence": self.spliced.kl_divergence(),
            **density_metrics(density),
            **weight_metrics(sae, reads_what_it_writes=site.reads == site.writes),
            "evaluation_tokens": float(n_tokens),
        }
        return Evaluation(metrics, density, self.counts.tokens, self.firings)

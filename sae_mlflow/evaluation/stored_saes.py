"""SAEs out of the store, evaluated together: one that can't be costs the others nothing."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from sae_mlflow.errors import OutOfReach, UserError
from sae_mlflow.evaluation.evaluate import Evaluation, StandIn, evaluate
from sae_mlflow.evaluation.splice import Splicer
from sae_mlflow.formats.sae_files import load_sae
from sae_mlflow.lm.hookpoints import LanguageModel
from sae_mlflow.lm.sites import Site
from sae_mlflow.text.corpus import Windows
from sae_mlflow.tracking.contents import SAE_FOLDER
from sae_mlflow.tracking.store import Store


class StoredSite(NamedTuple):
    """A run whose SAE is evaluated, and where that stands."""

    run_id: str
    site: Site
    caps: Mapping[str, float]
    """The largest norm at each hookpoint; those of other sites may be among them."""


class Evaluated(NamedTuple):
    """An SAE, and what was found out about it."""

    stand_in: StandIn
    evaluation: Evaluation


def evaluate_stored(
    store: Store,
    splicer: Splicer,
    windows: Windows,
    sites: Sequence[StoredSite],
    *,
    tokens: int,
    keep_firings: bool = False,
) -> list[Evaluated | UserError]:
    """Evaluate runs' SAEs; for each what was found out, or why it can't be evaluated.

    Args:
        tokens: as `evaluate` takes them.

    Raises:
        OutOfReach: the store doesn't answer.
    """
    opened = [_opened(store, splicer.lm, each) for each in sites]
    stand_ins = [each for each in opened if isinstance(each, StandIn)]
    found = iter(_evaluated(splicer, windows, stand_ins, tokens, keep_firings))
    return [next(found) if isinstance(each, StandIn) else each for each in opened]


def _opened(store: Store, lm: LanguageModel, stored: StoredSite) -> StandIn | UserError:
    """On the LM's device, with its own site's caps alone."""
    run_id, site, caps = stored
    source = f"runs:/{run_id}/{SAE_FOLDER}"
    try:
        sae = load_sae(source, device=str(lm.device), tracking_uri=store.uri)
    except OutOfReach:
        raise
    except UserError as error:
        return error
    return StandIn(site, sae, {hookpoint: caps[hookpoint] for hookpoint in site.hookpoints})


def _evaluated(
    splicer: Splicer,
    windows: Windows,
    stand_ins: Sequence[StandIn],
    tokens: int,
    keep_firings: bool,
) -> list[Evaluated | UserError]:
    """Together; where one of them can't be, each alone."""
    if not stand_ins:
        return []
    try:
        found = evaluate(splicer, windows, stand_ins, tokens=tokens, keep_firings=keep_firings)
        return [Evaluated(*pair) for pair in zip(stand_ins, found, strict=True)]
    except UserError as error:
        if len(stand_ins) == 1:
            return [error]
    return [
        found
        for each in stand_ins
        for found in _evaluated(splicer, windows, [each], tokens, keep_firings)
    ]

"""Trained SAEs out of the store, evaluated on their training's held-out text; results go back in.

The text is read again as the training's settings say, and refused where it isn't the same any more:
what is held out is known of that text alone.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from sae_mlflow.config import Settings
from sae_mlflow.errors import UserError
from sae_mlflow.evaluation.cards import latent_cards
from sae_mlflow.evaluation.evaluate import Evaluation, held_out, site_caps
from sae_mlflow.evaluation.files import (
    LATENT_PAGE,
    log_evaluation,
    write_density,
    write_latent_page,
)
from sae_mlflow.evaluation.firings import check_named
from sae_mlflow.evaluation.page import Card
from sae_mlflow.evaluation.splice import Splicer
from sae_mlflow.evaluation.stored_saes import Evaluated, StoredSite, evaluate_stored
from sae_mlflow.evaluation.trained import Trained, read_trained
from sae_mlflow.lm.hookpoints import LanguageModel
from sae_mlflow.lm.loading import load_language_model, load_tokenizer
from sae_mlflow.plots.frames import describe
from sae_mlflow.text.corpus import Windows, token_windows
from sae_mlflow.tracking.contents import DIGEST_LENGTH, EVALUATION_FOLDER, FINISHED, RunRow
from sae_mlflow.tracking.store import Store
from sae_mlflow.tracking.trainings import finished_rows, rows_of_run

_SAES_AT_ONCE = 8  # that share a clean pass, and the memory


@dataclass(frozen=True)
class Request:
    """What is asked of each run."""

    tokens: int
    """Held-out tokens that the LM reads, as `evaluate` takes them."""
    latents: int
    """How many `latents.html` shows, beside the named ones."""
    named: tuple[int, ...] = ()
    trust_remote_code: bool = False
    """Whether code that models bring along may run: the store's word is not enough."""


@dataclass(frozen=True, eq=False)
class _Bench:
    """What the runs of one model and text are evaluated with."""

    store: Store
    request: Request
    splicer: Splicer
    tokenizer: Any
    windows: Windows


def finished_of_run(store: Store, run_id: str) -> list[RunRow]:
    """A finished layer run, or those of a parent.

    Raises:
        UserError: there is no such run, it has no SAE, or hasn't finished.
    """
    rows = rows_of_run(store, run_id)
    finished = [row for row in rows if row.status == FINISHED]
    if not finished:
        raise UserError(
            f"Run {run_id} is {rows[0].status}: only finished runs have an SAE to evaluate. Wait "
            "for it, or train again."
        )
    return finished


def finished_of_experiment(store: Store, experiment: str) -> list[RunRow]:
    """All finished layer runs of an experiment.

    Raises:
        UserError: there is no such experiment, or nothing in it has finished.
    """
    return finished_rows(store, experiment, store.find_experiment(experiment))


def evaluate_runs(store: Store, rows: Sequence[RunRow], request: Request) -> Iterator[str]:
    """Evaluate runs and log what is found to each; yields lines that say so.

    Runs of the same model share its loading, those of the same text the clean pass as well.

    Raises:
        UserError: after the others were evaluated, for each run that can't be: its model, text or
            SAE can't be found, or the text has changed.
    """
    refused: list[str] = []
    trained = list(_trained(store, rows, request, refused))
    trained.sort(key=lambda each: each.key)
    for _, of_model in groupby(trained, key=lambda each: each.model_key):
        splicer: Splicer | None = None
        for _, of_text in groupby(of_model, key=lambda each: each.key):
            group = list(of_text)
            try:
                tokenizer = load_tokenizer(group[0].settings.model)
                windows = token_windows(group[0].settings.text, tokenizer)
                group = list(_of_text(store, group, windows, refused))
                if group:
                    splicer = splicer or Splicer(_language_model(group[0].settings))
                    bench = _Bench(store, request, splicer, tokenizer, windows)
                    yield from _evaluate_group(bench, group, refused)
            except UserError as error:
                refused.append(f"{_names(group)}: {error}")
    if refused:
        raise UserError("\n".join(refused))


def _trained(
    store: Store, rows: Sequence[RunRow], request: Request, refused: list[str]
) -> Iterator[Trained]:
    for row in rows:
        try:
            with TemporaryDirectory() as scratch:
                trained = read_trained(store, row, Path(scratch), request.trust_remote_code)
            check_named(request.named, trained.d_sae)
            yield trained
        except UserError as error:
            refused.append(f"Run {row.run_id} ({row.name}): {error}")


def _of_text(
    store: Store, group: Sequence[Trained], windows: Windows, refused: list[str]
) -> Iterator[Trained]:
    """Those of a group that were trained on a text as it is now."""
    for each in group:
        # without one, the settings of a store that others wrote could have any file here read, and
        # shown in the page that goes back to it
        digest = store.data_set_digest(each.row.parent_id or "")
        if digest == windows.sha256[:DIGEST_LENGTH]:
            yield each
            continue
        refused.append(
            f"{_names([each])}: The text ({windows.source}) isn't what it was trained on: what was "
            "held out then isn't known any more. Restore the text, or train again."
        )


def _language_model(settings: Settings) -> LanguageModel:
    """On whatever device is here: the training's own may be another machine's."""
    return load_language_model(settings.model.model_copy(update={"device": "auto"}))


def _evaluate_group(bench: _Bench, group: Sequence[Trained], refused: list[str]) -> Iterator[str]:
    tokens, lm, windows = bench.request.tokens, bench.splicer.lm, bench.windows
    ratio = group[0].settings.activations.max_norm_ratio
    sites = [each.site for each in group]
    caps = site_caps(lm, windows, sites, tokens=tokens, max_norm_ratio=ratio)
    for start in range(0, len(group), _SAES_AT_ONCE):
        some = group[start : start + _SAES_AT_ONCE]
        stored = [StoredSite(each.row.run_id, each.site, caps) for each in some]
        found = evaluate_stored(
            bench.store, bench.splicer, windows, stored, tokens=tokens, keep_firings=True
        )
        for each, result in zip(some, found, strict=True):
            if isinstance(result, UserError):
                refused.append(f"{_names([each])}: {result}")
                continue
            _log(bench.store, each, result.evaluation, _cards(bench, result))
            yield _summary(each.row, result.evaluation)


def _cards(bench: _Bench, evaluated: Evaluated) -> list[Card]:
    request = bench.request
    return latent_cards(
        bench.splicer,
        bench.tokenizer,
        held_out(bench.windows, request.tokens),
        *evaluated,
        n_latents=request.latents,
        named=request.named,
    )


def _log(store: Store, trained: Trained, evaluation: Evaluation, cards: Sequence[Card]) -> None:
    row, epochs = trained.row, trained.settings.train.epochs
    with TemporaryDirectory() as scratch:
        folder, note = Path(scratch), describe([row])
        write_density(evaluation, folder, model=row.model, layer=row.layer, note=note)
        title = f"{row.model} · {row.layer}"
        note = f"{note} · run {row.run_id}"
        write_latent_page(evaluation, cards, folder, title=title, note=note)
        with store.logging_to(row.run_id, "The evaluation", "evaluate where it can be"):
            log_evaluation(store.reopen(row.run_id), epochs, evaluation, folder)


def _summary(row: RunRow, evaluation: Evaluation) -> str:
    m = evaluation.metrics
    return (
        f"{row.name}  CE loss {m['ce_loss_original']:.4f}, spliced {m['ce_loss_spliced']:.4f}, "
        f"zeros {m['ce_loss_zero_ablated']:.4f}: {m['ce_loss_recovered']:.2%} recovered  "
        f"KL {m['kl_divergence']:.4f}  dead {m['latents_dead_fraction']:.1%}  "
        f"on {m['evaluation_tokens']:,.0f} tokens\n"
        f"  runs:/{row.run_id}/{EVALUATION_FOLDER}/{LATENT_PAGE}"
    )


def _names(group: Sequence[Trained]) -> str:
    return ", ".join(f"run {each.row.run_id} ({each.row.name})" for each in group)

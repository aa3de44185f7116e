"""Trained SAEs out of the store, evaluated on their training's held-out text; results go back in.

The text is read again as the training's settings say, and refused where it isn't the same any more:
what is held out is known of that text alone.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from sae_mlflow.config import Settings
from sae_mlflow.errors import UserError
from sae_mlflow.evaluation.cards import latent_cards
from sae_mlflow.evaluation.evaluate import Evaluation, evaluate, held_out, site_caps
from sae_mlflow.evaluation.files import LATENT_PAGE, write_density, write_latent_page
from sae_mlflow.evaluation.firings import check_named
from sae_mlflow.evaluation.layers import stored_stand_in
from sae_mlflow.evaluation.page import Card
from sae_mlflow.evaluation.splice import Splicer
from sae_mlflow.evaluation.stored_settings import stored_settings
from sae_mlflow.formats.sae_files import CONFIG_FILE as SAE_CONFIG_FILE
from sae_mlflow.formats.stored_sae import hookpoints, whole_number
from sae_mlflow.formats.weight_files import read_json
from sae_mlflow.lm.hookpoints import LanguageModel
from sae_mlflow.lm.loading import load_language_model, load_tokenizer
from sae_mlflow.lm.sites import Site
from sae_mlflow.plots.choice import finished_rows
from sae_mlflow.plots.frames import describe
from sae_mlflow.text.corpus import Windows, token_windows
from sae_mlflow.tracking.contents import (
    CONFIG_FILE,
    DIGEST_LENGTH,
    EVALUATION_FOLDER,
    FINISHED,
    ROLE_LAYER,
    ROLE_SWEEP,
    SAE_FOLDER,
    RunRow,
)
from sae_mlflow.tracking.store import Store

_SAES_AT_ONCE = 8  # that share a clean pass, and the memory


@dataclass(frozen=True)
class Request:
    """What is asked of each run."""

    tokens: int
    """Held-out tokens that the LM reads."""
    latents: int
    """How many `latents.html` shows, beside the named ones."""
    named: tuple[int, ...] = ()
    trust_remote_code: bool = False
    """Whether code that models bring along may run: the store's word is not enough."""


@dataclass(frozen=True, eq=False)
class _Trained:
    """How one run's SAE was trained, and where it stands."""

    row: RunRow
    settings: Settings
    site: Site

    @property
    def model_key(self) -> str:
        return self.settings.model.model_dump_json(exclude={"layers", "device"})

    @property
    def key(self) -> tuple[str, ...]:
        """The same for runs that one clean pass serves."""
        ratio = self.settings.activations.max_norm_ratio
        return self.model_key, self.settings.text.model_dump_json(), str(ratio)


def rows_of_run(store: Store, run_id: str) -> list[RunRow]:
    """A finished layer run, or those of a parent.

    Raises:
        UserError: there is no such run, it has no SAE, or hasn't finished.
    """
    row = store.find_run(run_id)
    role = row.tags.get("sae.role")
    rows = [row] if role == ROLE_LAYER else []
    if role == ROLE_SWEEP:
        rows = store.layer_runs(row.experiment_id, parent_id=run_id, finished=False)
    finished = [each for each in rows if each.status == FINISHED]
    if rows and not finished:
        raise UserError(
            f"Run {run_id} ({row.name}) is {rows[0].status}: only finished runs have an SAE to "
            "evaluate. Wait for it, or train again."
        )
    if not finished:
        raise UserError(
            f"Run {run_id} ({row.name}) is no training of an SAE. Give a layer's run or its parent."
        )
    return finished


def rows_of_experiment(store: Store, experiment: str) -> list[RunRow]:
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
                windows = _windows(store, group, tokenizer)
                splicer = splicer or Splicer(_language_model(group[0].settings))
                yield from _evaluate_group(store, group, request, splicer, tokenizer, windows)
            except UserError as error:
                refused.append(f"{_names(group)}: {error}")
    if refused:
        raise UserError("\n".join(refused))


def _trained(
    store: Store, rows: Sequence[RunRow], request: Request, refused: list[str]
) -> Iterator[_Trained]:
    for row in rows:
        try:
            with TemporaryDirectory() as scratch:
                yield _read(store, row, request, Path(scratch))
        except UserError as error:
            refused.append(f"Run {row.run_id} ({row.name}): {error}")


def _read(store: Store, row: RunRow, request: Request, scratch: Path) -> _Trained:
    if row.parent_id is None:
        raise UserError("It has no parent run, which would hold its settings. Train it again.")
    settings = store.download(f"runs:/{row.parent_id}/{CONFIG_FILE}", scratch)
    file = store.download(f"runs:/{row.run_id}/{SAE_FOLDER}/{SAE_CONFIG_FILE}", scratch)
    config = read_json(file)
    check_named(request.named, whole_number(config, "d_sae", Path(file.name)))
    site = _site(row, config)
    return _Trained(row, stored_settings(settings, request.trust_remote_code), site)


def _site(row: RunRow, config: Mapping[str, Any]) -> Site:
    """Where an SAE stands, as its own config says."""
    reads, writes = hookpoints(config, "in"), hookpoints(config, "out")
    if not reads or not writes:
        raise UserError(
            f"Its {SAE_CONFIG_FILE} names no hookpoints_in and hookpoints_out. Train it again."
        )
    return Site(writes[0] if len(writes) == 1 else writes, row.layer, reads, writes)


def _windows(store: Store, group: Sequence[_Trained], tokenizer: Any) -> Windows:
    windows = token_windows(group[0].settings.text, tokenizer)
    for each in group:
        # without one, the settings of a store that others wrote could have any file here read, and
        # shown in the page that goes back to it
        digest = store.data_set_digest(each.row.parent_id or "")
        if digest != windows.sha256[:DIGEST_LENGTH]:
            raise UserError(
                f"The text ({windows.source}) isn't what it was trained on: what was held out then "
                "isn't known any more. Restore the text, or train again."
            )
    return windows


def _language_model(settings: Settings) -> LanguageModel:
    """On whatever device is here: the training's own may be another machine's."""
    return load_language_model(settings.model.model_copy(update={"device": "auto"}))


def _evaluate_group(
    store: Store,
    group: Sequence[_Trained],
    request: Request,
    splicer: Splicer,
    tokenizer: Any,
    windows: Windows,
) -> Iterator[str]:
    lm = splicer.lm
    ratio = group[0].settings.activations.max_norm_ratio
    sites = [each.site for each in group]
    tokens = request.tokens
    caps = site_caps(lm, windows, sites, tokens=tokens, max_norm_ratio=ratio)
    for start in range(0, len(group), _SAES_AT_ONCE):
        some = group[start : start + _SAES_AT_ONCE]
        stand_ins = [stored_stand_in(store, each.row.run_id, lm, each.site, caps) for each in some]
        found = evaluate(splicer, windows, stand_ins, tokens=tokens, keep_firings=True)
        for each, stand_in, evaluation in zip(some, stand_ins, found, strict=True):
            cards = latent_cards(
                splicer,
                tokenizer,
                held_out(windows, tokens),
                stand_in,
                evaluation,
                n_latents=request.latents,
                named=request.named,
            )
            _log(store, each, evaluation, cards)
            yield _summary(each.row, evaluation)


def _log(store: Store, trained: _Trained, evaluation: Evaluation, cards: Sequence[Card]) -> None:
    row, run = trained.row, store.reopen(trained.row.run_id)
    # beside the last epoch's values: what was evaluated is the SAE as it was then
    run.log_metrics(trained.settings.train.epochs, evaluation.metrics)
    with TemporaryDirectory() as scratch:
        folder, note = Path(scratch), describe([row])
        write_density(evaluation, folder, model=row.model, layer=row.layer, note=note)
        title = f"{row.model} · {row.layer}"
        note = f"{note} · run {row.run_id}"
        write_latent_page(evaluation, cards, folder, title=title, note=note)
        run.log_folder(folder, EVALUATION_FOLDER)


def _summary(row: RunRow, evaluation: Evaluation) -> str:
    m = evaluation.metrics
    return (
        f"{row.name}  CE loss {m['ce_loss_original']:.4f}, spliced {m['ce_loss_spliced']:.4f}, "
        f"zeros {m['ce_loss_zero_ablated']:.4f}: {m['ce_loss_recovered']:.2%} recovered  "
        f"KL {m['kl_divergence']:.4f}  dead {m['latents_dead_fraction']:.1%}  "
        f"on {m['evaluation_tokens']:,.0f} tokens\n"
        f"  runs:/{row.run_id}/{EVALUATION_FOLDER}/{LATENT_PAGE}"
    )


def _names(group: Sequence[_Trained]) -> str:
    return ", ".join(f"run {each.row.run_id} ({each.row.name})" for each in group)

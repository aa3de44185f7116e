"""The composition root: settings in, runs out. Everything meets here and nowhere else."""

import json
import math
from collections.abc import Sequence
from dataclasses import replace

import torch

from sae_mlflow.activations import cache
from sae_mlflow.activations.harvest import fill_activations
from sae_mlflow.activations.layer import LayerActivations, open_activations
from sae_mlflow.activations.plan import ActivationPlan, plan_activations
from sae_mlflow.config import Settings
from sae_mlflow.disk import free_bytes, in_units
from sae_mlflow.errors import UserError
from sae_mlflow.evaluation.evaluate import held_out
from sae_mlflow.lm.loading import check_model, load_tokenizer, resolve_device
from sae_mlflow.memory import keep_freed_memory
from sae_mlflow.optimizers import check_optimizer
from sae_mlflow.reporting.display import Display
from sae_mlflow.reporting.layer_table import TrainedLayer, parent_note
from sae_mlflow.reporting.stopwatch import Stopwatch
from sae_mlflow.runs import outputs
from sae_mlflow.runs.checkpoints import checkpoints_folder
from sae_mlflow.runs.delivery import deliver_leftovers, delivered
from sae_mlflow.runs.evaluation import evaluate_layers
from sae_mlflow.runs.guards import drawing, optional
from sae_mlflow.runs.health import judge_again
from sae_mlflow.runs.later import (
    catch_up,
    now_or_later,
    parent_pictures,
    settle_ids,
    when_reachable,
)
from sae_mlflow.runs.layer import train_layer
from sae_mlflow.runs.mirror import check_trackers, complete_mirrors
from sae_mlflow.runs.parent import choose_experiment, log_settings, log_text_read
from sae_mlflow.runs.reaping import reap, told
from sae_mlflow.runs.resume import (
    find_parent,
    finished_layer,
    finished_parents,
    parent_run,
)
from sae_mlflow.runs.training import Experiment, Training
from sae_mlflow.sae import build_sae
from sae_mlflow.stopping import Stopping
from sae_mlflow.text.corpus import Windows, token_windows
from sae_mlflow.tracking.journalled import JournalledStore
from sae_mlflow.tracking.open_run import OpenRun
from sae_mlflow.whole_file import check_folder


def run_training(
    settings: Settings,
    display: Display,
    *,
    experiment_name: str | None = None,
    tracking_uri: str | None = None,
    clock: Stopwatch | None = None,
    stopping: Stopping | None = None,
    resume: str | None = None,
    command: str = "sae-mlflow train --config CONFIG",
) -> Training:
    """Train an SAE on every layer of the settings; each is a run in the tracking store.

    Args:
        experiment_name: wins over the experiment in the settings.
        tracking_uri: the store; unset means MLflow's own setting.
        resume: go on with a training that was interrupted: its parent run's id, or `auto` for the
            newest of these settings in the experiment.
        command: what starts this training, for the hint how it goes on.

    Raises:
        UserError: whatever a user can mend; what needs no language model to be found, before a run
            is opened. Runs that were opened are FAILED by then, with the reason in their tag
            `sae.failure`.
    """
    clock = clock or Stopwatch()
    keep_freed_memory()
    with clock.stage("load"):
        if settings.output.folder:
            check_folder(settings.output.folder, "output.dir")
        pictures = outputs.pictures(settings)
        check_trackers(settings)
        checkpoints_folder(settings)
        n_layers = check_model(settings).n_layers
        device = resolve_device(settings.model.device)
    with clock.stage("store"):
        store = JournalledStore(tracking_uri, display.warn)
    with delivered(store, display, settings.tracking.wait_seconds):
        with clock.stage("store"):
            experiment = choose_experiment(store, settings, experiment_name)
            finished = finished_parents(store, experiment.id) if resume else set()
            deliver_leftovers(store, display)
            with optional(display, "Trainings that died weren't looked for"):
                for dead in reap(store, experiment.id):
                    display.say(f"Closed as KILLED: {told(dead)}")
        stopping = stopping or Stopping()
        training = Training(
            settings, store, experiment, display, clock, device, pictures, n_layers, stopping
        )
        if old := find_parent(training, resume, finished):
            name = store.experiment_name(old.experiment_id)
            training.old, training.experiment = old, Experiment(name, old.experiment_id)
        windows, plan = _planned(training)  # what is wrong with the settings leaves no run
        with parent_run(training, command) as parent:
            log_settings(training, parent)
            display.say(f"Runs: {store.address(training.experiment.id, parent.run_id)}")
            _train(training, parent, windows, plan)
    settle_ids(training)
    return training


def _planned(training: Training) -> tuple[Windows, ActivationPlan]:
    """Text to windows, and what of their activations there is; all that needs no language model.

    Raises:
        UserError: a layer couldn't be trained.
    """
    settings, display = training.settings, training.display
    with training.clock.stage("load"):
        check_optimizer(settings.train.optimizer, settings.train.optimizer_options)
        display.say(f"Reading {settings.text.tokens:,} tokens for {settings.model.label}")
        windows = token_windows(settings.text, load_tokenizer(settings.model))
        if windows.note:
            display.warn(windows.note)
        plan = plan_activations(settings, windows)
        _check_trainable(plan)
    return windows, plan


def _train(training: Training, parent: OpenRun, windows: Windows, plan: ActivationPlan) -> None:
    """All layers, those that have been trained left out, and what follows them."""
    settings, display = training.settings, training.display
    with training.clock.stage("load"):
        log_text_read(training, parent, windows)
    all_acts = _activations(training, plan)
    for acts in all_acts:
        training.stopping.check()
        training.rows.append(finished_layer(training, acts) or train_layer(training, parent, acts))
        catch_up(training.store, display.say, display.warn)
        parent.describe(parent_note(settings, training.rows))
    training.stopping.check()
    if settings.evaluate.after_training:
        with optional(display, "The evaluation isn't complete"):
            later = f"sae-mlflow evaluate --experiment {training.experiment.name}"
            when_reachable(training, lambda: _evaluate(training, windows, all_acts), later)
        parent.describe(parent_note(settings, training.rows))
    training.stopping.check()
    _finish(training, parent)


def _activations(training: Training, plan: ActivationPlan) -> list[LayerActivations]:
    """Windows to activations that are cached for every layer."""
    if plan.missing:
        _harvest(training, plan)
    else:
        training.display.say(f"Activations of all layers are cached in {plan.folder}")
    return open_activations(plan, training.device)


def _check_trainable(plan: ActivationPlan) -> None:
    """Raise the UserErrors that making an SAE would, before the LM is run."""
    widths = {store.hookpoint: store.d_in for store in plan.stores}
    for site in plan.sites:
        with torch.device("meta"):  # without memory
            d_out = sum(widths[h] for h in site.writes)
            build_sae(plan.settings.sae, [widths[h] for h in site.reads], d_out)


def _harvest(training: Training, plan: ActivationPlan) -> None:
    free = free_bytes(cache.activations_folder())
    training.display.say(
        f"Activations to write: {in_units(plan.bytes_to_write)} in {plan.folder} "
        f"({in_units(free)} free)"
    )
    lm = training.language_model()
    with (
        training.clock.stage("harvest"),
        training.display.harvest(plan.tokens_to_read) as update,
    ):
        for tokens_read in fill_activations(plan, lm):
            update(tokens_read)
            training.stopping.check()


def _evaluate(training: Training, windows: Windows, all_acts: Sequence[LayerActivations]) -> None:
    """What the LM loses to each SAE that was trained, as far as it isn't known yet."""
    settings, display = training.settings, training.display
    pairs = zip(training.rows, all_acts, strict=True)
    waiting = [
        (row, acts) for row, acts in pairs if not row.evaluation and _can_be_evaluated(display, row)
    ]
    if waiting:
        lm = training.language_model()
        n_tokens = held_out(windows, settings.evaluate.tokens).size
        display.say(f"Evaluating on {n_tokens:,} held-out tokens")
        style, refused = training.pictures.style, []
        with training.clock.stage("evaluate"):
            each = evaluate_layers(training.store, settings, lm, windows, waiting, style)
            for row, found in each:
                if isinstance(found, UserError):
                    refused.append(f"{row.layer}: {found}")
                else:
                    training.rows[training.rows.index(row)] = replace(row, evaluation=found)
        for reason in refused:
            display.warn(f"The evaluation isn't complete: {reason}")
    judge_again(training)


def _can_be_evaluated(display: Display, row: TrainedLayer) -> bool:
    """Not where its health stopped it, or its weights aren't numbers any more."""
    if row.stopped:
        return False
    if math.isfinite(row.history["total_loss"][-1]):
        return True
    display.warn(f"{row.layer} isn't evaluated: its loss is no number any more")
    return False


def _finish(training: Training, parent: OpenRun) -> None:
    """What is only there once all layers have trained: overlays, and where the time went."""
    if training.settings.plots.after_training:
        with training.clock.stage("plot"), drawing(training.display, "all layers"):
            now_or_later(training, parent_pictures(training, parent.run_id))
    with training.clock.stage("log"):
        complete_mirrors(training)
    seconds = {stage: round(value, 3) for stage, value in training.clock.seconds.items()}
    parent.log_text(json.dumps(seconds, indent=2) + "\n", "seconds_by_stage.json")

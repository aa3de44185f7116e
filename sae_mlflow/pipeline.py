"""The composition root: settings in, runs out. Everything meets here and nowhere else."""

import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch

from sae_mlflow import naming, outputs
from sae_mlflow.activations import cache
from sae_mlflow.activations.harvest import fill_activations
from sae_mlflow.activations.layer import LayerActivations, open_activations
from sae_mlflow.activations.plan import ActivationPlan, plan_activations
from sae_mlflow.config import Settings
from sae_mlflow.errors import UserError
from sae_mlflow.evaluation.layers import evaluate_layers
from sae_mlflow.formats import sae_files
from sae_mlflow.history import write_history
from sae_mlflow.lm.hookpoints import LanguageModel
from sae_mlflow.lm.loading import check_model, load_language_model, load_tokenizer, resolve_device
from sae_mlflow.memory import keep_freed_memory
from sae_mlflow.optimizers import check_optimizer
from sae_mlflow.plots.runs import draw_layer_run, draw_parent
from sae_mlflow.reporting.display import Display
from sae_mlflow.reporting.layer_table import Row, launcher_note, parent_note
from sae_mlflow.reporting.stopwatch import Stopwatch
from sae_mlflow.sae import SAE, build_sae
from sae_mlflow.text.corpus import Windows, token_windows
from sae_mlflow.tracking.contents import CONFIG_FILE, ROLE_LAYER, ROLE_SWEEP, SAE_FOLDER
from sae_mlflow.tracking.launcher import launched_experiment_id, launched_run
from sae_mlflow.tracking.open_run import OpenRun
from sae_mlflow.tracking.registry import register_run
from sae_mlflow.tracking.store import Store
from sae_mlflow.train import EpochRecord, StepRecord, Trainer, train


@dataclass
class Training:
    """One training of all its layers, while it goes on."""

    settings: Settings
    store: Store
    experiment: str
    experiment_id: str
    display: Display
    clock: Stopwatch
    device: torch.device
    lm: LanguageModel | None = None
    rows: list[Row] = field(default_factory=list)


def run_training(
    settings: Settings,
    display: Display,
    *,
    experiment_name: str | None = None,
    tracking_uri: str | None = None,
    clock: Stopwatch | None = None,
) -> Training:
    """Train an SAE on every layer of the settings; each is a run in the tracking store.

    Args:
        experiment_name: wins over the experiment in the settings.
        tracking_uri: the store; unset means MLflow's own setting.

    Raises:
        UserError: whatever a user can mend. Runs that were opened are FAILED by then, with the
            reason in their tag `sae.failure`.
    """
    clock = clock or Stopwatch()
    keep_freed_memory()
    with clock.stage("load"):
        outputs.check_folder(settings.output.dir)
        check_model(settings)
        device = resolve_device(settings.model.device)
    with clock.stage("store"):
        store = Store(tracking_uri)
        experiment, experiment_id = _experiment(store, settings, experiment_name)
        parent = _parent(store, experiment, experiment_id, settings)
    training = Training(settings, store, experiment, experiment_id, display, clock, device)
    display.say(f"Runs: {store.address(experiment_id, parent.run_id)}")
    with _recorded(parent):
        windows, all_acts = _activations(training, parent)
        for acts in all_acts:
            training.rows.append(_train_layer(training, parent, acts))
            parent.describe(parent_note(settings, training.rows))
        if settings.evaluate.after_training:
            with _optional(display, "The evaluation isn't complete"):
                _evaluate(training, windows, all_acts)
            parent.describe(parent_note(settings, training.rows))
        _finish(training, parent)
    return training


def _experiment(store: Store, settings: Settings, name: str | None) -> tuple[str, str]:
    """The experiment that the runs go to: its name and id.

    `--experiment-name` wins, given to us or to `mlflow run`; else the settings decide.
    """
    launched = launched_experiment_id()
    if name is None and launched is not None:
        return store.experiment_name(launched), launched
    name = name or settings.experiment
    return name, store.experiment_id(name)


def _parent(store: Store, experiment: str, experiment_id: str, settings: Settings) -> OpenRun:
    """The sweep's run: the one that `mlflow run` made where it is in the right experiment."""
    launcher = launched_run(store)
    tags = {"sae.role": ROLE_SWEEP, "sae.model": settings.model.label}
    if launcher is not None and launcher.experiment_id == experiment_id:
        launcher.tag(tags)
        parent = launcher
    else:
        parent = store.open_run(experiment_id, naming.sanitise(settings.model.label), tags)
        if launcher is not None:
            launcher.describe(launcher_note(experiment_id, parent.run_id, experiment))
    parent.log_params(settings.flat())
    parent.log_text(settings.to_yaml(), CONFIG_FILE)
    return parent


def _activations(training: Training, parent: OpenRun) -> tuple[Windows, list[LayerActivations]]:
    """Text to windows, and windows to activations that are cached for every layer."""
    settings, display, clock = training.settings, training.display, training.clock
    with clock.stage("load"):
        display.say(f"Reading {settings.text.tokens:,} tokens for {settings.model.label}")
        windows = token_windows(settings.text, load_tokenizer(settings.model))
        if windows.note:
            display.warn(windows.note)
        parent.log_data_set(*_data_set(windows))
        plan = plan_activations(settings, windows)
        _check_trainable(plan)
    if plan.missing:
        _harvest(training, plan)
    else:
        display.say(f"Activations of all layers are cached in {plan.folder}")
    return windows, open_activations(plan, training.device)


def _check_trainable(plan: ActivationPlan) -> None:
    """Raise the UserErrors that making an SAE or its optimizer would, before the LM is run."""
    train, widths = plan.settings.train, {store.hookpoint: store.d_in for store in plan.stores}
    check_optimizer(train.optimizer, train.optimizer_options)
    for site in plan.sites:
        with torch.device("meta"):  # without memory
            d_out = sum(widths[h] for h in site.writes)
            build_sae(plan.settings.sae, [widths[h] for h in site.reads], d_out)


def _harvest(training: Training, plan: ActivationPlan) -> None:
    free = shutil.disk_usage(cache.activations_folder()).free
    training.display.say(
        f"Activations to write: {cache.in_units(plan.bytes_to_write)} in {plan.folder} "
        f"({cache.in_units(free)} free)"
    )
    lm = _language_model(training)
    with (
        training.clock.stage("harvest"),
        training.display.harvest(plan.tokens_to_read) as update,
    ):
        for tokens_read in fill_activations(plan, lm):
            update(tokens_read)


def _language_model(training: Training) -> LanguageModel:
    """The LM; loaded when it is first needed, since cached activations need none."""
    if training.lm is None:
        with training.clock.stage("load"):
            training.lm = load_language_model(training.settings.model)
    return training.lm


def _train_layer(training: Training, parent: OpenRun, acts: LayerActivations) -> Row:
    """One layer's run, from its first epoch to its pictures."""
    settings, clock, label = training.settings, training.clock, acts.site.label
    _report_giants(training.display, acts)
    sae = build_sae(settings.sae, acts.widths_in, acts.d_out).to(training.device)
    trainer = Trainer(sae, settings.train, acts.n_train)
    with clock.stage("log"):
        run = _open_layer_run(training, parent, acts)
    with _recorded(run):
        run.log_params(_layer_params(settings, trainer, acts))
        history = _epochs(training, run, acts, trainer)
        with clock.stage("log"), tempfile.TemporaryDirectory() as scratch:
            _log_results(training, run, sae, acts, history, Path(scratch))
        if settings.plots.after_training:
            with clock.stage("plot"), _drawing(training.display, label):
                draw_layer_run(training.store, run.run_id)
    if settings.output.dir:
        outputs.write_layer(settings, sae, acts, history)
        with _drawing(training.display, f"{label} in {settings.output.dir}"):
            outputs.draw_layer(settings, label, history)
    weight_bytes = sum(p.numel() * p.element_size() for p in sae.parameters())
    return Row(label, training.experiment_id, run.run_id, history, weight_bytes)


def _report_giants(display: Display, acts: LayerActivations) -> None:
    giants = acts.n_giant_train + acts.n_giant_held_out
    if giants:
        n_tokens = acts.n_train + acts.n_held_out + giants
        display.say(
            f"{acts.site.label}: {giants:,} of {n_tokens:,} tokens left out for their norm "
            "(activations.max_norm_ratio)"
        )


def _open_layer_run(training: Training, parent: OpenRun, acts: LayerActivations) -> OpenRun:
    settings, site = training.settings, acts.site
    tags = {
        "sae.role": ROLE_LAYER,
        "sae.model": settings.model.label,
        "sae.layer": site.label,
        "sae.hookpoint": ",".join(site.writes),
        "sae.architecture": settings.sae.architecture,
    }
    name = f"{naming.sanitise(settings.model.label)}_{site.label}"
    return training.store.open_run(training.experiment_id, name, tags, parent)


def _layer_params(
    settings: Settings, trainer: Trainer, acts: LayerActivations
) -> dict[str, object]:
    """A layer's settings with the defaults that depend on its width filled in, and its data."""
    sections = ("model.", "text.", "activations.", "sae.", "train.")
    params = {key: value for key, value in settings.flat().items() if key.startswith(sections)}
    del params["model.layers"]
    return params | {
        **{f"sae.{key}": value for key, value in trainer.sae.hyperparameters().items()},
        "sae.d_sae": trainer.sae.d_sae,
        "train.learning_rate": trainer.peak_learning_rate,
        "train.dead_after_tokens": trainer.dead_after_tokens,
        "d_in": acts.d_in,
        "d_out": acts.d_out,
        "d_sae": trainer.sae.d_sae,
        "seed": settings.seed,
        "data.train_tokens": acts.n_train,
        "data.held_out_tokens": acts.n_held_out,
        "data.giant_norm_train_tokens": acts.n_giant_train,
        "data.giant_norm_held_out_tokens": acts.n_giant_held_out,
        "data.scale": acts.scales,
    }


def _epochs(
    training: Training, run: OpenRun, acts: LayerActivations, trainer: Trainer
) -> dict[str, list[float]]:
    """Train, with every epoch in the store as soon as it ends; returns the whole history."""
    settings, history = training.settings, dict[str, list[float]]()
    with training.display.layer(
        acts.site.label, settings.train.epochs, trainer.epoch_tokens
    ) as shown:
        records = train(trainer, acts, settings.seed)
        while True:
            with training.clock.stage("train"):
                record = next(records, None)
            match record:
                case StepRecord():
                    shown.step(record)
                case EpochRecord():
                    for key, value in record.metrics.items():
                        history.setdefault(key, []).append(value)
                    with training.clock.stage("log"):
                        run.log_epoch(record.epoch, record.metrics | _best(history))
                    shown.epoch(record)
                case None:
                    return history


def _best(history: dict[str, list[float]]) -> dict[str, float]:
    """The UI's table shows only a metric's last value; these keep the best one in sight."""
    best = min(history["val_fvu"])
    return {"best_val_fvu": best, "best_epoch": history["val_fvu"].index(best) + 1}


def _log_results(
    training: Training,
    run: OpenRun,
    sae: SAE,
    acts: LayerActivations,
    history: dict[str, list[float]],
    scratch: Path,
) -> None:
    file = scratch / f"{acts.site.label}_training_history.json"
    write_history(file, history)
    run.log_file(file)
    weights = scratch / SAE_FOLDER
    sae_files.save_sae(sae, weights, acts, training.settings)
    run.log_folder(weights, SAE_FOLDER)
    if training.settings.register_model:
        _register(training, run, weights)


def _register(training: Training, run: OpenRun, weights: Path) -> None:
    """A registry out of reach costs a warning, never the training: it can be done later."""
    try:
        uri, _ = register_run(training.store, run.run_id, weights)
        training.display.say(f"Registered {uri}")
    except UserError as error:
        later = f"sae-mlflow register --run {run.run_id}"
        training.display.warn(f"{error} The training goes on; register it later: {later}")


def _evaluate(training: Training, windows: Windows, all_acts: Sequence[LayerActivations]) -> None:
    """What the LM loses to each SAE that was trained."""
    settings, display = training.settings, training.display
    lm = _language_model(training)
    display.say(f"Evaluating on {settings.evaluate.tokens:,} held-out tokens")
    with training.clock.stage("evaluate"):
        evaluate_layers(training.store, settings, lm, windows, training.rows, all_acts)


def _finish(training: Training, parent: OpenRun) -> None:
    """What is only there once all layers have trained: overlays, and where the time went."""
    if training.settings.plots.after_training:
        with training.clock.stage("plot"), _drawing(training.display, "all layers"):
            draw_parent(training.store, parent.run_id)
    if training.settings.output.dir:
        with _drawing(training.display, f"all layers in {training.settings.output.dir}"):
            histories = {row.layer: row.history for row in training.rows}
            outputs.draw_overlays(training.settings, histories)
    seconds = {stage: round(value, 3) for stage, value in training.clock.seconds.items()}
    parent.log_text(json.dumps(seconds, indent=2) + "\n", "seconds_by_stage.json")


def _data_set(windows: Windows) -> tuple[str, str, dict[str, object]]:
    facts: dict[str, object] = {
        "text": windows.source,
        "tokens": windows.n_tokens,
        "train_tokens": int(windows.train.size),
        "held_out_tokens": int(windows.held_out.size),
        "context": windows.context,
    }
    return windows.source[:200], windows.sha256, facts


@contextmanager
def _recorded(run: OpenRun) -> Iterator[None]:
    """Close a run as what it came to: finished, failed with the reason in a tag, or interrupted."""
    try:
        yield
    except KeyboardInterrupt:
        run.fail("interrupted", "KILLED")
        raise
    except Exception as error:
        run.fail(str(error) or type(error).__name__)
        raise
    run.finish()


def _drawing(display: Display, what: str) -> AbstractContextManager[None]:
    return _optional(display, f"The plots of {what} weren't drawn")


@contextmanager
def _optional(display: Display, trouble: str) -> Iterator[None]:
    """What is done after training costs a warning where it fails, never the training."""
    try:
        yield
    except Exception as error:
        kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
        display.warn(f"{trouble}: {kind}{error}")

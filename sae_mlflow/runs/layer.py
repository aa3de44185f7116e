"""One layer's run, from its first epoch to its pictures."""

import tempfile
from pathlib import Path

from sae_mlflow import naming
from sae_mlflow.activations.layer import LayerActivations
from sae_mlflow.config import Settings
from sae_mlflow.errors import UserError
from sae_mlflow.formats import sae_files
from sae_mlflow.history import write_history
from sae_mlflow.plots.runs import draw_layer_run
from sae_mlflow.reporting.display import Display
from sae_mlflow.reporting.layer_table import Row
from sae_mlflow.runs import outputs
from sae_mlflow.runs.guards import drawing, recorded
from sae_mlflow.runs.live import LivePicture
from sae_mlflow.runs.mirror import Mirror, open_mirror
from sae_mlflow.runs.training import Training
from sae_mlflow.sae import SAE, build_sae
from sae_mlflow.tracking.contents import ROLE_LAYER, SAE_FOLDER, within_epoch
from sae_mlflow.tracking.open_run import OpenRun
from sae_mlflow.tracking.registry import register_run
from sae_mlflow.train import EpochRecord, StepRecord, Trainer, WithinEpochRecord, train


def train_layer(training: Training, parent: OpenRun, acts: LayerActivations) -> Row:
    """One layer's run, from its first epoch to its pictures."""
    settings, clock, label = training.settings, training.clock, acts.site.label
    _report_giants(training.display, acts)
    sae = build_sae(settings.sae, acts.widths_in, acts.d_out).to(training.device)
    trainer = Trainer(sae, settings.train, acts.n_train)
    with recorded(_open_layer_run(training, parent, acts)) as run:
        run.log_params(_layer_params(settings, trainer, acts))
        live, mirror = LivePicture(training, run.run_id, label), open_mirror(training, run)
        history = _epochs(training, run, acts, trainer, live, mirror)
        mirror.finish()
        with clock.stage("log"), tempfile.TemporaryDirectory() as scratch:
            _log_results(training, run, sae, acts, history, Path(scratch))
        if settings.plots.after_training:
            with clock.stage("plot"), drawing(training.display, label):
                steps = live.slider_steps(len(history["total_loss"]))
                copies = outputs.output_folder(settings)
                pages = settings.plots.interactive
                draw_layer_run(training.store, run.run_id, copies, steps, pages)
    if settings.output.dir:
        outputs.write_layer(settings, sae, acts, history)
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
    with training.clock.stage("log"):
        return training.store.open_run(training.experiment_id, name, tags, parent)


def _layer_params(
    settings: Settings, trainer: Trainer, acts: LayerActivations
) -> dict[str, object]:
    """A layer's settings with the defaults that depend on its SAE filled in, and its data."""
    sections = ("model.", "text.", "activations.", "sae.", "train.")
    params = {key: value for key, value in settings.flat().items() if key.startswith(sections)}
    del params["model.layers"]
    sae = trainer.sae
    unset = [name for name, value in settings.sae if value is None]
    return params | {
        **{f"sae.{key}": value for key, value in sae.hyperparameters().items()},
        # an SAE keeps a setting under the setting's own name
        **{f"sae.{name}": getattr(sae, name) for name in unset if hasattr(sae, name)},
        "train.learning_rate": trainer.peak_learning_rate,
        "train.resample_at": trainer.resample_at,
        "train.dead_after_tokens": trainer.dead_after_tokens,
        "d_in": acts.d_in,
        "d_out": acts.d_out,
        "d_sae": sae.d_sae,
        "seed": settings.seed,
        "data.train_tokens": acts.n_train,
        "data.held_out_tokens": acts.n_held_out,
        "data.giant_norm_train_tokens": acts.n_giant_train,
        "data.giant_norm_held_out_tokens": acts.n_giant_held_out,
        "data.scale": acts.scales,
    }


def _epochs(
    training: Training,
    run: OpenRun,
    acts: LayerActivations,
    trainer: Trainer,
    live: LivePicture,
    mirror: Mirror,
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
                case WithinEpochRecord():
                    with training.clock.stage("log"):
                        run.log_within_epoch(record.tokens, record.metrics)
                        mirror.log(record.tokens, within_epoch(record.metrics))
                case EpochRecord():
                    for key, value in record.metrics.items():
                        history.setdefault(key, []).append(value)
                    with training.clock.stage("log"):
                        metrics = record.metrics | _best(history)
                        run.log_epoch(record.epoch, metrics)
                        mirror.log(record.epoch, metrics)
                    shown.epoch(record)
                    live.epoch(record.epoch)
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

"""One layer's run, from its first epoch to its pictures."""

import tempfile
from contextlib import suppress
from functools import partial
from pathlib import Path

from sae_mlflow import naming
from sae_mlflow.activations.layer import LayerActivations
from sae_mlflow.errors import UserError
from sae_mlflow.formats import sae_files
from sae_mlflow.history import FILE_SUFFIX, write_history
from sae_mlflow.reporting.display import Display
from sae_mlflow.reporting.layer_table import TrainedLayer
from sae_mlflow.runs import outputs
from sae_mlflow.runs.epochs import Layer, begin, train_epochs
from sae_mlflow.runs.guards import drawing, recorded
from sae_mlflow.runs.health import LayerFailed
from sae_mlflow.runs.later import layer_pictures, now_or_later, registration
from sae_mlflow.runs.training import Training
from sae_mlflow.sae import build_sae
from sae_mlflow.tracking.contents import DERIVED_PARAM, ROLE_LAYER, ROLE_TAG, SAE_FOLDER
from sae_mlflow.tracking.open_run import OpenRun
from sae_mlflow.tracking.process import process_tags
from sae_mlflow.train import Trainer


def train_layer(training: Training, parent: OpenRun, acts: LayerActivations) -> TrainedLayer:
    """One layer's run, from its first epoch, or where it was interrupted, to its pictures.

    Where its health stops it, the run is FAILED, and the row says so.
    """
    settings, label = training.settings, acts.site.label
    _report_giants(training.display, acts)
    sae = build_sae(settings.sae, acts.widths_in, acts.d_out).to(training.device)
    trainer = Trainer(sae, settings.train, acts.n_train)
    opened = partial(_open_layer_run, training, parent, acts)
    with suppress(LayerFailed), recorded(opened, training.stopping) as run:
        training.stopping.check()
        layer = begin(training, run, acts, trainer, _layer_params(training, trainer, acts))
        train_epochs(layer)
        layer.log.mirror.finish()
        _conclude(layer)
        if settings.output.folder:
            outputs.write_layer(settings, layer.sae, acts, layer.log.history)
        if layer.health.stopped:
            raise LayerFailed(layer.health.failure)
    layer.checkpoints.remove()
    weight_bytes = sum(p.numel() * p.element_size() for p in sae.parameters())
    return TrainedLayer(
        label,
        training.experiment.id,
        run.run_id,
        layer.log.history,
        weight_bytes,
        verdict=layer.health.verdict,
        stopped=layer.health.stopped,
    )


def _conclude(layer: Layer) -> None:
    """What a training leaves in its run: the verdict, history, weights, pictures."""
    training, history = layer.training, layer.log.history
    if layer.health.keep_good_weights():
        layer.sae = layer.trainer.sae
    with training.clock.stage("log"), tempfile.TemporaryDirectory() as scratch:
        layer.health.finish(history)
        _log_results(layer, Path(scratch))
    if training.settings.plots.after_training:
        with training.clock.stage("plot"), drawing(training.display, layer.acts.site.label):
            steps = layer.live.slider_steps(len(history["total_loss"]))
            now_or_later(training, layer_pictures(training, layer.run.run_id, steps))


def _report_giants(display: Display, acts: LayerActivations) -> None:
    giants = acts.n_giant_train + acts.n_giant_held_out
    if giants:
        n_tokens = acts.n_train + acts.n_held_out + giants
        display.say(
            f"{acts.site.label}: {giants:,} of {n_tokens:,} tokens left out for their norm "
            "(activations.max_norm_ratio)"
        )
    if acts.not_finite.tokens:
        display.warn(
            f"{acts.site.label}: of these, {acts.not_finite.tokens:,} hold NaN or infinity at "
            f"{', '.join(acts.not_finite.hookpoints)}, the first in window "
            f"{acts.not_finite.first_window} of the text"
        )


def _open_layer_run(training: Training, parent: OpenRun, acts: LayerActivations) -> OpenRun:
    settings, site = training.settings, acts.site
    tags = {
        ROLE_TAG: ROLE_LAYER,
        "sae.model": settings.model.label,
        "sae.layer": site.label,
        "sae.hookpoint": ",".join(site.writes),
        "sae.architecture": settings.sae.architecture,
        **process_tags(),
    }
    name = f"{naming.sanitise(settings.model.label)}_{site.label}"
    earlier = training.earlier.get(site.label)
    with training.clock.stage("log"):
        if earlier is not None:
            return training.store.resume_run(earlier)
        return training.store.open_run(training.experiment.id, name, tags, parent)


def _layer_params(
    training: Training, trainer: Trainer, acts: LayerActivations
) -> dict[str, object]:
    """A layer's settings with the defaults that depend on its SAE filled in, and its data."""
    settings = training.settings
    sections = ("model.", "text.", "activations.", "sae.", "train.", "health.")
    params = {key: value for key, value in settings.flat().items() if key.startswith(sections)}
    del params["model.layers"]
    sae = trainer.sae
    chosen = {f"sae.{name}": value for name, value in sae.chosen_settings().items()} | {
        "train.learning_rate": trainer.peak_learning_rate,
        "train.resample_at": trainer.resample_at,
        "train.dead_after_tokens": trainer.dead_after_tokens,
        "train.aux_k_after_tokens": trainer.aux_k_after_tokens,
    }
    derived = {key: value for key, value in chosen.items() if params[key] is None}
    return params | {
        **{f"sae.{key}": value for key, value in sae.hyperparameters().items()},
        **derived,
        DERIVED_PARAM: ",".join(derived),
        "lm.n_layers": training.n_layers,
        "d_in": acts.d_in,
        "d_out": acts.d_out,
        "d_sae": sae.d_sae,
        "seed": settings.seed,
        "data.train_tokens": acts.n_train,
        "data.held_out_tokens": acts.n_held_out,
        "data.giant_norm_train_tokens": acts.n_giant_train,
        "data.giant_norm_held_out_tokens": acts.n_giant_held_out,
        "data.not_finite_tokens": acts.not_finite.tokens,
        "data.largest_norm_ratio": acts.largest_norm_ratio,
        "data.scale": acts.scales,
    }


def _log_results(layer: Layer, scratch: Path) -> None:
    training, run, acts = layer.training, layer.run, layer.acts
    file = scratch / f"{acts.site.label}{FILE_SUFFIX}"
    write_history(file, layer.log.history)
    run.log_file(file)
    if layer.sae is None:
        return
    weights = scratch / SAE_FOLDER
    sae_files.save_sae(layer.sae, weights, acts, training.settings)
    run.log_folder(weights, SAE_FOLDER)
    if training.settings.register_model and not layer.health.stopped:
        _register(training, run, weights)


def _register(training: Training, run: OpenRun, weights: Path) -> None:
    """A registry out of reach costs a warning, never the training: it can be done later."""
    try:
        for uri in now_or_later(training, registration(run.run_id), weights):
            training.display.say(f"Registered {uri}")
    except UserError as error:
        later = f"sae-mlflow register --run {run.run_id}"
        training.display.warn(f"{error} The training goes on; register it later: {later}")

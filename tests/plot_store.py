"""Runs as a training would leave them, and readers of the pictures drawn from them."""

import atexit
import functools
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure
from mlflow.tracking import MlflowClient
from PIL import Image

from sae_mlflow.history import write_history
from sae_mlflow.tracking.contents import ROLE_LAYER, ROLE_SWEEP
from sae_mlflow.tracking.open_run import OpenRun
from sae_mlflow.tracking.store import Store

MODEL = "meta-llama/Llama-2-7b-hf"
STEM = "meta-llama-Llama-2-7b-hf"


def history(epochs: int = 3, start: float = 0.8) -> dict[str, list[float]]:
    """A falling reconstruction loss, 0.8, 0.4, 0.2 ..., as TopK leaves it: no sparsity loss."""
    falling = [start / 2**n for n in range(epochs)]
    return {
        "reconstruction_loss": falling,
        "total_loss": [value + 0.01 for value in falling],
        "sparsity_loss": [0.0] * epochs,
        "l0_norm": [32.0] * epochs,
    }


def add_parent(store: Store, experiment_id: str) -> OpenRun:
    return store.open_run(experiment_id, "sweep", {"sae.role": ROLE_SWEEP})


def add_layer(
    store: Store,
    parent: OpenRun,
    layer: str,
    metrics: Mapping[str, Sequence[float]] | None = None,
    *,
    model: str = MODEL,
    status: str = "FINISHED",
    **params: object,
) -> str:
    """A layer's run with a value an epoch of each metric; params use `__` for the dot."""
    tags = {
        "sae.role": ROLE_LAYER,
        "sae.model": model,
        "sae.layer": layer,
        "sae.hookpoint": f"layers.{layer.removeprefix('layer')}",
        "sae.architecture": "topk",
    }
    run = store.open_run(parent.experiment_id, f"{model}_{layer}", tags, parent)
    settings: dict[str, object] = {"sae.architecture": "topk", "sae.k": 32, "seed": 0}
    settings |= {"model.layers": layer, "d_sae": 4608, "data.tokens": id(run)}
    run.log_params(settings | {key.replace("__", "."): value for key, value in params.items()})
    lists = history() if metrics is None else metrics
    for epoch in range(1, max(map(len, lists.values()), default=0) + 1):
        run.log_metrics(epoch, {k: v[epoch - 1] for k, v in lists.items() if len(v) >= epoch})
    run.finish(status)
    return run.run_id


def dots_per_inch(picture: Path) -> int:
    with Image.open(picture) as image:
        return round(image.info["dpi"][0])


@functools.cache
def filled_store() -> tuple[Store, dict[str, str]]:
    """One store for all tests (a new one takes 4 s), and the runs in it by name.

    Experiment `llama2` holds one training of layers 10, 9 and 20; `odd` a diverged run, `empty`
    nothing. Tests that change something make an experiment of their own.
    """
    folder = tempfile.mkdtemp(prefix="sae_mlflow-tests-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    store = Store(f"sqlite:///{folder}/mlflow.db")
    parent = add_parent(store, new_experiment(store, "llama2"))
    runs = {"parent": parent.run_id}
    for layer, start in (("layer10", 0.8), ("layer9", 0.4), ("layer20", 0.6)):
        runs[layer] = add_layer(store, parent, layer, history(3, start))
    parent.finish()
    odd = add_parent(store, new_experiment(store, "odd"))
    gone = {"reconstruction_loss": [0.5, float("inf"), float("nan")], "total_loss": [0.6, 0.5]}
    runs["diverged"] = add_layer(store, odd, "layer1", gone)
    new_experiment(store, "empty")
    return store, runs


def new_experiment(store: Store, name: str) -> str:
    """An experiment whose artifacts lie beside the store, wherever the tests run."""
    folder = Path(store.uri.removeprefix("sqlite:///")).parent / "artifacts" / name
    client = MlflowClient(store.uri)
    return client.create_experiment(name, artifact_location=folder.as_uri())


def tree(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def write_histories(folder: Path, layers: Sequence[str] = ("layer9", "layer10")) -> Path:
    for layer in layers:
        write_history(folder / f"{layer}_training_history.json", history(3))
    return folder


def lines(figure: Figure) -> dict[str, list[float]]:
    lines = [line for line in figure.axes[0].lines if line.get_label().startswith("layer")]
    return {line.get_label(): line.get_ydata().tolist() for line in lines}

"""All plots of an experiment of 32 layers x 200 epochs on SQLite, and `--help`, in seconds.

Fills a store in a temporary folder (not timed), runs the real command on it, and prints JSON.
"""

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from mlflow.entities import Metric
from mlflow.tracking import MlflowClient

from sae_mlflow.tracking.contents import ROLE_LAYER, ROLE_SWEEP
from sae_mlflow.tracking.store import Store

MODEL = "meta-llama/Llama-2-7b-hf"
EXPERIMENT = "benchmark"


def fill(uri: str, artifacts: Path, layers: int, epochs: int) -> None:
    """The runs of one training, with the metrics that `train` logs."""
    Store(uri)
    client = MlflowClient(uri)
    experiment = client.create_experiment(EXPERIMENT, artifact_location=artifacts.as_uri())
    parent = client.create_run(experiment, tags={"sae.role": ROLE_SWEEP}).info.run_id
    for layer in range(layers):
        tags = {
            "sae.role": ROLE_LAYER,
            "sae.model": MODEL,
            "sae.layer": f"layer{layer}",
            "sae.hookpoint": f"layers.{layer}",
            "sae.architecture": "topk",
            "mlflow.parentRunId": parent,
        }
        run = client.create_run(experiment, tags=tags).info.run_id
        entries = [
            Metric(key, value, 0, epoch)
            for epoch in range(1, epochs + 1)
            for key, value in curve(layer, epoch).items()
        ]
        for start in range(0, len(entries), 1000):
            client.log_batch(run, entries[start : start + 1000])
        client.set_terminated(run)
    client.set_terminated(parent)


def curve(layer: int, epoch: int) -> dict[str, float]:
    loss = 0.2 + 0.01 * layer + 0.6 * math.exp(-epoch / 40)
    named = {
        "reconstruction_loss": loss,
        "total_loss": 1.02 * loss,
        "sparsity_loss": 0.0,
        "l0_norm": 32.0 - math.exp(-epoch / 10),
    }
    others = ("fvu", "explained_variance", "cosine_similarity", "dead_fraction", "learning_rate")
    return named | dict.fromkeys(others, loss)


def seconds(*arguments: str) -> tuple[float, str]:
    start = time.perf_counter()
    command = [sys.executable, "-m", "sae_mlflow.plot", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    return time.perf_counter() - start, done.stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=200)
    chosen = parser.parse_args()
    seconds("--help")  # warms the disk cache
    help_seconds, _ = seconds("--help")
    with tempfile.TemporaryDirectory() as folder:
        uri = f"sqlite:///{folder}/mlflow.db"
        fill(uri, Path(folder) / "artifacts", chosen.layers, chosen.epochs)
        plot_seconds, printed = seconds("--experiment", EXPERIMENT, "--tracking-uri", uri)
    result = {
        "layers": chosen.layers,
        "epochs": chosen.epochs,
        "figures": len(printed.splitlines()),
        "seconds": round(plot_seconds, 2),
        "help_seconds": round(help_seconds, 2),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()

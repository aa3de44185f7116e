"""Wall time of the main job (`configs/sae_balanced.yaml`) by stage, in seconds.

Runs `sae-mlflow train` in a process of its own, in a temporary folder with a store of its own, and
reads the stages from the parent run. `live_share` is what the live pictures take of the time in
which a layer trains. `imports` and `store` (a new SQLite store's tables) are
reported apart: they are paid once, whatever is trained.

    python benchmarks/main_job.py                  # model and activations as the cache has them
    python benchmarks/main_job.py --cold           # an empty cache: download, convert, harvest
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--config", default="sae_balanced.yaml")
    parser.add_argument("--set", default="", help="overrides, as for `sae-mlflow train`")
    parser.add_argument("--cold", action="store_true", help="begin with an empty cache")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(measure(Path(folder), args.config, args.set, args.cold), indent=2))


def measure(folder: Path, config: str, overrides: str, cold: bool) -> dict[str, object]:
    """One training in `folder`; the cache is the user's own unless `cold`."""
    environment = os.environ | {"MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}"}
    if cold:
        environment["SAE_MLFLOW_CACHE"] = str(folder / "cache")
    command = [sys.executable, "-m", "sae_mlflow", "train", "--config", config, "--set", overrides]
    started = time.perf_counter()
    subprocess.run(command, cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL)
    wall = time.perf_counter() - started
    (stages_file,) = folder.glob("mlruns/*/*/artifacts/seconds_by_stage.json")
    stages = json.loads(stages_file.read_text())
    own = {stage: stages.pop(stage) for stage in ("imports", "store")}
    logging_and_plotting = stages.get("log", 0.0) + stages.get("plot", 0.0)
    return {
        "config": config,
        "cold": cold,
        "wall_seconds": round(wall, 1),
        "stages": {name: round(seconds, 2) for name, seconds in stages.items()},
        "apart": {name: round(seconds, 2) for name, seconds in own.items()},
        "log_and_plot_share": round(logging_and_plotting / wall, 4),
        "live_share": round(
            stages.get("live", 0.0) / (stages["train"] + stages.get("live", 0.0)), 4
        ),
    }


if __name__ == "__main__":
    main()

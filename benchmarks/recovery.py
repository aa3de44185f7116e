"""How well each architecture finds a dictionary that is known, and when it says it fires.

Activations are sparse sums of random unit directions (`synthetic.py`): as many latents as
directions with independent and with correlated firing, and twice as many latents. Printed for each:
the mean over true directions of the cosine to the best decoder row, and the mean F1 of that latent
firing when the direction does, on held-out tokens; mean and spread over seeds.
"""

import argparse
import json
import statistics
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from synthetic import Recovery, Synthetic, World, recovery

from sae_mlflow.config_sae import SAESettings
from sae_mlflow.config_train import TrainSettings
from sae_mlflow.sae import build_sae
from sae_mlflow.train import Trainer, train

N_TRAIN, N_HELD_OUT = 32_768, 4_096

TRAIN = {"batch_tokens": 256, "learning_rate": 1e-2, "sparsity_warmup_fraction": 0.5}

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "standard": {"l1_coefficient": 0.1},
    "topk": {},
    "batchtopk": {},
    # every direction is as frequent as the others here: small prefixes would have to mix them
    "matryoshka": {"prefixes": (48, 64)},
    "gated": {"l1_coefficient": 0.15},
    "jumprelu": {"l0_coefficient": 0.05, "bandwidth": 1.0},
    "transcoder": {},
    "skip_transcoder": {},
    "jumprelu transcoder": {"codes": "jumprelu", "l0_coefficient": 0.02},
    "crosscoder": {"l1_coefficient": 0.1},
}

WORLDS = {
    "independent": World(),
    "correlated": World(correlation=0.5),
}


def found(name: str, world: World, *, width: int = 1, seed: int = 0, epochs: int = 12) -> Recovery:
    """Train one SAE on a world and hold it against the truth.

    Args:
        name: of `ARCHITECTURES`.
        width: latents per true direction.
    """
    architecture = name.removeprefix("jumprelu ")
    transcodes = "transcoder" in name
    world = replace(world, transcodes=transcodes, layers=2 if name == "crosscoder" else 1)
    data = Synthetic(world, N_TRAIN, N_HELD_OUT, seed)
    options = ARCHITECTURES[name] | {"d_sae": width * world.n_directions, "k": round(world.l0)}
    settings = SAESettings(architecture=architecture, **options)
    sae = build_sae(settings, (world.d,) * world.layers, world.d if transcodes else None)
    trainer = Trainer(sae, TrainSettings(**(TRAIN | {"epochs": epochs})), data.n_train)
    for _ in train(trainer, data, seed):
        pass
    return recovery(sae, data)


def rows(names: list[str], seeds: int) -> Iterator[dict[str, Any]]:
    for name in names:
        for world_name, world in WORLDS.items():
            for width in (1, 2):
                each = [found(name, world, width=width, seed=seed) for seed in range(seeds)]
                row: dict[str, Any] = {"architecture": name, "firing": world_name, "width": width}
                for figure in ("cosine", "f1"):
                    values = [getattr(one, figure) for one in each]
                    row[figure] = round(statistics.mean(values), 4)
                    row[f"{figure}_spread"] = round(statistics.pstdev(values), 4)
                yield row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--architecture", action="append", choices=list(ARCHITECTURES))
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)  # products this small only wait for each other
    for row in rows(args.architecture or list(ARCHITECTURES), args.seeds):
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()

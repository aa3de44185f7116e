"""Held-out FVU of TopK SAEs against what sparsify's and SAELens' own training steps reach.

The same activations (SmolLM2, cached), the same batches in the same order, the same number of steps
and the same k; each trainer with its own defaults (`peer_steps.py`). One JSON line a training, then
a table: mean and spread (standard deviation) over seeds. With `--results` the whole comparison,
which takes hours, can be made in several sittings.
"""

import argparse
import json
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import peer_steps
import torch
from torch import Tensor

from sae_mlflow.activations.harvest import fill_activations
from sae_mlflow.activations.layer import LayerActivations, open_activations
from sae_mlflow.activations.plan import plan_activations
from sae_mlflow.config import Settings
from sae_mlflow.config_load import load_settings
from sae_mlflow.config_set import parse_set
from sae_mlflow.lm.loading import load_language_model, load_tokenizer
from sae_mlflow.memory import keep_freed_memory
from sae_mlflow.metrics import Tally
from sae_mlflow.sae import build_sae
from sae_mlflow.text.corpus import token_windows
from sae_mlflow.train import INITIAL_SAMPLE_TOKENS, Trainer

OURS = "sae_mlflow"
TEXT = "text.tokens=81920"


@dataclass
class OurStep:
    """Our own training, with the defaults of the settings, as a peer among the others."""

    trainer: Trainer
    name: str = OURS

    @classmethod
    def make(cls, settings: Settings, acts: LayerActivations, steps: int, seed: int) -> "OurStep":
        sae = build_sae(settings.sae, acts.widths_in)
        generator = torch.Generator().manual_seed(seed)
        sae.initialise(acts.sample(INITIAL_SAMPLE_TOKENS, generator), generator)
        trainer = Trainer(sae, settings.train, acts.n_train)
        trainer.n_steps = steps
        return cls(trainer)

    def step(self, batch: Any) -> None:
        self.trainer.step(batch)

    def evaluate(self, x: Tensor) -> tuple[Tensor, Tensor]:
        made = self.trainer.sae.reconstruct(x)
        return made.recon, made.fired


def steps_of(acts: LayerActivations, batch: int, steps: int, seed: int) -> Iterator[Any]:
    """Batches of as many epochs as it takes; the same for every trainer of a seed."""
    generator = torch.Generator().manual_seed(1000 + seed)
    while True:
        for made in acts.batches(batch, generator):
            if not steps:
                return
            yield made
            steps -= 1


def trainers(
    settings: Settings, acts: LayerActivations, steps: int, seed: int
) -> dict[str, Callable[[], Any]]:
    sae, batch = settings.sae, settings.train.batch_tokens
    recipe = peer_steps.Recipe(acts.d_in, sae.width(acts.d_in), sae.k, batch, steps, seed)
    sample = acts.sample(INITIAL_SAMPLE_TOKENS, torch.Generator().manual_seed(seed)).x
    made: dict[str, Callable[[], Any]] = {
        OURS: lambda: OurStep.make(settings, acts, steps, seed),
    }
    if peer_steps.there_are():
        made |= {
            "sparsify": lambda: peer_steps.Sparsify(recipe, sample),
            "SAELens": lambda: peer_steps.SAELens(recipe, sample),
            "sparsify, signum": lambda: peer_steps.Sparsify(recipe, sample, "signum"),
        }
    return made


def trained(
    name: str, settings: Settings, acts: LayerActivations, steps: int, seed: int
) -> dict[str, float]:
    one = trainers(settings, acts, steps, seed)[name]()
    started = time.perf_counter()
    for batch in steps_of(acts, settings.train.batch_tokens, steps, seed):
        one.step(batch if name == OURS else batch.x)
    seconds = time.perf_counter() - started
    tally = Tally()
    for batch in acts.held_out_batches(1024):
        recon, fired = one.evaluate(batch.x)
        tally.add(batch.y, recon, fired=fired)
    return {"fvu": tally.fvu(), "dead": tally.never_fired_fraction(), "seconds": seconds}


def load(overrides: str, layers: str) -> tuple[Settings, list[LayerActivations]]:
    chosen = parse_set(f"{TEXT} model.layers={layers} {overrides}")
    settings = load_settings("sae_balanced.yaml", chosen)
    windows = token_windows(settings.text, load_tokenizer(settings.model))
    plan = plan_activations(settings, windows)
    if plan.missing:
        for _ in fill_activations(plan, load_language_model(settings.model)):
            pass
    return settings, open_activations(plan)


def key_of(facts: dict[str, Any]) -> tuple[Any, ...]:
    """What tells one training from another."""
    return tuple(facts[name] for name in ("steps", "layer", "trainer", "seed"))


def read(file: Path | None) -> dict[tuple[Any, ...], dict[str, Any]]:
    """Trainings of an earlier run, by `key_of`."""
    if file is None or not file.exists():
        return {}
    return {key_of(facts): facts for facts in map(json.loads, file.read_text().splitlines())}


def table(results: Iterable[dict[str, Any]]) -> Iterator[str]:
    """Markdown: mean and standard deviation over seeds."""
    entries: dict[tuple[int, str, str], list[dict[str, Any]]] = defaultdict(list)
    for facts in results:
        entries[facts["steps"], facts["layer"], facts["trainer"]].append(facts)
    yield "| steps | layer | trainer | seeds | held-out FVU | never fire |"
    yield "|---:|---|---|---:|---:|---:|"
    for (steps, layer, name), runs in sorted(entries.items()):
        fvu, dead = ([run[figure] for run in runs] for figure in ("fvu", "dead"))
        spread = f" ± {statistics.pstdev(fvu):.4f}" if len(runs) > 1 else ""
        yield (
            f"| {steps:,} | {layer} | {name} | {len(runs)} | {statistics.mean(fvu):.4f}{spread} "
            f"| {statistics.mean(dead):.1%} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, nargs="+", default=[50, 210, 700, 2000])
    parser.add_argument("--layers", default="10,15,20")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", nargs="+", help="trainers, by name")
    parser.add_argument("--set", default="", help='our settings, as "train.learning_rate=1e-3"')
    parser.add_argument(
        "--results", type=Path, help="a file of such lines: what stands there isn't trained again"
    )
    args = parser.parse_args()
    keep_freed_memory()
    settings, all_acts = load(args.set, args.layers)
    results = read(args.results)
    for steps, seed, acts in product(args.steps, range(args.seeds), all_acts):
        for name in args.only or list(trainers(settings, acts, steps, seed)):
            facts = {"steps": steps, "layer": acts.site.label, "trainer": name, "seed": seed}
            if key_of(facts) in results:
                continue
            facts |= trained(name, settings, acts, steps, seed)
            results[key_of(facts)] = facts
            print(json.dumps(facts), flush=True)
            if args.results:
                with args.results.open("a") as file:
                    file.write(json.dumps(facts) + "\n")
    print("\n".join(table(results.values())))


if __name__ == "__main__":
    main()

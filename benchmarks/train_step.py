"""Time of one training step as a ratio to the dense encoder product alone, and its memory.

Both are timed in turn within one process, on random activations: forward, loss, backward, clipping,
Adam and decoder norm against `x W_enc + b_enc`. Medians. For architectures whose sparsity is
learnt, biases or thresholds are set so that about k latents fire. No latent is dead, unless a
share is given (`--dead`), to which AuxK then applies.
"""

import argparse
import ctypes
import gc
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peer_steps
import torch
from torch import Tensor

from sae_mlflow.architectures import ARCHITECTURES
from sae_mlflow.config_sae import SAESettings
from sae_mlflow.config_train import TrainSettings
from sae_mlflow.memory import keep_freed_memory
from sae_mlflow.sae import SAE, Batch, build_sae
from sae_mlflow.train import Trainer

N_BATCHES = 4
WARM_UP = 3


NEVER = 10**12


def make_trainer(
    architecture: str, batch: int, d_in: int, d_sae: int, k: int, dead: float = 0.0
) -> Trainer:
    torch.manual_seed(0)
    settings = SAESettings(architecture=architecture, d_sae=d_sae, k=k)
    sae = build_sae(
        settings, (d_in // 2, d_in - d_in // 2) if architecture == "crosscoder" else (d_in,)
    )
    sample = torch.randn(8192, d_in)
    sae.initialise(Batch(sample, sample), torch.Generator().manual_seed(0))
    make_sparse(sae, sample[:512], k)
    # a rate that leaves the sparsity where it is
    train = TrainSettings(
        batch_tokens=batch, learning_rate=1e-9, dead_after_tokens=NEVER, aux_k_after_tokens=NEVER
    )
    trainer = Trainer(sae, train, n_train=batch * 1000)
    n_dead = round(dead * d_sae)
    trainer.silent_tokens[:n_dead] = NEVER
    with torch.no_grad():
        biases = dict(sae.named_parameters())["b_gate" if sae.kind == "gated" else "b_enc"]
        biases[:n_dead] -= 100.0  # which stay so
    return trainer


@torch.no_grad()
def make_sparse(sae: SAE, sample: Tensor, k: int) -> None:
    """Set biases or thresholds so that about k latents fire, where training would have to."""
    centred = sample if sae.centre is None else sample - sae.centre
    pre_acts = centred @ sae.W_enc
    border = pre_acts.flatten().kthvalue(pre_acts.numel() - k * len(sample)).values
    parameters = dict(sae.named_parameters())
    if "threshold" in parameters:
        parameters["threshold"].fill_(border)
    elif sae.kind in {"standard", "crosscoder"}:
        parameters["b_enc"].fill_(-border)
    elif sae.kind == "gated":
        parameters["b_gate"].fill_(-border)


def timed(
    calls: dict[str, Callable[[Tensor], Any]], batch: int, d_in: int, steps: int
) -> dict[str, float]:
    """Median milliseconds of each call; they take turns."""
    batches = [torch.randn(batch, d_in) for _ in range(N_BATCHES)]
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for step in range(steps + WARM_UP):
        for name, call in calls.items():
            started = time.perf_counter()
            call(batches[step % N_BATCHES])
            seconds[name].append(time.perf_counter() - started)
    return {name: 1e3 * statistics.median(taken[WARM_UP:]) for name, taken in seconds.items()}


def peak_mb(trainer: Trainer, batch: int, d_in: int) -> float:
    """Most memory of three steps, batch included, beyond parameters, gradients and Adam's state."""
    n_parameters = sum(p.numel() for p in trainer.sae.parameters())
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what was freed and kept would count as there before
    before = resident_bytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # starts VmHWM anew
    for _ in range(3):
        x = torch.randn(batch, d_in)
        trainer.step(Batch(x, x))
    return (resident_bytes("VmHWM") - before - 3 * 4 * n_parameters) / 1e6


def resident_bytes(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise ValueError(f"/proc/self/status has no {field}")


def encoder_product(d_in: int, d_sae: int, batch: int) -> Callable[[Tensor], Any]:
    W_enc, b_enc, out = torch.randn(d_sae, d_in).t(), torch.zeros(d_sae), torch.empty(batch, d_sae)
    return lambda x: torch.addmm(b_enc, x, W_enc, out=out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--architecture", default="topk", choices=list(ARCHITECTURES))
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--d-in", type=int, default=576)
    parser.add_argument("--d-sae", type=int, default=4608)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--dead", type=float, default=0.0, help="share of dead latents")
    parser.add_argument("--peers", action="store_true", help="also sparsify and SAELens")
    parser.add_argument("--json", action="store_true", help="one line of JSON alone")
    args = parser.parse_args()
    keep_freed_memory()
    sizes = args.d_in, args.d_sae
    tiny = make_trainer(args.architecture, 8, 16, 512, 2)  # compiles the kernels
    tiny.step(Batch(*[torch.randn(8, 16)] * 2))
    trainer = make_trainer(args.architecture, args.batch, *sizes, args.k, args.dead)
    peak = peak_mb(trainer, args.batch, args.d_in)
    l0: list[float] = []
    calls: dict[str, Callable[[Tensor], Any]] = {
        "encoder": encoder_product(*sizes, args.batch),
        "step": lambda x: l0.append(trainer.step(Batch(x, x)).l0.item()),
    }
    if args.peers and peer_steps.there_are():
        recipe = peer_steps.Recipe(*sizes, args.k, args.batch, steps=args.steps + WARM_UP)
        sample = torch.randn(8192, args.d_in)
        calls |= {
            p.name: p.step
            for p in (peer_steps.Sparsify(recipe, sample), peer_steps.SAELens(recipe, sample))
        }
    milliseconds = timed(calls, args.batch, args.d_in, args.steps)
    encoder = milliseconds.pop("encoder")
    result: dict[str, Any] = {
        "architecture": args.architecture,
        "step_ms": round(milliseconds.pop("step"), 2),
        "encoder_product_ms": round(encoder, 2),
    }
    result |= {"ratio": round(result["step_ms"] / encoder, 3), "peak_mb": round(peak, 1)}
    result |= {
        "l0": round(statistics.mean(l0), 1),
        "batch": args.batch,
        "d_in": args.d_in,
        "d_sae": args.d_sae,
        "dead": args.dead,
    }
    result |= {f"{name}_ratio": round(taken / encoder, 3) for name, taken in milliseconds.items()}
    print(json.dumps(result, indent=None if args.json else 2))


if __name__ == "__main__":
    main()

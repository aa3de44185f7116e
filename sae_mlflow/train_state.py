"""The whole state of a training as tensors and plain numbers: taken, and put back to the bit."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sae_mlflow.metrics import Tally
from sae_mlflow.random_states import random_states, restore_random_states
from sae_mlflow.records import EpochSoFar
from sae_mlflow.sae import SAE
from sae_mlflow.train import Trainer


@dataclass(frozen=True)
class TrainerState:
    """A trainer at one of its records."""

    tensors: dict[str, Tensor]
    """Its own, not copies: what it steps on changes them."""
    numbers: dict[str, Any]
    """What JSON can hold."""


class Unfit(ValueError):
    """A state that isn't this trainer's, or no good."""


def state_of(trainer: Trainer) -> TrainerState:
    """Weights, buffers, optimizer, dead-latent counters, generators, schedule, the epoch so far."""
    so_far = trainer.so_far
    tensors = _weights(trainer) | {"silent_tokens": trainer.silent_tokens}
    tensors["generator"] = trainer.generator.get_state()
    tensors |= {f"tally.{name}": value for name, value in so_far.tally.tensors.items()}
    tensors |= {f"part.{name}": value for name, value in so_far.part_tally.tensors.items()}
    if so_far.order is not None:
        tensors["order"] = so_far.order
    kept: dict[str, dict[str, Any]] = {}
    for name, parameter in trainer.optimized.items():
        for key, value in trainer.optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor):
                tensors[f"optimizer.{name}.{key}"] = value
            else:
                kept.setdefault(name, {})[key] = value
    random_tensors, random_numbers = random_states()
    numbers = {
        "steps_done": trainer.steps_done,
        "epoch": so_far.epoch,
        "batches": so_far.batches,
        "rate": so_far.rate,
        "tokens": so_far.tally.tokens,
        "seconds": so_far.seconds,
        "part_tokens": so_far.part_tally.tokens,
        "part_seconds": so_far.part_seconds,
        "optimizer": kept,
        "random": random_numbers,
    }
    return TrainerState(tensors | random_tensors, numbers)


def restore(trainer: Trainer, state: TrainerState) -> None:
    """Put a state into a trainer that was made with the same settings, and hasn't begun.

    Raises:
        Unfit: it is of another SAE or optimizer, or has weights that are no numbers; the trainer
            is as it was.
    """
    assert not trainer.has_begun
    _check(trainer, state)
    tensors, numbers = state.tensors, state.numbers
    with torch.no_grad():
        for name, value in _weights(trainer).items():
            value.copy_(tensors[name])  # in place: the optimizer steps this memory
        trainer.silent_tokens.copy_(tensors["silent_tokens"])
    _restore_optimizer(trainer, state)
    trainer.generator.set_state(tensors["generator"])
    restore_random_states(tensors, numbers["random"])
    trainer.steps_done = numbers["steps_done"]
    trainer.so_far = EpochSoFar(
        epoch=numbers["epoch"],
        order=tensors.get("order"),
        batches=numbers["batches"],
        rate=numbers["rate"],
        tally=_tally(trainer, "tally.", numbers["tokens"], tensors),
        seconds=numbers["seconds"],
        part_tally=_tally(trainer, "part.", numbers["part_tokens"], tensors),
        part_seconds=numbers["part_seconds"],
    )
    trainer.has_begun = True


def is_finite(sae: SAE) -> bool:
    """Whether every parameter is a number."""
    return all(_finite(parameter) for parameter in sae.parameters())


def _finite(values: Tensor) -> bool:
    if not values.numel():
        return True
    least, largest = values.detach().aminmax()  # NaN where any is; no mask of the weights' size
    return bool(least.isfinite() and largest.isfinite())


def _weights(trainer: Trainer) -> dict[str, Tensor]:
    """The SAE's parameters and buffers as they lie in memory: the encoder `[d_sae, d_in]`."""
    weights = {f"sae.{name}": value for name, value in trainer.sae.state_dict().items()}
    return weights | {"sae.W_enc": trainer.encoder_rows}


def _check(trainer: Trainer, state: TrainerState) -> None:
    wanted = _weights(trainer) | {"silent_tokens": trainer.silent_tokens}
    for name, value in wanted.items():
        found = state.tensors.get(name)
        if found is None or (found.shape, found.dtype) != (value.shape, value.dtype):
            raise Unfit(f"it is of another SAE: {name} isn't {value.dtype} {[*value.shape]}")
    for name in trainer.optimized:
        if not _finite(state.tensors[f"sae.{name}"]):
            raise Unfit(f"its weights are no numbers: {name} has NaN or infinity")


def _restore_optimizer(trainer: Trainer, state: TrainerState) -> None:
    """By torch's own `load_state_dict`, which knows on which device each part has to be."""
    optimizer, named = trainer.optimizer, trainer.optimized
    names = {id(parameter): name for name, parameter in named.items()}
    kept: dict[int, dict[str, Any]] = {}
    in_order = [p for group in optimizer.param_groups for p in group["params"]]
    for index, parameter in enumerate(in_order):
        prefix = f"optimizer.{names[id(parameter)]}."
        mine = dict(state.numbers["optimizer"].get(names[id(parameter)], {}))
        mine |= {
            name.removeprefix(prefix): value.clone()
            for name, value in state.tensors.items()
            if name.startswith(prefix)
        }
        if mine:
            kept[index] = mine
    optimizer.load_state_dict(optimizer.state_dict() | {"state": kept})


def _tally(trainer: Trainer, prefix: str, tokens: int, tensors: dict[str, Tensor]) -> Tally:
    device = trainer.sae.W_dec.device
    return Tally.of(
        tokens,
        {
            name.removeprefix(prefix): value.to(device)
            for name, value in tensors.items()
            if name.startswith(prefix)
        },
    )

"""What a layer is trained on, and with: the same when a training goes on, or said."""

import math
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from sae_mlflow.activations.layer import LayerActivations
from sae_mlflow.errors import UserError, known
from sae_mlflow.train import Trainer


def data_of(acts: LayerActivations) -> dict[str, Any]:
    return {
        "key": acts.key,
        "hookpoints": list(acts.site.hookpoints),
        "train_tokens": acts.n_train,
        "held_out_tokens": acts.n_held_out,
        "scales": list(acts.scales),
    }


def check_data(acts: LayerActivations, was: Mapping[str, Any], warn: Callable[[str], None]) -> None:
    """
    Raises:
        UserError: they aren't those that it was trained on.
    """
    now, label = data_of(acts), acts.site.label
    others = [key for key in now if key != "scales" and now[key] != was[key]]
    pairs = zip(now["scales"], was["scales"], strict=True)
    if not others and all(math.isclose(a, b, rel_tol=1e-4) for a, b in pairs):
        if now["scales"] != was["scales"]:
            warn(
                f"{label}: its activations were collected anew, and differ in their last bits "
                "from those that it was trained on. So will the numbers."
            )
        return
    raise UserError(
        f"{label}: its activations aren't those that it was trained on "
        f"({known(others or ['scales'])} differ). The text or the model has changed: put it "
        "back, or train afresh, without --resume."
    )


def machine_of(trainer: Trainer) -> dict[str, Any]:
    """What may change a number in its last bits."""
    return {
        "sae-mlflow": _own_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "device": trainer.sae.W_dec.device.type,
    }


def other_machine(trainer: Trainer, was: Mapping[str, Any]) -> str:
    """What is another now, as the end of a sentence about the layer; empty where nothing is."""
    now = machine_of(trainer)
    others = [
        f"{key} {was.get(key, 'unknown')}, now {now[key]}"
        for key in now
        if was.get(key) != now[key]
    ]
    if not others:
        return ""
    return (
        f"was trained with {known(others)}: the numbers may differ in their last bits from those "
        "of a training that wasn't interrupted."
    )


def _own_version() -> str:
    try:
        return version("sae-mlflow")
    except PackageNotFoundError:  # a checkout that isn't installed
        return "unknown"

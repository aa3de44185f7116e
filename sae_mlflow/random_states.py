"""Every generator of random numbers that a process has of its own: torch's, NumPy's, Python's."""

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor


def random_states() -> tuple[dict[str, Tensor], dict[str, Any]]:
    """As tensors, and as what JSON can hold."""
    version, words, gauss = random.getstate()
    kind, keys, *rest = np.random.get_state(legacy=True)
    assert kind == "MT19937"
    tensors = {
        "random.torch": torch.get_rng_state(),
        "random.python": torch.tensor(words, dtype=torch.int64),
        "random.numpy": torch.from_numpy(np.asarray(keys).astype(np.int64)),
    }
    if torch.cuda.is_available():
        states = torch.cuda.get_rng_state_all()
        tensors |= {f"random.cuda.{n}": state for n, state in enumerate(states)}
    return tensors, {"python": [version, gauss], "numpy": rest}


def restore_random_states(tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> None:
    """Put back what `random_states` gave; those of GPUs that aren't here are left out."""
    torch.set_rng_state(tensors["random.torch"])
    version, gauss = numbers["python"]
    random.setstate((version, tuple(tensors["random.python"].tolist()), gauss))
    keys = tensors["random.numpy"].numpy().astype(np.uint32)
    np.random.set_state(("MT19937", keys, *numbers["numpy"]))
    for n in range(torch.cuda.device_count()):
        if f"random.cuda.{n}" in tensors:
            torch.cuda.set_rng_state(tensors[f"random.cuda.{n}"], n)

"""Where an SAE stands in its language model, as its config's metadata says."""

import re
from collections.abc import Mapping
from typing import Any

_BLOCK = re.compile(r"(?:layers|blocks)\.(\d{1,9})(?![^.:])")  # ours, and SAELens'


def place(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config's metadata, with the block that it names, counted from 0, as `layer`."""
    about = config.get("metadata")
    about = about if isinstance(about, dict) else {}
    names = hookpoints(config, "in") or (str(about.get("hook_name")),)
    blocks = {match[1] for name in names if (match := _BLOCK.match(name))}
    return ({"layer": int(blocks.pop())} if len(blocks) == 1 else {}) | about


def hookpoints(config: Mapping[str, Any], side: str) -> tuple[str, ...]:
    """Where an SAE stands, as its config says; empty where that doesn't.

    Args:
        side: `in`, what it reads, or `out`, what it reconstructs.
    """
    about = config.get("metadata")
    names = about.get(f"hookpoints_{side}") if isinstance(about, dict) else None
    if isinstance(names, list) and all(isinstance(name, str) for name in names):
        return tuple(names)
    return ()

"""Python code that a model brings along: run by an explicit setting alone, and never silently."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path

from sae_mlflow.config import EMBEDDED_MODEL, ModelSettings

log = logging.getLogger(__name__)

SETTING = "model.trust_remote_code"

_DECLARED_IN = ("config.json", "tokenizer_config.json")


def warn_of_code(model: ModelSettings) -> None:
    """Say that a model's own code is run, wherever that is so."""
    if model.trust_remote_code and model.name != EMBEDDED_MODEL:
        log.warning(
            "%s=true: Python code that comes with %s runs with all your rights.",
            SETTING,
            model.name,
        )


def code_of(folder: Path) -> Mapping[str, object]:
    """What a model's files declare of code of their own: `AutoConfig`, `AutoTokenizer` ..."""
    declared: dict[str, object] = {}
    for name in _DECLARED_IN:
        try:
            content = json.loads((folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        found = content.get("auto_map") if isinstance(content, dict) else None
        declared |= found if isinstance(found, dict) else {}
    return declared


def needs_code(model: ModelSettings, folder: Path) -> bool:
    """Whether what doesn't load may do so with the model's own code."""
    return not model.trust_remote_code and bool(code_of(folder))


def refusal(model: ModelSettings) -> str:
    """Why a model that brings code isn't loaded."""
    return (
        f"{model.name} needs Python code that it brings along, which could do anything here and "
        f"isn't run. If you trust its author, read that code and set {SETTING}=true; else choose "
        "another model."
    )

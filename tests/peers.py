"""Other packages as oracles: they may be missing, but not where SAE_MLFLOW_ORACLE is 1."""

import importlib
import os

import pytest


def peer(name):
    """A peer's module; skips the tests that import it where it isn't installed."""
    if os.environ.get("SAE_MLFLOW_ORACLE") == "1":
        return importlib.import_module(name)
    return pytest.importorskip(name, reason="pip install '.[oracle]'", exc_type=ImportError)

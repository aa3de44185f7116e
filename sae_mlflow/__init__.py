"""Sparse autoencoders on language-model activations; every training is an MLflow run."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sae_mlflow.formats.sae_files import load_sae

__all__ = ["__version__", "load_sae"]

__version__: str


def __getattr__(name: str) -> Any:
    """Import torch only for whoever asks for it: `python -m sae_mlflow.plot` must not. The version
    is that of the installed package."""
    if name == "load_sae":
        from sae_mlflow.formats.sae_files import load_sae

        return load_sae
    if name == "__version__":
        from importlib.metadata import version

        return version("sae-mlflow")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

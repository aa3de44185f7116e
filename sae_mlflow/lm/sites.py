"""Where SAEs stand in the language model: what each reads, and what it reconstructs.

An autoencoder reads what it reconstructs; a transcoder reads a module's input and reconstructs its
output (Paulo et al. 2025, arXiv 2501.18823); a crosscoder does all layers at once (Anthropic 2024).
"""

from dataclasses import dataclass

from sae_mlflow import naming
from sae_mlflow.config import Settings
from sae_mlflow.errors import UserError


@dataclass(frozen=True)
class Site:
    """Where one SAE stands: the hookpoints that it reads, and those that it reconstructs."""

    layer: int | str | tuple[int | str, ...]
    """As in settings (`10`, `layers.10.mlp`); a crosscoder has all of `model.layers`."""
    label: str
    """`layer10`, `layer10_mlp`; a crosscoder's `layer10-15-20`."""
    reads: tuple[str, ...]
    """A transcoder's `("layers.10.mlp:input",)`; a crosscoder's are all layers."""
    writes: tuple[str, ...]
    """The same as `reads` but for a transcoder."""

    @property
    def hookpoints(self) -> tuple[str, ...]:
        """All that it needs, each once."""
        return tuple(dict.fromkeys(self.reads + self.writes))


def sites(settings: Settings) -> tuple[Site, ...]:
    """One site for each of `model.layers`; a crosscoder's is one over all of them.

    Raises:
        UserError: a layer that isn't a module's name; a crosscoder with fewer than two layers.
    """
    layers = settings.model.layers
    for layer in layers:
        _check_is_module(layer)
    if settings.sae.architecture == "crosscoder":
        return (_crosscoder(layers),)
    return tuple(_of_layer(layer, settings.sae.transcodes) for layer in layers)


def _of_layer(layer: int | str, transcoding: bool) -> Site:
    path = naming.hookpoint(layer)
    return Site(
        layer=layer,
        label=naming.layer_label(layer),
        reads=(naming.input_of(path) if transcoding else path,),
        writes=(path,),
    )


def _crosscoder(layers: tuple[int | str, ...]) -> Site:
    paths = tuple(map(naming.hookpoint, layers))
    if len(set(paths)) < 2:
        raise UserError(
            f"model.layers: a crosscoder spans two layers or more, but there is {paths[0]} alone. "
            "Name more layers, or choose another sae.architecture."
        )
    return Site(layer=layers, label=naming.joint_label(layers), reads=paths, writes=paths)


def _check_is_module(layer: int | str) -> None:
    module, colon, _ = str(layer).partition(":")
    if colon:
        raise UserError(
            f"model.layers: {layer!r} is not a module. Name the module alone, {module!r}: its "
            "output is read, and a transcoder (sae.architecture) reads its input by itself."
        )

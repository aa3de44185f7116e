"""Where SAEs stand: what each reads and what it reconstructs."""

import subprocess
import sys

import pytest

from sae_mlflow.config import Settings
from sae_mlflow.errors import UserError
from sae_mlflow.lm.sites import Site, sites


def sites_of(architecture: str, *layers: int | str) -> tuple[Site, ...]:
    settings = {"model": {"layers": layers}, "sae": {"architecture": architecture}}
    return sites(Settings.model_validate(settings))


@pytest.mark.parametrize(
    "architecture", ["standard", "topk", "batchtopk", "jumprelu", "gated", "matryoshka"]
)
def test_an_autoencoder_reconstructs_what_it_reads(architecture: str) -> None:
    block, mlp = sites_of(architecture, 10, "layers.3.mlp")
    assert block == Site(10, "layer10", ("layers.10",), ("layers.10",))
    assert mlp == Site("layers.3.mlp", "layer3_mlp", ("layers.3.mlp",), ("layers.3.mlp",))
    assert block.hookpoints == ("layers.10",)


@pytest.mark.parametrize("architecture", ["transcoder", "skip_transcoder"])
def test_a_transcoder_reads_a_modules_input_and_reconstructs_its_output(architecture: str) -> None:
    mlp, block = sites_of(architecture, "layers.3.mlp", 0)
    assert mlp == Site("layers.3.mlp", "layer3_mlp", ("layers.3.mlp:input",), ("layers.3.mlp",))
    assert block == Site(0, "layer0", ("layers.0:input",), ("layers.0",))
    assert mlp.hookpoints == ("layers.3.mlp:input", "layers.3.mlp")


def test_a_crosscoder_reads_and_reconstructs_all_layers_in_the_order_they_are_named() -> None:
    (site,) = sites_of("crosscoder", 15, 10, "layers.20.mlp")
    paths = ("layers.15", "layers.10", "layers.20.mlp")
    assert site == Site((15, 10, "layers.20.mlp"), "layer10-15-20_mlp", paths, paths)
    assert site.hookpoints == paths


@pytest.mark.parametrize("layers", [(10,), (10, "layers.10")])
def test_a_crosscoder_of_one_layer_is_refused(layers: tuple[int | str, ...]) -> None:
    with pytest.raises(
        UserError, match=r"model\.layers: a crosscoder .* layers\.10 alone. Name more layers"
    ):
        sites_of("crosscoder", *layers)


@pytest.mark.parametrize("architecture", ["topk", "transcoder", "crosscoder"])
@pytest.mark.parametrize("layer", ["layers.3.mlp:input", "layers.3.mlp:output"])
def test_layers_are_modules_and_not_their_ends(architecture: str, layer: str) -> None:
    with pytest.raises(UserError, match=r"Name the module alone, 'layers\.3\.mlp'"):
        sites_of(architecture, 1, layer)


def test_sites_are_known_without_torch() -> None:
    code = "import sys, sae_mlflow.lm.sites; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"

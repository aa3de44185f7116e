"""The settings of the sparse autoencoder: which architecture, how wide, how sparse."""

from typing import Annotated, Literal

from pydantic import AfterValidator, ConfigDict, Field

from sae_mlflow import architectures
from sae_mlflow.config_section import Section
from sae_mlflow.errors import UserError, did_you_mean, known


def _architecture(name: str) -> str:
    if name not in architectures.NAMES:
        hint = did_you_mean(name, architectures.NAMES)
        raise ValueError(f"there is none. {hint}There are: {known(architectures.NAMES)}")
    return name


class SAESettings(Section):
    """The sparse autoencoder."""

    model_config = ConfigDict(allow_inf_nan=False)

    architecture: Annotated[str, AfterValidator(_architecture)] = "topk"
    """`standard` (ReLU and L1), `topk`, `batchtopk`, `jumprelu`, `gated`, `matryoshka`;
    `transcoder` and `skip_transcoder` (a module's output from its input); `crosscoder` (all layers
    of `model.layers` in one)."""
    codes: Literal["topk", "jumprelu"] = "topk"
    """Activation function of a transcoder."""
    k: int = Field(32, gt=0)
    """Latents that may fire on a token (`topk`), or do on average (`batchtopk`, `matryoshka`)."""
    expansion_factor: int = Field(8, gt=0)
    """Latents per dimension of the activations; `d_sae` wins where it is given."""
    d_sae: int | None = Field(None, gt=0)
    """Number of latents; unset means `expansion_factor * d_in`, of a `crosscoder` with the d_in of
    the widest layer."""
    aux_k: int | None = Field(None, gt=0)
    """Dead latents that AuxK revives at once; unset means `d_in / 2`."""
    aux_k_coefficient: float = Field(1 / 32, ge=0)
    """Weight of the AuxK loss of the topk family; 0 turns it off."""
    l1_coefficient: float | None = Field(None, ge=0)
    """`standard`, `gated`, `crosscoder`: weight of the L1 penalty, against a loss that is a mean
    over dimensions; unset means `2 / d_in`, of the widest layer in a `crosscoder`, and
    `3.5 / d_in` of `gated`."""
    l0_coefficient: float | None = Field(None, ge=0)
    """`jumprelu`: loss of each latent that fires; with `target_l0`, of missing it by 100%. Unset
    means 1 by the dimensions that are reconstructed, and 2 with a target."""
    target_l0: float | None = Field(None, gt=0)
    """`jumprelu`: the L0 to be reached; unset penalises L0 itself."""
    bandwidth: float = Field(0.3, gt=0)
    """`jumprelu`: width of the window in which thresholds learn, in units of scaled activations. A
    latent that stays under its window on every token is lost: a wide one loses few."""
    prefixes: tuple[Annotated[int, Field(gt=0)], ...] | None = None
    """`matryoshka`: numbers of latents that reconstruct on their own, ascending; unset means 1/16,
    1/8, 1/4, 1/2 and all of them."""

    @property
    def activation(self) -> str:
        return architectures.activation_of(self.architecture, self.codes)

    @property
    def transcodes(self) -> bool:
        return self.architecture in architectures.TRANSCODERS

    def width(self, d_in: int) -> int:
        """Number of latents for activations of `d_in` dimensions.

        Raises:
            UserError: `k` or `target_l0` is larger than that.
        """
        d_sae = self.d_sae or self.expansion_factor * d_in
        self.check_width(d_sae)
        return d_sae

    def check_width(self, d_sae: int) -> None:
        """Raise a UserError unless so many latents are enough for `k` or `target_l0`."""
        name = "target_l0" if self.activation == "jumprelu" else "k"
        wanted = getattr(self, name) or 0
        if wanted > d_sae and self.activation in (*architectures.TOPK_FAMILY, "jumprelu"):
            raise UserError(
                f"sae.{name} = {wanted} is larger than d_sae = {d_sae}. "
                f"Lower sae.{name}, or raise sae.d_sae or sae.expansion_factor."
            )

"""What every architecture has: parameters, codes of a batch, their decoding, and a step's loss."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from sae_mlflow.architectures import StoredKind
from sae_mlflow.config_sae import SAESettings
from sae_mlflow.errors import UserError
from sae_mlflow.sae import kernels, sparse
from sae_mlflow.sae.batch import Batch, Reconstruction, Sizes, StepLoss
from sae_mlflow.sae.given import tokens_of
from sae_mlflow.sae.select import Rule
from sae_mlflow.sae.support import Support


class SAE(nn.Module, ABC):
    """A sparse autoencoder: latents z `[..., d_sae]` of activations `[..., d_in]`.

    In training it works on scaled activations (mean square 1 per dimension); one that was saved and
    loaded works on raw ones, since the scale is folded into its weights.
    """

    kind: ClassVar[str]
    """Name of its activation function in a stored config: `topk`, `jumprelu`, ..."""
    unit_norm: ClassVar[bool] = False
    """Whether an autoencoder's decoder rows are kept at length 1."""
    decides_firing: ClassVar[tuple[str, ...]] = ()
    """Parameters that learn faster than the weights, at `train.firing_rate` times their rate."""
    resample_at: ClassVar[tuple[float, ...]] = ()
    """Shares of a training after which dead latents start anew, where the settings don't say."""

    W_enc: nn.Parameter
    """`[d_in, d_sae]`; its transpose is contiguous, as the sparse kernels want it."""
    b_enc: nn.Parameter
    W_dec: nn.Parameter
    """`[d_sae, d_out]`."""
    b_dec: nn.Parameter
    W_skip: nn.Parameter | None
    """`[d_out, d_in]`."""

    metadata: dict[str, Any]
    """Of one that was loaded: where it belongs, as far as its files say; see `load_sae`."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.d_in, self.d_sae = sizes.d_in, sizes.d_sae
        self.d_out = sizes.d_out or sizes.d_in
        self.transcodes = sizes.d_out is not None
        self.metadata = {}
        self.W_enc = nn.Parameter(torch.zeros(self.d_sae, self.d_in).t())
        self.b_enc = nn.Parameter(torch.zeros(self.d_sae))
        self.W_dec = nn.Parameter(torch.zeros(self.d_sae, self.d_out))
        self.b_dec = nn.Parameter(torch.zeros(self.d_out))
        skip = nn.Parameter(torch.zeros(self.d_out, self.d_in)) if sizes.skip else None
        self.register_parameter("W_skip", skip)

    # -- making one ---------------------------------------------------------------------------

    @classmethod
    @abstractmethod
    def from_settings(cls, settings: SAESettings, sizes: Sizes) -> "SAE":
        """One to be trained, its parameters still zero."""

    @classmethod
    @abstractmethod
    def from_config(cls, config: dict[str, Any], sizes: Sizes) -> "SAE":
        """One to be loaded: from the `hyperparameters` that stand in a `cfg.json`."""

    @torch.no_grad()
    def initialise(self, sample: Batch, generator: torch.Generator) -> None:
        """Random unit directions in the encoder, the decoder their transpose, `b_dec` y's mean.

        A transcoder's decoder starts at 0 (Paulo et al. 2025).

        Args:
            sample: scaled activations of some tokens.
            generator: on the CPU, so that a seed means the same weights on every device.
        """
        rows = torch.randn(self.d_sae, self.d_in, generator=generator)
        rows /= rows.norm(dim=1, keepdim=True)
        self.W_enc.copy_(rows.t())
        if not self.transcodes:
            self.W_dec.copy_(rows)
        self.b_dec.copy_(sample.y.double().mean(dim=0))
        self.start(sample.x, torch.arange(self.d_sae, device=self.W_enc.device))

    @torch.no_grad()
    def start(self, x: Tensor, latents: Tensor) -> None:
        """Set from where on latents with new directions fire, from a sample where that is learnt.

        Args:
            x: `[n, d_in]` scaled activations.
            latents: int64, which ones.
        """
        self.b_enc[latents] = 0.0

    # -- using one ----------------------------------------------------------------------------

    @abstractmethod
    def codes(self, x: Tensor) -> tuple[Tensor, Support]:
        """Latents of x `[batch, d_in]`, and where they belong; what a trained SAE gives."""

    def encode(self, acts: Tensor) -> Tensor:
        """Latents `[..., d_sae]` of activations `[..., d_in]`.

        Args:
            acts: in the SAE's dtype, or in one that it holds exactly (bfloat16 and float16 of a
                float32 SAE), which is converted.

        Raises:
            UserError: they have another last dimension, or a dtype that would be rounded.
        """
        latents, support = self.codes(tokens_of(acts, self.d_in, self.W_enc.dtype))
        return support.dense(latents).view(*acts.shape[:-1], self.d_sae)

    def decode(self, latents: Tensor, acts: Tensor | None = None) -> Tensor:
        """Reconstruction `[..., d_out]` of latents `[..., d_sae]`.

        Args:
            acts: `[..., d_in]`; a skip transcoder adds their image.

        Raises:
            UserError: a skip transcoder's are missing.
        """
        return self._with_skip(latents @ self.W_dec + self.b_dec, acts)

    def forward(self, acts: Tensor) -> Tensor:
        """Reconstruction `[..., d_out]` of activations `[..., d_in]`, taken as `encode` does."""
        x = tokens_of(acts, self.d_in, self.W_enc.dtype)
        latents, support = self.codes(x)
        recon = self._decoded(latents, support, x, self.W_dec)
        return recon.view(*acts.shape[:-1], self.d_out)

    @torch.no_grad()
    def reconstruct(self, x: Tensor) -> Reconstruction:
        """What it makes of x `[batch, d_in]` once it is trained."""
        latents, support = self.codes(x)
        recon = self._decoded(latents, support, x, self.W_dec)
        return Reconstruction(recon, support.l0(latents), support.fired(latents))

    # -- training one -------------------------------------------------------------------------

    @abstractmethod
    def loss(self, batch: Batch, dead: Tensor, sparsity_warmup: float = 1.0) -> StepLoss:
        """The loss on scaled activations.

        Args:
            dead: `[d_sae]` bool, the latents that have been silent for so long that AuxK, where
                there is one, is for them.
            sparsity_warmup: 0 to 1, how much of its coefficient the sparsity penalty has by now.
        """

    @torch.no_grad()
    def project_gradient(self) -> None:
        """Remove from each decoder row's gradient what would only change the row's length."""
        if self.unit_norm and not self.transcodes:
            grad = self.W_dec.grad
            assert grad is not None
            kernels.remove_along(grad, self.W_dec)

    @torch.no_grad()
    def constrain(self) -> None:
        """Bring the parameters back to where they have to be after a step."""
        if self.unit_norm and not self.transcodes:
            self.W_dec.div_(self.W_dec.norm(dim=1, keepdim=True).clamp_min(1e-12))

    def per_latent(self) -> list[str]:
        """The parameters that have something for each latent, by name."""
        return [name for name, _ in self.named_parameters() if name not in ("b_dec", "W_skip")]

    # -- storing one --------------------------------------------------------------------------

    def extra_repr(self) -> str:
        sizes = {"d_in": self.d_in, "d_sae": self.d_sae}
        sizes |= {"d_out": self.d_out} if self.transcodes else {}
        facts = sizes | self.hyperparameters()
        return ", ".join([self.architecture, *(f"{key}={value}" for key, value in facts.items())])

    @property
    def architecture(self) -> str:
        """Its name in a stored config."""
        return StoredKind(self.kind, self.transcodes, skip=self.W_skip is not None).name

    @torch.no_grad()
    def fold_scale(self, scale_in: Tensor, scale_out: Tensor) -> dict[str, Tensor]:
        """The parameters that do to raw activations a what these do to x = scale * a.

        Args:
            scale_in: `[d_in]`, of what is read.
            scale_out: `[d_out]`, of what is reconstructed.
        """
        state = {name: p.detach().clone() for name, p in self.state_dict().items()}
        to_x, to_y = (scale.to(self.W_enc.device) for scale in (scale_in, scale_out))
        state["W_enc"] = (state["W_enc"] * to_x[:, None]).to(self.W_enc.dtype)
        for name in ("W_dec", "b_dec"):
            state[name] = (state[name] / to_y).to(self.W_dec.dtype)
        if "W_skip" in state:
            skip = state["W_skip"] * to_x / to_y[:, None]
            state["W_skip"] = skip.to(self.W_enc.dtype)
        return state

    def hyperparameters(self) -> dict[str, Any]:
        """What, beside the sizes, has to be known to build this SAE again."""
        return {}

    def chosen_settings(self) -> dict[str, Any]:
        """What it was trained with of the settings that may be unset, by their names in
        `SAESettings`: those that were given, and the values that it chose for the others."""
        return {"d_sae": self.d_sae}

    # -- for the architectures ----------------------------------------------------------------

    @property
    def centre(self) -> Tensor | None:
        """What is subtracted from x before encoding; nothing in a transcoder."""
        return None if self.transcodes else self.b_dec

    def _kept(
        self, x: Tensor, rule: Rule, silent_up_to: Tensor | None = None
    ) -> tuple[Tensor, Support]:
        """The pre-activations that a rule keeps, and where they belong; see `sparse.encode`."""
        return sparse.encode(x, self.W_enc, self.b_enc, self.centre, rule, silent_up_to)

    def _decoded(self, latents: Tensor, support: Support, x: Tensor, W_dec: Tensor) -> Tensor:
        return self._with_skip(sparse.decode(latents, support, W_dec, self.b_dec), x)

    def _reconstructed(
        self, latents: Tensor, support: Support, batch: Batch, W_dec: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The reconstruction, detached, and its squared error, mean over tokens and dimensions."""
        if self.W_skip is None:
            return sparse.reconstruct(latents, support, W_dec, self.b_dec, batch.y)
        recon = self._decoded(latents, support, batch.x, W_dec)
        return recon.detach(), mse_loss(recon, batch.y)

    def _with_skip(self, recon: Tensor, x: Tensor | None) -> Tensor:
        if self.W_skip is None:
            return recon
        if x is None:
            raise UserError("A skip transcoder adds a map of what it read: decode(latents, acts).")
        return recon + x @ self.W_skip.t()

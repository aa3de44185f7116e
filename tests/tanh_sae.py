"""The README's example of a new architecture, as its reader would write it."""

from sae_mlflow.sae.standard import StandardSAE


class TanhSAE(StandardSAE):
    kind = "tanh"  # its name in a stored config

    def l1_penalty(self, latents, support, warmup):
        strengths = latents * support.spread(self.decoder_lengths())
        return self.l1_coefficient * warmup * strengths.tanh().sum() / support.n_tokens

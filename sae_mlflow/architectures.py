"""The architectures by name: a new one is a file in `sae/` and a line here."""

ARCHITECTURES = {
    "standard": "sae_mlflow.sae.standard.StandardSAE",
    "topk": "sae_mlflow.sae.topk.TopKSAE",
    "batchtopk": "sae_mlflow.sae.batchtopk.BatchTopKSAE",
    "jumprelu": "sae_mlflow.sae.jumprelu.JumpReLUSAE",
    "gated": "sae_mlflow.sae.gated.GatedSAE",
    "matryoshka": "sae_mlflow.sae.matryoshka.MatryoshkaSAE",
    "crosscoder": "sae_mlflow.sae.crosscoder.CrosscoderSAE",
}
"""Where each one's class is; classes are imported when one is built, since they import torch."""

TRANSCODERS = ("transcoder", "skip_transcoder")
"""Read a module's input and reconstruct its output, with the codes of an architecture above."""

TRANSCODER_CODES = ("topk", "jumprelu")

STORED_AS_JUMPRELU = ("batchtopk", "matryoshka")
"""Once trained these are JumpReLU SAEs; a stored config never names them."""

NAMES = (*ARCHITECTURES, *TRANSCODERS)
"""What `sae.architecture` may be."""


def stored_names() -> list[str]:
    """What `architecture` may be in a stored config."""
    kinds = [name for name in ARCHITECTURES if name not in STORED_AS_JUMPRELU]
    skips = ("", "_skip")
    return kinds + [f"{name}{skip}_transcoder" for name in TRANSCODER_CODES for skip in skips]

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

NAMES = (*ARCHITECTURES, *TRANSCODERS)
"""What `sae.architecture` may be."""

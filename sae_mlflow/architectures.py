"""The architectures by name: a new one is a file in `sae/` and a line here."""

from collections.abc import Collection

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

_TOPK = ("topk", "batchtopk", "matryoshka")
_READ_BY = {
    "sae.k": _TOPK,
    "sae.aux_k": _TOPK,
    "sae.aux_k_coefficient": _TOPK,
    "sae.l1_coefficient": ("standard", "gated", "crosscoder"),
    "sae.l0_coefficient": ("jumprelu",),
    "sae.target_l0": ("jumprelu",),
    "sae.bandwidth": ("jumprelu",),
    "sae.prefixes": ("matryoshka",),
    "sae.codes": TRANSCODERS,
    "train.firing_rate": ("jumprelu",),
    "train.aux_k_after_tokens": _TOPK,
}
"""The settings that only some of those that come with the package read."""

STORED_AS_JUMPRELU = ("batchtopk", "matryoshka")
"""Once trained these are JumpReLU SAEs; a stored config never names them."""

NAMES = (*ARCHITECTURES, *TRANSCODERS)
"""What `sae.architecture` may be."""


def readers_instead(setting: str, names: Collection[str]) -> tuple[str, ...]:
    """Who reads a setting, where an architecture by these names doesn't; of one that doesn't come
    with the package nobody knows."""
    readers = _READ_BY.get(setting, ())
    ours = {*TRANSCODERS}.union(*_READ_BY.values())
    return readers if ours.issuperset(names) and not {*readers} & {*names} else ()


def stored_names() -> list[str]:
    """What `architecture` may be in a stored config."""
    kinds = [name for name in ARCHITECTURES if name not in STORED_AS_JUMPRELU]
    skips = ("", "_skip")
    return kinds + [f"{name}{skip}_transcoder" for name in TRANSCODER_CODES for skip in skips]

"""The architectures by name: a new one is a file in `sae/` and a line here."""

from collections.abc import Collection
from typing import NamedTuple

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

TOPK_FAMILY = ("topk", "batchtopk", "matryoshka")
"""Their `k` sets how many latents fire, and AuxK revives dead ones."""

_READ_BY = {
    "sae.k": TOPK_FAMILY,
    "sae.aux_k": TOPK_FAMILY,
    "sae.aux_k_coefficient": TOPK_FAMILY,
    "sae.l1_coefficient": ("standard", "gated", "crosscoder"),
    "sae.l0_coefficient": ("jumprelu",),
    "sae.target_l0": ("jumprelu",),
    "sae.bandwidth": ("jumprelu",),
    "sae.prefixes": ("matryoshka",),
    "sae.codes": TRANSCODERS,
    "train.firing_rate": ("jumprelu",),
    "train.aux_k_after_tokens": TOPK_FAMILY,
}
"""The settings that only some of those that come with the package read."""

STORED_AS_JUMPRELU = ("batchtopk", "matryoshka")
"""Once trained these are JumpReLU SAEs; a stored config never names them."""

NAMES = (*ARCHITECTURES, *TRANSCODERS)
"""What `sae.architecture` may be."""


class StoredKind(NamedTuple):
    """What the `architecture` of a stored config says, such as `topk_skip_transcoder`."""

    codes: str
    """Activation function: one of `ARCHITECTURES`."""
    transcodes: bool
    skip: bool
    """Whether a transcoder adds a linear map of what it reads."""

    @property
    def name(self) -> str:
        if not self.transcodes:
            return self.codes
        return f"{self.codes}_skip_transcoder" if self.skip else f"{self.codes}_transcoder"


def parse_stored(name: str) -> StoredKind:
    """What a stored config's `architecture` says, known or not."""
    before = name.removesuffix("_transcoder")
    if before == name:
        return StoredKind(name, transcodes=False, skip=False)
    codes = before.removesuffix("_skip")
    return StoredKind(codes, transcodes=True, skip=codes != before)


def activation_of(architecture: str, codes: str) -> str:
    """The activation function that settings mean: of a transcoder its `sae.codes`, else the
    architecture's own."""
    return codes if architecture in TRANSCODERS else architecture


def readers_instead(setting: str, names: Collection[str]) -> tuple[str, ...]:
    """Who reads a setting, where an architecture by these names doesn't; of one that doesn't come
    with the package nobody knows."""
    readers = _READ_BY.get(setting, ())
    ours = {*TRANSCODERS}.union(*_READ_BY.values())
    return readers if ours.issuperset(names) and not {*readers} & {*names} else ()


def stored_names() -> list[str]:
    """What `architecture` may be in a stored config."""
    kinds = [name for name in ARCHITECTURES if name not in STORED_AS_JUMPRELU]
    return kinds + [
        StoredKind(codes, transcodes=True, skip=skip).name
        for codes in TRANSCODER_CODES
        for skip in (False, True)
    ]

"""sparsify's files: `cfg.json` and `sae.safetensors`. TopK SAEs and transcoders only."""

import json
from pathlib import Path

from safetensors.torch import save_file

from sae_mlflow.architectures import StoredKind
from sae_mlflow.errors import UserError
from sae_mlflow.formats import stored_sae
from sae_mlflow.formats.stored_sae import StoredSAE
from sae_mlflow.formats.weight_files import read_json, read_safetensors

CONFIG_FILE = "cfg.json"
WEIGHTS_FILE = "sae.safetensors"

# Our name of a tensor, sparsify's, and whether sparsify keeps it the other way round.
_NAMES = {
    "W_enc": ("encoder.weight", True),
    "b_enc": ("encoder.bias", False),
    "W_dec": ("W_dec", False),
    "b_dec": ("b_dec", False),
    "W_skip": ("W_skip", False),
}


def refusal(stored: StoredSAE) -> str | None:
    """Why sparsify can't open this one; None where it can."""
    d_in, d_out = stored.config["d_in"], stored.config.get("d_out", stored.config["d_in"])
    if stored.kind.codes != "topk":
        return f"sparsify has no {stored.architecture}, only topk"
    if d_in != d_out:
        return f"sparsify's transcoders have d_out = d_in, this one has {d_out} and {d_in}"
    return None


def write(stored: StoredSAE, folder: Path) -> None:
    d_in, d_sae = stored.config["d_in"], stored.config["d_sae"]
    config = {
        "activation": "topk",
        "expansion_factor": max(d_sae // d_in, 1),
        "normalize_decoder": False,  # ours are of length 1 / scale
        "num_latents": d_sae,
        "k": stored.config["k"],
        "multi_topk": False,
        "skip_connection": "W_skip" in stored.weights,
        "transcode": stored.kind.transcodes,
        "d_in": d_in,
    }
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    weights = {}
    for name, weight in stored.weights.items():
        theirs, turned = _NAMES[name]
        weights[theirs] = (weight.t() if turned else weight).float().contiguous()
    save_file(weights, folder / WEIGHTS_FILE)


def read(folder: Path) -> StoredSAE:
    file = folder / CONFIG_FILE
    config, found = read_json(file), read_safetensors(folder / WEIGHTS_FILE)
    if config.get("activation", "topk") != "topk":
        raise UserError(
            f"{file}: activation = {config['activation']!r} can't be read, only 'topk'. "
            "Train it with activation topk, or use sparsify itself."
        )
    skips, transcodes = (
        stored_sae.flag(config, key, False, file) for key in ("skip_connection", "transcode")
    )
    if skips and not transcodes:
        raise UserError(
            f"{file}: skip_connection without transcode can't be read. Only transcoders have one."
        )
    ours = {theirs: (name, turned) for name, (theirs, turned) in _NAMES.items()}
    weights = {}
    for theirs, weight in found.items():
        name, turned = ours.get(theirs, (theirs, False))
        weights[name] = weight.t() if turned and weight.ndim == 2 else weight
    d_in = stored_sae.whole_number(config, "d_in", file)
    d_sae = config.get("num_latents")
    if not d_sae:
        d_sae = d_in * stored_sae.whole_number(
            {"expansion_factor": 32} | config, "expansion_factor", file
        )
    sizes = {"d_in": d_in, "d_sae": d_sae} | ({"d_out": d_in} if transcodes else {})
    return StoredSAE(
        {
            "architecture": StoredKind("topk", transcodes, skips).name,
            **sizes,
            "k": config.get("k", 32),
            "metadata": {},
        },
        weights,
    )

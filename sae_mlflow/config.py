"""Settings: a YAML file (with `extends`) and dotted overrides become one typed, frozen object.

Everything that a user can get wrong here is said before anything heavy is imported or started.
"""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
)

from sae_mlflow import architectures, naming
from sae_mlflow.config_checkpoint import CheckpointSettings
from sae_mlflow.config_checks import check_layers, check_read, check_together, in_order
from sae_mlflow.config_errors import explain
from sae_mlflow.config_files import find_config, read_config
from sae_mlflow.config_health import HealthSettings
from sae_mlflow.config_section import Section as _Section
from sae_mlflow.config_set import parse_set as parse_set
from sae_mlflow.config_tracking import TrackingSettings
from sae_mlflow.errors import UserError, did_you_mean, known
from sae_mlflow.folders import is_folder, user_path

EMBEDDED_MODEL = "smollm2-135m"
EMBEDDED_TEXT = "embedded"


def _layer_list(value: object) -> object:
    """`"10,15,20"`, `"3-7"` or one layer as the list that is meant."""
    if isinstance(value, int) and not isinstance(value, bool):
        return (value,)
    if not isinstance(value, str):
        return value
    try:
        return naming.parse_layers(value)
    except ValueError as error:
        raise ValueError(f"it {error}") from None


def _names(value: object) -> object:
    """`"mlflow,tensorboard"` or `"png,pdf"` as a list."""
    return [part.strip() for part in value.split(",")] if isinstance(value, str) else value


def _with_mlflow(trackers: tuple[str, ...]) -> tuple[str, ...]:
    if "mlflow" not in trackers:
        raise ValueError("mlflow has to be among them: plots and commands read its store")
    return trackers


def _once_each(formats: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(formats))


Formats = Annotated[
    tuple[Literal["png", "pdf", "svg"], ...],
    BeforeValidator(_names),
    AfterValidator(_once_each),
    Field(min_length=1),
]
Trackers = Annotated[
    tuple[Literal["mlflow", "tensorboard"], ...],
    BeforeValidator(_names),
    AfterValidator(_with_mlflow),
]
Layer = Annotated[int, Field(ge=0, strict=True)] | Annotated[str, Field(min_length=1, strict=True)]


class ModelSettings(_Section):
    """The language model whose activations are read."""

    name: str = EMBEDDED_MODEL
    """Hugging Face causal LM: a Hub name, a local folder, or `smollm2-135m` (embedded)."""
    revision: str | None = None
    """Branch, tag or commit on the Hub; unset means the default branch."""
    layers: Annotated[tuple[Layer, ...], BeforeValidator(_layer_list), Field(min_length=1)] = (10,)
    """Blocks counted from 0 (`10` is the residual stream after block 10) or module paths
    (`layers.10.mlp`); `10,15,20` and `3-7` work as text."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Number format the LM runs in."""
    device: str = "auto"
    """Where the LM and the SAEs run: `auto` (cuda, else cpu), or a torch device; not
    `mps`, which has no float64."""
    trust_remote_code: bool = False
    """Run the Python code that a model brings along, where transformers doesn't know it: that code
    can do whatever you can. Each use is warned of."""

    @property
    def label(self) -> str:
        """The name that tags, titles and files show: of a local folder, the folder's own."""
        folder = user_path(self.name)
        return folder.resolve().name if is_folder(folder) else self.name


class TextSettings(_Section):
    """The documents, and how they become windows of tokens."""

    source: str | tuple[str, ...] = EMBEDDED_TEXT
    """`embedded` (English Wikipedia summaries, CC BY-SA 4.0), one or more local .txt, .jsonl or
    .parquet files, or a data set's name on the Hub (streamed)."""
    subset: str | None = None
    """Configuration of a Hub data set."""
    split: str = "train"
    """Split of a Hub data set."""
    column: str = "text"
    """Field that holds the text, in .jsonl, .parquet and Hub data sets."""
    tokens: int = Field(65_536, gt=0)
    """Tokens that the LM reads, held-out ones included."""
    context: int = Field(128, gt=1)
    """Tokens in a window."""
    held_out_fraction: float = Field(0.1, gt=0, lt=1)
    """Share of the tokens kept for validation; whole documents, none on both sides."""
    shuffle_seed: int = 0
    """Seed of the order in which documents are read; apart from `seed`, so that trainings which
    differ in `seed` share one activation cache."""


class ActivationSettings(_Section):
    """How activations are collected and cached."""

    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Number format of the cache on disk."""
    batch_windows: int = Field(8, gt=0)
    """Windows that the LM reads at once."""
    max_norm_ratio: float = Field(10.0, gt=1)
    """A token whose norm is over this many times the layer's median is left out."""


def _architecture(name: str) -> str:
    if name not in architectures.NAMES:
        hint = did_you_mean(name, architectures.NAMES)
        raise ValueError(f"there is none. {hint}There are: {known(architectures.NAMES)}")
    return name


class SAESettings(_Section):
    """The sparse autoencoder."""

    model_config = ConfigDict(allow_inf_nan=False)

    architecture: Annotated[str, AfterValidator(_architecture)] = "topk"
    """`standard` (ReLU and L1), `topk`, `batchtopk`, `jumprelu`, `gated`, `matryoshka`;
    `transcoder` and `skip_transcoder` (a module's output from its input); `crosscoder` (all layers
    of `model.layers` in one)."""
    codes: Literal["topk", "jumprelu"] = "topk"
    """Activation function of a transcoder."""
    k: int = Field(32, gt=0)
    """Latents that may fire on a token (`topk`), or do on average (`batchtopk`, `matryoshka`)."""
    expansion_factor: int = Field(8, gt=0)
    """Latents per dimension of the activations; `d_sae` wins where it is given."""
    d_sae: int | None = Field(None, gt=0)
    """Number of latents; unset means `expansion_factor * d_in`, of a `crosscoder` with the d_in of
    the widest layer."""
    aux_k: int | None = Field(None, gt=0)
    """Dead latents that AuxK revives at once; unset means `d_in / 2`."""
    aux_k_coefficient: float = Field(1 / 32, ge=0)
    """Weight of the AuxK loss of the topk family; 0 turns it off."""
    l1_coefficient: float | None = Field(None, ge=0)
    """`standard`, `gated`, `crosscoder`: weight of the L1 penalty, against a loss that is a mean
    over dimensions; unset means `2 / d_in`, of the widest layer in a `crosscoder`, and
    `3.5 / d_in` of `gated`."""
    l0_coefficient: float | None = Field(None, ge=0)
    """`jumprelu`: loss of each latent that fires; with `target_l0`, of missing it by 100%. Unset
    means 1 by the dimensions that are reconstructed, and 2 with a target."""
    target_l0: float | None = Field(None, gt=0)
    """`jumprelu`: the L0 to be reached; unset penalises L0 itself."""
    bandwidth: float = Field(0.3, gt=0)
    """`jumprelu`: width of the window in which thresholds learn, in units of scaled activations. A
    latent that stays under its window on every token is lost: a wide one loses few."""
    prefixes: tuple[Annotated[int, Field(gt=0)], ...] | None = None
    """`matryoshka`: numbers of latents that reconstruct on their own, ascending; unset means 1/16,
    1/8, 1/4, 1/2 and all of them."""

    @property
    def activation(self) -> str:
        return architectures.activation_of(self.architecture, self.codes)

    @property
    def transcodes(self) -> bool:
        return self.architecture in architectures.TRANSCODERS

    def width(self, d_in: int) -> int:
        """Number of latents for activations of `d_in` dimensions.

        Raises:
            UserError: `k` or `target_l0` is larger than that.
        """
        d_sae = self.d_sae or self.expansion_factor * d_in
        name = "target_l0" if self.activation == "jumprelu" else "k"
        wanted = getattr(self, name) or 0
        if wanted > d_sae and self.activation in (*architectures.TOPK_FAMILY, "jumprelu"):
            raise UserError(
                f"sae.{name} = {wanted} is larger than d_sae = {d_sae}. "
                f"Lower sae.{name}, or raise sae.d_sae or sae.expansion_factor."
            )
        return d_sae


def _finite(value: Any) -> Any:
    """Options, or a part of them, as they are."""
    for part in value.values() if isinstance(value, dict) else value:
        if isinstance(part, dict | list):
            _finite(part)
        elif isinstance(part, float) and not math.isfinite(part):
            raise ValueError("its numbers have to be finite")
    return value


class TrainSettings(_Section):
    """The training of one SAE."""

    model_config = ConfigDict(allow_inf_nan=False)

    epochs: int = Field(10, gt=0)
    """Passes over the training tokens."""
    batch_tokens: int = Field(1024, gt=0)
    """Tokens in a step."""
    learning_rate: float | None = Field(None, gt=0)
    """Peak of the learning rate; unset means `1e-3 / sqrt(d_sae / 2^14)`."""
    optimizer: str = "adam"
    """Any optimizer of torch.optim but LBFGS, Rprop and SparseAdam, by name."""
    optimizer_options: Annotated[dict[str, Any], AfterValidator(_finite)] = Field({})
    """What else the optimizer is made with, for example `{betas: [0.0, 0.999]}`."""
    warmup_fraction: float = Field(0.05, ge=0, lt=1)
    """Share of the steps over which the learning rate rises from 0."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """How the learning rate ends: falling to 0 in a line or a half cosine, or not at all."""
    decay_fraction: float = Field(0.2, ge=0, le=1)
    """Share of the steps, at the end, over which the learning rate falls."""
    sparsity_warmup_fraction: float = Field(0.05, ge=0, lt=1)
    """Share of the steps over which L1 and L0 coefficients rise from 0."""
    firing_rate: float = Field(10.0, gt=0)
    """`jumprelu`: learning rate of thresholds and encoder biases, as a multiple of `learning_rate`.
    They have a unit or more to go, and move by about their rate a step."""
    resample_at: tuple[Annotated[float, Field(gt=0, lt=1)], ...] | None = None
    """Shares of the steps, such as `[0.25, 0.5]`, after which dead latents start anew from tokens
    that are reconstructed badly; unset means what the architecture's paper does: `gated` at a
    quarter and a half of the steps, the others never."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Number format of the large products; `bfloat16` (autocast) is for GPUs."""
    gradient_clip: float = Field(1.0, gt=0, allow_inf_nan=True)
    """Largest norm of the whole gradient; `.inf` leaves it as it is."""
    log_every_tokens: int = Field(1_000_000, gt=0)
    """Longer epochs log within the epoch as well: the training's metrics over the last so many
    tokens, as `within_epoch/total_loss` ..., whose steps are training tokens."""
    dead_after_tokens: int | None = Field(None, gt=0)
    """A latent that hasn't fired for this many tokens is dead; unset means half an epoch, at most
    10,000,000, and no longer than it is between two times that dead latents start anew."""
    aux_k_after_tokens: int | None = Field(None, gt=0)
    """A latent that hasn't fired for this many tokens learns by AuxK (`topk`, `batchtopk`,
    `matryoshka`, transcoders with `topk` codes); unset means a twentieth of an epoch, four batches
    at least, and no more than `dead_after_tokens`."""


class PlotSettings(_Section):
    """The pictures drawn from the store."""

    after_training: bool = True
    """Draw and log pictures when a layer, and when all layers, have trained."""
    formats: Formats = ("png",)
    """Files of each picture: `png`, `pdf`, `svg` or several, as `png,pdf`."""
    style: str = Field("default", min_length=1)
    """How they look: `default`, `paper`, `dark`, `talk`, or a YAML file like
    `configs/plots/default.yaml`."""
    live: bool = True
    """While a layer trains, draw its history again at an epoch's end, and keep each drawing for the
    image slider in the MLflow UI."""
    live_seconds: float = Field(30.0, gt=0)
    """Seconds between two such drawings (`plots.live`) of a layer, at least."""
    interactive: Literal["parent", "all", "none"] = "parent"
    """Interactive pages beside the pictures: of all layers in the parent's run, `all` also of each
    layer in its own."""


class EvaluateSettings(_Section):
    """What the language model loses when an SAE stands in for its layer."""

    after_training: bool = True
    """Once all layers have trained, measure what the LM loses to each SAE."""
    tokens: int = Field(2048, gt=0)
    """Held-out tokens that an SAE is measured on after training, in whole windows, one at least."""


class OutputSettings(_Section):
    """Plain files beside the store."""

    dir: str | None = None
    """Folder that gets `{model}/{layer}_training_history.json`, `{layer}_sae/` and
    `training_plots/`; unset writes none."""
    tensorboard_dir: str = Field("tensorboard", min_length=1)
    """Folder of TensorBoard's event files, where `trackers` asks for them."""
    pt: bool = False
    """Also write `{layer}_sae.pt` to `output.dir`: config and state dict in one file, for
    `torch.load`."""

    @property
    def folder(self) -> Path | None:
        """What `dir` means."""
        return user_path(self.dir) if self.dir else None

    @property
    def tensorboard_folder(self) -> Path:
        """What `tensorboard_dir` means."""
        return user_path(self.tensorboard_dir)


class Settings(_Section):
    """All settings of one training."""

    experiment: str = Field("sae", min_length=1)
    """MLflow experiment that the runs go to; `--experiment-name` wins over it."""
    seed: int = Field(0, ge=0)
    """Seed of the SAE's first weights and of the order of batches."""
    trackers: Trackers = ("mlflow",)
    """Who takes the metrics; `tensorboard` writes event files as well, in
    `output.tensorboard_dir`."""
    register_model: bool = Field(False, alias="register")  # `register` is a method of every class
    """Register each layer's SAE in MLflow's model registry, as `{model}-{layer}`."""
    model: ModelSettings = ModelSettings()
    text: TextSettings = TextSettings()
    activations: ActivationSettings = ActivationSettings()
    sae: SAESettings = SAESettings()
    train: TrainSettings = TrainSettings()
    health: HealthSettings = HealthSettings()
    checkpoint: CheckpointSettings = CheckpointSettings()
    plots: PlotSettings = PlotSettings()
    evaluate: EvaluateSettings = EvaluateSettings()
    output: OutputSettings = OutputSettings()
    tracking: TrackingSettings = TrackingSettings()

    def flat(self) -> dict[str, Any]:
        """Every setting under its dotted key, in order: `{"experiment": "llama2", ...}`."""
        flat: dict[str, Any] = {}
        for name, value in self.model_dump(mode="json").items():
            section = isinstance(getattr(self, name, None), _Section)
            flat |= {f"{name}.{key}": v for key, v in value.items()} if section else {name: value}
        return flat

    def to_yaml(self) -> str:
        """All settings as a config file that gives them again."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


def load_settings(config: str, overrides: Mapping[str, Any] | None = None) -> Settings:
    """Read a config file, apply what it extends and then the overrides, and validate the result.

    Args:
        config: a name in `configs/` (`sae_balanced.yaml`) or a path.
        overrides: dotted keys to values, as `parse_set` returns them.

    Returns:
        Settings as they were written, but for a crosscoder's layers, which are put in order.

    Raises:
        UserError: the file is missing, empty or not YAML; a key is unknown; a value is wrong.
    """
    path = find_config(config)
    data = read_config(path)
    for key, value in (overrides or {}).items():
        _assign(data, key, value)
    try:
        settings = Settings.model_validate(data)
    except ValidationError as error:
        meanings = {key: meaning for key, _, meaning in setting_docs()}
        raise UserError(explain(error.errors()[0], path, overrides or {}, meanings)) from None
    if settings.sae.d_sae:
        settings.sae.width(d_in=0)
    check_together(settings, path)
    check_read(settings.sae, overrides or {})
    check_layers(settings.model.layers, path)
    return in_order(settings) if settings.sae.architecture == "crosscoder" else settings


def setting_docs() -> Iterator[tuple[str, str, str]]:
    """Every setting as (dotted key, default, what it means)."""
    for name, field in Settings.model_fields.items():
        if isinstance(field.default, _Section):
            for sub, subfield in type(field.default).model_fields.items():
                yield f"{name}.{sub}", _shown(subfield.default), _one_line(subfield.description)
        else:
            yield field.alias or name, _shown(field.default), _one_line(field.description)


def _assign(data: dict[str, Any], key: str, value: Any) -> None:
    *sections, last = key.split(".")
    for section in sections:
        inner = data.get(section)
        # a copy, so that what an `extends` merge shares is left alone
        data[section] = dict(inner) if isinstance(inner, dict) else {}
        data = data[section]
    data[last] = value


def _shown(default: object) -> str:
    if isinstance(default, tuple):
        return ",".join(map(str, default))
    return "unset" if default is None else str(default)


def _one_line(text: str | None) -> str:
    return " ".join((text or "").split())

"""The settings of one training, section by section, as one typed, frozen object."""

from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BeforeValidator, Field

from sae_mlflow import naming
from sae_mlflow.config_checkpoint import CheckpointSettings
from sae_mlflow.config_health import HealthSettings
from sae_mlflow.config_sae import SAESettings
from sae_mlflow.config_section import Section
from sae_mlflow.config_tracking import TrackingSettings
from sae_mlflow.config_train import TrainSettings
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


class ModelSettings(Section):
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


class TextSettings(Section):
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


class ActivationSettings(Section):
    """How activations are collected and cached."""

    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Number format of the cache on disk."""
    batch_windows: int = Field(8, gt=0)
    """Windows that the LM reads at once."""
    max_norm_ratio: float = Field(10.0, gt=1)
    """A token whose norm is over this many times the layer's median is left out."""


class PlotSettings(Section):
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


class EvaluateSettings(Section):
    """What the language model loses when an SAE stands in for its layer."""

    after_training: bool = True
    """Once all layers have trained, measure what the LM loses to each SAE."""
    tokens: int = Field(2048, gt=0)
    """Held-out tokens that an SAE is measured on after training, in whole windows, one at least."""


class OutputSettings(Section):
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


class Settings(Section):
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
            section = isinstance(getattr(self, name, None), Section)
            flat |= {f"{name}.{key}": v for key, v in value.items()} if section else {name: value}
        return flat

    def to_yaml(self) -> str:
        """All settings as a config file that gives them again."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)

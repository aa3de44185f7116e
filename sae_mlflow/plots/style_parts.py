"""The sections of a style file; `configs/plots/default.yaml` says what each value means."""

import string
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from sae_mlflow.errors import did_you_mean, known
from sae_mlflow.plots.style_values import (
    Colour,
    ColourMap,
    DashValue,
    Families,
    Limits,
    PlaceOrColour,
)

PLACEHOLDERS = ("model", "layer", "setting", "metric")
_SEPARATOR = " · "

Points = Annotated[float, Field(gt=0, le=200)]
Inches = Annotated[float, Field(gt=0.3, le=100)]
Panel = tuple[Inches, Inches]
Share = Annotated[float, Field(ge=0, le=1)]


class Part(BaseModel):
    """A section: unknown keys are refused, and nothing changes once it is read."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def _template(text: str) -> str:
    try:
        fields = [
            (name, spec or conversion)
            for _, name, spec, conversion in string.Formatter().parse(text)
            if name is not None
        ]
    except ValueError as error:
        raise ValueError(f"its braces don't pair: {error}") from None
    for name, more in fields:
        if more:
            raise ValueError(f"write {{{name}}} without what follows the name")
        if name not in PLACEHOLDERS:
            there = known([f"{{{p}}}" for p in PLACEHOLDERS])
            hint = did_you_mean(name, PLACEHOLDERS)
            raise ValueError(f"{{{name}}} is no placeholder. {hint}There are: {there}")
    return text


Template = Annotated[str, AfterValidator(_template)]


def fill(template: str, **values: str) -> str:
    """A title: the template with its placeholders filled in, without the parts left empty."""
    parts = (part.format(**values).strip() for part in template.split(_SEPARATOR))
    return _SEPARATOR.join(filter(None, parts))


class Layers(Part):
    map: ColourMap
    start: Share = Field(alias="from")
    stop: Share = Field(alias="to")
    dashes: Annotated[tuple[DashValue, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _a_range(self) -> Self:
        if self.start == self.stop:
            raise ValueError("from and to are the same: all layers would have one colour")
        return self


class Fonts(Part):
    family: Families
    title: Points
    note: Points
    panel: Points
    label: Points
    tick: Points
    legend: Points


class Colours(Part):
    ink: Colour
    faint: Colour
    edge: Colour
    grid: Colour
    page: Colour
    panel: Colour
    warning: Colour
    failed: Colour

    def severity(self, name: str) -> str:
        """Of a finding's mark."""
        return self.failed if name == "failed" else self.warning


class Lines(Part):
    width: Points
    many_epochs: Points
    many_layers: Points
    marker: float = Field(ge=0, le=20)
    frame: float = Field(ge=0, le=20)
    grid: float = Field(ge=0, le=20)


class Sizes(Part):
    history_panel: Panel
    history_columns: Literal[1, 2, 4]
    single_panel: Panel
    overlay_panel: Panel
    page_width: Annotated[float, Field(ge=2.5, le=100)] | None


class Titles(Part):
    training_history: Template
    single_metric: Template
    all_layers: Template
    comparison: Template
    panel: Template
    note: bool


class Smoothing(Part):
    kind: Literal["none", "exponential", "rolling"]
    epochs: int = Field(ge=2)

    @property
    def words(self) -> str:
        """What a note says of it; nothing where there is none."""
        if self.kind == "none":
            return ""
        how = "running mean over" if self.kind == "rolling" else "exponential mean with a span of"
        return f"smoothed: {how} {self.epochs} epochs, the raw line fainter behind"


class MetricStyle(Part):
    """How one metric is drawn."""

    label: str = Field(min_length=1)
    unit: str
    """And which way is better."""
    colour: PlaceOrColour = 0
    """Of a style's `metric` always a colour; in a file also a place in the palette."""
    scale: Literal["linear", "log"] | None = None
    """None leaves it to the values: `value_axis.is_log`."""
    limits: Limits = (None, None)
    target: float | None = Field(None, allow_inf_nan=False)

    @property
    def log(self) -> bool:
        return self.scale == "log"

    @model_validator(mode="after")
    def _above_zero_on_a_log_axis(self) -> Self:
        for edge in (*self.limits, self.target):
            if self.log and edge is not None and edge <= 0:
                raise ValueError(
                    f"{edge:g} isn't on a log axis. Take one above 0, or scale: linear"
                )
        return self

"""Style files: what they may say, what they leave out, and how a wrong one is refused."""

import itertools
import pickle

import pytest
import seaborn as sns
from matplotlib.colors import to_rgb

from sae_mlflow.config_files import shipped_folder
from sae_mlflow.errors import UserError
from sae_mlflow.plots.figures import HISTORY_METRICS
from sae_mlflow.plots.style import load_style
from sae_mlflow.plots.style_parts import fill
from sae_mlflow.plots.style_values import CONTEXTS, PALETTES

SHIPPED = ("default", "paper", "dark", "talk")


@pytest.fixture
def written(tmp_path):
    """`written("dpi: 90")`: the style of a file with that text."""

    def write(text):
        file = tmp_path / "mine.yaml"
        file.write_text(text, encoding="utf-8")
        return load_style(file)

    return write


def test_the_shipped_styles_are_those_of_the_folder():
    there = sorted(file.stem for file in (shipped_folder() / "plots").glob("*.yaml"))
    assert there == sorted(SHIPPED)
    for name in SHIPPED:
        assert load_style(name) == load_style(f"{name}.yaml")
        assert load_style(name) == load_style(shipped_folder() / "plots" / f"{name}.yaml")
    assert load_style() == load_style("default")


def test_a_file_may_leave_out_anything(written):
    mine = written("dpi: 90\nfonts: {title: 20}\nmetrics: {fvu: {label: FVU}}")
    default = load_style()
    assert (mine.dpi, mine.fonts.title, mine.metric("fvu").label) == (90, 20, "FVU")
    assert mine.fonts.note == default.fonts.note
    assert mine.metric("fvu").unit == default.metric("fvu").unit
    assert mine.colours == default.colours


def test_a_file_may_extend_a_shipped_style(written):
    mine = written("extends: plots/dark.yaml\ndpi: 90")
    assert (mine.dpi, mine.colours) == (90, load_style("dark").colours)


def test_a_style_cannot_be_changed_and_goes_to_other_processes():
    style = load_style("talk")
    with pytest.raises(ValueError, match="frozen"):
        style.dpi = 3
    assert pickle.loads(pickle.dumps(style)) == style


def test_the_documented_look_is_the_default():
    style = load_style()
    assert (style.seaborn_style, style.dpi, style.context) == ("whitegrid", 150, "notebook")
    assert style.palette == "colorblind"
    targets = {m: style.metric(m).target for m in HISTORY_METRICS}
    assert targets == {
        "reconstruction_loss": 0.01,
        "total_loss": None,
        "sparsity_loss": None,
        "l0_norm": None,
    }
    assert style.smoothing.kind == "none"


def test_contexts_and_palettes_are_seaborns():
    usual = sns.plotting_context("notebook")["font.size"]
    factors = {name: sns.plotting_context(name)["font.size"] / usual for name in CONTEXTS}
    assert factors == pytest.approx(CONTEXTS)
    for name in PALETTES:
        assert sns.color_palette(name)


@pytest.mark.parametrize("name", SHIPPED)
def test_colours_can_be_told_from_the_panel(name):
    """About what WCAG asks for: 3 for what is drawn, 4.5 for what is written."""
    style = load_style(name)
    panel = style.colours.panel
    for metric in HISTORY_METRICS:
        assert contrast(style.metric(metric).colour, panel) > 2.9, metric
    assert contrast(style.colours.ink, style.colours.page) > 7
    assert contrast(style.colours.faint, style.colours.page) > 4.5
    for place in (0.0, 0.5, 1.0):
        assert contrast(style.layer_colours()(place)[:3], panel) > 1.9, place


@pytest.mark.parametrize("name", SHIPPED)
def test_layers_colours_are_an_order_of_lightness(name):
    colours = load_style(name).layer_colours()
    shades = [luminance(colours(i / 11)[:3]) for i in range(12)]
    steps = [after - before for before, after in itertools.pairwise(shades)]
    assert all(step > 0 for step in steps)


def luminance(colour) -> float:
    """Relative luminance of WCAG 2: https://www.w3.org/TR/WCAG22/#dfn-relative-luminance."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one, other) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_a_held_out_metric_is_like_its_own_but_for_what_is_said_of_it(written):
    style = written("metrics: {fvu: {colour: '#123456'}, val_fvu: {unit: share}}")
    held_out = style.metric("val_fvu")
    assert (held_out.label, held_out.unit) == ("Held-out variance unexplained (FVU)", "share")
    assert held_out.colour == style.metric("fvu").colour == "#123456"
    assert style.metric("val_l0_norm").label == "Held-out L0 norm"


def test_a_metric_that_is_not_known_is_called_by_its_key():
    look = load_style().metric("within_epoch/total_loss")
    assert (look.label, look.unit, look.log) == (
        "within epoch/total loss",
        "within_epoch/total_loss",
        False,
    )


def test_a_target_can_be_taken_away(written):
    assert (
        written("metrics: {reconstruction_loss: {target: null}}")
        .metric("reconstruction_loss")
        .target
        is None
    )


def test_a_colour_of_a_metric_may_be_a_place_in_the_palette(written):
    style = written("palette: [red, '#00ff00']\nmetrics: {fvu: {colour: 3}}")
    assert style.metric("fvu").colour == "#00ff00"


def test_parts_of_a_title_that_turn_out_empty_are_left_out():
    template = "{model} · {layer} · {setting}"
    assert fill(template, model="m", layer="layer1", setting="", metric="") == "m · layer1"
    assert fill("", model="m", layer="", setting="", metric="") == ""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("colurs: {ink: red}", "unknown key 'colurs'. Did you mean colours?"),
        ("colours: {inc: red}", "unknown key 'colours.inc'. Did you mean ink?"),
        ("metrics: {fvu: {labl: x}}", "unknown key 'metrics.fvu.labl'. Did you mean label?"),
        ("layers: {form: 0}", "unknown key 'layers.form'. Did you mean from?"),
        ("metrics: {val_fvuu: {}}", "unknown metric 'val_fvuu'. Did you mean val_fvu?"),
        ("seaborn_style: whitegrod", "seaborn_style = 'whitegrod', but input should be 'darkgrid'"),
        ("palette: colorblnd", "palette = 'colorblnd', .* Did you mean colorblind?"),
        ("layers: {map: viridi}", "layers.map = 'viridi', .* Did you mean viridis?"),
        ("layers: {dashes: [dahed]}", "layers.dashes = 'dahed', .* Did you mean dashed?"),
        ("layers: {dashes: [[1, 2, 3]]}", "an even number of lengths above 0"),
        ("layers: {from: 0.8}", "from and to are the same"),
        ("palette: ['#12']", "'#12' is no colour"),
        ("metrics: {fvu: {colour: bleu}}", "'bleu' is no colour. Did you mean blue?"),
        (
            "fonts: {family: Djavu Sans}",
            "no such font is installed here. Did you mean DejaVu Sans?",
        ),
        ("titles: {panel: '{modl}'}", r"\{modl\} is no placeholder. .*There are: \{model\}, "),
        ("titles: {panel: '{model:9}'}", "write {model} without what follows"),
        ("titles: {panel: '{model'}", "titles.panel = '{model', but its braces don't pair"),
        ("metrics: {fvu: {limits: [1, 0]}}", "the first has to be the lower one"),
        ("metrics: {fvu: {scale: log, target: 0}}", "0 isn't on a log axis"),
        ("sizes: {page_width: 2.5}\nfonts: {label: 30}", "too narrow for 2 panels"),
        ("dpi: many", "dpi = 'many', but input should be a valid integer"),
        ("smoothing: {kind: ewm}", "smoothing.kind = 'ewm', .* 'exponential' or 'rolling'"),
        ("a: [", r"\(line 1\) is not valid YAML"),
        ("- 1", "holds a list"),
        ("", "is empty"),
    ],
)
def test_a_wrong_file_is_refused_in_a_sentence(written, text, message):
    with pytest.raises(UserError, match=message) as refused:
        written(text)
    assert "mine.yaml" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_style_that_is_not_there_names_those_that_are(tmp_path):
    with pytest.raises(UserError, match="Did you mean paper?.*dark, default, paper, talk"):
        load_style("papr")
    with pytest.raises(UserError, match="There is no plot style"):
        load_style(tmp_path / "paper.yaml")

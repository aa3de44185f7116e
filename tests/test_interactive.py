"""Interactive pages as files: what stands in them, and which there are."""

import base64
import gzip
import json
import math
import re
import time
from hashlib import sha256
from html.parser import HTMLParser
from importlib import resources
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
from plot_store import (
    MODEL,
    STEM,
    add_layer,
    add_parent,
    filled_store,
    history,
    new_experiment,
)

from sae_mlflow.commands.cli import run_cli
from sae_mlflow.history import write_history
from sae_mlflow.plot import app
from sae_mlflow.plots import drawing
from sae_mlflow.plots.choice import Choice
from sae_mlflow.plots.frames import COLUMNS, history_table, per_epoch
from sae_mlflow.plots.interactive import page_html, write_page
from sae_mlflow.plots.layer_key import LayerKey
from sae_mlflow.plots.pages import Page, RunLink, all_layers_page, layer_page, run_links
from sae_mlflow.plots.runs import draw_layer_run, draw_parent
from sae_mlflow.plots.style import load_style
from sae_mlflow.tracking.contents import BEST_METRICS, EVALUATION_METRICS

HOSTILE = "</script><img src=x onerror=alert(1)> $x_1$ & \"'`"
ALL_LAYERS = f"{STEM}_all_layers.html"


class Elements(HTMLParser):
    """A page's tags in order, and the text of each script by its id."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: dict[str, str] = {}
        self.title = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        tag, attributes = self.tags[-1] if self.tags else ("", {})
        if tag == "script" and data.strip():
            self.scripts.setdefault(attributes.get("id", "code"), data)
        elif tag == "title" and not self.title:
            self.title = data

    @property
    def data(self):
        return json.loads(self.scripts["data"])

    @property
    def policy(self):
        return next(a["content"] for tag, a in self.tags if tag == "meta" and "http-equiv" in a)


def elements(page: Page) -> Elements:
    return Elements(page_html(page))


def table(*rows: tuple) -> pd.DataFrame:
    """Rows of `(run_id, layer, seed, metric, values)`, one value an epoch."""
    return pd.DataFrame(
        [
            (run, MODEL, layer, "", seed, epoch, metric, value)
            for run, layer, seed, metric, values in rows
            for epoch, value in enumerate(values, start=1)
        ],
        columns=COLUMNS,
    )


def overlay(rows: pd.DataFrame, *links: RunLink) -> Page:
    return all_layers_page(rows, Path(), STEM, links=links)


TWO_LAYERS = table(
    ("a", "layer10", "0", "reconstruction_loss", [0.5, 0.25]),
    ("b", "layer9", "0", "reconstruction_loss", [0.4, 0.2]),
)


# -- one file with all that it needs ----------------------------------------------------------


def test_a_page_loads_nothing_and_lets_only_its_own_scripts_run():
    page = elements(overlay(TWO_LAYERS))
    for tag, attributes in page.tags:
        assert tag not in {"link", "iframe", "img", "object", "base", "form"}
        assert not {"src", "href", "action"} & set(attributes)
    rules = dict(rule.strip().split(" ", 1) for rule in page.policy.split(";"))
    assert rules["default-src"] == "'none'"
    assert set(rules) <= {"default-src", "script-src", "style-src", "img-src"}
    plotly = gzip.decompress(base64.b64decode(page.scripts["plotly"]))
    hashes = {
        f"'sha256-{base64.b64encode(sha256(code).digest()).decode()}'"
        for code in (plotly, page.scripts["code"].encode())
    }
    assert set(rules["script-src"].split()) == hashes


def test_plotly_stands_in_it_whole_and_the_page_is_about_two_megabytes(tmp_path):
    page = overlay(TWO_LAYERS).at(tmp_path / "page")
    file = write_page(page)
    assert [file] == page.files == [tmp_path / "page.html"]
    text = file.read_text(encoding="utf-8")
    packed = base64.b64decode(Elements(text).scripts["plotly"])
    original = resources.files("plotly").joinpath("package_data/plotly.min.js").read_bytes()
    assert gzip.decompress(packed) == original
    assert 1e6 < file.stat().st_size < 2.2e6 < len(original) / 2


def test_names_of_any_kind_are_text_and_end_no_tag():
    rows = table(("a", HOSTILE, HOSTILE, HOSTILE, [0.5])).assign(model=HOSTILE)
    page = Page(rows, Path("page"), HOSTILE, note=HOSTILE, links=(RunLink("a", HOSTILE),))
    found, plain = elements(page), elements(overlay(TWO_LAYERS))
    assert [tag for tag, _ in found.tags] == [tag for tag, _ in plain.tags]
    assert found.title == HOSTILE
    data = found.data
    assert data["title"] == data["note"] == HOSTILE
    (curve,) = data["curves"]
    assert curve["label"] == HOSTILE and curve["runs"][0]["name"] == HOSTILE
    assert data["metrics"][0]["key"] == HOSTILE


def test_the_same_table_gives_the_same_bytes():
    assert page_html(overlay(TWO_LAYERS)) == page_html(overlay(TWO_LAYERS))


# -- what is drawn --------------------------------------------------------------------------


def test_curves_are_by_layer_number_in_the_colours_of_the_pictures():
    data = elements(overlay(TWO_LAYERS)).data
    assert [curve["label"] for curve in data["curves"]] == ["layer9", "layer10"]
    key = LayerKey(TWO_LAYERS, load_style())
    pictured = [key.curve(line, TWO_LAYERS).colour for line in key.lines]
    assert [curve["colour"] for curve in data["curves"]] == pictured
    assert [c["means"]["reconstruction_loss"]["values"] for c in data["curves"]] == [
        [0.4, 0.2],
        [0.5, 0.25],
    ]


def test_every_metric_can_be_chosen_the_pictures_first():
    rows = table(
        *(("a", "layer1", "0", key, [0.5, 0.4]) for key in ("val_fvu", "fvu", "l0_norm")),
        ("a", "layer1", "0", "reconstruction_loss", [0.5, 0.4]),
        ("a", "layer1", "0", "within_epoch/fvu", [0.5, 0.4]),
    )
    metrics = elements(overlay(rows)).data["metrics"]
    keys = [metric["key"] for metric in metrics]
    assert keys == ["reconstruction_loss", "l0_norm", "fvu", "val_fvu"]
    assert metrics[3]["title"] == "Held-out variance unexplained (FVU)"
    assert "lower is better" in metrics[3]["axis"]


def test_every_metric_of_a_training_has_words_and_they_stand_in_the_styles_order():
    keys = (*BEST_METRICS, *EVALUATION_METRICS, "total_loss", "dead_fraction", "own_metric")
    metrics = elements(overlay(table(*(("a", "layer1", "0", key, [0.5]) for key in keys)))).data
    order = [metric["key"] for metric in metrics["metrics"]]
    listed = [key for key in load_style().metrics if key in keys and key != "total_loss"]
    assert order == ["total_loss", *listed, "own_metric"]
    raw = {metric["key"] for metric in metrics["metrics"] if metric["axis"] == metric["key"]}
    assert raw == {"own_metric"}


def test_what_was_measured_once_after_training_stands_apart():
    rows = table(("a", "layer1", "0", "fvu", [0.5, 0.4]))
    after = table(("a", "layer1", "0", "ce_loss_recovered", [0.9])).assign(epoch=2)
    once = {
        metric["key"]: metric["once"]
        for metric in elements(overlay(pd.concat([rows, after]))).data["metrics"]
    }
    assert once == {"fvu": False, "ce_loss_recovered": True}
    assert not elements(overlay(after)).data["metrics"][0]["once"], "one epoch is all there was"


def test_numbers_have_six_digits_and_what_is_none_is_null():
    rows = table(("a", "layer1", "0", "fvu", [1 / 3, math.nan, math.inf, 1.23456789e-7]))
    (curve,) = elements(overlay(rows)).data["curves"]
    assert curve["means"]["fvu"] == {"values": [0.333333, None, None, 1.23457e-7]}


def test_epochs_are_named_where_they_are_not_one_two_three():
    rows = table(("a", "layer1", "0", "fvu", [0.5, 0.4])).assign(epoch=[2, 5])
    (curve,) = elements(overlay(rows)).data["curves"]
    assert curve["means"]["fvu"] == {"epochs": [2, 5], "values": [0.5, 0.4]}


def test_several_seeds_are_their_mean_range_and_each_of_them():
    rows = table(
        ("a", "layer1", "0", "fvu", [0.5, 0.4]),
        ("b", "layer1", "1", "fvu", [0.7, math.nan]),
    )
    links = [RunLink("a", "first"), RunLink("b", "second", "http://host/#/b")]
    data = elements(layer_page(rows, Path(), STEM, links=tuple(links))).data
    (curve,) = data["curves"]
    assert curve["means"]["fvu"] == {
        "values": [0.6, None],
        "low": [0.5, None],
        "high": [0.7, None],
    }
    assert [(run["name"], run["seed"], run["address"]) for run in curve["runs"]] == [
        ("first", "0", None),
        ("second", "1", "http://host/#/b"),
    ]
    assert [run["series"]["fvu"]["values"] for run in curve["runs"]] == [[0.5, 0.4], [0.7, None]]
    assert "band: their range" in data["note"]


def said(rows: pd.DataFrame, key: str, which: str = "said") -> list[str]:
    metrics = {metric["key"]: metric for metric in elements(overlay(rows)).data["metrics"]}
    return metrics[key][which]


def test_a_missing_metric_is_said_and_the_rest_is_drawn():
    rows = table(
        ("a", "layer1", "0", "fvu", [0.5, math.nan, 0.3]),
        ("b", "layer2", "0", "fvu", [0.4, 0.3, 0.2]),
        ("c", "layer3", "0", "total_loss", [0.4, 0.3, 0.2]),
    )
    assert said(rows, "fvu") == ["No number: layer3 (all), layer1 (epochs 2)"]


def test_zeros_are_said_and_what_a_log_axis_cannot_show():
    rows = table(
        ("a", "layer1", "0", "sparsity_loss", [0.0, 0.0]),
        ("a", "layer1", "0", "fvu", [0.5, -0.1]),
    )
    assert "0 at every epoch" in said(rows, "sparsity_loss")[0]
    where = "0 or less, not on a log axis: "
    assert said(rows, "sparsity_loss", "said_log") == [f"{where}layer1 (all)"]
    assert said(rows, "fvu", "said_log") == [f"{where}layer1 (epochs 2)"]
    assert said(TWO_LAYERS, "reconstruction_loss", "said_log") == []


def test_curves_that_lie_on_each_other_are_named():
    rows = table(
        ("a", "layer1", "0", "l0_norm", [32.0, 32.0]),
        ("b", "layer2", "0", "l0_norm", [32.0, 32.0]),
    )
    assert said(rows, "l0_norm") == ["The 2 lines are the same: they lie on each other."]


def test_a_page_of_32_layers_takes_less_than_three_seconds():
    """200 epochs of 14 metrics each."""
    falling = [1 / (epoch + 1) for epoch in range(200)]
    rows = history_table(
        MODEL, {f"layer{n}": {f"m{i}": falling for i in range(14)} for n in range(32)}
    )
    page_html(overlay(TWO_LAYERS))  # imports, and plotly
    start = time.process_time()
    page_html(overlay(rows))
    assert time.process_time() - start < 3


# -- where the runs are ------------------------------------------------------------------------


def fake_store(uri: str):
    """The address alone is asked of it: a server needn't run for that."""
    from sae_mlflow.tracking.store import Store

    return SimpleNamespace(
        uri=uri, address=lambda *ids: Store.address(SimpleNamespace(uri=uri), *ids)
    )


@pytest.mark.parametrize(
    ("uri", "address"),
    [
        ("https://host:5000/mlflow/", "https://host:5000/mlflow/#/experiments/3/runs/r"),
        ("http://me:secret@host:5000", "http://host:5000/#/experiments/3/runs/r"),
        ("sqlite:////tmp/mlflow.db", None),
        ("databricks", None),
    ],
)
def test_a_run_has_an_address_where_the_store_is_served_and_no_password_in_it(uri, address):
    row = SimpleNamespace(
        run_id="r", name="name", experiment_id="3", model="m", layer="layer1", params={}
    )
    (link,) = run_links(fake_store(uri), [row])
    query = "?workflowType=machine_learning"
    assert link == RunLink("r", "name", address and address + query)


# -- which pages there are -----------------------------------------------------------------------


@pytest.fixture
def plot(monkeypatch, capsys, tmp_path):
    """`plot("--experiment", ...)`: the command's lines, in this process and an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(drawing, "PROCESSES", 1)

    def run(*arguments):
        monkeypatch.setattr("sys.argv", ["plot", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            run_cli(app)
        out, err = capsys.readouterr()
        assert end.value.code == 0, err
        return out.splitlines()

    return run


def pages(lines) -> list[str]:
    return sorted(Path(line).name for line in lines if line.endswith(".html"))


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ([], [ALL_LAYERS]),
        (["--interactive"], [ALL_LAYERS, f"{STEM}_layer10_training_history.html"]),
        (["--interactive", "--no-comparison"], [f"{STEM}_layer10_training_history.html"]),
        (["--no-comparison"], []),
        (["--no-interactive"], []),
    ],
)
def test_pages_are_beside_overlays_and_if_asked_for_beside_each_layers_pictures(
    plot, options, names
):
    store, _ = filled_store()
    arguments = ["--tracking-uri", store.uri, "--experiment", "llama2", "--layers", 10, "--no-log"]
    assert pages(plot(*arguments, "--output-dir", "out", *options)) == names
    assert pages(map(str, Path("out").rglob("*"))) == names


def test_pages_are_artifacts_of_the_runs_that_they_show(plot):
    store, _ = filled_store()
    parent = add_parent(store, new_experiment(store, "pages"))
    layer = add_layer(store, parent, "layer3")
    lines = plot("--tracking-uri", store.uri, "--experiment", "pages", "--interactive")
    assert {line for line in lines if line.endswith(".html")} == {
        f"runs:/{parent.run_id}/training_plots/{ALL_LAYERS}",
        f"runs:/{layer}/training_plots/{STEM}_layer3_training_history.html",
    }


def test_a_page_has_all_metrics_of_the_store_whichever_is_drawn(plot):
    store, _ = filled_store()
    arguments = ["--tracking-uri", store.uri, "--experiment", "llama2", "--no-log"]
    plot(*arguments, "--output-dir", "out", "--metric", "l0_norm")
    data = Elements(Path(f"out/{STEM}/training_plots/{ALL_LAYERS}").read_text()).data
    assert data["start"] == "l0_norm"
    assert {metric["key"] for metric in data["metrics"]} == set(history())
    assert [curve["label"] for curve in data["curves"]] == ["layer9", "layer10", "layer20"]


def test_pages_of_history_files_have_no_runs(plot, tmp_path):
    for layer in ("layer9", "layer10"):
        write_history(tmp_path / f"saes/{STEM}/{layer}_training_history.json", history(3))
    assert pages(plot("--sae-dir", "saes")) == []
    lines = plot("--sae-dir", "saes", "--comparison", "--interactive")
    assert pages(lines) == [
        ALL_LAYERS,
        *(f"{STEM}_{layer}_training_history.html" for layer in ("layer10", "layer9")),
    ]
    data = Elements(Path(f"saes/{STEM}/training_plots/{ALL_LAYERS}").read_text()).data
    assert [curve["runs"] for curve in data["curves"]] == [[], []]
    file = f"saes/{STEM}/layer9_training_history.json"
    assert pages(plot("--history-file", file, "--interactive")) == [
        f"{STEM}_layer9_training_history.html"
    ]


def test_the_settings_say_which_pages_a_training_leaves():
    store, _ = filled_store()
    parent = add_parent(store, new_experiment(store, "settings of pages"))
    layer = add_layer(store, parent, "layer3")
    for interactive, of_parent, of_layer in (("none", 0, 0), ("parent", 1, 0), ("all", 1, 1)):
        choice = Choice(interactive=interactive)
        assert len(pages(draw_parent(store, parent.run_id, choice))) == of_parent
        assert len(pages(draw_layer_run(store, layer, choice))) == of_layer


def test_metrics_of_an_epochs_parts_are_not_read_for_pages():
    rows = [
        SimpleNamespace(metrics={"fvu": 1.0, "within_epoch/fvu": 1.0}),
        SimpleNamespace(metrics={"a": 1}),
    ]
    assert per_epoch(rows) == ["a", "fvu"]


def test_a_pages_script_makes_no_html_of_names():
    folder = resources.files("sae_mlflow.plots")
    code = "".join(folder.joinpath(f"{n}.js").read_text() for n in ("page_shell", "interactive"))
    assert elements(overlay(TWO_LAYERS)).scripts["code"] == code
    assert not re.search(r"innerHTML|insertAdjacentHTML|document\.write|eval\(", code)

"""A training as a person sees it: in the MLflow UI and on our own pages, in a real chromium."""

from pathlib import Path
from urllib.parse import urlsplit

import pandas as pd
import pytest
from browser import Tab, chromium
from faults.tracking_server import TrackingServer

from sae_mlflow.config import Settings
from sae_mlflow.pipeline import run_training
from sae_mlflow.plots.frames import COLUMNS, history_table
from sae_mlflow.plots.interactive import write_page
from sae_mlflow.plots.pages import Page, RunLink
from sae_mlflow.reporting.display import Display

pytestmark = pytest.mark.browser

EPOCHS, LAYERS = 3, [1, 2]


@pytest.fixture(scope="module")
def browser():
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def training(browser, tmp_path_factory, tiny_model, text_file):
    """A real training, over a real server that runs until the module's tests are done."""
    folder = tmp_path_factory.mktemp("served")
    server = TrackingServer(folder)
    data = {
        "model": {"name": str(tiny_model), "layers": LAYERS},
        "text": {"source": str(text_file), "tokens": 4096, "context": 32},
        "sae": {"k": 4, "expansion_factor": 4},
        "train": {"epochs": EPOCHS, "batch_tokens": 256},
        "plots": {"interactive": "all"},
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("SAE_MLFLOW_CACHE", str(folder / "cache"))
        server.start()
        try:
            yield run_training(Settings.model_validate(data), Display(), tracking_uri=server.uri)
        finally:
            server.stop()


@pytest.fixture
def tab(browser):
    opened = Tab(browser)
    yield opened
    opened.context.close()


class Ui:
    """The MLflow UI in a tab."""

    def __init__(self, tab: Tab, training) -> None:
        self.tab, self.page, self.store = tab, tab.page, training.store
        self.experiment_id = training.experiment.id
        rows = self.store.layer_runs(self.experiment_id)
        self.layers = {row.layer: row for row in rows}
        self.parent = self.store.run(rows[0].parent_id)

    def open_runs(self) -> None:
        self.tab.open(self.store.address(self.experiment_id))

    def open_run(self, run, part: str = "") -> None:
        self.tab.open(
            f"{self.store.uri}/#/experiments/{self.experiment_id}/runs/{run.run_id}{part}"
        )

    def open_artifact(self, run, name: str) -> None:
        """As a person does: the run's artifacts, the folder, the file."""
        self.open_run(run, "/artifacts")
        self.page.get_by_text("training_plots", exact=True).click()
        self.page.get_by_text(name, exact=True).click()

    def shown_picture(self, name: str):
        """The picture that the artifact view shows; its natural width."""
        self.page.get_by_text(f"training_plots/{name}", exact=True).wait_for()
        picture = self.page.locator("img[src^='blob:']:visible").first
        picture.wait_for()
        width = "image => image.decode().then(() => image.naturalWidth)"
        return picture.evaluate(width)

    def shown_page(self):
        return self.page.frame_locator("iframe.mlflow-html-iframe")


@pytest.fixture
def ui(tab, training):
    yield Ui(tab, training)
    assert tab.errors_beside(training.store.uri) == []


def test_the_parent_and_its_nested_runs_are_found(ui):
    ui.open_runs()
    parent = ui.page.get_by_role("link", name=ui.parent.name, exact=True)
    parent.wait_for()
    nested = ui.page.get_by_role("link", name=ui.layers["layer1"].name, exact=True)
    assert nested.count() == 0
    row = ui.page.locator("div", has=parent).filter(has=ui.page.locator("button")).last
    row.locator("button").first.click()
    for run in ui.layers.values():
        link = ui.page.get_by_role("link", name=run.name, exact=True)
        link.wait_for()
        assert run.run_id in link.get_attribute("href")
    nested.click()
    ui.page.get_by_role("heading", name=ui.layers["layer1"].name).wait_for()


def test_a_layers_run_shows_a_chart_of_each_metric(ui):
    ui.open_run(ui.layers["layer1"], "/model-metrics")
    for metric in ("reconstruction_loss", "val_fvu"):
        ui.page.get_by_placeholder("Search metric charts").fill(f"^{metric}")
        ui.page.get_by_text(metric, exact=True).first.wait_for()
        chart = ui.page.locator(".js-plotly-plot").first
        chart.locator(".scatterlayer .point").nth(EPOCHS - 1).wait_for()


def test_a_layers_picture_is_drawn_in_the_artifact_view(ui):
    name = "tiny-llama_layer1_training_history.png"
    ui.open_artifact(ui.layers["layer1"], name)
    assert ui.shown_picture(name) > 1000


def test_a_layers_page_works_in_the_artifact_view(ui):
    run = ui.layers["layer1"]
    ui.open_artifact(run, "tiny-llama_layer1_training_history.html")
    page = ui.shown_page()
    values = [v for _, _, v in ui.store.history(run.run_id, ["reconstruction_loss"])]
    label = ui.tab.hover(page, 0, 1)
    assert label == [
        "layer1",
        f"run {run.name}",
        "epoch 2",
        f"Reconstruction loss: {values[1]:.5g}",
        "seed 0",
    ]
    page.get_by_label("Metric").select_option(label="Held-out variance unexplained (FVU)")
    (first, *_) = [v for _, _, v in ui.store.history(run.run_id, ["val_fvu"])]
    assert f"Held-out variance unexplained (FVU): {first:.5g}" in ui.tab.hover(page, 0, 0)


def test_in_the_artifact_view_a_click_shows_the_runs_address(ui):
    """The sandbox would forbid to open it, and say so in the console."""
    ui.open_artifact(ui.parent, "tiny-llama_all_layers.html")
    page, run = ui.shown_page(), ui.layers["layer2"]
    ui.tab.click(page, 1, 0)
    shown = page.locator("#run code")
    shown.wait_for()
    assert shown.text_content() == ui.store.address(ui.experiment_id, run.run_id)
    assert run.name in page.locator("#run").text_content()
    assert page.locator("a").count() == 0 and len(ui.tab.context.pages) == 1


def test_the_parent_shows_its_layers_over_each_other_and_as_a_table(ui):
    name = "tiny-llama_all_layers_reconstruction_loss.png"
    ui.open_artifact(ui.parent, name)
    assert ui.shown_picture(name) > 1000
    ui.open_run(ui.parent)
    table = ui.page.locator("table", has_text="held-out FVU")
    table.wait_for()
    for layer, run in ui.layers.items():
        row = table.locator("tr", has_text=layer)
        assert f"{run.metrics['val_fvu']:.4f}" in row.text_content()


# -- pages on a disk, without a network ---------------------------------------------------------


@pytest.fixture
def opened(tab, tmp_path):
    """`opened(page)`: written, and opened from the disk; nothing may ask for anything else."""

    def write_and_open(page: Page):
        tab.context.set_offline(True)
        tab.open(write_page(page.at(tmp_path / "page")).as_uri())
        tab.page.locator("#chart .main-svg").first.wait_for()
        return tab.page

    yield write_and_open
    assert tab.errors == []
    assert {urlsplit(address).scheme for address in tab.requests} <= {"file", "about", "blob"}


def curves(page) -> int:
    return page.locator(".scatterlayer .trace").count()


def table(model: str = "model", layers=("layer9", "layer10"), seeds=("0",)) -> pd.DataFrame:
    """Three epochs of two metrics: 4, 2, 1 and 0, -1, 1, each layer's a little higher."""
    return pd.DataFrame(
        [
            (
                f"{layer}-{seed}",
                model,
                layer,
                "",
                seed,
                epoch,
                metric,
                value + rank + 0.1 * int(seed),
            )
            for rank, layer in enumerate(layers)
            for seed in seeds
            for metric, values in (("reconstruction_loss", (4, 2, 1)), ("other", (0, -1, 1)))
            for epoch, value in enumerate(values, start=1)
        ],
        columns=COLUMNS,
    )


def ticks(page) -> list[str]:
    return page.locator(".ytick text").all_text_contents()


def test_a_stored_page_opens_its_runs_in_the_ui(tab, training, tmp_path):
    ui = Ui(tab, training)
    name = "tiny-llama_all_layers.html"
    file = training.store.download(f"runs:/{ui.parent.run_id}/training_plots/{name}", tmp_path)
    tab.open(file.as_uri())
    with tab.context.expect_page() as new:
        tab.click(tab.page, 0, 2)
    run = ui.layers["layer1"]
    assert new.value.url == training.store.address(training.experiment.id, run.run_id)
    new.value.get_by_role("heading", name=run.name).wait_for()
    link = tab.page.locator("#run a")
    assert link.get_attribute("href") == new.value.url
    assert tab.errors == []


def test_metrics_are_chosen_and_the_axis_is_switched(opened, tab):
    page = opened(Page(table(), Path(), "model"))
    options = page.get_by_label("Metric").locator("option").all_text_contents()
    assert options == ["Reconstruction loss", "other"]
    assert tab.hover(page, 1, 0) == ["layer10", "epoch 1", "Reconstruction loss: 5"]
    page.get_by_label("Log axis").check()
    page.get_by_label("Metric").select_option(label="other")
    said = page.locator("#said")
    said.get_by_text("0 or less, not on a log axis: layer9 (epochs 1-2)").wait_for()
    page.get_by_label("Log axis").uncheck()
    assert said.text_content() == ""
    assert tab.hover(page, 0, 1) == ["layer9", "epoch 2", "other: -1"]


def test_a_page_opens_with_a_log_axis_where_values_need_one(opened):
    losses = {"total_loss": [0.4, 0.3, 4e7], "reconstruction_loss": [0.4, 0.3, 0.2]}
    page = opened(Page(history_table("model", {"layer1": losses}), Path(), "model"))
    log, metric, axis = page.get_by_label("Log axis"), page.get_by_label("Metric"), page.locator
    assert not log.is_checked()
    metric.select_option(label="Total loss")
    assert log.is_checked() and axis(".ytitle").text_content().endswith(", log scale")
    metric.select_option(label="Reconstruction loss")
    assert not log.is_checked() and "log" not in axis(".ytitle").text_content()
    log.check()
    log.uncheck()
    metric.select_option(label="Total loss")
    assert not log.is_checked(), "what a person chose stays"


def test_the_legend_hides_and_shows_curves(opened):
    page = opened(Page(table(), Path(), "model"))
    first = page.get_by_role("button", name="layer9")
    assert curves(page) == 2
    first.click()
    assert curves(page) == 1 and first.get_attribute("aria-pressed") == "false"
    first.click()
    assert curves(page) == 2 and first.get_attribute("aria-pressed") == "true"
    page.get_by_role("button", name="Hide all").click()
    page.get_by_text("all curves are hidden").wait_for()
    page.get_by_role("button", name="Show all").click()
    assert curves(page) == 2
    page.get_by_role("button", name="layer10").dblclick()
    assert curves(page) == 1 and first.get_attribute("aria-pressed") == "false"


def test_seeds_are_a_mean_a_band_and_a_line_each(opened, tab):
    links = tuple(RunLink(f"layer9-{seed}", f"run of seed {seed}") for seed in "02")
    page = opened(Page(table(layers=["layer9"], seeds="02"), Path(), "model", links=links))
    assert curves(page) == 5  # two edges of the band, two seeds, their mean
    assert tab.hover(page, 3, 0) == [
        "layer9",
        "run run of seed 2",
        "epoch 1",
        "Reconstruction loss: 4.2",
        "seed 2",
    ]
    assert tab.hover(page, 4, 0)[-1] == "mean over seeds, from 4 to 4.2"
    tab.click(page, 4, 0)
    assert page.locator("#run div").all_text_contents() == [
        f"Run run of seed {seed}: its id is layer9-{seed}" for seed in "02"
    ]


def test_names_are_drawn_as_they_are(opened, tab):
    hostile = "</script><img src=x onerror=alert(1)> <b>$x_1$</b> &lt; %{y}"
    rows = table(hostile, layers=[hostile])
    links = (RunLink(f"{hostile}-0", hostile, "javascript:alert(1)"),)
    page = opened(Page(rows, Path(), hostile, note=hostile, links=links))
    label = tab.hover(page, 0, 1)
    assert label[:2] == [hostile, f"run {hostile}"]
    tab.click(page, 0, 1)
    for place in ("#title", "#note", "#legend button span", "#run"):
        assert hostile in page.locator(place).text_content()
    assert page.title() == hostile
    assert page.locator("img, #run a").count() == 0


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("layers", [1, 48])
@pytest.mark.parametrize("epochs", [1, 1000])
def test_everything_fits_in_the_window(browser, tmp_path, width, layers, epochs):
    rows = history_table(
        "model",
        {f"layer{n}": {"fvu": [n + 1 / e for e in range(1, epochs + 1)]} for n in range(layers)},
    )
    tab = Tab(browser, width)
    tab.open(write_page(Page(rows, tmp_path / "page", "model")).as_uri())
    tab.page.locator("#chart .main-svg").first.wait_for()
    assert curves(tab.page) == layers
    assert tab.page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    chart, legend = (tab.page.locator(place).bounding_box() for place in ("#chart", "#legend"))
    assert chart["width"] > 0.5 * width and chart["height"] >= 300
    apart = (
        chart["x"] + chart["width"] <= legend["x"] or chart["y"] + chart["height"] <= legend["y"]
    )
    assert apart and legend["height"] <= 800
    assert len(ticks(tab.page)) >= 2
    assert tab.errors == []
    tab.context.close()

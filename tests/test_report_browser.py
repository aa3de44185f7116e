"""The report in a real chromium: from a disk, on paper, and in the MLflow UI."""

import io
import subprocess
import sys
from urllib.parse import urlsplit

import pytest
from browser import Tab, chromium
from faults.tracking_server import TrackingServer
from plot_store import add_layer, add_parent, history
from pypdf import PdfReader

from sae_mlflow.plots.style import load_style
from sae_mlflow.report.build import report_html
from sae_mlflow.report.contents import rows_of
from sae_mlflow.tracking.store import Store

pytestmark = pytest.mark.browser

EXPERIMENT, MODEL = "a <b>report</b>", "org/model_$x_1$"
LAYERS = ("layer2", "layer9", "layer10")


@pytest.fixture(scope="module")
def browser():
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def served(tmp_path_factory, browser):
    """A store over HTTP with three layers, of which the last has failed."""
    server = TrackingServer(tmp_path_factory.mktemp("served"))
    server.start()
    try:
        store = Store(server.uri)
        parent = add_parent(store, store.experiment_id(EXPERIMENT))
        for layer in LAYERS:
            status = "FAILED" if layer == LAYERS[-1] else "FINISHED"
            add_layer(store, parent, layer, history(3), model=MODEL, status=status)
        parent.finish()
        yield store, parent
    finally:
        server.stop()


@pytest.fixture(scope="module")
def logged(served, tmp_path_factory):
    """The page that the command logged, downloaded."""
    store, parent = served
    command = [sys.executable, "-m", "sae_mlflow", "report", "--experiment", EXPERIMENT]
    done = subprocess.run(
        [*command, "--tracking-uri", store.uri],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path_factory.mktemp("empty"),
    )
    address = f"runs:/{parent.run_id}/report/report.html"
    assert done.stdout.splitlines() == [address]
    return store.download(address, tmp_path_factory.mktemp("downloaded"))


@pytest.fixture
def tab(browser):
    opened = Tab(browser)
    yield opened
    opened.context.close()


def picture_widths(page) -> list[int]:
    images = page.locator("img")
    images.first.wait_for()
    return images.evaluate_all(
        "images => Promise.all(images.map(i => i.decode().then(() => i.naturalWidth)))"
    )


@pytest.mark.parametrize("width", [390, 1280])
def test_it_opens_from_a_disk_without_a_network(browser, logged, width):
    tab = Tab(browser, width)
    tab.context.set_offline(True)
    tab.open(logged.as_uri())
    widths = picture_widths(tab.page)
    assert len(widths) >= 3 + len(LAYERS) and min(widths) > 500
    assert tab.page.locator("h1").text_content() == EXPERIMENT
    assert tab.page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert {urlsplit(address).scheme for address in tab.requests} <= {"file", "about", "data"}
    assert tab.errors == []
    tab.context.close()


def test_a_layers_name_leads_to_its_pictures_and_its_run_to_the_ui(tab, logged, served):
    store, _ = served
    tab.open(logged.as_uri())
    tab.page.locator("table.layers").get_by_role("link", name="layer9").click()
    figure = tab.page.locator("figure:target")
    assert "layer9" in figure.locator("img").get_attribute("alt")
    with tab.context.expect_page() as new:
        figure.locator("figcaption a").click()
    (run,) = [r for r in store.layer_runs(store.find_experiment(EXPERIMENT)) if r.layer == "layer9"]
    assert new.value.url == store.address(run.experiment_id, run.run_id)
    new.value.get_by_role("heading", name=run.name).wait_for()


def pdf_of(tab, file) -> PdfReader:
    tab.open(file.as_uri())
    picture_widths(tab.page)
    return PdfReader(io.BytesIO(tab.page.pdf(prefer_css_page_size=True)))


def test_printed_its_text_is_text_and_no_picture_is_cut(tab, logged, served):
    store, parent = served
    pdf = pdf_of(tab, logged)
    text = "\n".join(page.extract_text() for page in pdf.pages)
    packed = "".join(text.split())
    for words in (EXPERIMENT, MODEL, "Findings about health", "The same in all runs", *LAYERS):
        assert "".join(words.split()) in packed
    for row in store.layer_runs(parent.experiment_id, finished=False):
        assert f"{row.metrics['l0_norm']:.1f}" in text
        address = store.address(row.experiment_id, row.run_id)
        assert packed.count(address) == 2, "beside its history, and among the runs"
    pictures = [len(page.images) for page in pdf.pages]
    assert sum(pictures) == tab.page.locator("img").count(), "one that is cut would be on two pages"


def test_on_paper_a_dark_report_is_black_on_white(tab, served, tmp_path):
    store, _ = served
    rows = rows_of(store, EXPERIMENT, None)[:1]
    file = tmp_path / "dark.html"
    file.write_text(report_html(store, EXPERIMENT, rows, load_style("dark")), encoding="utf-8")
    tab.open(file.as_uri())
    corner = """image => image.decode().then(() => {
        const style = getComputedStyle(document.body);
        return [style.color, style.backgroundColor, getComputedStyle(image).filter] })"""
    ink, paper, kept = tab.page.locator("img").first.evaluate(corner)
    assert (ink, paper, kept) == ("rgb(232, 232, 232)", "rgb(21, 24, 30)", "none")
    tab.page.emulate_media(media="print")
    ink, paper, inverted = tab.page.locator("img").first.evaluate(corner)
    assert (ink, paper) == ("rgb(0, 0, 0)", "rgb(255, 255, 255)")
    assert inverted.startswith("invert(1)")


def test_it_is_rendered_in_the_artifact_view(tab, logged, served):
    store, parent = served
    tab.open(f"{store.uri}/#/experiments/{parent.experiment_id}/runs/{parent.run_id}/artifacts")
    tab.page.get_by_text("report", exact=True).click()
    tab.page.get_by_text("report.html", exact=True).click()
    page = tab.page.frame_locator("iframe.mlflow-html-iframe")
    assert page.locator("h1").text_content() == EXPERIMENT
    assert min(picture_widths(page)) > 500
    bold = page.locator("h1").evaluate("h1 => getComputedStyle(h1).fontSize")
    assert bold == f"{1.7 * 16:g}px", "its style is in force"
    page.locator("nav").get_by_role("link", name="Runs").click()
    runs = page.locator("table.runs")
    for row in store.layer_runs(parent.experiment_id, finished=False):
        assert store.address(row.experiment_id, row.run_id) in runs.text_content()
    assert tab.errors_beside(store.uri) == []

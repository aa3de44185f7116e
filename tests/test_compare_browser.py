"""Comparisons' pages as a person uses them, in a real chromium, from the file alone."""

from dataclasses import replace

import pytest
from browser import Tab, chromium
from plot_store import filled_store, new_experiment
from test_compare import compared, train

from sae_mlflow.plots.compare.page_content import write_comparison
from sae_mlflow.plots.compare.pages import comparison_pages
from sae_mlflow.plots.compare.plan import comparisons
from sae_mlflow.plots.pages import RunLink, run_links

pytestmark = pytest.mark.browser

HOSTILE = "</script><img src=x onerror=alert(1)> <b>$x_1$</b> &lt; %{y}"
LAYERS = 13  # so many that there are heat maps
HEAT_MAP = "meta-llama-Llama-2-7b-hf_heat_map"


@pytest.fixture(scope="module")
def browser():
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """By name; of two models, two settings and two seeds."""
    folder, (store, _) = tmp_path_factory.mktemp("pages"), filled_store()
    experiment_id = new_experiment(store, "pages in a browser")
    deep = {"lm__n_layers": LAYERS}
    train(store, experiment_id, range(LAYERS), sae__k=16, tmp_path=folder, **deep)
    train(store, experiment_id, [0, 1], start=0.4, sae__k=16, seed=1, **deep)
    train(store, experiment_id, range(LAYERS), start=0.5, fvu=0.2, sae__k=64, **deep)
    train(store, experiment_id, [0, 1], model=HOSTILE, lm__n_layers=2 * LAYERS)
    gated = {"tags": {"sae.architecture": "gated"}, "sae__architecture": "gated"}
    train(store, experiment_id, [0, 1], start=0.3, model=HOSTILE, **gated)
    runs = compared(store, experiment_id)
    found = comparison_pages(comparisons(runs), run_links(store, runs.rows))
    return {page.path.name: page.at(folder / page.path.name) for page in found}


@pytest.fixture
def opened(browser, pages):
    """Opens a page by its name, in a tab in which nothing may go wrong."""
    tab = Tab(browser)

    def opening(name, **changes):
        address = write_comparison(replace(pages[name], **changes)).as_uri()
        tab.open(address)
        tab.page.locator("#chart .main-svg").first.wait_for()
        return tab

    yield opening
    assert tab.errors == []
    assert {address.split(":")[0] for address in tab.requests} <= {"file", "about", "blob", "data"}
    tab.context.close()


def pointed_at(tab, where):
    """Points at the middle of an element; the lines of the label that shows then."""
    box = where.bounding_box()
    tab.page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    label = tab.page.locator(".hoverlayer .hovertext")
    label.wait_for()
    return label.locator("tspan.line").all_text_contents()


def test_every_page_draws_within_its_window(opened, pages):
    assert len(pages) == 9
    for name in pages:
        page = opened(name).page
        assert page.title() == pages[name].title == page.locator("#title").text_content()
        drawn = page.locator(
            "#chart :is(.scatterlayer .trace, .barlayer .trace, .heatmaplayer image)"
        )
        assert drawn.count() > 0, name
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), name


@pytest.mark.parametrize("name", ["compare_models", "pareto", "density"])
def test_on_a_narrow_screen_the_legend_is_below_the_panels(browser, pages, name):
    tab = Tab(browser, 390)
    tab.open(write_comparison(pages[name]).as_uri())
    tab.page.locator("#chart .main-svg").first.wait_for()
    assert tab.page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    chart, said = (tab.page.locator(place).bounding_box() for place in ("#chart", "#said"))
    assert chart["height"] >= 320 and said["y"] >= chart["y"] + chart["height"]
    if name != "density":
        legend = tab.page.locator("#legend").bounding_box()
        assert legend["y"] >= chart["y"] + chart["height"]
        assert said["y"] >= legend["y"] + legend["height"]
    assert tab.errors == []
    tab.context.close()


def test_a_point_says_its_line_layer_epoch_value_and_run(opened):
    tab = opened("meta-llama-Llama-2-7b-hf_compare_seeds")
    assert tab.hover(tab.page, 2, 1) == [  # after the two edges of the seeds' range
        "topk · sae.k=16",
        "layer0",
        "epoch: 2",
        "Reconstruction loss: 0.3",
        "mean over seeds, from 0.2 to 0.4",
    ]
    tab.click(tab.page, 2, 1)
    name = "Run meta-llama/Llama-2-7b-hf_layer0 · "
    told = tab.page.locator("#run div").all_text_contents()
    assert [text.startswith(name) and "sae.k=16" in text for text in told] == [True, True]
    assert {text.split(":")[0][-6:] for text in told} == {"seed 0", "seed 1"}
    tab = opened("compare_models")
    page = tab.page
    page.get_by_role("button", name="gated").dblclick()
    assert page.locator("#chart .scatterlayer .trace").count() == 2, "of each layer one"
    assert tab.hover(page, 1, 3)[2:] == [
        "epoch: 4",
        "Reconstruction loss: 0.0375",
        f"run {HOSTILE}_layer1",
    ]


def test_metric_logarithm_and_legend_are_chosen(opened):
    page = opened("compare_models").page
    page.get_by_label("Metric").select_option(label="L0 norm")
    assert page.locator("#chart .ytitle").first.text_content().startswith("active latents")
    lines = page.locator("#chart .scatterlayer .trace")
    before, entries = lines.count(), page.locator("#legend button")
    entries.last.click()
    assert lines.count() == before - 2 and entries.last.get_attribute("aria-pressed") == "false"
    page.get_by_role("button", name="Hide all").click()
    assert lines.count() == 0
    page.get_by_role("button", name="Show all").click()
    assert lines.count() == before
    page.get_by_label("Metric").select_option(label="Reconstruction loss")
    page.get_by_label("Log axis").check()
    assert page.evaluate("document.getElementById('chart').layout.yaxis.type") == "log"


def test_a_pareto_point_says_what_it_came_to_and_layers_are_hidden_with_theirs(opened):
    tab = opened("pareto")
    page = tab.page
    page.get_by_role("button", name="layer12", exact=True).dblclick()
    page.get_by_role("button", name="not beaten").click()
    assert page.locator("#chart .scatterlayer .trace").count() == 2, "one in each panel"
    assert tab.hover(page, 0, 0) == [
        "meta-llama/Llama-2-7b-hf · topk · layer12",
        "setting: topk · sae.k=16",
        "L0: 16",
        "FVU: 1.5",
        "CE loss recovered: 0.9",
        "run meta-llama/Llama-2-7b-hf_layer12",
    ]


def test_a_layers_final_value_and_place_are_said(opened):
    tab = opened("final_metrics_by_layer")
    tab.page.get_by_role("button", name="sae.k=64").dblclick()
    label = tab.hover(tab.page, 0, 12)
    assert label[1:4] == ["Held-out variance unexplained (FVU)", "layer: layer12", label[3]]
    assert label[3].endswith(": 1.4")
    tab = opened("compare_models_by_depth")
    tab.page.get_by_role("button", name="sae.k=64").dblclick()
    assert "relative depth: 0.5" in tab.hover(tab.page, 0, 6)


def test_a_bin_says_its_edges_and_its_share(opened):
    tab = opened("density")
    said = tab.page.locator(".xtick text").all_text_contents()
    assert "-2 (1%)" in said and "-1 (10%)" in said
    label = pointed_at(tab, tab.page.locator(".barlayer .trace").last.locator(".point").first)
    assert label[0].startswith("meta-llama/Llama-2-7b-hf · layer12")
    assert label[1].startswith("fire on: 0.1% to ") and label[1].endswith("% of the tokens")
    assert label[2:4] == ["share of the latents: 40.000%", "never fired: 12.0%"]


def test_a_cell_says_its_layer_epoch_and_value_in_logarithmic_colours_and_in_others(opened):
    tab = opened(HEAT_MAP)
    tab.page.get_by_label("Metric").select_option(label="Reconstruction loss · topk · sae.k=64")
    middle = tab.page.locator(".heatmaplayer image")
    label = pointed_at(tab, middle)
    value = {"epoch: 2": 0.25, "epoch: 3": 0.125}[label[2]]
    assert label == [
        "topk · sae.k=64",
        "layer6",
        label[2],
        f"Reconstruction loss: {value}",
        "run meta-llama/Llama-2-7b-hf_layer6",
    ]
    tab.page.get_by_label("Log colours").uncheck()
    tab.page.locator("#title").hover()
    assert pointed_at(tab, middle) == label


def test_names_are_drawn_as_they_are_and_open_nothing_but_a_web_page(opened, pages):
    links = tuple(
        RunLink(link.run_id, HOSTILE, "javascript:alert(1)") for link in pages["pareto"].links
    )
    tab = opened("dead_latents", links=links)
    page = tab.page
    assert page.locator("#legend button span").first.text_content().startswith(HOSTILE)
    page.locator("#legend button").first.dblclick()
    label = tab.hover(page, 0, 1)
    assert label[0].startswith(HOSTILE) and label[-1] == f"run {HOSTILE}"
    tab.click(page, 0, 1)
    assert page.locator("#run").text_content().startswith(f"Run {HOSTILE}: its id is ")
    assert page.locator("img, #run a").count() == 0

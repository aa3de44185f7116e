"""Comparisons as interactive pages: which there are, and that they hold what the pictures show."""

import base64
import gzip
import json
import re
from hashlib import sha256
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient
from plot_store import filled_store, new_experiment
from test_compare import compared, train

from sae_mlflow.commands.cli import run_cli
from sae_mlflow.plot import app
from sae_mlflow.plots.choice import Choice
from sae_mlflow.plots.compare.page_content import comparison_html
from sae_mlflow.plots.compare.pages import comparison_pages
from sae_mlflow.plots.compare.plan import comparisons
from sae_mlflow.plots.pages import run_links
from sae_mlflow.plots.runs import draw_experiments
from sae_mlflow.plots.style import load_style

HOSTILE = "</script><img src=x onerror=alert(1)> $x_1$ & \"'`"
GATED = {"tags": {"sae.architecture": "gated"}, "sae__architecture": "gated"}


@pytest.fixture
def experiment(request):
    """A new experiment in the shared store: the store and the experiment's name and id."""
    store, _ = filled_store()
    name = f"pages {request.node.name}"
    return store, name, new_experiment(store, name)


def pages(store, experiment_id, metric=None):
    """An experiment's comparison pages by name."""
    runs = compared(store, experiment_id, metric)
    found = comparison_pages(comparisons(runs), run_links(store, runs.rows))
    return {page.path.name: page for page in found}


def content(page):
    """What stands in a page's HTML for its script."""
    text = re.search(r'id="data">(.*?)</script>', comparison_html(page), re.DOTALL)[1]
    return json.loads(text)


def fact(trace, name):
    """A column of what a label says of each point."""
    column = dict(trace["facts"])[name]
    return trace[column] if isinstance(column, str) else column


def names_of(page, trace):
    return [run["name"] for run in (page["runs"][place] for place in trace["runs"])]


# -- which pages ------------------------------------------------------------------------------


def test_pictures_that_differ_in_the_metric_have_one_page(experiment):
    store, _, experiment_id = experiment
    train(store, experiment_id, range(13), lm__n_layers=13)
    train(store, experiment_id, range(2), seed=1, lm__n_layers=13)
    train(store, experiment_id, [0, 1], model="gpt2", lm__n_layers=26)
    train(store, experiment_id, [0, 1], model="gpt2", lm__n_layers=26, **GATED)
    found = pages(store, experiment_id)
    assert list(found) == [
        "compare_models",
        "compare_models_by_depth",
        "gpt2_compare_architectures",
        "meta-llama-Llama-2-7b-hf_compare_seeds",
        "meta-llama-Llama-2-7b-hf_heat_map",
        "pareto",
        "final_metrics_by_layer",
        "dead_latents",
    ]
    # of the heat map two, since L0 is 32 everywhere
    assert [len(page.pictures) for page in found.values()] == [3, 3, 3, 3, 2, 1, 1, 1]
    titles = [view["title"] for view in content(found["compare_models"])["views"]]
    assert titles == ["Reconstruction loss", "Total loss", "L0 norm"]
    assert list(pages(store, experiment_id, "val_fvu"))[:2] == list(found)[:2]


def test_they_lie_beside_the_pictures_unless_no_page_is_wanted(experiment, tmp_path):
    store, name, experiment_id = experiment
    for number, k in ((3, 16), (4, 32)):
        train(store, experiment_id, [number], tmp_path=tmp_path, sae__k=k)
    (tmp_path / "density.csv").unlink()
    made = list(draw_experiments(store, [name], Choice(output_dir=tmp_path)))
    (address,) = [line for line in made if line.startswith("runs:") and "pareto.html" in line]
    (picture,) = [line for line in made if line.startswith("runs:") and "pareto.png" in line]
    assert address.rpartition("/")[0] == picture.rpartition("/")[0]
    run_id, _, artifact = address.removeprefix("runs:/").partition("/")
    kept = Path(MlflowClient(store.uri).download_artifacts(run_id, artifact, str(tmp_path)))
    (copy,) = tmp_path.rglob("*/training_plots/pareto.html")
    assert kept.read_bytes() == copy.read_bytes()
    assert 1e6 < copy.stat().st_size < 2.2e6
    pngs = {"pareto", "final_metrics_by_layer", "dead_latents", "density"}
    assert {file.stem for file in copy.parent.glob("*.html")} == {
        *pngs,
        "meta-llama-Llama-2-7b-hf_all_layers",
    }


def test_no_interactive_makes_none(experiment, tmp_path, monkeypatch):
    store, name, experiment_id = experiment
    train(store, experiment_id, [3, 4], sae__k=16)
    train(store, experiment_id, [3, 4], sae__k=32)
    arguments = ["--experiment", name, "--no-interactive", "--no-log", "--tracking-uri", store.uri]
    monkeypatch.setattr("sys.argv", ["plot", *arguments, "--output-dir", str(tmp_path)])
    with pytest.raises(SystemExit, match="0"):
        run_cli(app)
    assert list(tmp_path.rglob("pareto.png")) and not list(tmp_path.rglob("*.html"))


# -- what is in them --------------------------------------------------------------------------


def test_facets_hold_each_layers_values_in_the_legends_look(experiment):
    store, _, experiment_id = experiment
    train(store, experiment_id, [3, 10], start=0.8)
    train(store, experiment_id, [3, 10], start=0.4, **GATED)
    page = content(pages(store, experiment_id)["compare_architectures"])
    loss = page["views"][0]
    assert [panel["title"] for panel in loss["panels"]] == ["layer3", "layer10"]
    labels = [entry["label"] for entry in page["entries"]]
    assert sorted(labels) == ["gated", "topk"]
    drawn = {(t["panel"], t["name"]): t["y"] for t in loss["traces"]}
    topk, gated = [0.8, 0.4, 0.2, 0.1], [0.4, 0.2, 0.1, 0.05]
    assert drawn == {(p, n): v for p in (0, 1) for n, v in (("topk", topk), ("gated", gated))}
    for trace in loss["traces"]:
        (place,) = trace["entries"]
        entry = page["entries"][place]
        assert (entry["label"], entry["colour"]) == (trace["name"], trace["colour"])
        assert fact(trace, "epoch") == [1, 2, 3, 4]
        layer = loss["panels"][trace["panel"]]["title"]
        assert names_of(page, trace) == [f"meta-llama/Llama-2-7b-hf_{layer}"]
    style = load_style()
    assert [entry["colour"] for entry in page["entries"]] == [style.colour(0), style.colour(1)]


def test_seeds_are_a_mean_within_their_range_and_lead_to_all_their_runs(experiment):
    store, _, experiment_id = experiment
    for seed, start in enumerate((0.8, 0.4)):
        train(store, experiment_id, [3], start=start, seed=seed)
    page = content(pages(store, experiment_id)["compare_seeds"])
    (trace,) = page["views"][0]["traces"]
    assert trace["y"] == pytest.approx([0.6, 0.3, 0.15, 0.075])
    assert (trace["low"][0], trace["high"][0]) == (0.4, 0.8)
    assert len(set(trace["runs"])) == 2


def test_what_is_no_number_is_a_gap_that_is_said(experiment):
    store, _, experiment_id = experiment
    train(store, experiment_id, [3], start=float("nan"))
    train(store, experiment_id, [3], **GATED)
    page = content(pages(store, experiment_id)["compare_architectures"])
    values = {t["name"]: t["y"] for t in page["views"][0]["traces"]}
    assert values["topk"] == [None] * 4 and None not in values["gated"]
    assert page["views"][0]["said"] == ["Not every value is a number: layer3 · topk"]


def test_the_pareto_page_names_run_layer_l0_fvu_and_ce_of_each_point(experiment, tmp_path):
    store, _, experiment_id = experiment
    train(store, experiment_id, [3, 4], sae__k=16, fvu=0.5, tmp_path=tmp_path)
    train(store, experiment_id, [3, 4], sae__k=64, fvu=0.2, tmp_path=tmp_path)
    page = content(pages(store, experiment_id)["pareto"])
    (view,) = page["views"]
    assert [panel["y"]["title"][:3] for panel in view["panels"]] == ["FVU", "1 -"]
    best, line = [trace for trace in view["traces"] if trace["panel"] == 0][:2]
    assert (best["x"], best["y"]) == ([16, 64], [0.5, 0.2])
    assert line["name"] == "meta-llama/Llama-2-7b-hf · topk · layer3"
    assert fact(line, "L0") == [16, 64] and fact(line, "FVU") == [0.5, 0.2]
    assert fact(line, "CE loss recovered") == [0.9, 0.9]
    assert [len(runs) for runs in line["each"]] == [1, 1]
    groups = [(entry["group"], entry["label"]) for entry in page["entries"]]
    assert groups == [
        ("kinds", "topk"),
        ("layers", "layer3"),
        ("layers", "layer4"),
        ("frontier", "not beaten by any"),
    ]


def test_a_pareto_point_of_several_seeds_says_what_it_is_the_mean_of(experiment):
    store, _, experiment_id = experiment
    for seed, fvu in enumerate((0.2, 0.4)):
        train(store, experiment_id, [3], fvu=fvu, seed=seed)
    train(store, experiment_id, [3], fvu=0.2, sae__k=64)
    (view,) = content(pages(store, experiment_id)["pareto"])["views"]
    _, line = view["traces"]
    assert view["said"] == ["point: mean over seeds"]
    assert fact(line, "FVU") == ["0.3 (mean over 2 seeds, 0.2 to 0.4)", 0.2]


def test_final_values_are_by_layer_number_with_the_seeds_range(experiment):
    store, _, experiment_id = experiment
    for seed, fvu in enumerate((0.2, 0.4)):
        train(store, experiment_id, [9, 10], fvu=fvu, seed=seed)
    (view,) = content(pages(store, experiment_id)["final_metrics_by_layer"])["views"]
    assert view["panels"][0]["x"]["ticks"] == ["9", "10"]
    fvu = view["traces"][0]
    assert fact(fvu, "layer") == ["layer9", "layer10"]
    assert (fvu["y"], fvu["low"], fvu["high"]) == ([0.3, 0.4], [0.2, 0.3], [0.4, 0.5])


def test_depth_is_the_layers_place_in_its_model(experiment):
    store, _, experiment_id = experiment
    train(store, experiment_id, [0, 5, 10], fvu=0.2, lm__n_layers=11)
    train(store, experiment_id, [0, 10, 20], fvu=0.5, lm__n_layers=21, model="gpt2")
    page = content(pages(store, experiment_id, "val_fvu")["compare_models_by_depth"])
    (view,) = page["views"]
    drawn = {trace["name"]: (trace["x"], trace["y"]) for trace in view["traces"]}
    assert drawn["gpt2"] == ([0, 0.5, 1], [0.5, 0.6, 0.7])
    assert drawn["meta-llama/Llama-2-7b-hf"] == ([0, 0.5, 1], [0.2, 0.3, 0.4])


def test_a_ridge_has_a_bar_a_bin_with_its_share(experiment, tmp_path):
    """Of 100 latents 40 fire on 0.1% of the tokens, 40 on 1%; of layer10's one is dead."""
    store, _, experiment_id = experiment
    train(store, experiment_id, [9, 10], tmp_path=tmp_path)
    (view,) = content(pages(store, experiment_id)["density"])["views"]
    assert view["panels"][0]["y"]["ticks"] == ["layer10", "layer9"], "from below"
    assert view["panels"][0]["y"]["beside"] == ["dead 1.0%", "dead 0.0%"]
    ridge = view["traces"][1]
    shares = [float(text.rstrip("%")) for text in fact(ridge, "share of the latents")]
    assert (ridge["name"], sum(shares), shares[0]) == ("layer10", pytest.approx(99), 40)
    assert ridge["from"][0] == -3 and fact(ridge, "fire on")[0].startswith("0.1% to ")


def test_a_heat_map_has_a_row_a_layer_and_a_view_for_each_metric_and_setting(experiment):
    store, _, experiment_id = experiment
    train(store, experiment_id, range(13), start=0.8, sae__k=16)
    train(store, experiment_id, range(13), start=0.4, sae__k=64)
    page = content(pages(store, experiment_id)["meta-llama-Llama-2-7b-hf_heat_map"])
    assert page["title"] == "meta-llama/Llama-2-7b-hf · by layer and epoch · topk"
    views = {view["title"]: view for view in page["views"]}
    assert len(views) == 4, "L0 is 32 everywhere"
    (cells,) = views["Reconstruction loss · topk · sae.k=64"]["traces"]
    assert cells["z"] == [[0.4, 0.2, 0.1, 0.05]] * 13
    assert cells["rows"] == [f"layer{n}" for n in range(13)] and cells["x"] == [1, 2, 3, 4]


# -- one file with all that it needs ----------------------------------------------------------


def test_names_of_any_kind_are_text_and_only_the_pages_own_scripts_run(experiment):
    store, _, experiment_id = experiment
    train(store, experiment_id, [3, 4], model=HOSTILE)
    train(store, experiment_id, [3, 4], model="gpt2")
    for page in pages(store, experiment_id).values():
        html = comparison_html(page)
        assert "<img" not in html.replace(gzipped(html), "")
        policy = re.search(r'Content-Security-Policy" content="(.*?)"', html)[1]
        rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
        assert rules["default-src"] == "'none'" and "connect-src" not in rules
        own = re.search(r"<script>(.*)</script>", html, re.DOTALL)[1]
        assert not re.search(r"innerHTML|insertAdjacentHTML|document\.write|eval\(", own)
        scripts = [gzip.decompress(base64.b64decode(gzipped(html))), own.encode()]
        hashes = {f"'sha256-{base64.b64encode(sha256(s).digest()).decode()}'" for s in scripts}
        assert set(rules["script-src"].split()) == hashes
    names = {entry["label"] for entry in content(pages(store, experiment_id)["pareto"])["entries"]}
    assert f"{HOSTILE} · topk" in names


def gzipped(html):
    """plotly.js as it stands in a page."""
    return re.search(r'id="plotly">(.*?)</script>', html, re.DOTALL)[1]


def test_runs_lead_to_their_page_where_the_store_is_served(experiment):
    store, _, experiment_id = experiment
    train(store, experiment_id, [3, 4], sae__k=16)
    train(store, experiment_id, [3, 4], sae__k=32)
    runs = content(pages(store, experiment_id)["pareto"])["runs"]
    assert {run["id"] for run in runs} == {row.run_id for row in store.layer_runs(experiment_id)}
    assert {run["address"] for run in runs} == {None}, "this one is a file"

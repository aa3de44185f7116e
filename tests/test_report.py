"""The report: one page with all that the store knows of an experiment."""

import functools
import itertools
import math
import subprocess
import sys

import pytest
from plot_store import MODEL, add_layer, add_parent, filled_store, history, new_experiment
from report_page import ReportPage

from sae_mlflow.__main__ import app
from sae_mlflow.commands.cli import run_cli
from sae_mlflow.plots import drawing
from sae_mlflow.plots.compare.by_layer import metrics_of
from sae_mlflow.plots.compare.tables import FINAL_METRICS, ends_table
from sae_mlflow.plots.style import load_style
from sae_mlflow.report.build import report_html
from sae_mlflow.report.contents import gather, rows_of
from sae_mlflow.report.page import POLICY, Pictures, page_html

HOSTILE = (
    "</td></table></title><script>alert(1)</script><img src=x onerror=alert(1)> $x_1$ &lt; \"'`"
)
FVU, L0, DEAD = "FVU val_fvu", "L0 val_l0_norm", "dead dead_fraction"
CE = "CE recovered ce_loss_recovered"

_names = itertools.count()


def metrics(epochs: int = 3, scale: float = 1.0) -> dict[str, list[float]]:
    """`history` with what is measured on held-out tokens."""
    found = history(epochs, 0.8 * scale)
    losses = found["reconstruction_loss"]
    return found | {
        "val_fvu": [value * 1.1 for value in losses],
        "val_l0_norm": [31.75] * epochs,
        "dead_fraction": [0.0125 * scale] * epochs,
    }


def experiment(fill=lambda store, parent: None) -> tuple[str, str]:
    """A new experiment, its one parent filled; its name and the parent's id."""
    store, _ = filled_store()
    name = f"report-{next(_names)}"
    parent = add_parent(store, new_experiment(store, name))
    fill(store, parent)
    parent.finish()
    return name, parent.run_id


def facts(name: str, run: str | None = None) -> ReportPage:
    """A report without its pictures, which take seconds to draw."""
    store, _ = filled_store()
    contents = gather(store, name, rows_of(store, name, run))
    return ReportPage(page_html(contents, Pictures(), load_style(), "now"))


def whole(name: str, style: str = "default") -> ReportPage:
    store, _ = filled_store()
    return ReportPage(report_html(store, name, rows_of(store, name, None), load_style(style)))


@functools.cache
def usual() -> tuple[ReportPage, str]:
    """A report of layers 9, 10 and 20, of which the last has failed; and the experiment's name."""

    def fill(store, parent):
        parent.log_params({"seed": 0, "text.source": "embedded", "text.subset": None})
        for layer, scale in (("layer10", 1.0), ("layer9", 0.5)):
            run_id = add_layer(store, parent, layer, metrics(3, scale), train__epochs=3)
            store.reopen(run_id).log_metrics(0, {"ce_loss_recovered": 0.875})
        broken = metrics(2) | {"total_loss": [0.81, math.nan]}
        run_id = add_layer(store, parent, "layer20", broken, status="FAILED", train__epochs=3)
        store.reopen(run_id).tag({"sae.failure": "OutOfMemoryError: no room"})

    name, _ = experiment(fill)
    return whole(name), name


# -- the table of layers ------------------------------------------------------------------------


def test_every_layer_is_in_the_table_in_order_with_the_stores_numbers():
    page, name = usual()
    store, _ = filled_store()
    rows = store.layer_runs(store.find_experiment(name), finished=False)
    stored = {row.layer: row.metrics for row in rows}
    assert [row["layer"] for row in page.layers] == ["layer9", "layer10", "layer20"]
    assert MODEL in page.text
    for row in page.layers:
        figures = stored[row["layer"]]
        assert row["architecture"] == "topk" and row["seed"] == "0"
        assert "model" not in row, "there is one, which the text above names"
        assert row[FVU] == f"{figures['val_fvu']:.4f}"
        assert row[L0] == f"{figures['val_l0_norm']:.1f}"
        assert row[DEAD] == f"{figures['dead_fraction']:.1%}"
    assert [row[FVU] for row in page.layers] == ["0.1100", "0.2200", "0.4400"]
    assert [row[CE] for row in page.layers] == ["87.5%", "87.5%", "-"]


def test_a_failed_run_is_there_as_far_as_it_came_with_what_its_health_found():
    page, _ = usual()
    failed = page.layers[-1]
    assert (failed["status"], failed["epochs"]) == ("failed", "2 of 3")
    assert failed["health"] == "✗ failed: not finite (epoch 2)"
    assert "3 trainings of 3 layers: 2 finished, 1 failed." in page.text
    findings = {row["finding"]: row for row in page.table("severity", "finding", "what to try")}
    assert findings["not finite : total_loss is NaN"]["layer"] == "layer20"
    assert "train.learning_rate" in findings["not finite : total_loss is NaN"]["what to try"]
    assert "layer20 failed: OutOfMemoryError: no room" in page.text


def test_numbers_stand_under_each_other():
    page, _ = usual()
    assert "font-variant-numeric: tabular-nums" in page.html
    assert page.html.count('class="number">0.1100<') == 1
    assert ".number { text-align: right" in page.html


def test_a_run_without_a_columns_metric_names_its_own():
    def fill(store, parent):
        add_layer(store, parent, "layer1", metrics())
        add_layer(store, parent, "layer2", history() | {"fvu": [0.5, 0.25, math.inf]})
        add_layer(store, parent, "layer3", {})

    page = facts(experiment(fill)[0])
    assert [row[FVU] for row in page.layers] == ["0.2200", "infinity fvu", "-"]
    assert [row[L0] for row in page.layers] == ["31.8", "32.0 l0_norm", "-"]
    assert "Without any epoch in the store:" in page.text


def test_the_final_figures_are_those_of_the_pictures():
    """On held-out tokens, where a run has both."""

    def fill(store, parent):
        for layer in ("layer1", "layer2"):
            add_layer(store, parent, layer, metrics() | {"val_dead_fraction": [0.25] * 3})

    name, _ = experiment(fill)
    page, (store, _) = facts(name), filled_store()
    assert [row["dead val_dead_fraction"] for row in page.layers] == ["25.0%", "25.0%"]
    ends = ends_table(store.layer_runs(store.find_experiment(name)))
    assert metrics_of(ends, FINAL_METRICS.values()) == [
        "val_fvu",
        "val_l0_norm",
        "val_dead_fraction",
    ]


def test_settings_are_in_the_order_of_their_numbers():
    def fill(store, parent):
        for k in (64, 8, 16, 32):
            add_layer(store, parent, "layer1", metrics(), sae__k=k)

    settings = [row["setting"] for row in facts(experiment(fill)[0]).layers]
    assert settings == [f"sae.k={k}" for k in (8, 16, 32, 64)]


def test_several_models_and_settings_are_told_apart():
    def fill(store, parent):
        for k in (8, 64):
            add_layer(store, parent, "layer1", metrics(), sae__k=k)
        add_layer(store, parent, "layer1", metrics(), model="gpt2")

    page = facts(experiment(fill)[0])
    assert [(row["model"], row["setting"]) for row in page.layers] == [
        ("gpt2", ""),
        (MODEL, "sae.k=8"),
        (MODEL, "sae.k=64"),
    ]
    assert [row["layer"] for row in page.table("layer", "sae.k")] == [
        "gpt2 · layer1",
        *(f"{MODEL} · layer1 topk · sae.k={k} · seed 0" for k in (8, 64)),
    ]


# -- settings -----------------------------------------------------------------------------------


def test_settings_are_what_all_share_and_then_what_differs():
    def fill(store, parent):
        parent.log_params({"seed": 0, "text.source": "embedded", "text.subset": None})
        for layer, scale in (("layer1", 0.25), ("layer2", 0.5)):
            add_layer(store, parent, layer, metrics(), data__scale=scale, text__tokens=4096)

    page = facts(experiment(fill)[0])
    shared = page.settings()
    assert shared["in general"] == {"seed": "0", "d_sae": "4608"}
    assert shared["text"] == {"source": "embedded", "subset": "unset", "tokens": "4096"}
    assert shared["sae"] == {"architecture": "topk", "k": "32"}
    assert [row["data.scale"] for row in page.table("layer", "data.scale")] == ["0.25", "0.5"]


# -- pictures -----------------------------------------------------------------------------------


def test_all_plots_are_in_it_as_whole_pngs_with_words_for_who_cannot_see_them():
    page, _ = usual()
    texts = [alt for alt, _ in page.images]
    for label in ("Reconstruction loss", "Total loss", "L0 norm"):
        assert any(alt.startswith(f"{MODEL}: {label} of all layers. ") for alt in texts)
    overlay = texts[0]
    assert overlay.endswith("a line for each of layer9, layer10.")
    histories = [alt for alt in texts if "at epoch 1" in alt]
    assert [alt.partition(". ")[0] for alt in histories] == [
        f"{MODEL} · {layer}" for layer in ("layer9", "layer10", "layer20")
    ]
    assert "Reconstruction loss: 0.8 at epoch 1, 0.2 at epoch 3." in histories[1]
    assert "Total loss: 0.81 at epoch 1, NaN at epoch 2." in histories[2]
    assert f"{MODEL}: final values by layer. " in " ".join(texts)
    for _, image in page.images:
        assert image.format == "PNG" and image.width > 500 and image.height > 300
        assert image.getextrema() != ((255, 255),) * 4, "something is drawn"
    captions = [tag for tag, _ in page.tags if tag == "figcaption"]
    assert len(captions) == len(texts) == len(set(texts))


def test_pictures_have_the_size_that_they_were_drawn_in_and_the_page_stays_small():
    page, _ = usual()
    for (_, image), width in zip(page.images, page.attributes("img", "width"), strict=True):
        assert round(image.info["dpi"][0]) == 100
        assert int(width) == round(image.width * 96 / 100)
    assert len(page.html) < 3e6
    assert len(page.html) / len(page.images) * (48 + 10) < 15e6


def test_seeds_share_a_picture_and_a_training_done_again_is_said():
    def fill(store, parent):
        for seed in (0, 1, 0):
            add_layer(store, parent, "layer1", metrics(), seed=seed)

    page = whole(experiment(fill)[0])
    states = [(row["seed"], row["status"]) for row in page.layers]
    assert states == [("0", "finished, trained again later"), ("0", "finished"), ("1", "finished")]
    histories = [alt for alt, _ in page.images if alt.startswith(f"{MODEL} · layer1. ")]
    assert len(histories) == 1
    assert "Pictures show the last training of each layer, settings and seed." in page.text
    links = [href for href in page.attributes("a", "href") if href == "#history-0"]
    assert len(links) >= 2


def test_an_experiment_in_which_all_failed_has_a_report():
    def fill(store, parent):
        add_layer(store, parent, "layer1", metrics(2), status="FAILED", train__epochs=3)
        add_layer(store, parent, "layer2", {}, status="KILLED")

    page = whole(experiment(fill)[0])
    assert [row["status"] for row in page.layers] == ["failed", "killed"]
    assert [alt.partition(". ")[0] for alt, _ in page.images] == [f"{MODEL} · layer1"]
    assert "No training has finished" in page.text
    assert f"Without any epoch in the store: {MODEL}_layer2." in page.text


def test_a_style_colours_page_and_pictures_and_paper_is_white():
    def fill(store, parent):
        add_layer(store, parent, "layer1", metrics())

    page = whole(experiment(fill)[0], "dark")
    background = load_style("dark").colours.page
    assert f"--page: {background};" in page.html
    for _, image in page.images:
        pixel = image.convert("RGB").getpixel((2, 2))
        assert pixel == tuple(bytes.fromhex(background.removeprefix("#")))
    assert page.attributes("body", "class") == ["dark"]
    assert usual()[0].attributes("body", "class") == ["light"]
    printed = page.html.split("@media print", 1)[1]
    assert "--ink: #000" in printed and "--page: #fff" in printed


# -- a page that can be passed on ----------------------------------------------------------------


def test_it_loads_nothing_runs_nothing_and_its_links_lead_somewhere():
    page, _ = usual()
    (policy,) = page.attributes("meta", "content")[:1]
    assert policy == POLICY == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    tags = {tag for tag, _ in page.tags}
    assert not tags & {"script", "link", "iframe", "object", "embed", "base", "form", "svg"}
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert "url(" not in page.html and "@import" not in page.html
    assert all(src.startswith("data:image/png;base64,") for src in page.attributes("img", "src"))
    ids = [value for _, attributes in page.tags if (value := attributes.get("id"))]
    assert len(ids) == len(set(ids))
    for href in page.attributes("a", "href"):
        assert href.removeprefix("#") in ids, "a store that isn't served has no addresses"


def test_names_of_any_kind_are_text_and_end_no_tag():
    def report(model: str, layer: str, name: str) -> ReportPage:
        def fill(store, parent):
            run_id = add_layer(store, parent, layer, metrics(2), model=model, status="FAILED")
            store.reopen(run_id).tag({"sae.failure": model})

        store, _ = filled_store()
        found = experiment(fill)[0]
        contents = gather(store, name, rows_of(store, found, None))
        return ReportPage(page_html(contents, Pictures(), load_style(), "now"))

    page, plain = report(HOSTILE, HOSTILE, HOSTILE), report("model", "layer1", "name")
    assert [tag for tag, _ in page.tags] == [tag for tag, _ in plain.tags]
    (row,) = page.layers
    assert row["layer"] == HOSTILE
    assert page.text.count(" ".join(HOSTILE.split())) > 1, "the model is named too"
    assert page.text.count("<script>alert(1)</script>") >= 5


def test_a_hostile_name_is_inert_in_pictures_and_their_words_too():
    def fill(store, parent):
        add_layer(store, parent, "layer1", metrics(2), model=HOSTILE)

    page = whole(experiment(fill)[0])
    assert {tag for tag, _ in page.tags}.isdisjoint({"script"})
    assert all(alt.startswith(HOSTILE) for alt, _ in page.images)
    assert len(page.images) == 4


def test_many_layers_are_found_by_the_contents():
    def fill(store, parent):
        for layer in (11, 2, 1, 7, 5, 3):
            add_layer(store, parent, f"layer{layer}", history(1))

    page = whole(experiment(fill)[0])
    order = [f"layer{n}" for n in (1, 2, 3, 5, 7, 11)]
    names = page.html.split('class="names">', 1)[1].split("</div>", 1)[0]
    linked = [ReportPage(f"{part}</a>").text for part in names.split("</a>")[:-1]]
    assert linked == order
    assert [row["layer"] for row in page.layers] == order


# -- the command --------------------------------------------------------------------------------


@pytest.fixture
def report(monkeypatch, capsys, tmp_path):
    """`report("--experiment", ...)`: the command in an empty folder; its status, lines, errors."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(drawing, "PROCESSES", 1)

    def run(*arguments):
        store = ("--tracking-uri", filled_store()[0].uri)
        monkeypatch.setattr(sys, "argv", ["sae-mlflow", "report", *store, *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            run_cli(app)
        out, err = capsys.readouterr()
        return end.value.code, out.splitlines(), err

    return run


def test_the_real_command_logs_the_page_to_the_parent_and_writes_the_same(tmp_path):
    store, _ = filled_store()
    name, parent = experiment(lambda s, p: add_layer(s, p, "layer1", metrics()))
    command = [sys.executable, "-m", "sae_mlflow", "report", "--experiment", name]
    options = ["--output", "out/page.html", "--tracking-uri", store.uri]
    done = subprocess.run([*command, *options], capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    address = f"runs:/{parent}/report/report.html"
    assert done.stdout.splitlines() == ["out/page.html", address]
    logged = store.download(address, tmp_path / "logged")
    assert logged.read_bytes() == (tmp_path / "out" / "page.html").read_bytes()
    page = ReportPage(logged.read_text(encoding="utf-8"))
    assert page.text.startswith(f"{name}: SAE report {name} {MODEL}")
    assert [row["layer"] for row in page.layers] == ["layer1"]
    assert len(page.images) == 4, "three overlays and the layer's history"


def test_layers_of_several_parents_have_their_report_in_a_run_of_its_own(report, tmp_path):
    store, _ = filled_store()
    name, first = experiment(lambda s, p: add_layer(s, p, "layer1", history(1)))
    second = add_parent(store, store.find_experiment(name))
    add_layer(store, second, "layer2", history(1))
    status, (address,), _ = report("--experiment", name)
    assert status == 0
    comparison = store.comparison_run(second.experiment_id, MODEL).run_id
    assert address == f"runs:/{comparison}/report/report.html"
    status, lines, _ = report("--run", first, "--no-log", "--output", "one.html")
    assert (status, lines) == (0, ["one.html"])
    page = ReportPage((tmp_path / "one.html").read_text(encoding="utf-8"))
    assert [row["layer"] for row in page.layers] == ["layer1"]
    assert name in page.text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Give --experiment NAME, or --run PARENT_ID."),
        (["--experiment", "llama3"], "No experiment 'llama3' in "),
        (["--experiment", "empty"], "Experiment 'empty' in "),
        (["--experiment", "llama2", "--no-log"], "--no-log without --output FILE would leave no"),
        (["--experiment", "llama2", "--style", "papper"], "papper"),
        (["--run", "0" * 32], f"No run '{'0' * 32}' in "),
    ],
)
def test_bad_input_is_one_line_and_status_2(report, tmp_path, arguments, message):
    status, lines, err = report(*arguments)
    assert (status, lines) == (2, [])
    assert err.startswith("error: ") and message in err and err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_the_error_names_the_experiments_there_are_and_where_there_are_no_runs(report):
    assert "llama2" in report("--experiment", "llama3")[2]
    train = "Train some with sae-mlflow train --experiment-name empty, or name another."
    assert f"has no SAE runs. {train}" in report("--experiment", "empty")[2]


def test_a_run_that_is_no_parent_or_of_another_experiment_is_refused(report):
    _, runs = filled_store()
    err = report("--run", runs["layer9"])[2]
    assert f"is one layer's. Give its parent: --run {runs['parent']}." in err
    err = report("--experiment", "odd", "--run", runs["parent"])[2]
    assert "is in experiment 'llama2', not 'odd'" in err


def test_a_file_that_cannot_be_written_is_said_and_nothing_is_logged(report, tmp_path):
    name, parent = experiment(lambda s, p: add_layer(s, p, "layer1", {}))
    (tmp_path / "folder").write_text("")
    status, lines, err = report("--experiment", name, "--output", "folder/page.html")
    assert (status, lines) == (2, [])
    assert err.startswith("error: folder/page.html can't be written: folder is a file.")
    store, _ = filled_store()
    with pytest.raises(ValueError, match="can't be read"):
        store.download(f"runs:/{parent}/report/report.html", tmp_path / "none")


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("file/page.html", "can't be written: file is a file."),
        ("folder", "folder is a folder. Name a file."),
    ],
)
def test_that_it_cannot_be_written_is_said_before_the_store_is_asked(
    report, tmp_path, output, message
):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    nowhere = ("--experiment", "x", "--tracking-uri", "http://127.0.0.1:9")
    status, _, err = report(*nowhere, "--output", output)
    assert status == 2
    assert message in err

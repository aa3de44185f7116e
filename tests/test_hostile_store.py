"""A store that somebody else wrote: every command reads it, and none does what its names say."""

import base64
import re
import sqlite3
import sys
import xml.etree.ElementTree as ET
from hashlib import sha256
from html.parser import HTMLParser
from pathlib import Path

import pytest
from browser import Tab, chromium
from hostile_server import RUN_ID, hostile_server
from mlflow.entities import Metric
from mlflow.tracking import MlflowClient

from sae_mlflow.__main__ import main
from sae_mlflow.config import Settings
from sae_mlflow.errors import UserError
from sae_mlflow.pipeline import run_training
from sae_mlflow.reporting.display import Display
from sae_mlflow.tracking.store import Store

HOSTILE = (
    "../../</title></script><script>window.pwned=1</script><img src=x onerror=window.pwned=1>"
    "\x1b[2J\x1b]0;owned\x07\x9b31m\u202e$x_1$ $\\frac{ %{y} `touch pwned` $(touch pwned) "
    "'; touch pwned; '[red][link=javascript:pwned](javascript:window.pwned=1)\r\n# heading | cell "
    '"C:\\con" %2e%2e%2f'
)
LONG = "/../" + "é" * 3000
STEERS = re.compile(r"[^\n\t\x20-\x7e\xa1-\u2027\u2030-\uffff]|\x1b|\u202e")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("hostile") / "a" / "b" / "home"
        folder.mkdir(parents=True)
        patch.chdir(folder)
        patch.setenv("SAE_MLFLOW_CACHE", str(folder / "cache"))
        patch.setenv("SAE_MLFLOW_STATE", str(folder / "state"))
        yield folder


@pytest.fixture(scope="module")
def runs(home, tiny_model, text_file):
    """Ids of a training's parent and layer whose names are hostile, and of a run made by hand."""
    uri = f"sqlite:///{home / 'mlflow.db'}"
    settings = Settings.model_validate(
        {
            "model": {"name": str(tiny_model), "layers": [1], "device": "cpu"},
            "text": {"source": str(text_file), "tokens": 2048, "context": 32},
            "sae": {"k": 4, "expansion_factor": 4},
            "train": {"batch_tokens": 128, "epochs": 2},
            "plots": {"after_training": False},
            "evaluate": {"after_training": False},
        }
    )
    client = MlflowClient(uri)
    client.create_experiment(HOSTILE, artifact_location=(home / "artifacts").as_uri())
    training = run_training(settings, Display(), experiment_name=HOSTILE, tracking_uri=uri)
    experiment_id, layer = training.experiment.id, training.rows[0].run_id
    parent = client.get_run(layer).data.tags["mlflow.parentRunId"]
    made = client.create_run(
        experiment_id,
        tags={"sae.role": "layer", "sae.model": LONG, "sae.layer": LONG, "mlflow.runName": LONG},
        run_name=LONG,
    ).info.run_id
    for run_id in (parent, layer):
        for tag in ("sae.model", "sae.hookpoint", "mlflow.note.content", "sae.failure"):
            client.set_tag(run_id, tag, HOSTILE)
        client.update_run(run_id, name=HOSTILE)
    for tag in ("sae.layer", "sae.architecture", "sae.health", "sae.health.reasons"):
        client.set_tag(layer, tag, HOSTILE)
    for key in ("sae.k", "seed", "d_sae", "train.epochs", "text.source", "model.name"):
        client.log_param(made, key, HOSTILE)
    for run_id in (layer, made):
        for step in (1, 2):
            points = [
                Metric(key, 1 / step, 0, step)
                for key in ("val_fvu", "val_l0_norm", "total_loss", "reconstruction_loss", "other")
                if run_id == made or key == "other"
            ]
            client.log_batch(run_id, metrics=points)
    client.log_batch(made, metrics=[Metric("total_loss", 1.0, 0, 10**15)])
    client.set_terminated(made, "FINISHED")
    with sqlite3.connect(home / "mlflow.db") as database:  # what a client would refuse
        database.execute("update metrics set key = ? where key = 'other'", (HOSTILE,))
        database.execute("update latest_metrics set key = ? where key = 'other'", (HOSTILE,))
        database.execute(
            "update tags set value = ? where key = 'mlflow.parentRunId' and run_uuid = ?",
            ('it\'s "me"', made),
        )
    return uri, parent, layer, made


@pytest.fixture
def command(home, runs, monkeypatch, capfd):
    """Runs one on the store; its status and words, none of which steers a terminal."""

    def run(*words: str) -> tuple[int, str]:
        before = set(home.parents[2].rglob("*"))
        monkeypatch.setattr(sys, "argv", ["sae-mlflow", *words, "--tracking-uri", runs[0]])
        with pytest.raises(SystemExit) as end:
            main()
        said = "".join(capfd.readouterr())
        assert not STEERS.search(said), STEERS.findall(said)
        assert "Traceback" not in said
        inside = [home / name for name in ("out", "artifacts", "cache", "state")]
        strays = [
            file
            for file in set(home.parents[2].rglob("*")) - before
            if not any(file.is_relative_to(folder) for folder in inside)
            and not file.name.startswith("mlflow.db")
        ]
        assert strays == []
        return int(end.value.code or 0), said

    return run


class Elements(HTMLParser):
    """What in a page could run."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.scripts: list[str] = []
        self.policy = ""
        self._in_script = False
        self._json = False
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        assert not [name for name in attributes if name.startswith("on")], attributes
        for name in ("href", "src", "action", "formaction"):
            address = re.sub(r"\s", "", attributes.get(name) or "").lower()
            assert not address.startswith(("javascript:", "vbscript:", "data:text")), attributes
        assert tag not in ("iframe", "object", "embed", "base", "form")
        if tag == "meta" and attributes.get("http-equiv") == "Content-Security-Policy":
            self.policy = attributes["content"] or ""
        if tag == "script" and attributes.get("type") in (None, "text/javascript", "module"):
            self.scripts.append("")
            self._in_script = True

    def handle_endtag(self, tag):
        self._in_script = False

    def handle_data(self, data):
        if self._in_script:
            self.scripts[-1] += data


def check_page(file: Path) -> None:
    """Every script in it is one that its own policy names; nothing else could run."""
    page = Elements(file.read_text(encoding="utf-8"))
    assert "default-src 'none'" in page.policy
    assert "script-src" not in page.policy or "unsafe-inline" not in page.policy.split("style")[0]
    for script in page.scripts:
        digest = base64.b64encode(sha256(script.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in page.policy, script[:200]
        assert "pwned" not in script


def check_svg(file: Path) -> None:
    for element in ET.parse(file).iter():
        assert not element.tag.endswith(("}script", "}foreignObject"))
        assert not [name for name in element.attrib if name.lower().startswith("on")]
        links = [v for n, v in element.attrib.items() if n.endswith("href")]
        assert all(link.startswith(("#", "data:image/", "data:font/")) for link in links)


def test_plots_and_pages_of_it_stay_in_their_folder_and_run_nothing(home, command):
    status, _ = command(
        *("plot", "--experiment", HOSTILE, "--output-dir", "out/plots", "--interactive"),
        *("--format", "png,svg"),
    )
    assert status == 0
    made = [file for file in (home / "out" / "plots").rglob("*") if file.is_file()]
    assert {file.suffix for file in made} == {".png", ".svg", ".html"}
    for file in made:
        assert re.fullmatch(r"[A-Za-z0-9._-]{1,250}", file.name)
        if file.suffix == ".html":
            check_page(file)
        elif file.suffix == ".svg":
            check_svg(file)


def test_the_report_of_it_has_no_script(home, command):
    status, _ = command("report", "--experiment", HOSTILE, "--output", "out/report.html")
    assert status == 0
    check_page(home / "out" / "report.html")
    assert Elements((home / "out" / "report.html").read_text()).scripts == []


def test_health_and_watch_say_what_it_holds_as_text(command, runs):
    _, parent, layer, made = runs
    assert command("health", "--experiment", HOSTILE)[0] in (0, 1)
    assert command("health", "--run", made)[0] in (0, 1, 2)
    for run in (parent, layer):
        assert command("watch", "--run", run)[0] in (0, 1)
    assert command("watch", "--experiment", HOSTILE)[0] in (0, 1)


def test_its_sae_is_evaluated_exported_and_registered_under_a_safe_name(home, command, runs):
    *_, layer, made = runs
    assert command("evaluate", "--run", layer, "--latents", "2")[0] == 0
    (page,) = (home / "artifacts").rglob("latents.html")
    check_page(page)
    assert command("export", "--run", layer, "--format", "pt", "--output", "out/pt")[0] == 0
    assert command("export-tensorboard", "--experiment", HOSTILE, "--output", "out/tb")[0] == 0
    status, said = command("register", "--run", layer)
    assert status == 0 and re.search(r"models:/[A-Za-z0-9._-]+/1 registered", said)
    assert command("register", "--run", made)[0] == 2
    assert command("promote", "--experiment", HOSTILE, "--max-l0", "100")[0] in (0, 2)
    assert command("evaluate", "--run", made)[0] == 2


def test_what_is_asked_with_hostile_words_is_refused_as_text(command, runs):
    for words in (
        ["plot", "--experiment", f"no {HOSTILE}"],
        ["plot", "--experiment", HOSTILE, "--model-name", f"no {HOSTILE}"],
        ["plot", "--experiment", HOSTILE, "--filter", HOSTILE],
        ["health", "--run", "' or 1=1 --"],
        ["watch", "--run", HOSTILE],
        ["export", "--run", HOSTILE, "--format", "pt", "--output", "out/no"],
        ["export", "--model", f"models:/{HOSTILE}/1", "--format", "pt", "--output", "out/no"],
        ["promote", "--experiment", HOSTILE, "--max-l0", "1", "--layer", HOSTILE],
    ):
        status, said = command(*words)
        assert status == 2 and said.startswith("error: "), words


def test_lines_to_be_copied_are_quoted_for_the_shell(runs):
    import shlex

    *_, line = Store(runs[0]).next_steps(HOSTILE, "1")
    words = shlex.split(line)
    assert words[:5] == ["python", "-m", "sae_mlflow.plot", "--experiment", HOSTILE]


@pytest.mark.browser
def test_nothing_in_its_pages_runs_in_a_browser(home, command, runs):
    command("plot", "--experiment", HOSTILE, "--output-dir", "out/seen", "--interactive")
    command("report", "--experiment", HOSTILE, "--output", "out/seen/report.html", "--no-log")
    pages = sorted((home / "out" / "seen").rglob("*.html"))
    assert len(pages) > 2
    with chromium() as browser:
        for page in pages:
            tab = Tab(browser)
            dialogs = []
            tab.page.on("dialog", lambda dialog, seen=dialogs: (seen.append(1), dialog.dismiss()))
            tab.open(page.as_uri())
            tab.page.wait_for_timeout(500)
            assert tab.page.evaluate("typeof window.pwned") == "undefined"
            assert dialogs == []
            assert [
                url for url in tab.requests if not url.startswith(("file:", "data:", "blob:"))
            ] == []
            tab.context.close()


def test_the_description_of_a_training_holds_names_as_text():
    from sae_mlflow.reporting.layer_table import launcher_note, parent_note

    settings = Settings.model_validate({"model": {"name": HOSTILE}})
    for note in (parent_note(settings, []), launcher_note("1", "2", HOSTILE)):
        assert "<" not in note and "\n#" not in note and "\x1b" not in note
        assert "](javascript" not in note and "`touch" not in note.replace("\\`", "")


@pytest.mark.parametrize(
    "name",
    [
        *("../../escaped", "sae/../../../escaped", "%2e%2e/%2e%2e/escaped"),
        *("sae/%2e%2e/%2e%2e/escaped", "{root}/escaped"),
    ],
)
def test_an_artifact_whose_name_leaves_its_folder_is_not_fetched(name, tmp_path):
    """What a server lists is its word alone."""
    into = tmp_path / "a" / "b" / "into"
    into.mkdir(parents=True)
    with (
        hostile_server(name.replace("{root}", str(tmp_path))) as uri,
        pytest.raises(UserError, match="can't be read"),
    ):
        Store(uri).download(f"runs:/{RUN_ID}/sae", into)
    assert [file for file in tmp_path.rglob("*") if file.is_file()] == []

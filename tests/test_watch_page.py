"""The page of `sae-mlflow watch --browser`: what it serves, to whom, and until when."""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from browser import Tab, chromium
from faults.tracking_server import TrackingServer
from plot_store import new_experiment
from running_trainings import log, open_layer, open_parent

from sae_mlflow.tracking.store import Store
from sae_mlflow.watching.board import CURVES, PAGE, STATE, Board
from sae_mlflow.watching.server import serving
from sae_mlflow.watching.state import Watch

HOSTILE = "</script><img src=x onerror=alert(1)> <b>$x_1$</b>"
COMMAND = [sys.executable, "-m", "sae_mlflow", "watch", "--every", "0.2"]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return Store(f"sqlite:///{tmp_path_factory.mktemp('watched')}/mlflow.db")


@pytest.fixture
def experiment(store, request):
    new_experiment(store, request.node.name)
    return request.node.name


@pytest.fixture
def board(store, experiment):
    """Of a training whose first layer has had two epochs."""
    parent = open_parent(store, experiment)
    nine = open_layer(store, parent, "layer9")
    for epoch, loss in ((1, 0.8), (2, 0.4)):
        log(nine, epoch, loss)
    filled = Board(store, "heading")
    filled.read(Watch(store, experiment).look())
    return filled


def ask(address, path, method="GET", host=None, **headers):
    """Status, headers and body of a request, whose Host can be another's."""
    parts = urlsplit(address)
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=20)
    connection.putrequest(method, path, skip_host=True)
    for name in [parts.netloc] if host is None else host:
        connection.putheader("Host", name)
    for name, value in headers.items():
        connection.putheader(name.replace("_", "-"), value)
    connection.endheaders()
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer.status, answer.headers, body


def asked(address, path):
    status, _, body = ask(address, path)
    assert status == 200
    return json.loads(body)


# -- what is shown ----------------------------------------------------------------------------


def test_the_state_is_the_terminals_table(board):
    state = json.loads(board.answers[STATE].body)
    (training,) = state["trainings"]
    assert training["title"].startswith("org/model · running · 0 of 2 layers done")
    nine, ten = (layer["cells"] for layer in training["layers"])
    assert (nine["layer"], nine["state"], nine["epoch"]) == ("layer9", "running", "2/4")
    assert (nine["loss"], nine["val FVU"], nine["L0"], nine["dead"]) == (
        *("0.4000", "0.2000", "32.0", "1.0%"),
    )
    assert (ten["layer"], ten["state"], ten["epoch"]) == ("layer10", "waiting", "")
    assert state["trouble"] == "" and state["since"] is None and not state["ended"]
    assert state["curves"] == board.answers[CURVES].tag


def test_the_curves_are_all_that_was_logged_each_epoch(board):
    curves = json.loads(board.answers[CURVES].body)
    assert curves["title"] == "heading"
    assert {metric["key"] for metric in curves["metrics"]} == {
        *("total_loss", "val_fvu", "l0_norm", "dead_fraction"),
    }
    (nine,) = curves["curves"]
    assert nine["label"] == "layer9" and nine["means"]["val_fvu"] == {"values": [0.4, 0.2]}
    assert nine["runs"][0]["address"] is None, "this store has no web address"


def test_epochs_to_come_are_not_missing_until_all_has_ended(store, experiment):
    parent = open_parent(store, experiment)
    layers = [open_layer(store, parent, name) for name in ("layer9", "layer10")]
    for run, epochs in zip(layers, (3, 1), strict=True):
        for epoch in range(1, epochs + 1):
            log(run, epoch, 1 / epoch / epochs)
    board, watch = Board(store, ""), Watch(store, experiment)

    def said():
        board.read(watch.look())
        metrics = json.loads(board.answers[CURVES].body)["metrics"]
        return next(m["said"] for m in metrics if m["key"] == "total_loss")

    assert said() == []
    for run in (*layers, parent):
        run.finish("KILLED")
    assert said() == ["No number: layer10 (epochs 2-3)"]


def test_a_run_is_read_again_when_it_has_had_another_epoch_and_never_once_it_has_ended(
    store, experiment
):
    """So what is written to an ended run isn't seen any more."""
    parent = open_parent(store, experiment)
    ended, going = (open_layer(store, parent, name) for name in ("layer9", "layer10"))
    for run in (ended, going):
        log(run, 1, 0.5)
    ended.finish()
    board, watch = Board(store, ""), Watch(store, experiment)
    board.read(watch.look())
    before = board.answers[CURVES]
    log(ended, 2, 0.4)
    board.read(watch.look())
    assert board.answers[CURVES] is before
    log(going, 2, 0.4)
    board.read(watch.look())
    curves = json.loads(board.answers[CURVES].body)["curves"]
    assert [c["means"]["total_loss"]["values"] for c in curves] == [[0.5], [0.5, 0.4]]


def test_runs_of_one_layer_are_curves_of_their_own(store, experiment):
    """They differ in the seed, or in nothing at all."""
    for seed in (0, 1, 1):
        run = open_layer(store, open_parent(store, experiment, "9"), "layer9")
        run.log_params({"seed": seed})
        log(run, 1, 0.5)
    board = Board(store, "")
    board.read(Watch(store, experiment).look())
    curves = json.loads(board.answers[CURVES].body)["curves"]
    assert len({curve["label"] for curve in curves}) == 3
    assert sorted(curve["label"][:15] for curve in curves) == [
        "layer9 · seed 0",
        *["layer9 · seed 1"] * 2,
    ]
    assert all(len(curve["runs"]) == 1 for curve in curves)
    trainings = json.loads(board.answers[STATE].body)["trainings"]
    assert [t["title"].endswith(f" · run {t['run'][:8]}") for t in trainings] == [True] * 3


def test_trouble_is_shown_over_what_was_last_read(board):
    before = json.loads(board.answers[STATE].body)
    board.out_of_reach("first")
    first = json.loads(board.answers[STATE].body)
    assert first["trouble"] == "first" and abs(first["since"] - time.time()) < 30
    assert first["trainings"] == before["trainings"] and first["curves"] == before["curves"]
    board.out_of_reach("again")
    again = json.loads(board.answers[STATE].body)
    assert (again["trouble"], again["since"]) == ("again", first["since"])


# -- to whom it is served ---------------------------------------------------------------------


def test_a_page_that_has_the_newest_is_told_so(board):
    with serving(board, None) as address:
        for path in (PAGE, STATE, CURVES):
            _, headers, body = ask(address, path)
            assert body
            status, _, body = ask(address, path, If_None_Match=headers["ETag"])
            assert (status, body) == (304, b"")
            assert ask(address, path, If_None_Match='"other"')[0] == 200
            status, of_head, body = ask(address, path, "HEAD")
            assert (status, body) == (200, b"")
            assert of_head["Content-Length"] == headers["Content-Length"]


@pytest.mark.parametrize(
    "hosts",
    [
        *(["example.com"], ["example.com:{port}"], ["127.0.0.1"], ["127.0.0.1:1"], ["{port}"]),
        *([""], [], ["127.0.0.1:{port}", "example.com"], ["127.0.0.1:{port}.example.com"]),
    ],
)
def test_who_does_not_name_this_server_is_refused(board, hosts):
    with serving(board, None) as address:
        port = urlsplit(address).port
        for path in (PAGE, STATE, CURVES, "/other"):
            for method in ("GET", "HEAD", "POST"):
                status, _, body = ask(address, path, method, [h.format(port=port) for h in hosts])
                assert status == 421 and b"layer9" not in body
        assert ask(address, STATE, host=[f"localhost:{port}"])[0] == 200


@pytest.mark.parametrize(
    "path", ["/state/", "/state?a", "/state//", "/../etc/passwd", "/page.js", "http://h/state", "*"]
)
def test_other_paths_are_not_found(board, path):
    with serving(board, None) as address:
        assert ask(address, path)[0] == 404


def test_nothing_can_be_written(board):
    with serving(board, None) as address:
        for method in ("POST", "PUT", "PATCH", "DELETE", "OPTIONS"):
            status, headers, _ = ask(address, STATE, method)
            assert (status, headers["Allow"]) == (405, "GET, HEAD")
            assert not any(name.lower().startswith("access-control") for name in headers)
        assert ask(address, STATE, "TRACE")[0] == 501


def test_every_answer_has_a_policy_that_lets_in_nothing_foreign(board):
    with serving(board, None) as address:
        answers = [ask(address, path) for path in (PAGE, STATE, CURVES, "/other")]
        answers += [ask(address, STATE, "POST"), ask(address, STATE, "TRACE")]
        for _, headers, _ in answers:
            assert headers["X-Content-Type-Options"] == "nosniff"
            assert headers["Cache-Control"] == "no-store"
            assert headers["Referrer-Policy"] == "no-referrer"
            rules = headers["Content-Security-Policy"].split("; ")
            assert "default-src 'none'" in rules and "frame-ancestors 'none'" in rules
        scripts = next(
            r for r in answers[0][1]["Content-Security-Policy"].split("; ") if "scr" in r
        )
        assert [source[:8] for source in scripts.split()[1:]] == ["'sha256-"] * 3


def test_it_listens_on_loopback_alone(board):
    """What the kernel lists under the port is 127.0.0.1, and nothing else."""
    with serving(board, None) as address:
        port = urlsplit(address).port
        tables = [Path(f"/proc/net/{name}") for name in ("tcp", "tcp6")]
        rows = [x.split() for t in tables if t.exists() for x in t.read_text().splitlines()[1:]]
        listening = [row[1] for row in rows if row[3] == "0A" and row[1].endswith(f":{port:04X}")]
    assert listening == [f"0100007F:{port:04X}"]


def test_names_of_any_kind_end_no_script(store, experiment):
    layer = open_layer(store, open_parent(store, experiment, "9"), HOSTILE)
    log(layer, 1, 0.5)
    board = Board(store, HOSTILE)
    board.read(Watch(store, experiment).look())
    assert b"<img" not in board.answers[PAGE].body and b"&lt;img" in board.answers[PAGE].body
    state = json.loads(board.answers[STATE].body)
    assert HOSTILE in [x["cells"]["layer"] for x in state["trainings"][0]["layers"]]


# -- the command ------------------------------------------------------------------------------


@contextmanager
def command(*arguments, **environment):
    """The command under way, and its page's address."""
    process = subprocess.Popen(
        [*COMMAND, "--browser", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | environment,
    )
    try:
        line = process.stdout.readline()
        assert line.startswith("Page: http://127.0.0.1:"), line + process.stderr.read()
        yield process, line.split()[1]
    finally:
        process.kill()
        process.communicate()


def until(true, seconds=60.0):
    """What a question comes to, asked again until it is something."""
    end = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < end, "it never came"
        time.sleep(0.05)
    return found


def first_cells(state):
    return state["trainings"][0]["layers"][0]["cells"] if state["trainings"] else {}


def test_epochs_arrive_an_outage_is_said_and_passes_and_the_command_ends_with_the_training(
    tmp_path,
):
    server = TrackingServer(tmp_path)
    server.start()
    try:
        store = Store(server.uri)
        parent = open_parent(store, "far", "9")
        layer = open_layer(store, parent, "layer9", epochs=2)
        log(layer, 1, 0.8)
        where = ("--experiment", "far", "--tracking-uri", server.uri, "--no-open")
        with command(*where) as (process, address):
            until(lambda: first_cells(asked(address, STATE)).get("epoch") == "1/2")
            (curve,) = asked(address, CURVES)["curves"]
            assert curve["means"]["total_loss"]["values"] == [0.8]
            assert curve["runs"][0]["address"].startswith(f"{server.uri}/#/experiments/")
            server.stop()
            state = until(lambda: (s := asked(address, STATE))["trouble"] and s)
            assert f"The tracking store {server.uri} can't be reached" in state["trouble"]
            assert first_cells(state)["epoch"] == "1/2", "what was last known stays"
            server.start()
            log(layer, 2, 0.4)
            state = until(lambda: not (s := asked(address, STATE))["trouble"] and s)
            until(lambda: first_cells(asked(address, STATE))["epoch"] == "2/2")
            (curve,) = asked(address, CURVES)["curves"]
            assert curve["means"]["total_loss"]["values"] == [0.8, 0.4]
            layer.finish()
            parent.finish()
            state = until(lambda: (s := asked(address, STATE))["ended"] and s)
            assert first_cells(state)["state"] == "finished"
            asked(address, CURVES)
            assert process.wait(timeout=30) == 0
            assert process.stderr.read() == "", "no request is told of"
    finally:
        server.stop()


def test_it_exits_1_where_a_training_failed_and_waits_for_a_page_to_see_that(store, experiment):
    open_parent(store, experiment).finish("FAILED")
    where = ("--experiment", experiment, "--tracking-uri", store.uri, "--no-open")
    with command(*where) as (process, address):
        until(lambda: asked(address, STATE)["ended"])
        start = time.monotonic()
        asked(address, CURVES)
        assert process.wait(timeout=30) == 1
        assert time.monotonic() - start < 9, "it waits no longer than it must"


def test_ctrl_c_ends_it_with_130_at_once(store, experiment):
    open_parent(store, experiment)
    where = ("--experiment", experiment, "--tracking-uri", store.uri, "--no-open")
    with command(*where) as (process, address):
        until(lambda: asked(address, STATE)["trainings"])
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=10) == 130
        assert "Traceback" not in process.stderr.read()


def test_the_page_is_opened_in_the_users_browser(store, experiment, tmp_path):
    open_parent(store, experiment)
    told = tmp_path / "told"
    (browser := tmp_path / "browser").write_text(f'#!/bin/sh\necho "$1" > {told}\n')
    browser.chmod(0o755)
    where = ("--experiment", experiment, "--tracking-uri", store.uri)
    with command(*where, BROWSER=f"{browser} %s") as (_, address):
        until(lambda: told.exists() and told.read_text() == f"{address}\n")


def refused(*arguments):
    done = subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (2, "")
    return done.stderr


def test_a_port_that_is_in_use_is_said_in_a_sentence(store, experiment):
    open_parent(store, experiment)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        where = ("--experiment", experiment, "--tracking-uri", store.uri)
        assert refused(*where, "--browser", "--port", str(port)) == (
            f"error: Port {port} of 127.0.0.1 is in use. Choose another with --port, or leave it "
            "out for a free one.\n"
        )


@pytest.mark.parametrize("option", [("--port", "8000"), ("--no-open",), ("--open",)])
def test_options_of_the_page_want_the_page(option):
    said = (
        "error: --port, --host, --allow-host and --open/--no-open are of the page: add --browser.\n"
    )
    assert refused("--experiment", "any", *option) == said


# -- in a browser -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser():
    with chromium() as started:
        yield started


@pytest.fixture
def tab(browser):
    opened = Tab(browser)
    yield opened
    opened.context.close()


def points(page, curve=0):
    return page.locator(".scatterlayer .trace").nth(curve).locator(".point")


def cell(page, layer, column):
    """A cell of a layer's row; columns are counted from 0."""
    return page.locator("#trainings tbody tr", has_text=layer).locator("td").nth(column)


@pytest.mark.browser
def test_in_a_browser_curves_grow_the_choices_stay_and_an_outage_is_said(tab, tmp_path):
    """From a training's first epoch to its end, on one page that is never loaded again."""
    server = TrackingServer(tmp_path)
    server.start()
    try:
        store = Store(server.uri)
        parent = open_parent(store, "far", "9,10")
        nine, ten = (open_layer(store, parent, name) for name in ("layer9", "layer10"))
        log(nine, 1, 0.8)
        where = ("--experiment", "far", "--tracking-uri", server.uri, "--no-open")
        with command(*where) as (process, address):
            tab.open(address)
            page, trouble = tab.page, tab.page.locator("#trouble")
            points(page).first.wait_for()
            assert page.title() == page.locator("#title").text_content() == "Experiment far"
            page.get_by_label("Log axis").check()
            page.get_by_label("Metric").select_option(label="Held-out variance unexplained (FVU)")
            log(ten, 1, 0.6)
            points(page, 1).first.wait_for()
            page.get_by_role("button", name="layer10").click()
            log(nine, 2, 0.4)
            points(page).nth(1).wait_for()
            cell(page, "layer9", 2).get_by_text("2/4").wait_for()
            cell(page, "layer9", 4).get_by_text("0.2000").wait_for()
            assert page.get_by_label("Log axis").is_checked()
            chosen = page.get_by_label("Metric").locator("option:checked").text_content()
            assert chosen == "Held-out variance unexplained (FVU)"
            assert page.locator(".scatterlayer .trace").count() == 1, "layer10 stays hidden"
            link = cell(page, "layer9", 0).locator("a").get_attribute("href")
            assert link == store.address(parent.experiment_id, nine.run_id)
            assert trouble.is_hidden()
            server.stop()
            trouble.wait_for()
            assert f"The tracking store {server.uri} can't be reached" in trouble.text_content()
            assert points(page).count() == 2, "the last known curves stay"
            server.start()
            trouble.wait_for(state="hidden")
            log(nine, 3, 0.2)
            points(page).nth(2).wait_for()
            for run in (nine, ten, parent):
                run.finish()
            page.locator("#ended").get_by_text("All trainings have ended").wait_for()
            assert cell(page, "layer9", 1).text_content() == "finished"
            assert process.wait(timeout=30) == 0
            time.sleep(2.5)
            assert trouble.is_hidden(), "it has the end, and asks no more"
        assert tab.errors == []
        assert {urlsplit(asked_for).netloc for asked_for in tab.requests} <= {
            urlsplit(address).netloc,
            "",
        }
    finally:
        server.stop()


@pytest.mark.browser
def test_in_a_browser_the_zoom_stays_names_are_text_and_an_interrupted_watch_is_said(
    tab, store, experiment
):
    layer = open_layer(store, open_parent(store, experiment, "9"), HOSTILE)
    for epoch in (1, 2, 3):
        log(layer, epoch, 1 / epoch)
    where = ("--experiment", experiment, "--tracking-uri", store.uri, "--no-open")
    with command(*where) as (process, address):
        tab.open(address)
        page = tab.page
        points(page).nth(2).wait_for()
        page.locator("#trainings tbody tr").first.wait_for()
        assert HOSTILE in page.locator("#trainings").text_content()
        assert page.locator("img, #trainings b").count() == 0
        box = page.locator(".nsewdrag").bounding_box()
        across, down = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        page.mouse.move(across, down)
        page.mouse.down()
        page.mouse.move(across + 150, down + 60, steps=5)
        page.mouse.up()
        ranges = (
            "() => ['xaxis', 'yaxis'].map((a) => document.getElementById('chart').layout[a].range)"
        )
        zoomed = page.evaluate(ranges)
        log(layer, 4, 0.1)
        cell(page, HOSTILE, 2).get_by_text("4/4").wait_for()
        drawn = "() => document.getElementById('chart').data[0].y.length === 4"
        page.wait_for_function(drawn)
        assert page.evaluate(ranges) == zoomed
        page.mouse.dblclick(across, down)
        page.wait_for_function(f"() => ({ranges})()[0][1] > 4")
        assert page.evaluate(ranges)[0][0] < 1
        assert tab.errors == []
        process.send_signal(signal.SIGINT)
        page.locator("#trouble").get_by_text("it has probably ended").wait_for()
        assert page.locator("#ended").is_hidden()

"""Whatever a file, an option or a store holds: a result that is right, or one clear sentence.

`SAE_MLFLOW_EXAMPLES=2000 pytest tests/test_properties.py` looks for much longer.
"""

import copy
import json
import math
import os
import string
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from saved_saes import change_config, saved

from sae_mlflow import load_sae, naming
from sae_mlflow.activations import cache
from sae_mlflow.activations.store import ActivationFiles
from sae_mlflow.activations.verification import verify_cache
from sae_mlflow.config import Settings, TextSettings
from sae_mlflow.config_load import load_settings, setting_docs
from sae_mlflow.config_set import parse_set
from sae_mlflow.errors import UserError
from sae_mlflow.formats.sae_files import FORMATS, export_sae, read_stored
from sae_mlflow.history import REQUIRED_KEYS, check_history, read_history, restored, write_history
from sae_mlflow.plot import plot_all_layers_comparison, plot_sae_training_history
from sae_mlflow.plots.choice import parse_layers
from sae_mlflow.text.documents import documents
from sae_mlflow.tracking.process import process_tags, why_dead
from sae_mlflow.tracking.store import Store

ASKED = int(os.environ.get("SAE_MLFLOW_EXAMPLES", "0"))
pytestmark = pytest.mark.usefixtures("one_thread")


def examples(n: int):
    """So many by default, the same ones each time; as many as are asked for, and other ones."""
    return settings(
        max_examples=max(n, ASKED),
        derandomize=not ASKED,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


@contextmanager
def plain_error():
    """What a user may see: one sentence, and no other exception."""
    try:
        yield
    except UserError as error:
        assert str(error) and "Traceback" not in str(error)


# -- settings ---------------------------------------------------------------------------------

KEYS = [key for key, _, _ in setting_docs()]
WORDS = [
    *("topk", "jumprelu", "3-7", "10,15", "layers.10.mlp", "png,pdf", "mlflow", "bfloat16"),
    *("~nobody", "a" * 300, "a\0b", "..", "/", "9" * 5000, "0-99999999999", "2001-99-99", "=", ""),
]
scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.sampled_from(WORDS)
    | st.text(max_size=12)
    | st.dates()
    | st.binary(max_size=4)
)
scalars_as_keys = st.text(max_size=8) | st.integers() | st.none() | st.booleans()
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(scalars_as_keys, inner, max_size=3),
    max_leaves=6,
)
likely = st.sampled_from([1, 2, 0.5, 4, 100, "topk", [1], "3-7", "png", None, True])
trees = st.dictionaries(st.sampled_from(KEYS), likely | values, max_size=5)


def loaded(text: str, overrides=None):
    """The settings in a file, or None where they aren't any."""
    with TemporaryDirectory() as folder, plain_error():
        file = Path(folder) / "config.yaml"
        file.write_text(text, encoding="utf-8", errors="surrogatepass")
        return load_settings(str(file), overrides or {})
    return None


def assert_round_trip(found: Settings) -> None:
    """Its YAML gives the same settings."""
    text = found.to_yaml()
    again = loaded(text)
    assert again is not None and again.to_yaml() == text


@examples(150)
@given(trees)
def test_any_tree_of_settings_is_settings_or_an_error(tree):
    nested: dict = {}
    for key, value in tree.items():
        *section, name = key.split(".")
        (nested.setdefault(section[0], {}) if section else nested)[name] = value
    found = loaded(yaml.safe_dump(nested))
    if found is not None:
        assert_round_trip(found)


@examples(100)
@given(st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=10), likely | values, max_size=4))
def test_any_overrides_are_settings_or_an_error(overrides):
    found = loaded("experiment: tiny", overrides)
    if found is not None:
        assert_round_trip(found)


pieces = [*"abkx019.-:,[]{}&*!?|>'\"#% \n\t", "sae", "model", "!!", "&a", "*a", ": ", "\n- "]
yaml_text = st.lists(st.sampled_from(pieces), max_size=40).map("".join)


@examples(250)
@given(yaml_text | st.text(max_size=30))
@example("2001-99-99")
@example("a: 2001-99-99")
@example("seed: " + "9" * 5000)
@example("[" * 3000)
@example("train: {optimizer_options: {a: !!binary gA==}}")
@example("train: {optimizer_options: {a: !!set {b, c}}}")
@example("seed: !!timestamp x")
@example("seed: !!int x")
@example("seed: !!bool x")
@example("a: &a [*a]")
@example("&a {train: *a}")
@example("model: {layers: &a [*a]}")
@example("train: {optimizer_options: &a {b: *a}}")
@example("extends: [1]")
@example("extends: " + "x" * 300)
@example("extends: ~nobody/x")
@example('extends: "a\\0b"')
@example("1: 2")
@example("sae: {1: 2}")
@example("model: {layers: 0-99999999999}")
@example("model: {layers: '" + "9" * 5000 + "'}")
@example("? {a: 1}\n: 2")
@example("\ud800")
def test_any_text_is_a_config_or_an_error(text):
    found = loaded(text)
    if found is not None:
        assert_round_trip(found)


@examples(150)
@given(st.text(max_size=30) | yaml_text.map(lambda text: f"sae.k={text}"))
@example("sae.k=" + "9" * 5000)
@example("sae.k=2001-99-99")
@example("sae.k='[[['")
@example("sae.k=" + "[" * 3000)
@example("seed='!!timestamp x'")
@example("sae.k=1 .=2")
def test_any_set_option_is_overrides_or_an_error(text):
    with plain_error():
        overrides = parse_set(text)
        assert all(isinstance(key, str) for key in overrides)
        loaded("experiment: tiny", overrides)


@examples(100)
@given(st.text(max_size=20) | st.sampled_from(WORDS))
def test_any_name_of_a_config_is_found_or_an_error(name):
    with plain_error():
        load_settings(name)


@examples(150)
@given(st.text(alphabet="0123456789-,. layers²٣", max_size=12) | st.sampled_from(WORDS))
def test_any_choice_of_layers_is_labels_or_an_error(text):
    with plain_error():
        labels = parse_layers(text)
        assert labels and len(set(labels)) == len(labels)
        assert all(set(label) <= SAFE for label in labels)


# -- names ------------------------------------------------------------------------------------

SAFE = set(string.ascii_letters + string.digits + "._-@")
paths = st.from_regex(r"layers\.[0-9]{1,3}(\.[a-z_0-9]{1,8}){0,3}", fullmatch=True)


@examples(200)
@given(st.text(max_size=200) | st.sampled_from(["../x", "/etc/passwd", "..", ".", "a" * 400]))
def test_no_name_leaves_its_folder(name):
    made = (naming.sanitise(name), naming.file_stem(name), naming.file_stem(naming.input_of(name)))
    for each in (*made, naming.registered_name(name, name)):
        assert set(each) <= SAFE and not each.startswith(".") and 0 < len(each) <= 250
        assert Path("folder", each).parent == Path("folder")
    if not name.isdecimal():
        assert set(naming.layer_label(name)) <= SAFE - {".", "@"}


@examples(150)
@given(paths)
def test_a_hookpoint_is_known_again_by_its_file(path):
    for hookpoint in (path, naming.input_of(path)):
        assert naming.stored_hookpoint(naming.file_stem(hookpoint)) == hookpoint


@examples(200)
@given(st.text(max_size=150), st.text(max_size=150))
@example("layers.1.a b", "layers.1.a-b")
@example("x" * 130 + "a", "x" * 130 + "b")
def test_two_hookpoints_have_two_files(one, other):
    if one.removesuffix(naming.INPUT) != other.removesuffix(naming.INPUT):
        assert naming.file_stem(one) != naming.file_stem(other)


@examples(100)
@given(st.integers(0, 10**6))
def test_a_layers_number_is_the_same_however_it_is_written(n):
    labels = {naming.layer_label(each) for each in (n, str(n), f"layers.{n}")}
    assert labels == {f"layer{n}"} and naming.block_number(n) == n


# -- histories --------------------------------------------------------------------------------

finite = st.floats(allow_nan=False, allow_infinity=False)
numbers = st.floats() | st.integers() | st.sampled_from([1e308, -1e308, 5e-324, 10**400, True])
lists = st.lists(numbers | st.text(max_size=3) | st.none(), max_size=4) | values
histories = st.dictionaries(st.sampled_from([*REQUIRED_KEYS, "val_fvu", "x"]), lists, max_size=6)


def even(n: int, each) -> st.SearchStrategy:
    lists = st.lists(each, min_size=n, max_size=n)
    return st.fixed_dictionaries(dict.fromkeys(REQUIRED_KEYS, lists))


def all_like(*values: float) -> dict[str, list[float]]:
    return {key: list(values) for key in REQUIRED_KEYS}


@examples(200)
@given(histories | values | st.integers(1, 3).flatmap(lambda n: even(n, numbers)))
def test_any_history_is_lists_of_finite_numbers_or_an_error(history):
    with plain_error():
        checked = check_history(history, "this one")
        assert {*REQUIRED_KEYS} <= checked.keys()
        assert len({len(each) for each in checked.values()}) == 1
        assert all(math.isfinite(v) for each in checked.values() for v in each)
        with TemporaryDirectory() as folder:
            file = Path(folder) / "layer1_training_history.json"
            write_history(file, checked)
            big = any(abs(v) >= 1.797e308 for each in checked.values() for v in each)
            assert big or read_history(file) == checked


@examples(4)
@given(st.integers(1, 3).flatmap(lambda n: even(n, finite)))
@example(all_like(1e308, -1e308))
@example(all_like(5e-324))
@example(all_like(0.0, 0.0))
@example(all_like(1e308, 1e-308, 0.0))
@example(all_like(math.nan))
def test_any_history_that_passes_can_be_drawn(history):
    with TemporaryDirectory() as folder, plain_error():
        files = plot_sae_training_history(history, "org/model", 10, folder)
        files += plot_all_layers_comparison({10: history, "layers.2": history}, "m", folder)
        assert len(files) == 2 and all(file.read_bytes()[:4] == b"\x89PNG" for file in files)


@examples(300)
@given(st.binary(max_size=60) | values.map(lambda v: json.dumps(v, default=str).encode()))
@example(b"[" * 100_000)
@example(b'{"total_loss": ' + b"9" * 5000 + b"}")
@example(b"\xff\xfe")
@example(b'{"total_loss": [1e999]}')
def test_any_bytes_are_a_history_or_an_error(content):
    with TemporaryDirectory() as folder, plain_error():
        file = Path(folder) / "layer1_training_history.json"
        file.write_bytes(content)
        assert {*REQUIRED_KEYS} <= read_history(file).keys()


# -- bytes that a disk has changed ------------------------------------------------------------


@st.composite
def damaged(draw, whole: bytes) -> bytes:
    """A file cut, lengthened, overwritten in places, or of other bytes altogether."""
    content = bytearray(whole)
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, max(0, len(content) - 1)))
        match draw(st.sampled_from(["flip", "flip", "cut", "insert", "zeros", "byte"])):
            case "flip" if content:
                content[place] ^= 1 << draw(st.integers(0, 7))
            case "byte" if content:
                content[place] = draw(st.sampled_from(b'0123456789"{}[],:-.e \xff\x00'))
            case "cut":
                del content[place:]
            case "insert":
                content[place:place] = draw(st.binary(max_size=8))
            case "zeros":
                content[place : place + 64] = bytes(len(content[place : place + 64]))
    return bytes(content)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """An SAE in each format, without our own checksum, with its files' bytes."""
    base, found = tmp_path_factory.mktemp("saes"), {}
    for case, names in {"topk": FORMATS, "jumprelu": ["sae_lens", "dictionary_learning"]}.items():
        saved(base / case, case)
        for name in names:
            folder = base / f"{case}-{name}"
            export_sae(read_stored(base / case)[0], name, folder)
            if name == "sae_lens":
                change_config(folder)
            found[f"{case} {name}"] = {file.name: file.read_bytes() for file in folder.iterdir()}
    return found


@examples(300)
@given(st.data())
def test_any_change_to_a_saved_sae_gives_an_sae_or_an_error(folders, data):
    """Without our checksum, as a peer's file is: then a flipped bit may be another SAE."""
    files = folders[data.draw(st.sampled_from(sorted(folders)))]
    name = data.draw(st.sampled_from(sorted(files)))
    changed = files | {name: data.draw(damaged(files[name]))}
    with TemporaryDirectory() as folder, plain_error():
        for each, content in changed.items():
            (Path(folder) / each).write_bytes(content)
        sae = load_sae(folder)
        assert all(p.isfinite().all() for p in sae.state_dict().values())
        recon = sae(torch.ones(3, sae.d_in))
        assert recon.shape == (3, sae.d_in)


odd = [None, -1, 0, 1, 2**70, 1.5, True, "topk", "jumprelu", "x", [], [1], [[]], {}, [4, 6]]
config_values = st.sampled_from([*odd, [-1, 11], ["4", "6"], math.nan])


@examples(150)
@given(st.data())
def test_any_config_of_a_saved_sae_gives_an_sae_or_an_error(folders, data):
    files = folders[data.draw(st.sampled_from(sorted(n for n in folders if "pt" not in n)))]
    name = next(name for name in files if name.endswith(".json"))
    config = json.loads(files[name])
    places = [config, *(value for value in config.values() if isinstance(value, dict))]
    place = data.draw(st.sampled_from(places))
    keys = sorted({*place, "d_out", "widths", "threshold", "transcode", "skip_connection"})
    for key in data.draw(st.lists(st.sampled_from(keys), min_size=1, max_size=2)):
        place[key] = data.draw(config_values)
    with TemporaryDirectory() as folder, plain_error():
        for each, content in (files | {name: json.dumps(config).encode()}).items():
            (Path(folder) / each).write_bytes(content)
        load_sae(folder)(torch.ones(3, 10))


@pytest.fixture(scope="module")
def texts():
    """Documents as each kind of file holds them."""
    rows = [{"text": f"document {n} has words", "n": n} for n in range(40)]
    parquet = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), parquet)
    return {
        ".txt": "\n\n".join(row["text"] for row in rows).encode(),
        ".jsonl": "\n".join(map(json.dumps, rows)).encode(),
        ".parquet": parquet.getvalue().to_pybytes(),
    }


@examples(200)
@given(st.data())
def test_any_change_to_a_file_of_text_is_documents_or_an_error(texts, data):
    suffix = data.draw(st.sampled_from(sorted(texts)))
    content = data.draw(damaged(texts[suffix]))
    with TemporaryDirectory() as folder, plain_error():
        file = Path(folder) / f"text{suffix}"
        file.write_bytes(content)
        assert all(isinstance(each, str) for each in read_text(str(file)))


def read_text(source: str) -> list[str]:
    return list(documents(TextSettings(source=source))[1])


@pytest.mark.parametrize("line", ["[" * 100_000, '{"text": ' + "9" * 5000 + "}", '{"text": 1e999}'])
def test_a_line_that_json_itself_fails_on_is_an_error(line, tmp_path):
    file = tmp_path / "text.jsonl"
    file.write_text(line)
    with pytest.raises(UserError, match=r"text\.jsonl, line 1"):
        read_text(str(file))


@examples(60)
@given(st.text(max_size=20) | st.sampled_from(WORDS))
@example("a" * 300 + ".txt")
@example("a\0b.txt")
@example("~nobody/x.txt")
def test_any_name_of_a_text_file_is_found_or_an_error(name):
    with plain_error():
        read_text(f"{name}.txt")


N_ROWS = (3, 0, 2, 5)


@pytest.fixture(scope="module")
def rows_on_disk(tmp_path_factory):
    """Four windows of one hookpoint: their store, and the bytes of its files."""
    folder = tmp_path_factory.mktemp("entries") / "0123456789abcdef"
    store = ActivationFiles(folder, "layers.1", 4, torch.float32, np.cumsum([0, *N_ROWS]))
    folder.mkdir()
    store.cut(0)
    rows = torch.randn(sum(N_ROWS), 4, generator=torch.Generator().manual_seed(0))
    store.append(rows[:3], range(2))
    store.append(rows[3:], range(2, 4))
    assert store.complete() and store.progress().windows == 4
    cache.write_facts(folder, format=2, model="m", text="t", tokens=5)
    return store, {file.name: file.read_bytes() for file in folder.iterdir()}


@examples(200)
@given(st.data())
def test_any_change_to_cached_rows_is_found_and_what_counts_as_good_is(rows_on_disk, data):
    store, files = rows_on_disk
    name = data.draw(st.sampled_from(sorted(name for name in files if name != "meta.json")))
    content = data.draw(damaged(files[name]))
    with TemporaryDirectory() as base:
        folder = Path(base) / "activations" / store.folder.name
        folder.mkdir(parents=True)
        for each, whole in (files | {name: content}).items():
            (folder / each).write_bytes(whole)
        here = ActivationFiles(folder, "layers.1", 4, torch.float32, store.rows_before)
        progress = here.progress()
        assert (progress.windows == 4) == (content == files[name])
        good = int(store.rows_before[progress.windows])
        for suffix, width in (("acts", 16), ("norms", 4)):
            kept = (folder / f"layers.1.{suffix}").read_bytes()[: good * width]
            assert kept == files[f"layers.1.{suffix}"][: good * width]
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("SAE_MLFLOW_CACHE", base)
            (checked,) = verify_cache()
        assert checked.whole == (content == files[name])


@examples(200)
@given(st.data())
def test_any_facts_of_an_entry_are_listed(rows_on_disk, data):
    store, files = rows_on_disk
    content = data.draw(
        damaged(files["meta.json"]) | values.map(lambda v: json.dumps(v, default=str).encode())
    )
    with TemporaryDirectory() as base, pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAE_MLFLOW_CACHE", base)
        folder = Path(base) / "activations" / store.folder.name
        folder.mkdir(parents=True)
        (folder / "meta.json").write_bytes(content)
        (entry,) = cache.list_cache()
        assert entry.key == folder.name and isinstance(entry.tokens, int)
        list(verify_cache())


# -- the store --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("store")
    store = Store(f"sqlite:///{folder / 'mlflow.db'}")
    return store, store.open_run(store.experiment_id("properties"), "r", {})


steps = iter(range(1, 10**9))


@examples(60)
@given(st.floats())
@example(math.inf)
@example(-math.inf)
@example(math.nan)
@example(5e-324)
@example(-0.0)
@example(1.7976931348623157e308)
def test_any_metric_comes_back_as_it_was_logged(run, value):
    store, opened = run
    step = next(steps)
    opened.log_metrics(step, {"fvu": value})
    found = {s: restored(v) for _, s, v in store.history(opened.run_id, ["fvu"])}[step]
    if abs(value) >= 1.797e308:
        assert found == math.copysign(math.inf, value)
    else:
        assert found == value or (math.isnan(found) and math.isnan(value))


tag_values = st.text(max_size=12) | st.sampled_from(["inf", "nan", "1e400", "-1", "9" * 30, "0"])


@examples(200)
@given(st.dictionaries(st.sampled_from(sorted(process_tags())), tag_values, max_size=5))
@example({"sae.pid": "inf"})
@example({"sae.pid": "9" * 30})
@example({"sae.pid": "nan", "sae.process_started": "nan"})
@example({"sae.heartbeat": "0001-01-01T00:00:00Z", "sae.host_id": "x"})
def test_any_tags_of_a_run_say_that_it_is_dead_or_that_nobody_knows(tags):
    """This process is alive: whatever is odd about a run's tags, it is no reason to crash."""
    for more in ({}, copy.copy(process_tags())):
        reason = why_dead(more | tags, 900)
        assert reason is None or reason.startswith(("process ", "no sign of life from process "))

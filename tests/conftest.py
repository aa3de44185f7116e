"""What several tests need: a tiny language model made on the spot, a text, and caches."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import platformdirs
import pytest
from faults.postgres import PROGRAMS, Postgres
from faults.tiny import make_model, make_text, tiny_data

if "PYTEST_XDIST_WORKER" in os.environ:  # a test file a process: more threads would only wait
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session", autouse=True)
def own_working_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A new store's artifacts land in the folder that one works in: not in the checkout."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("work"))
        yield


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test writes to the user's cache: each has one of its own."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("SAE_MLFLOW_CACHE", str(folder))
    return folder


@pytest.fixture(autouse=True)
def own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nor to the user's checkpoints, nor to what their store hasn't been told."""
    folder = tmp_path / "state"
    monkeypatch.setenv("SAE_MLFLOW_STATE", str(folder))
    return folder


@pytest.fixture
def user_cache(monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's own cache, where the embedded model and text stay between two runs."""
    folder = Path(platformdirs.user_cache_dir("sae-mlflow", appauthor=False))
    monkeypatch.setenv("SAE_MLFLOW_CACHE", str(folder))
    return folder


@pytest.fixture
def one_thread() -> Iterator[None]:
    """For models so small that threads only wait for one another, and for busy machines."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def in_threads() -> Iterator[Callable]:
    """Runs something with a number of threads: `in_threads(2, function)`."""
    import torch

    before = torch.get_num_threads()

    def run(n: int, function: Callable) -> object:
        torch.set_num_threads(n)
        return function()

    yield run
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the language model of `make_model`."""
    return make_model(tmp_path_factory.mktemp("models") / "tiny-llama")


@pytest.fixture(scope="session")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The text of `make_text`."""
    return make_text(tmp_path_factory.mktemp("text") / "tiny.txt")


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    """A database of a module's own; skipped where there is none, except where that may not be."""
    if not (PROGRAMS or os.environ.get("SAE_MLFLOW_POSTGRES") == "1"):
        pytest.skip("needs Debian's package `postgresql`")
    database = Postgres()
    database.start()
    yield database
    database.remove()


@pytest.fixture
def tiny_settings(tiny_model: Path, text_file: Path) -> Callable[..., "object"]:
    """`tiny_settings("model.layers=1,2", ...)`: settings of a training on the tiny model."""
    from sae_mlflow.config import Settings
    from sae_mlflow.config_set import parse_set

    def make(*overrides: str) -> Settings:
        data = tiny_data(tiny_model, text_file)
        for key, value in parse_set(" ".join(overrides)).items():
            section, name = key.split(".")
            data.setdefault(section, {})[name] = value
        return Settings.model_validate(data)

    return make


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The figures as they were saved, in order; drawn in this process."""
    from matplotlib.figure import Figure

    from sae_mlflow.plots import drawing

    saved: list[Figure] = []
    save = Figure.savefig

    def keep(figure: Figure, *args: object, **kwargs: object) -> None:
        saved.append(figure)
        save(figure, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", keep)
    monkeypatch.setattr(drawing, "PROCESSES", 1)
    return saved

"""The CPU kernels where numba can't keep what it compiles, and where there is no numba."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import sae_mlflow

TOPK_STEP = """
import sys
import torch
from plain_user import plain_user

if "no numba" in sys.argv:
    sys.modules["numba"] = None  # as where it can't be imported
with plain_user():
    from sae_mlflow.sae import Batch, kernels
    from sae_mlflow.sae.batch import Sizes
    from sae_mlflow.sae.topk import TopKSAE

    x = torch.eye(4)
    if "one kernel" in sys.argv:
        assert kernels.fired(torch.ones(2), torch.tensor([0, 3]), 4).tolist() == [1, 0, 0, 1]
    else:
        sae = TopKSAE(Sizes(4, 4), k=1)
        sae.initialise(Batch(x, x), torch.Generator().manual_seed(0))
        sae.W_enc.data.copy_(x)
        sae.W_dec.data.copy_(x)
        loss = sae.loss(Batch(x, x), torch.zeros(4, dtype=torch.bool))
        loss.total.backward()
        assert loss.fired.all() and loss.l0 == 1 and sae.W_dec.grad.shape == (4, 4)
    print(kernels.compiled(x))
"""


@pytest.fixture
def installed(tmp_path):
    """The package in a folder that can't be written, and a home that can't either."""
    package = tmp_path / "site" / "sae_mlflow"
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(Path(sae_mlflow.__file__).parent, package, ignore=ignored)
    home = tmp_path / "home"
    home.mkdir()
    closed = [home, package / "sae" / "kernels"]
    for folder in closed:
        folder.chmod(0o555)
    yield package.parent, home
    for folder in closed:
        folder.chmod(0o755)


def run(installed, *arguments, **variables):
    site, home = installed
    moved = ("NUMBA_CACHE_DIR", "SAE_MLFLOW_CACHE", "XDG_CACHE_HOME", "IPYTHONDIR")
    kept = {name: value for name, value in os.environ.items() if name not in moved}
    path = os.pathsep.join([str(site), str(Path(__file__).parent)])
    environment = kept | {"HOME": str(home), "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", TOPK_STEP, *arguments],
        env=environment | variables,
        cwd=site,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip(), done.stderr


def test_kernels_that_cant_be_kept_are_compiled_all_the_same_and_that_is_said_once(installed):
    compiled, said = run(installed, "one kernel")
    assert compiled == "True"
    assert said.count("compiled kernels can't be kept") == said.count("NUMBA_CACHE_DIR") == 1


def test_kernels_are_kept_in_this_projects_cache_until_one_of_them_changes(installed, tmp_path):
    """Where numba has no place. A change in another kernel's file isn't seen by numba itself."""
    kept = []
    for change in ("", "", "# changed\n"):
        with (installed[0] / "sae_mlflow" / "sae" / "kernels" / "loops.py").open("a") as loops:
            loops.write(change)
        compiled, said = run(installed, "one kernel", SAE_MLFLOW_CACHE=str(tmp_path / "ours"))
        assert (compiled, said) == ("True", "")
        kept.append({file.name for file in (tmp_path / "ours" / "numba").rglob("*.nbc")})
    assert kept[0] == kept[1] < kept[2] and len(kept[2]) == 2 * len(kept[0]) > 0


def test_without_numba_standard_operators_do_it_and_that_is_said_once(installed):
    compiled, said = run(installed, "no numba")
    assert compiled == "False"
    assert said.count("numba can't be imported") == 1

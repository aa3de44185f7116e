"""What the project asks for: bounds with their reasons, files by their checksums.

Which versions have known faults only a service can say: `pip-audit` asks one (see the README).
"""

import importlib.metadata
import re
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

import sae_mlflow
from sae_mlflow.assets import Asset
from sae_mlflow.lm.embedded import MODEL
from sae_mlflow.text.embedded import TEXT

ROOT = Path(sae_mlflow.__file__).parents[1]
PYPROJECT = ROOT / "pyproject.toml"

pytestmark = pytest.mark.skipif(not PYPROJECT.exists(), reason="not in a checkout")


def declared() -> list[Requirement]:
    project = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))
    extras = project["project"]["optional-dependencies"].values()
    lists = [project["project"]["dependencies"], project["build-system"]["requires"], *extras]
    return [Requirement(text) for texts in lists for text in texts]


def is_above(operator: str) -> bool:
    """Whether it keeps a newer version out."""
    return operator in ("<", "<=", "==", "===", "~=", "!=")


def test_what_keeps_a_newer_version_out_says_why_beside_it():
    bounded = [r for r in declared() if any(is_above(s.operator) for s in r.specifier)]
    assert "torch" in [r.name for r in bounded], "a case, so that this test looks at something"
    lines = PYPROJECT.read_text(encoding="utf-8").splitlines()
    for requirement in bounded:
        (line,) = (x for x in lines if re.search(rf'"{re.escape(requirement.name)}[=<>~!]', x))
        reason = line.partition("#")[2].split()
        assert len(reason) >= 4, f"{requirement} has an upper bound and gives no reason: {line}"


def test_everything_that_is_run_has_a_lower_bound():
    unbounded = [
        r.name for r in declared() if not any(s.operator in (">=", "==") for s in r.specifier)
    ]
    assert sorted(unbounded) == ["pandas-stubs", "types-PyYAML"], "types alone may be any"


def test_nothing_comes_from_an_address_or_a_branch():
    assert [r.name for r in declared() if r.url] == []
    environment = yaml.safe_load((ROOT / "python_env.yaml").read_text(encoding="utf-8"))
    assert environment == {"build_dependencies": ["pip"], "dependencies": ["."]}


def test_what_is_installed_is_within_the_bounds():
    """So that the tests speak of what a user gets."""
    project = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]
    for requirement in map(Requirement, project["dependencies"]):
        version = importlib.metadata.version(requirement.name)
        assert requirement.specifier.contains(version, prereleases=True), (requirement, version)


def test_a_file_that_is_fetched_is_pinned_by_hash_and_version():
    for asset in (MODEL, TEXT):
        assert isinstance(asset, Asset)
        assert re.fullmatch(r"\d+(\.\d+)+", asset.version)
        assert re.fullmatch(r"[0-9a-f]{64}", asset.wheel_sha256)
        assert re.fullmatch(r"[0-9a-f]{64}", asset.member_sha256)

"""The way through the house: who may import whom."""

import ast
import subprocess
import sys
from pathlib import Path

import sae_mlflow

PACKAGE = Path(sae_mlflow.__file__).parent


def modules():
    return {
        ".".join(file.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): file
        for file in PACKAGE.rglob("*.py")
        if file.parent.name != "configs"
    }


def imported(file):
    """The modules of ours that a file imports, in functions too, but not for types alone."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    typing_only = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and getattr(block.test, "id", "") == "TYPE_CHECKING"
        for node in ast.walk(block)
    }
    for node in ast.walk(tree):
        if id(node) in typing_only or not isinstance(node, ast.ImportFrom):
            continue
        package = (node.module or "").removeprefix("sae_mlflow").removeprefix(".")
        if not (node.module or "").startswith("sae_mlflow"):
            continue
        for alias in node.names:
            submodule = f"{package}.{alias.name}".removeprefix(".")
            yield submodule if submodule in modules() else package


def test_imports_run_one_way():
    """No module can be reached from itself."""
    known = modules()
    edges = {name: {m for m in imported(file) if m in known} for name, file in known.items()}

    def below(name, seen):
        for other in edges[name] - seen:
            seen.add(other)
            below(other, seen)
        return seen

    circular = sorted(name for name in edges if name != "__init__" and name in below(name, set()))
    assert circular == []


def test_nothing_below_the_pipeline_knows_the_tracker_or_the_plots():
    known = modules()
    for name in ("train", "metrics", "activations", "corpus", "language_model", "sae.topk"):
        assert not set(imported(known[name])) & {"tracking", "plot", "figures", "pipeline", "cli"}


def test_only_tracking_imports_mlflow():
    """And the code of a registered model, which MLflow runs and nothing here imports."""
    users = [
        name
        for name, file in modules().items()
        if any(
            (
                isinstance(node, ast.Import)
                and any(a.name.split(".")[0] == "mlflow" for a in node.names)
            )
            or (isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "mlflow")
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        )
    ]
    assert sorted(users) == ["registered_model", "tracking"]
    importers = [name for name, file in modules().items() if "registered_model" in imported(file)]
    assert importers == []


def test_the_package_and_its_command_line_import_nothing_heavy():
    code = (
        "import sys, sae_mlflow, sae_mlflow.__main__, sae_mlflow.plot;"
        "heavy = {'torch', 'transformers', 'mlflow', 'pandas', 'matplotlib', 'datasets'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

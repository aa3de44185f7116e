"""The way through the house: who may import whom."""

import ast
import functools
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


def run_time_nodes(file):
    """A file's syntax, without what stands under `if TYPE_CHECKING`."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    typing_only = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and getattr(block.test, "id", "") == "TYPE_CHECKING"
        for node in ast.walk(block)
    }
    return [node for node in ast.walk(tree) if id(node) not in typing_only]


def imported(nodes):
    """The modules of ours that are imported, in functions too."""
    for node in nodes:
        if isinstance(node, ast.Import):
            ours = [a.name for a in node.names if a.name.startswith("sae_mlflow.")]
            yield from (name.removeprefix("sae_mlflow.") for name in ours)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("sae_mlflow"):
            package = (node.module or "").removeprefix("sae_mlflow").removeprefix(".")
            for alias in node.names:
                submodule = f"{package}.{alias.name}".removeprefix(".")
                yield submodule if submodule in modules() else package


def all_nodes(file):
    return list(ast.walk(ast.parse(file.read_text(encoding="utf-8"))))


@functools.cache
def edges(nodes=run_time_nodes):
    """What each module imports of ours, not for types alone unless `nodes` says so."""
    known = modules()
    return {name: {m for m in imported(nodes(file)) if m in known} for name, file in known.items()}


def home(name):
    """A module's folder; of one at the top, itself."""
    return name.split(".")[0]


def of_homes(edges):
    found = {home(name): set() for name in edges}
    for name, others in edges.items():
        found[home(name)] |= {home(other) for other in others} - {home(name)}
    return found


def reached_from(name, edges):
    """All that one gets to by following imports."""
    found, waiting = set(), [name]
    while waiting:
        new = edges[waiting.pop()] - found
        found |= new
        waiting += new
    return found


def test_imports_run_one_way():
    """No module can be reached from itself, and no folder, by what is imported for types either."""
    for graph in (edges(all_nodes), of_homes(edges(all_nodes))):
        assert [name for name in graph if name in reached_from(name, graph)] == []


def test_nothing_below_the_pipeline_knows_the_tracker_or_the_plots():
    above = {"tracking", "plot", "plots", "pipeline", "runs", "commands", "reporting"}
    below = [
        name
        for name in modules()
        if home(name) in {"train", "metrics", "text", "lm", "activations", "sae"}
    ]
    assert len(below) > 20
    for name in below:
        assert not {home(other) for other in edges()[name]} & above, name


def libraries(file):
    """The packages of others that a file imports, in functions too, but not for types alone."""
    for node in run_time_nodes(file):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield (node.module or "").split(".")[0]


def test_only_tracking_imports_mlflow():
    users = {home(name) for name, file in modules().items() if "mlflow" in libraries(file)}
    assert users == {"tracking"}


def test_nothing_imports_the_code_of_a_registered_model():
    """MLflow runs it, where only the installed package is at hand."""
    name = "tracking.registered_model"
    assert name in modules()
    assert [other for other in modules() if name in edges()[other]] == []


def test_plotting_imports_neither_torch_nor_transformers():
    """Nor anything of ours that would."""
    known = modules()
    heavy = {name for name, file in known.items() if {"torch", "transformers"} & {*libraries(file)}}
    assert {"train", "sae.base", "lm.loading"} <= heavy
    plotting = [name for name in known if home(name) in {"plot", "plots", "report"}]
    assert len(plotting) > 10
    for name in plotting:
        assert not heavy & {name, *reached_from(name, edges())}, name


def printed(code):
    """What a process of its own prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_the_package_and_its_command_line_import_nothing_heavy():
    code = (
        "import sys, sae_mlflow, sae_mlflow.__main__, sae_mlflow.plot;"
        "heavy = {'torch', 'transformers', 'mlflow', 'pandas', 'matplotlib', 'plotly', 'datasets'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    assert printed(code) == "[]"


def test_a_process_that_draws_loads_no_mlflow():
    """With the command line, which a spawned process imports as well."""
    code = (
        "import sys, sae_mlflow.__main__, sae_mlflow.plots.figures, sae_mlflow.plots.interactive;"
        "import sae_mlflow.plots.compare.figures, sae_mlflow.plots.compare.page_content;"
        "print(sorted({'torch', 'transformers', 'mlflow', 'sqlalchemy'} & set(sys.modules)))"
    )
    assert printed(code) == "[]"

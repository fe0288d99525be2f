"""The floor plan: imports run one way, and late where they are slow."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import selftaught

ROOT = Path(selftaught.__file__).parent

# A folder imports from the rows above it: never from its own row, nor from one below.
ROWS = """
errors text files ranges seeding devices distributed losses
method optim views loggers data
models features
methods hard
config
runs
training report
evaluation visualize
pipeline
study
api
cli
__init__ __main__
"""
ROW = {room: i for i, row in enumerate(ROWS.strip().splitlines()) for room in row.split()}
FOUNDATION = ROW["errors"]  # its files may import each other
WITH_CODE = {"", "methods", "hard"}  # packages whose __init__ holds more than a docstring
MODULES = {
    ".".join(p.relative_to(ROOT).with_suffix("").parts): p for p in sorted(ROOT.rglob("*.py"))
}


def room(module: str) -> str:
    return module.split(".", maxsplit=1)[0]


@cache
def imports(module: str) -> frozenset[str]:
    """Modules of this package that a module imports, also inside functions."""
    return frozenset(_imports(ast.parse(MODULES[module].read_text(encoding="utf-8"))))


def _imports(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "selftaught":
            base = (node.module or "").removeprefix("selftaught").strip(".")
            for alias in node.names:
                below = f"{base}.{alias.name}".strip(".")
                package = f"{base}.__init__".strip(".")
                yield below if below in MODULES else base if base in MODULES else package


def test_imports_run_one_way() -> None:
    wrong = [
        f"{module} imports {other}"
        for module in MODULES
        for other in imports(module)
        if room(other) != room(module)
        and not ROW[room(other)] < ROW[room(module)]
        and not ROW[room(other)] == ROW[room(module)] == FOUNDATION
    ]
    assert not wrong


def test_no_circles_inside_a_folder() -> None:
    graph = {module: {other for other in imports(module) if other != module} for module in MODULES}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_a_package_says_what_it_is_and_no_more() -> None:
    for name, path in MODULES.items():
        if path.name == "__init__.py":
            body = ast.parse(path.read_text(encoding="utf-8")).body
            assert isinstance(body[0], ast.Expr), path
            assert len(body) == 1 or name.removesuffix("__init__").strip(".") in WITH_CODE, path


def test_file_names_are_unique_but_for_commands() -> None:
    names = [p.name for m, p in MODULES.items() if room(m) != "cli" and p.name != "__init__.py"]
    assert sorted(set(names)) == sorted(names)


def test_few_modules_at_the_top() -> None:
    assert len(list(ROOT.glob("*.py"))) <= 12


def test_a_plain_folder_walks_through_no_parquet() -> None:
    """Images of a plain folder are found, read and shown without a module for Parquet files, packs
    or plans.
    """
    code = (
        "import sys\nimport selftaught.data.loading.loader, selftaught.views.augment,"
        " selftaught.training.step\nassert not [m for m in sys.modules if 'parquet' in m or 'pack'"
        " in m.split('.')], sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-300:]


def test_torch_distributed_has_one_home() -> None:
    for file in ROOT.rglob("*.py"):
        if file.name != "distributed.py":
            assert "torch.distributed" not in file.read_text(encoding="utf-8"), file


def test_help_waits_for_no_torch() -> None:
    code = (
        "import sys, selftaught.cli.main as c; c.main(['--help']); assert 'torch' not in"
        " sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "pretrain" in done.stdout

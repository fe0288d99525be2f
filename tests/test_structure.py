"""Imports run one way, and late where they are slow."""

import ast
import subprocess
import sys
from pathlib import Path

import selftaught

ROOT = Path(selftaught.__file__).parent

# Each layer may import from those above it, and from itself only where it says so.
LAYERS = [
    {"errors", "memory", "devices", "convolutions"},
    {"distributed"},
    {"plan", "losses", "checkpoint", "data.paths", "data.machine", "data.damage", "data.views", "data.order"},
    {"data.folder_names"},
    {
        "data.locations",
        "data.cache",
        "words",
        "data.pixel_range",
        "data.tiff",
        "data.color_profile",
        "input_check",
        "data.hub",
    },
    {"data.high_depth"},
    {"threads"},
    {"data.shard"},
    {"data.store"},
    {
        "networks",
        "clustering",
        "journal",
        "data.scan",
        "data.decode",
        "data.patches",
        "data.originals",
        "method",
        "dialects",
        "inert",
        "trainable",
    },
    {"data.folders"},
    {"data.split", "data.layout", "data.parts", "data.verdicts", "data.images", "data.encode", "data.recall"},
    {"data.table_words", "layouts", "weight_files"},
    {"data.columns", "data.delimited", "data.image_lookup", "data.table_columns"},
    {"data.foreign", "data.nearest_tables"},
    {"data.rows", "data.label_table"},
    {"data.labels", "data.batches", "data.ahead", "methods.*", "step", "backbones", "optim", "evaluation.*", "likeness"},
    {"data.table_labels", "matching"},
    {"data.index", "hard.*", "fit", "watch", "weights", "compiling", "sharding"},
    {"data.pack"},
    {"stage", "choice", "tuning", "heads", "recipes", "precision"},
    {"recipe"},
    {"run", "trainee", "flags", "progress", "catalogue"},
    {"report.*"},
    {"pictures", "classifying", "identity", "publish"},
    {"judge"},
    {"life"},
    {"train"},
    {"adapting", "demo", "lineage"},
    {"study.*"},
    {"commands.*"},
    {"cli"},
    {"", "__main__"},
]
FREELY = {
    "methods.*",
    "hard.*",
    "evaluation.*",
    "report.*",
    "commands.*",
    "study.*",
}  # packages whose modules import each other


def name_of(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(p for p in parts if p != "__init__")


def layer(name: str) -> tuple[int, str]:
    for i, names in enumerate(LAYERS):
        for known in names:
            if name == known or (known.endswith(".*") and (name + ".").startswith(known[:-1])):
                return i, known
    raise AssertionError(f"{name} has no layer: give it one")


def imports(file: Path, functions: bool) -> set[str]:
    """Modules of this package that a file imports at its top; with `functions`, also inside them."""
    found = set()
    tree = ast.parse(file.read_text())
    for node in ast.walk(tree) if functions else tree.body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("selftaught"):
            base = (node.module or "")[len("selftaught") :].strip(".")
            for alias in node.names:
                below = f"{base}.{alias.name}".strip(".")
                exists = (ROOT / below.replace(".", "/")).with_suffix(".py").exists() or (
                    ROOT / below.replace(".", "/")
                ).is_dir()
                found.add(below if exists else base)
    return found


def test_imports_run_one_way() -> None:
    for file in sorted(ROOT.rglob("*.py")):
        mine = name_of(file)
        if mine in ("", "data"):
            continue
        height, own = layer(mine)
        for other in imports(file, functions=True):
            if other in ("", "data", mine):
                continue
            theirs, name = layer(other)
            assert theirs < height or (name == own and own in FREELY), f"{mine} imports {other}"


def test_torch_distributed_has_one_home() -> None:
    for file in ROOT.rglob("*.py"):
        if file.name != "distributed.py":
            assert "torch.distributed" not in file.read_text(), file


def test_a_long_file_says_why() -> None:
    for file in ROOT.rglob("*.py"):
        text = file.read_text()
        if len(text.splitlines()) > 200:
            head = ast.get_docstring(ast.parse(text)) or ""
            assert "200 lines" in head, f"{file} is long and does not say why"


def test_saying_how_it_is_used_waits_for_no_torch() -> None:
    code = "import sys, selftaught.cli.main as c; c.main(['--help']); assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "pretrain" in done.stdout

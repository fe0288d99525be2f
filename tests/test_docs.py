"""The documentation: links, pictures, pages of methods, the newcomer's walk, code blocks."""

import ast
import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image

from selftaught.methods import METHODS
from tests.test_structure import ROWS

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [*DOCS.rglob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
WALK_FILES, WALK_LINES = 12, 600
README_LINES = 120


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_a_page_with_a_picture_and_its_paper(name: str) -> None:
    page = DOCS / "methods" / f"{name}.md"
    text = page.read_text()
    for address in re.findall(r"https?://[^\s,;)]+", METHODS[name].paper):
        assert address in text
    shown = [page.parent / file for file in re.findall(r"!\[[^\]]+\]\(([^)]+)\)", text)]
    assert DOCS / "figures" / "methods" / f"{name}.png" in [file.resolve() for file in shown]
    for file in shown:
        assert file.stat().st_size <= 60_000
        with Image.open(file) as picture:
            assert 600 <= picture.width <= 1000
    assert f"({name}.md)" in (DOCS / "methods" / "index.md").read_text()
    assert f"methods/{name}.md" in (ROOT / "mkdocs.yml").read_text()


def test_links_lead_somewhere() -> None:
    for page in PAGES:
        for link in re.findall(r"\]\(([^)#\s]+)", page.read_text()):
            assert "://" in link or (page.parent / link).exists(), f"{page.name}: {link}"


def anchors(page: Path) -> set[str]:
    """The names under which headings of a page can be linked to, as GitHub and MkDocs make them."""
    heads = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    plain = [re.sub(r"[^\w\s-]", "", head.replace("`", "")).strip().lower() for head in heads]
    return {re.sub(r"\s+", "-", head) for head in plain}


def test_links_to_headings_lead_to_headings() -> None:
    for page in PAGES:
        for link, anchor in re.findall(r"\]\(([^)#\s:]*)#([^)\s]+)\)", page.read_text()):
            target = page.parent / link if link else page
            assert anchor in anchors(target), f"{page.name}: {link}#{anchor}"


def test_every_picture_can_be_drawn_again() -> None:
    """A method without a way to draw it would keep an old picture."""
    figures = pytest.importorskip("benchmarks.figures", reason="needs matplotlib")
    assert set(figures.SEEN) == set(METHODS)


def test_the_readme_is_short_and_names_the_two_commands() -> None:
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= README_LINES
    assert any(line.startswith("    make demo ") for line in lines)
    assert any(line.startswith("    make test ") for line in lines)


def test_every_page_is_in_the_navigation() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text()
    for page in DOCS.rglob("*.md"):
        assert str(page.relative_to(DOCS)) in navigation, page.name


# --------------------------------------------------------------------------------------------------
# the newcomer's walk: the table of CONTRIBUTING.md


def walk() -> dict[Path, list[str]]:
    """The files of the table, each with the names to read; none: the whole file."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    table = text.partition("## The first walk")[2].partition("\nAfter that")[0]
    rows = [line.split("|") for line in table.splitlines() if "](selftaught/" in line]
    result = {}
    for _, _, file, names, *_ in rows:
        (link,) = re.findall(r"\]\(([^)]+)\)", file)
        result[ROOT / link] = re.findall(r"`([^`]+)`", names)
    return result


def lines_of(tree: ast.Module, name: str) -> int:
    """How many lines the class, function or method `name` has, decorators included."""
    node: ast.AST = tree
    for part in name.split("."):
        node = next(n for n in ast.iter_child_nodes(node) if getattr(n, "name", None) == part)
    assert isinstance(node, ast.ClassDef | ast.FunctionDef)
    first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
    assert node.end_lineno is not None
    return node.end_lineno - first + 1


def test_the_first_walk_is_short() -> None:
    files = walk()
    assert 8 <= len(files) <= WALK_FILES
    lines = 0
    for file, names in files.items():
        text = file.read_text()
        tree = ast.parse(text)
        lines += sum(lines_of(tree, name) for name in names) if names else len(text.splitlines())
    assert lines <= WALK_LINES


def test_the_first_walk_follows_imports() -> None:
    """Each file imports another one of the walk, or is imported by one."""
    files = list(walk())
    modules = {
        ".".join(file.relative_to(ROOT).with_suffix("").parts): file.read_text() for file in files
    }
    for module, text in modules.items():
        others = {name: other for name, other in modules.items() if name != module}
        imports = any(f"from {name} import" in text for name in others)
        imported = any(f"from {module} import" in other for other in others.values())
        assert imports or imported, module


def test_the_source_tree_is_that_of_the_package() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    tree = text.partition("    selftaught/\n")[2].partition("    tests/")[0]
    listed = set(re.findall(r"(?:^ +|  )([a-z_]+(?:/|\.py))(?=\s)", tree, re.MULTILINE))
    package = ROOT / "selftaught"
    folders = {f"{p.name}/" for p in package.iterdir() if (p / "__init__.py").exists()}
    assert folders <= listed
    there = {f"{p.name}/" if p.is_dir() else p.name for p in package.rglob("*")}
    assert listed <= there


def test_the_import_order_is_that_of_the_law() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    order = text.partition("checks it.\n")[2].partition("\n## ")[0]
    rows = [row.split() for row in ROWS.strip().splitlines() if "__" not in row]
    assert [row.split() for row in re.findall(r"`([^`]+)`", order)] == rows


# --------------------------------------------------------------------------------------------------
# the site


def hooks() -> ModuleType:
    """docs/hooks.py, which MkDocs runs."""
    spec = importlib.util.spec_from_file_location("docs_hooks", DOCS / "hooks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", METHODS)
def test_the_head_of_a_methods_page_comes_from_the_code(name: str) -> None:
    import dataclasses

    head = hooks().method_head(name)
    config = METHODS[name].Config
    rows = [line for line in head.splitlines() if line.startswith("| `")]
    assert len(rows) == len(dataclasses.fields(config))
    for field, line in zip(dataclasses.fields(config), rows, strict=True):
        assert f"`{field.name}`" in line
        assert f"`{field.default!r}`" in line
        number = isinstance(field.default, int | float) and not isinstance(field.default, bool)
        assert not number or re.search(r"number, (from|above|[\d.]+ or more)", line), line
    for address in re.findall(r"https?://[^\s,;)]+", METHODS[name].paper):
        assert address in head


def test_links_that_leave_the_pages_do_not_break() -> None:
    """Without the repository's address they are plain text, with it they lead there."""
    links = hooks().outward_links
    text = "[a](../benchmarks/results/pack.json) [b](pack.md) [c](../CONTRIBUTING.md#a-change)"
    plain = "a (`benchmarks/results/pack.json`) [b](pack.md) [c](contributing.md#a-change)"
    assert links(text, Path("index.md"), None) == plain
    there = "https://host/it/blob/main/benchmarks/results/pack.json"
    assert f"[a]({there})" in links(text, Path("index.md"), "https://host/it")


def test_the_page_of_methods_says_which_to_take() -> None:
    assert hooks().README in (DOCS / "methods" / "index.md").read_text()
    section = hooks().which_method()
    assert "`simclr`" in section
    assert "docs/" not in section

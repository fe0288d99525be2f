"""What MkDocs does besides rendering: heads of methods' pages from the code, and links that leave
docs/.

A method's page begins with its paper, its properties and a table of its fields: name, range,
default, meaning. All of that is read from the class when the site is built, so it cannot go out of
date. Needs selftaught importable.
"""

import ast
import dataclasses
import inspect
import os
import re
import textwrap
import typing
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
README = "../../README.md#which-method-to-take"  # as methods/index.md links to it
CONTRIBUTING = "contributing.md"  # a page of the site, made of CONTRIBUTING.md


def on_files(files: Any, config: Any) -> Any:
    """CONTRIBUTING.md stands beside docs/, and is a page all the same."""
    from mkdocs.structure.files import File

    text = (ROOT / "CONTRIBUTING.md").read_text()
    files.append(File.generated(config, CONTRIBUTING, content=text.replace("](docs/", "](")))
    return files


def on_page_markdown(text: str, page: Any, config: Any, files: Any) -> str:
    source = Path(page.file.src_uri)
    if source.parent.name == "methods":
        title, line, rest = text.partition("\n")
        if head := method_head(source.stem):
            text = f"{title}{line}\n{head}\n{rest}"
    if str(source) == "methods/index.md":
        text = text.replace(f"]({README})", f"](#{README.partition('#')[2]})")
        text += which_method()
    return outward_links(text, source, config["repo_url"])


def which_method() -> str:
    """The section of the README that says which method to take."""
    title = "## Which method to take"
    section = (ROOT / "README.md").read_text().partition(title)[2].partition("\n[All ")[0]
    section = section.replace("](docs/methods/", "](").replace("](docs/", "](../")
    return f"\n{title}\n{section}"


def outward_links(text: str, source: Path, repository: str | None) -> str:
    """Links to files outside docs/ lead to the repository; without an address they are plain text.

    `source` is the page's path in docs/.
    """
    folder = ROOT if str(source) == CONTRIBUTING else DOCS / source.parent

    def replace(match: re.Match[str]) -> str:
        label, link = match.groups()
        path = Path(os.path.normpath(folder / link.partition("#")[0]))
        if "://" in link or link.startswith("#") or path.is_relative_to(DOCS) or not path.exists():
            return match[0]
        if path == ROOT / "CONTRIBUTING.md":
            anchor = link.partition("#")[1] + link.partition("#")[2]
            return f"[{label}]({'../' * len(source.parents[:-1])}{CONTRIBUTING}{anchor})"
        where = path.relative_to(ROOT)
        if repository:
            return f"[{label}]({repository.rstrip('/')}/blob/main/{where})"
        return label if str(where) in label else f"{label} (`{where}`)"

    return re.sub(r"(?<!!)\[([^\]]+)\]\(([^)\s]+)\)", replace, text)


# --------------------------------------------------------------------------------------------------
# heads of methods' pages


def method_head(name: str) -> str:
    """The head of a method's page, in Markdown; nothing for a page that is no method's."""
    from selftaught.methods import METHODS

    method = METHODS.get(name)
    if method is None:
        return ""
    summary = " ".join(inspect.cleandoc(method.__doc__ or "").split("\n\n")[0].split())
    paper = re.sub(r"(https?://[^\s,;)]+)", r"<\1>", method.paper)
    lines = [
        f"*{summary}*",
        "",
        *([f"- **Paper**: {paper}"] if "http" in paper else []),
        f"- **Command**: `selftaught pretrain --data photos/ --out runs/a --method {name}`",
        f"- **Class**: `{method.__module__}.{method.__name__}`",
        f"- **Compares the images of a batch**: {'yes' if method.couples_samples else 'no'}",
        "",
    ]
    fields = dataclasses.fields(method.Config)
    if not fields:
        return "\n".join([*lines, "It has no fields of its own."])
    meanings = field_meanings(method.Config)
    lines += ["| Field | Range | Default | Meaning |", "| --- | --- | --- | --- |"]
    for field in fields:
        default = "required" if field.default is dataclasses.MISSING else f"`{field.default!r}`"
        meaning = meanings.get(field.name, "").replace("|", "\\|")
        lines.append(
            f"| `{field.name}` | {range_of(method.Config, field)} | {default} | {meaning} |"
        )
    flag = fields[0].name.replace("_", "-")
    return "\n".join(
        [
            *lines,
            "",
            f"Each field is a flag (`--method.{flag}`). Defaults are those of the class. A run"
            " scales some of them to its data, and writes what it took into `run.json`.",
        ]
    )


def range_of(config: type, field: dataclasses.Field[Any]) -> str:
    """The values that a field takes: its choices, or the range in its type."""
    from selftaught.ranges import ranges_of

    kind = typing.get_type_hints(config, include_extras=True)[field.name]
    if choices := choices_of(kind):
        return ", ".join(f"`{choice}`" for choice in choices)
    if field.name in ranges_of(config):
        return str(ranges_of(config)[field.name])
    return "yes or no" if isinstance(field.default, bool) else "text"


def choices_of(kind: Any) -> tuple[Any, ...]:
    """The values of a Literal, also inside an Annotated."""
    if typing.get_origin(kind) is typing.Annotated:
        return choices_of(typing.get_args(kind)[0])
    return typing.get_args(kind) if typing.get_origin(kind) is typing.Literal else ()


def field_meanings(config: type) -> dict[str, str]:
    """What the source says of each field: a comment on its line or above it, or a string below."""
    found: dict[str, str] = {}
    for owner in reversed(config.__mro__):
        try:
            text = textwrap.dedent(inspect.getsource(owner))
        except (OSError, TypeError):  # object
            continue
        lines = text.splitlines()
        node = ast.parse(text).body[0]
        assert isinstance(node, ast.ClassDef)
        for statement, following in zip(node.body, [*node.body[1:], None], strict=True):
            if not isinstance(statement, ast.AnnAssign):
                continue
            assert isinstance(statement.target, ast.Name)
            said = comment_at(lines, statement)
            if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
                said = " ".join(str(following.value.value).split())
            if said:
                found[statement.target.id] = said
    return found


def comment_at(lines: list[str], statement: ast.stmt) -> str:
    """The comment behind a statement, or the ones on the lines above it."""
    last = lines[(statement.end_lineno or statement.lineno) - 1]
    behind = last[statement.end_col_offset or 0 :].strip()
    if behind.startswith("#"):
        return behind.lstrip("# ")
    above: list[str] = []
    number = statement.lineno - 2
    while number >= 0 and lines[number].strip().startswith("#"):
        above.insert(0, lines[number].strip().lstrip("# "))
        number -= 1
    return " ".join(above)

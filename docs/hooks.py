"""What MkDocs does besides rendering: heads of methods' pages from the code, and links that leave
docs/.

A method's page begins with its paper, its properties and a table of its fields: name, range,
default, meaning. All of that is read from the class when the site is built, so it cannot go out of
date. Needs selftaught importable.
"""

import inspect
import os
import re
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
    from selftaught.cli.methods import catalogue
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
    fields = catalogue([name])[0]["fields"]
    if not fields:
        return "\n".join([*lines, "It has no fields of its own."])
    lines += ["| Field | Values | Default | Meaning |", "| --- | --- | --- | --- |"]
    for field in fields:
        values, meaning = (field[key].replace("|", "\\|") for key in ("values", "meaning"))
        lines.append(f"| `{field['name']}` | {values} | `{field['default']!r}` | {meaning} |")
    return "\n".join(
        [
            *lines,
            "",
            f"Each field is a flag (`{fields[0]['flag']}`). Defaults are those of the class. A run"
            " scales some of them to its data, and writes what it took into `run.json`.",
        ]
    )

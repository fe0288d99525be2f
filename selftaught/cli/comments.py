"""Comments in the source of a dataclass: what each field means."""

import ast
import dataclasses
import inspect
import textwrap
import tokenize
from io import StringIO


def find_comments(config: type) -> dict[str, str]:
    """Return the comment of each field that has one, also of those that are inherited.

    A comment stands on the line of its field, or alone on the lines above it.
    """
    found: dict[str, str] = {}
    for cls in reversed(config.__mro__):
        if dataclasses.is_dataclass(cls):
            found |= _comments_in(textwrap.dedent(inspect.getsource(cls)))
    return found


def _comments_in(source: str) -> dict[str, str]:
    tokens = tokenize.generate_tokens(StringIO(source).readline)
    comments = {token.start[0]: token for token in tokens if token.type == tokenize.COMMENT}
    text = {line: token.string.strip("# ") for line, token in comments.items()}
    alone = {line for line, token in comments.items() if token.line.lstrip().startswith("#")}
    definition = ast.parse(source).body[0]
    assert isinstance(definition, ast.ClassDef)
    found = {}
    for node in definition.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            first = node.lineno
            while first - 1 in alone:
                first -= 1
            above = " ".join(text[line] for line in range(first, node.lineno))
            found[node.target.id] = text.get(node.end_lineno or node.lineno, above)
    return {name: words for name, words in found.items() if words}

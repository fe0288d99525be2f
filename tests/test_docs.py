"""Every method has its page, with a picture and its paper."""

import re
from pathlib import Path

import pytest
from PIL import Image

from selftaught.methods import METHODS

DOCS = Path(__file__).parents[1] / "docs"


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


def test_links_lead_somewhere() -> None:
    for page in [*DOCS.rglob("*.md"), DOCS.parent / "README.md"]:
        for link in re.findall(r"\]\(([^)#\s]+)", page.read_text()):
            assert "://" in link or (page.parent / link).exists(), f"{page.name}: {link}"


def test_every_picture_can_be_drawn_again() -> None:
    """A method without a way to draw it would keep an old picture."""
    figures = pytest.importorskip("benchmarks.figures", reason="needs matplotlib")
    assert set(figures.SEEN) == set(METHODS)

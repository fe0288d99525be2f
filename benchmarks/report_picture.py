"""docs/figures/report.png, from a report. `python -m benchmarks.report_picture demo/report.html`

Needs playwright and a Chromium (`pip install playwright`; `--browser /usr/bin/chromium`), which are
no part of the project's extras. The picture shows the verdict, the scores and the first curves.
"""

import argparse
import io
from pathlib import Path

from PIL import Image

OUT = Path(__file__).parents[1] / "docs" / "figures" / "report.png"
WIDTH = 1000  # pixels of the page; two columns of it make the picture
PICTURE = 1500  # pixels that the picture is wide


def photograph(report: Path, browser: str | None) -> tuple[Image.Image, dict[str, float]]:
    """The whole page, and where each of its sections begins."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        page = chromium.new_page(viewport={"width": WIDTH, "height": 1000}, color_scheme="light")
        page.goto(report.resolve().as_uri())
        heads = page.evaluate(
            "[...document.querySelectorAll('h2')]"
            ".map(h => [h.textContent.trim(), h.getBoundingClientRect().top + scrollY])"
        )
        image = Image.open(io.BytesIO(page.screenshot(full_page=True))).convert("RGB")
        chromium.close()
    return image, dict(heads)


def arrange(page: Image.Image, heads: dict[str, float]) -> Image.Image:
    """Left the verdict and the first curves, right the scores."""
    scores, training = (round(heads[name]) for name in ("Before and after", "Training"))
    right = page.crop((0, scores - 20, WIDTH, training - 60))
    verdict = page.crop((0, 20, WIDTH, scores - 110))
    curves = page.crop((0, training - 10, WIDTH, training + right.height - verdict.height))
    sheet = Image.new("RGB", (2 * WIDTH, right.height), page.getpixel((2, 2)))
    for part, place in ((verdict, (0, 0)), (curves, (0, verdict.height + 10)), (right, (WIDTH, 0))):
        sheet.paste(part, place)
    return sheet.resize((PICTURE, PICTURE * sheet.height // sheet.width), Image.Resampling.LANCZOS)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("report", type=Path)
    parser.add_argument("--browser")
    args = parser.parse_args()
    arrange(*photograph(args.report, args.browser)).quantize(256).save(OUT, optimize=True)
    print(OUT)

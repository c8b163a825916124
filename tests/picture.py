"""Make the README's picture: ``python -m tests.picture [ARTIFACTS]`` photographs the report that a rehearsal left.

The report is the one of the newest ``scripts/rehearse``, unless a folder of artifacts is named. It is photographed in light and in dark.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from tests.support import ROOT

SCHEMES = ("light", "dark")
SIZE = {"width": 1100, "height": 800}
LARGEST_BYTES = 200 * 1024


def path_of(scheme: str) -> Path:
    """Return where a picture lies."""
    return ROOT / ".github" / "docs" / f"report-{scheme}.png"


def photograph(artifacts: Path) -> list[Path]:
    """Photograph the head of the report among these artifacts, and return the pictures."""
    from playwright.sync_api import sync_playwright

    (page_file,) = artifacts.glob("deployment-record-*/deployment-report-*.html")
    pictures = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for scheme in SCHEMES:
            # Without scripts the page does not say that the window closed since.
            context = browser.new_context(viewport=SIZE, color_scheme=scheme, java_script_enabled=False)
            page = context.new_page()
            page.goto(page_file.resolve().as_uri())
            page.screenshot(path=path_of(scheme))
            pictures.append(path_of(scheme))
        browser.close()
    return pictures


if __name__ == "__main__":
    for picture in photograph(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "rehearsal" / "artifacts"):
        print(f"{picture}: {picture.stat().st_size} bytes")

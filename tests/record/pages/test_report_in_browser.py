"""A report in a real browser: quiet, readable in light and dark, on a phone and a screen, by keyboard, on paper and without scripts."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import axe_playwright_python
import pytest
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

from azora_ci.record.pages.report.material import Material
from azora_ci.record.pages.report.view import report
from tests.support import report_material as reports
from tests.support.report_material import write

SIZES = {"phone": (360, 740), "screen": (1440, 900)}
AXE = Path(axe_playwright_python.__file__).parent / "axe.min.js"
pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    chromium = shutil.which("chromium")
    assert chromium, "these tests need chromium: .ci/run installs it"
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write(tmp_path_factory.mktemp("pages"))


def opened(context: BrowserContext, path: Path) -> tuple[Page, list[str]]:
    """Open a page; return it with a list to which everything that a page should not do is added."""
    page, heard = context.new_page(), list[str]()
    page.on("console", lambda message: heard.append(f"console: {message.text}"))
    page.on("pageerror", lambda error: heard.append(f"error: {error}"))
    page.on("dialog", lambda dialog: (heard.append(f"dialog: {dialog.message}"), dialog.dismiss()))
    page.on("request", lambda request: None if request.url == path.as_uri() else heard.append(f"request: {request.url}"))
    page.goto(path.as_uri())
    return page, heard


def violations(page: Page) -> list[str]:
    page.evaluate(AXE.read_text(encoding="utf-8"))
    found: dict[str, Any] = page.evaluate("axe.run({resultTypes: ['violations']})")
    assert len(found["passes"]) > 20, "axe has looked at the page"
    return [f"{violation['id']}: {violation['nodes'][0]['html'][:200]}" for violation in found["violations"]]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_every_page_is_quiet_fits_and_is_accessible(browser: Browser, pages: dict[str, Path], size: str, scheme: Any) -> None:
    width, height = SIZES[size]
    with browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme) as context:
        for name, path in pages.items():
            page, heard = opened(context, path)
            assert page.evaluate("document.documentElement.scrollWidth") <= width, f"{name} scrolls sideways"
            lowest = page.evaluate("Math.max(...[...document.querySelectorAll('.answer')].map(a => a.getBoundingClientRect().bottom))")
            assert lowest <= height, f"{name}: the four answers are not all on the first screen"
            colours = page.evaluate("[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]")
            assert (sum(map(int, colours[0][4:-1].split(","))) > 384) is (scheme == "light"), colours
            if name == {"phone": "rolled back", "screen": "success"}[size]:
                assert violations(page) == [], name
            assert heard == [], name
            page.close()


def test_everything_is_reached_and_opened_by_keyboard(browser: Browser, pages: dict[str, Path]) -> None:
    with browser.new_context() as context:
        page, _ = opened(context, pages["rolled back"])
        reachable = page.evaluate("document.querySelectorAll('a[href], summary, [tabindex=\"0\"]').length")
        hidden = page.evaluate("document.querySelectorAll('details:not([open]) :is(a[href], [tabindex=\"0\"])').length")
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.className") == "skip"
        seen = 1
        while page.evaluate("document.activeElement !== document.body") and seen <= reachable:
            outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
            assert outline != "none", page.evaluate("document.activeElement.outerHTML.slice(0, 200)")
            page.keyboard.press("Tab")
            seen += 1
        assert seen - 1 == reachable - hidden
        closed = page.locator("#services details").first
        assert closed.evaluate("details => details.open") is False
        closed.locator("summary").focus()
        page.keyboard.press("Enter")
        assert closed.evaluate("details => details.open") is True
        page.locator("#rollout a[href='#tick-canary-30']").focus()
        page.keyboard.press("Enter")
        assert page.locator("#tick-canary-30").is_visible(), "a link opens the part of the log that it leads into"


def test_without_scripts_nothing_is_missing_but_the_minutes_left(browser: Browser, pages: dict[str, Path]) -> None:
    with browser.new_context(java_script_enabled=False) as context:
        page, heard = opened(context, pages["success"])
        assert "until 24 Nov 2025, 12:36:00 UTC" in page.locator(".answer").nth(3).inner_text().splitlines()
        assert page.locator("#decisions table").count() == 3 and page.locator("#rollout svg[role=img]").count() == 4
        assert page.locator("details[open]").count() > 0 and heard == []
    with browser.new_context() as context:
        page, _ = opened(context, pages["success"])
        assert "Not any more" in page.locator(".answer").nth(3).inner_text(), "the time has passed"
        assert "the window is closed" in page.locator(".answer").nth(3).inner_text()


def test_on_paper_everything_is_open(browser: Browser, pages: dict[str, Path]) -> None:
    with browser.new_context() as context:
        page, _ = opened(context, pages["success"])
        assert not page.locator("#tick-canary-1").is_visible()
        page.emulate_media(media="print")
        assert page.locator("#tick-canary-1").is_visible() and not page.locator(".contents").is_visible()
        assert page.pdf().startswith(b"%PDF")


def test_what_a_service_says_is_never_run(browser: Browser, tmp_path: Path) -> None:
    """The policy is the second line of defence: even markup that got through would neither run nor load."""
    material = reports.material(reports.rolled_back(), next_steps=("<img src=x onerror=alert(1)>",))
    path = tmp_path / "page.html"
    html = report(Material(**{**material.__dict__, "sql": {"20261120000000_add_courses": "</pre><script>alert(2)</script>"}}))
    path.write_text(html, encoding="utf-8")
    with browser.new_context() as context:
        page, heard = opened(context, path)
        assert heard == [] and page.locator("img, section script").count() == 0
        assert "<img src=x onerror=alert(1)>" in page.locator("#failure").inner_text()
    smuggled = html.replace("</main>", "<script>alert(3)</script><img src='https://azora.example/x.png'></main>")
    assert smuggled != html
    path.write_text(smuggled, encoding="utf-8")
    with browser.new_context() as context:
        refused = list[str | None]()
        context.on("requestfailed", lambda request: refused.append(request.failure))
        _, heard = opened(context, path)
        assert refused == ["csp"] and not [line for line in heard if line.startswith("dialog")], heard
        assert [line for line in heard if "Executing inline script violates" in line]

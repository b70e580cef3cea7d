"""A real browser for tests of pages: Debian's Chromium, driven by Playwright."""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from playwright.sync_api import Page, sync_playwright

_USUAL = "/usr/bin/chromium"
_OPTIONS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--use-gl=angle", "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip


@dataclass
class Visit:
    """A page of the browser, and what it asked for and complained about."""

    page: Page
    requests: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


@contextlib.contextmanager
def visit(width: int = 1280, height: int = 900, timeout: float = 60.0) -> Iterator[Visit]:
    """Open a blank page; the test is skipped where there is no browser, unless VQHPS_BROWSER names one.

    Args:
        width: of the window, px.
        height: of the window, px.
        timeout: of each step, s.
    """
    path = os.environ.get("VQHPS_BROWSER", _USUAL)
    if "VQHPS_BROWSER" not in os.environ and not Path(path).exists():
        pytest.skip(f"no browser: install Debian's chromium ({_USUAL}), or set VQHPS_BROWSER")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=_OPTIONS, timeout=timeout * 1000)
        try:
            opened = Visit(browser.new_page(viewport={"width": width, "height": height}))
            opened.page.set_default_timeout(timeout * 1000)
            opened.page.on("request", lambda request: opened.requests.append(request.url))
            opened.page.on("pageerror", lambda error: opened.errors.append(str(error)))
            yield opened
        finally:
            browser.close()

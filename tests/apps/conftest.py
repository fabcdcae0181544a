"""What several tests of the applications need: a browser."""

import pytest
from conftest import unavailable

try:
    from browser import CHROMIUM, FLAGS, sync_playwright
except ImportError:
    CHROMIUM = None


@pytest.fixture(scope="module")
def browser():
    if not CHROMIUM:
        unavailable("needs requirements-dev.txt, and Chromium: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()

"""A real headless Chromium for the tests of pages: what they need, and how it is opened.

pytestmark = needs_chromium
with open_chromium(tmp_path, width=1000, height=1500) as driver: ...
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
needs_chromium = [
    pytest.mark.slow,
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs chromium and chromedriver"),
]
# a folder to keep pictures of the page in, to look at them
PICTURES = os.environ.get("MUDIT_PAGE_PICTURES")


@contextmanager
def open_chromium(downloads: Path, *, width: int, height: int) -> Iterator[Any]:
    """A driver whose downloads go to a folder, in English, and which may play sounds unasked."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for argument in ("headless=new", "no-sandbox", f"window-size={width},{height}", "lang=en-US"):
        options.add_argument(f"--{argument}")
    options.add_argument("--autoplay-policy=no-user-gesture-required")
    options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    driver.set_page_load_timeout(60)
    try:
        yield driver
    finally:
        driver.quit()

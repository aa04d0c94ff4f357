"""Headless Chromium for tests of pages."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")


class Page:
    """A page in a browser, looked at until what is wanted is there."""

    def __init__(self, driver: Any, patience: float, downloads: Path) -> None:
        self.driver, self.patience, self.downloads = driver, patience, downloads

    def wait(self, condition: Callable[[], Any], what: str) -> Any:
        """What a condition yields as soon as it holds."""
        until = time.monotonic() + self.patience
        while not (found := condition()):
            assert time.monotonic() < until, f"waited in vain for {what}"
            time.sleep(0.2)
        return found

    def find(self, selector: str) -> list[Any]:
        """The elements that are there by now."""
        return self.driver.find_elements("css selector", selector)

    def element(self, selector: str) -> Any:
        """The first element, shown."""
        found = self.wait(lambda: self.find(selector), selector)[0]
        self.wait(found.is_displayed, f"{selector} to be shown")
        return found

    def run(self, script: str, *values: Any) -> None:
        """Run JavaScript in the page; it finds the values in `arguments`."""
        self.driver.execute_script(script, *values)

    def download(self, link: Any, ending: str) -> Path:
        """The whole file behind a link: Chromium holds its name with an empty file until it has all of it."""
        self.run("arguments[0].target = '_self'; arguments[0].click()", link)

        def whole() -> list[Path]:
            return [path for path in self.downloads.glob(f"*{ending}") if path.stat().st_size]

        return self.wait(whole, f"the download of a {ending}")[0]


@contextmanager
def opened(address: str, downloads: Path, patience: float) -> Iterator[Page]:
    """The page at an address; skips the test where there is no browser. `patience` is in seconds."""
    webdriver = pytest.importorskip("selenium.webdriver")
    if CHROMIUM is None or DRIVER is None:
        pytest.skip("needs chromium and chromedriver")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for word in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", "window-size=1300,1800"):
        options.add_argument(f"--{word}")
    options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    try:
        driver.set_page_load_timeout(patience)
        driver.get(address)
        yield Page(driver, patience, downloads)
    finally:
        driver.quit()

"""A headless Chromium, for the tests of pages that run in a browser.

It needs selenium, Chromium (or Chrome) and its driver. Without them a test fails, and says how to
install them.
"""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import pytest

CHROMIUM = "chromium", "chromium-browser", "google-chrome", "google-chrome-stable"
INSTALL = "On Debian: apt-get install chromium chromium-driver. On Ubuntu: install Google Chrome."


class Browser:
    """A window, with what its pages logged and asked for.

    Attributes:
        driver: Selenium's driver, for everything that is not here.
    """

    def __init__(self, driver: Any):
        self.driver = driver
        self._messages: list[dict[str, Any]] = []
        self._urls: list[str] = []

    def open(self, page: Path | str, *, width: int = 1280, height: int = 900) -> None:
        """Load a page, and wait until it is loaded.

        Args:
            page: A file, which is opened from the file system; or a URL.
            width: The width of the page's viewport, in CSS pixels.
            height: Its height.
        """
        self.resize(width, height)
        self.driver.get(page.resolve().as_uri() if isinstance(page, Path) else page)

    def resize(self, width: int, height: int = 900) -> None:
        """Give the viewport a size: a window could not be as narrow as a telephone."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)

    def prefer(self, scheme: Literal["light", "dark"]) -> None:
        """Prefer light or dark pages, as a reader's system does."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    def run(self, script: str, *arguments: Any) -> Any:
        """Run JavaScript in the page, and return what it returns."""
        return self.driver.execute_script(script, *arguments)

    @property
    def overflow(self) -> int:
        """How many pixels the page is wider than its viewport: 0, unless it scrolls sideways."""
        width = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        return self.run(f"return {width}")

    @property
    def errors(self) -> list[str]:
        """Every warning and error on the console so far, uncaught exceptions included."""
        self._messages += self.driver.get_log("browser")
        levels = "WARNING", "SEVERE"
        return [message["message"] for message in self._messages if message["level"] in levels]

    @property
    def requests(self) -> list[str]:
        """The URL of every file that the pages asked for so far, their own included."""
        for entry in self.driver.get_log("performance"):
            event = json.loads(entry["message"])["message"]
            if event["method"] == "Network.requestWillBeSent":
                self._urls.append(event["params"]["request"]["url"])
        return self._urls


@contextmanager
def browser() -> Iterator[Browser]:
    """Start a Chromium without a display, and end it afterwards."""
    try:
        from selenium import webdriver
    except ImportError:
        pytest.fail("This test needs selenium: pip install selenium.", pytrace=False)
    chromium = next(filter(None, map(shutil.which, CHROMIUM)), None)
    chromedriver = shutil.which("chromedriver")
    if chromium is None:
        pytest.fail(f"This test needs Chromium or Chrome. {INSTALL}", pytrace=False)
    if chromedriver is None:
        pytest.fail(f"This test needs chromedriver. {INSTALL}", pytrace=False)

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    options.add_argument("--headless=new")
    options.add_argument("--no-sandbox")  # which needs rights that a container does not give
    options.add_argument("--disable-dev-shm-usage")  # a container's is small
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    # Named, so that selenium looks for none, and downloads none.
    service = webdriver.ChromeService(executable_path=chromedriver)
    driver = webdriver.Chrome(options=options, service=service)
    try:
        yield Browser(driver)
    finally:
        driver.quit()

"""A headless Chromium for tests of the live page: skipped where there is none, required in CI."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.remote.webdriver import WebDriver
from selenium.webdriver.support.ui import WebDriverWait

from tests.services import program

WAIT_S = 120.0
OPTIONS = (
    "--headless=new",
    "--no-sandbox",  # tests may run as root, in a container
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--hide-scrollbars",
)


@contextmanager
def chromium(width: int = 1280, height: int = 1400) -> Iterator[WebDriver]:
    """A browser without a window; it looks nothing up outside."""
    browser, driver = program("chromium", "chromium"), program("chromedriver", "chromium-driver")
    options = Options()
    options.binary_location = browser
    for option in (*OPTIONS, f"--window-size={width},{height}"):
        options.add_argument(option)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    window = webdriver.Chrome(options, Service(driver))
    try:
        window.set_page_load_timeout(WAIT_S)
        yield window
    finally:
        window.quit()


def wait_until(window: WebDriver, what: str, holds: Callable[[WebDriver], object]) -> None:
    """Wait until it holds; the message says what was waited for."""
    WebDriverWait(window, WAIT_S).until(holds, f"expected {what}")


def script(window: WebDriver, expression: str) -> object:
    """The value of a JavaScript expression."""
    return window.execute_script(f"return {expression}")


def console_errors(window: WebDriver) -> list[str]:
    """What the page complained about since the last call."""
    return [entry["message"] for entry in window.get_log("browser") if entry["level"] == "SEVERE"]

"""The live page in a real browser: empty, filling, a galaxy opened, by mouse and by keyboard."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webdriver import WebDriver

from consumer.page import show
from sedflow_core import Artifact

from .browser import chromium, console_errors, script, wait_until
from .stream import Stream
from .traffic import has_host

N_ALERTS = 40


@pytest.fixture
def stream(tiny: Artifact) -> Stream:
    return Stream(tiny)


@pytest.fixture(scope="module")
def window() -> Iterator[WebDriver]:
    with chromium() as browser:
        yield browser


@contextmanager
def opened(stream: Stream, artifact: Path, window: WebDriver) -> Iterator[None]:
    with show(stream.page, str(artifact), "127.0.0.1", 0) as port:
        window.get(f"http://127.0.0.1:{port}/")
        wait_until(window, "numbers", lambda w: script(w, "state.numbers !== null"))
        yield
        window.get("about:blank")


def rows(window: WebDriver) -> int:
    return len(window.find_elements(By.CSS_SELECTOR, "#galaxies tr"))


def published(window: WebDriver) -> str:
    return window.find_element(By.ID, "published").text


def shown(window: WebDriver, selector: str) -> bool:
    return window.find_element(By.CSS_SELECTOR, selector).is_displayed()


def test_it_fills_and_updates(stream: Stream, tiny_path: Path, window: WebDriver) -> None:
    with opened(stream, tiny_path, window):
        assert shown(window, "#empty")
        assert rows(window) == 0
        stream.send_some(0, N_ALERTS)
        wait_until(window, "a row for each alert", lambda w: rows(w) == N_ALERTS)
        wait_until(window, "the number", lambda w: published(w) == str(N_ALERTS))
        assert not shown(window, "#empty")
        n_fitted = script(window, "state.galaxies.filter((g) => g.mass).length")
        assert script(window, "document.querySelectorAll('#plane .points path').length > 0")
        assert script(window, "document.querySelector('#plane').data[0].x.length") == n_fitted
        assert script(window, "state.numbers.statuses.NO_HOST") == sum(
            not has_host(i) for i in range(N_ALERTS)
        )
        stream.send_some(N_ALERTS, 4)
        wait_until(window, "the next alerts", lambda w: rows(w) == N_ALERTS + 4)
        assert console_errors(window) == []


def open_by_mouse(window: WebDriver) -> None:
    window.find_element(By.CSS_SELECTOR, "#galaxies button").click()


def open_by_keyboard(window: WebDriver) -> None:
    body = window.find_element(By.TAG_NAME, "body")
    for _ in range(30):
        window.switch_to.active_element.send_keys(Keys.TAB)
        if window.switch_to.active_element.get_attribute("data-galaxy"):
            break
    assert window.switch_to.active_element != body
    window.switch_to.active_element.send_keys(Keys.ENTER)


@pytest.mark.parametrize("open_galaxy", [open_by_mouse, open_by_keyboard])
def test_a_galaxy_opens(
    stream: Stream, tiny_path: Path, window: WebDriver, open_galaxy: Callable[[WebDriver], None]
) -> None:
    stream.send_some(0, 8)
    with opened(stream, tiny_path, window):
        wait_until(window, "rows", lambda w: rows(w) == 8)
        open_galaxy(window)
        wait_until(window, "the fit", lambda w: shown(w, "#fit .points path"))
        assert script(window, "document.querySelectorAll('#corner .xaxislayer-above').length") == 10
        assert shown(window, "#galaxy")
        window.switch_to.active_element.send_keys(Keys.ESCAPE)
        wait_until(window, "the galaxy closed", lambda w: not shown(w, "#galaxy"))
        assert console_errors(window) == []


def test_trouble_is_told(stream: Stream, tiny_path: Path, window: WebDriver) -> None:
    stream.send_some(0, 4)
    with opened(stream, tiny_path, window):
        stream.health.assigned = False
        notice = (By.ID, "notice")
        wait_until(window, "the reason", lambda w: "no partitions" in w.find_element(*notice).text)
        stream.health.assigned = True
        wait_until(window, "no notice", lambda w: not shown(w, "#notice"))
        assert console_errors(window) == []


def test_the_daemon_gone(stream: Stream, tiny_path: Path, window: WebDriver) -> None:
    stream.send_some(0, 4)
    with show(stream.page, str(tiny_path), "127.0.0.1", 0) as port:
        window.get(f"http://127.0.0.1:{port}/")
        wait_until(window, "rows", lambda w: rows(w) == 4)
    wait_until(window, "the notice", lambda w: shown(w, "#notice"))
    assert "does not answer" in window.find_element(By.ID, "notice").text
    assert rows(window) == 4
    window.get("about:blank")
    assert all("ERR_CONNECTION" in error for error in console_errors(window))

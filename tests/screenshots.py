"""Pictures of the live page with real galaxies: `python -m tests.screenshots [FOLDER]`.

Busy, a galaxy opened, empty, trouble, the dark, and a phone: to be looked at, and for the README.
"""

import sys
from datetime import UTC, datetime
from pathlib import Path

import torch
from selenium.webdriver.remote.webdriver import WebDriver

from consumer.avro import encode
from consumer.demo import describe_galaxy, load_galaxies
from consumer.message import Message
from consumer.page import show
from sedflow_core import Artifact, load_artifact
from tests.integration.browser import chromium, script, wait_until
from tests.integration.stream import Stream

ARTIFACT = "sdss-ugriz"
N_GALAXIES, BATCH = 240, 30
DARK = {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}


def main(folder: Path) -> None:
    """Write the pictures into `folder`."""
    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    artifact = load_artifact(ARTIFACT)
    stream = Stream(artifact, n_samples=256)
    messages = make_messages(artifact)
    with chromium() as window:
        with show(stream.page, ARTIFACT, "127.0.0.1", 0) as port:
            address = f"http://127.0.0.1:{port}/"
            load(window, address)
            window.save_screenshot(folder / "empty.png")
            for start in range(0, N_GALAXIES, BATCH):
                stream.send(messages[start : start + BATCH])
                stream.page.tick()
            wait_until(window, "all", lambda w: script(w, f"state.galaxies.length=={N_GALAXIES}"))
            window.save_screenshot(folder / "busy.png")
            open_newest(window)
            window.save_screenshot(folder / "galaxy.png")
            take_on_a_phone(folder, address)
            take_in_the_dark(window, folder, address)
        wait_until(window, "the notice", lambda w: script(w, "!at('notice').hidden"))
        window.save_screenshot(folder / "error.png")


def make_messages(artifact: Artifact) -> list[Message]:
    """Alerts at real galaxies; one in twelve has lost its host, some its redshift."""
    galaxies = load_galaxies(artifact, N_GALAXIES)
    stamp = int(datetime.now(UTC).timestamp() * 1e3)
    messages = []
    for i in range(N_GALAXIES):
        alert = describe_galaxy(galaxies, artifact, i)
        if i % 12 == 7:
            alert["host"] = None
        elif i % 17 == 3:
            alert["host"]["redshift"] = None
        messages.append(Message(encode(alert, "hostAlert"), topic="demo", timestamp_ms=stamp))
    return messages


def load(window: WebDriver, address: str) -> None:
    """Open the page and wait for its first numbers."""
    window.get(address)
    wait_until(window, "numbers", lambda w: script(w, "state.numbers !== null"))
    drawn = "!!document.querySelector('#history .main-svg')"
    wait_until(window, "a chart", lambda w: script(w, drawn))


def open_newest(window: WebDriver) -> None:
    """Open the newest galaxy that has a posterior."""
    window.execute_script("openGalaxy(state.galaxies.filter((g) => g.mass).at(-1).n)")
    wait_until(
        window, "the fit", lambda w: script(w, "!!document.querySelector('#fit .points path')")
    )


def take_in_the_dark(window: WebDriver, folder: Path, address: str) -> None:
    """Busy and a galaxy again, dark; leaves the page light."""
    window.execute_cdp_cmd("Emulation.setEmulatedMedia", DARK)
    load(window, address)
    wait_until(window, "rows", lambda w: script(w, "at('galaxies').children.length > 0"))
    window.save_screenshot(folder / "dark.png")
    open_newest(window)
    window.save_screenshot(folder / "dark-galaxy.png")
    window.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    load(window, address)


def take_on_a_phone(folder: Path, address: str) -> None:
    """The same on a narrow screen, dark."""
    metrics = {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}
    with chromium() as window:
        window.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        window.execute_cdp_cmd("Emulation.setEmulatedMedia", DARK)
        load(window, address)
        wait_until(window, "rows", lambda w: script(w, "at('galaxies').children.length > 0"))
        window.save_screenshot(folder / "phone.png")
        window.execute_script("at('galaxies').scrollIntoView()")
        window.save_screenshot(folder / "phone-table.png")
        open_newest(window)
        window.save_screenshot(folder / "phone-galaxy.png")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "screenshots"))

"""`sedflow-consumer top`: what a daemon does, in a terminal, read from its /metrics.

Needs the extra `top`.
"""

import time
import urllib.request
from collections import deque
from collections.abc import Iterator
from http.client import HTTPException

from prometheus_client.parser import text_string_to_metric_families

from consumer.errors import BrokerError, SettingsError
from consumer.reading import Reading, calc_latency, calc_rate, calc_rates, read
from sedflow_core.errors import MissingExtraError

try:
    from rich.console import Console, Group, RenderableType
    from rich.live import Live
    from rich.table import Table
    from rich.text import Text
except ImportError as error:
    raise MissingExtraError("rich", "top") from error

EVERY_S = 2.0
KEPT = 16
"""Readings that a rate is taken over: half a minute."""
TIMEOUT_S = 5.0
BARS = "▁▂▃▄▅▆▇█"


def watch(url: str, *, n_readings: int | None = None) -> None:
    """Show the daemon at `url` until interrupted, or for so many readings.

    Raises BrokerError when it cannot be reached at the start, later on the screen says so, and
    SettingsError for what is no URL.
    """
    readings: deque[Reading] = deque([fetch(url)], maxlen=KEPT)
    console = Console()
    with Live(draw(readings, url), console=console, screen=console.is_terminal) as live:
        for trouble in poll(url, readings, n_readings):
            live.update(draw(readings, url, trouble), refresh=True)


def poll(url: str, readings: deque[Reading], n_readings: int | None) -> Iterator[str]:
    """Add a reading every two seconds; yield what is wrong, empty when nothing is."""
    n = 1
    while n_readings is None or n < n_readings:
        time.sleep(EVERY_S)
        n += 1
        try:
            readings.append(fetch(url))
        except BrokerError as error:
            yield str(error)
        else:
            yield ""


def fetch(url: str) -> Reading:
    """Return a reading of the daemon.

    Raises BrokerError when it does not answer, SettingsError for what is no URL.
    """
    if not url.startswith(("http://", "https://")):
        raise SettingsError(f"url: expected http://HOST:PORT, got {url!r}")
    try:
        with urllib.request.urlopen(f"{url}/metrics", timeout=TIMEOUT_S) as answer:  # noqa: S310
            text = answer.read().decode()
        return read(text_string_to_metric_families(text), time.time())
    except (HTTPException, OSError, ValueError) as error:
        raise BrokerError(f"{url}: expected a daemon's /metrics, got {error}") from None


def draw(readings: deque[Reading], url: str, trouble: str = "") -> RenderableType:
    """Return the screen."""
    old, new = readings[0], readings[-1]
    state = Text("ready", "green") if new.ready else Text("not ready", "bold red")
    head = Text.assemble(("SEDflow ", "bold"), f"{new.artifact}  {url}  ", state)
    parts: list[RenderableType] = [head, _numbers(old, new, readings)]
    parts.append(_shares("status", new.statuses))
    if any(new.flags.values()):
        parts.append(_shares("flag", new.flags))
    if any(new.consumed):
        parts.append(_workers(old, new))
    if trouble:
        parts.append(Text(trouble, "bold red"))
    return Group(*parts)


def _numbers(old: Reading, new: Reading, readings: deque[Reading]) -> Table:
    table = Table("alerts/s", "", "waiting", "latency, median", "99 %", "dead letters", box=None)
    pairs = zip(list(readings)[:-1], list(readings)[1:], strict=True)
    table.add_row(
        f"{calc_rate(old, new):,.1f}",
        sparkline([calc_rate(*pair) for pair in pairs]),
        f"{new.lag:,.0f}, {new.lag_s:,.0f} s",
        *(_seconds(calc_latency(old, new, level)) for level in (0.5, 0.99)),
        f"{new.dead_letters:,.0f}",
    )
    return table


def sparkline(values: list[float]) -> str:
    """Return the values as bars, the largest full."""
    top = max(values, default=0.0) or 1.0
    return "".join(BARS[round(value / top * (len(BARS) - 1))] for value in values)


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:,.2f} s"


def _shares(title: str, counts: dict[str, float]) -> Table:
    table = Table(title, "count", "share", box=None)
    total = sum(counts.values()) or 1.0
    for name, count in sorted(counts.items(), key=lambda item: -item[1])[:8]:
        if count:
            table.add_row(name, f"{count:,.0f}", f"{100 * count / total:.1f} %")
    return table


def _workers(old: Reading, new: Reading) -> Table:
    table = Table("worker", "alerts/s", "alerts", box=None)
    for name, rate in sorted(calc_rates(old, new).items()):
        table.add_row(name, f"{rate:,.1f}", f"{new.consumed[name]:,.0f}")
    return table

"""Group protocols, assignors and the weaker delivery: partitions change hands under load."""

from collections import Counter
from collections.abc import Callable

import pytest

from .conftest import Daemon, Topics
from .daemons import fetch, scrape, wait_for
from .traffic import alert_ids, make_good, produce, read_committed

N_GOOD = 2_000
CASES = {
    "cooperative": {"SEDFLOW_INPUT__ASSIGNOR": "cooperative-sticky"},
    "kip-848": {"SEDFLOW_INPUT__GROUP_PROTOCOL": "consumer"},
    "static": {"SEDFLOW_INPUT__STATIC_MEMBERSHIP": "true"},
    "at least once": {"SEDFLOW_OUTPUT__DELIVERY": "at-least-once"},
}


@pytest.mark.parametrize("case", CASES)
def test_a_second_worker_joins_under_load(
    bootstrap: str, topics: Topics, start_daemon: Callable[..., Daemon], case: str
) -> None:
    first = start_daemon("0", environment=CASES[case])
    wait_for(lambda: fetch(first, "/readyz")[0] == 200, "/readyz")
    produce(bootstrap, topics.alerts, list(make_good(N_GOOD)))
    second = start_daemon("1", environment=CASES[case])
    wait_for(lambda: fetch(second, "/readyz")[0] == 200, "/readyz of the second")
    produce(bootstrap, topics.alerts, list(make_good(2 * N_GOOD))[N_GOOD:])
    published = ("sedflow_summaries_published_total",)
    for daemon in (first, second):
        wait_for(lambda of=daemon: scrape(of)[published] > 0, "summaries of each")
    read_committed(bootstrap, topics.summaries, at_least=2 * N_GOOD)
    for daemon in (first, second):
        assert daemon.stop() == 0, daemon.log.read_text()
    ids = alert_ids(read_committed(bootstrap, topics.summaries))
    if case == "at least once":
        assert set(ids) == set(range(2 * N_GOOD))
    else:
        assert ids == Counter(range(2 * N_GOOD))

"""A shadow beside the daemon: what it would answer otherwise is in the metrics and in the log."""

from collections.abc import Callable
from pathlib import Path

from consumer.avro import decode_summary
from sedflow_core.testing import tiny_artifact

from .conftest import Daemon, Topics
from .daemons import scrape, wait_for
from .traffic import has_host, make_good, produce, read_committed

N_ALERTS = 60


def test_a_shadow_reports(
    bootstrap: str,
    topics: Topics,
    start_daemon: Callable[..., Daemon],
    tmp_path: Path,
    tiny_path: Path,
) -> None:
    other = tiny_artifact(tmp_path / "other", seed=5)
    daemon = start_daemon("0", "--shadow", str(other))
    produce(bootstrap, topics.alerts, list(make_good(N_ALERTS)))
    summaries = read_committed(bootstrap, topics.summaries, at_least=N_ALERTS)

    def compared() -> dict[tuple[str, ...], float]:
        name = "sedflow_shadow_status_total"
        return {tuple(labels): n for (of, *labels), n in scrape(daemon).items() if of == name}

    wait_for(lambda: sum(compared().values()) == N_ALERTS, "every alert compared")
    pairs, values = compared(), scrape(daemon)
    assert daemon.stop() == 0
    assert pairs["NO_HOST", "NO_HOST"] == sum(not has_host(i) for i in range(N_ALERTS))
    shifted = {n for (name, *_), n in values.items() if name == "sedflow_shadow_shift_sigma_count"}
    assert shifted == {pairs["OK", "OK"]}
    (line,) = daemon.lines("stopped")
    assert line["shadow_compared"] == N_ALERTS
    assert line["shadow_other_status"] == sum(n for (a, b), n in pairs.items() if a != b)
    assert all(line["shadow_largest_shift_sigma"].values())
    names = {decode_summary(m.value())["provenance"]["artifactSha256"] for m in summaries}
    assert len(names) == 1

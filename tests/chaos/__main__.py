"""Run the chaos: `python -m tests.chaos --alerts 20000 --faults 10 --only "kill -9"`."""

import argparse
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from sedflow_core.testing import tiny_artifact

from . import scenarios
from .brokers import Cluster, cluster
from .trial import Trial, trial

BAD_SHARE = 0.01


@dataclass(frozen=True)
class Plan:
    """A scenario, the clusters it needs, and how often it strikes, as a share of --faults."""

    scenario: scenarios.Scenario
    n_brokers: int = 1
    two_clusters: bool = False
    share: float = 1.0
    bad_share: float = BAD_SHARE


PLANS = {
    "kill -9": Plan(scenarios.kill_workers),
    "kill -9, two clusters": Plan(scenarios.kill_workers, two_clusters=True),
    "broker killed and back": Plan(scenarios.restart_broker, share=0.2),
    "one of three brokers": Plan(scenarios.restart_broker, n_brokers=3, share=0.2),
    "network cut 60 s": Plan(scenarios.cut_network, share=0.1),
    "SIGSTOP past the session": Plan(scenarios.freeze_worker, share=0.2),
    "rebalances": Plan(scenarios.rebalance, share=0.4),
    "poison 10 %": Plan(scenarios.poison, share=0.0, bad_share=0.1),
}


@dataclass(frozen=True)
class Row:
    """What came of a scenario."""

    name: str
    n_good: int
    faults: int
    lost: int
    repeated: int
    letters: int
    recovery_s: float
    wall_s: float

    @property
    def sound(self) -> bool:
        """Whether nothing was lost and nothing came twice."""
        return self.lost == self.repeated == 0


@contextmanager
def clusters(plan: Plan) -> Iterator[tuple[Cluster, Cluster]]:
    """The clusters of the input and of the output, which may be one."""
    with ExitStack() as stack:
        sink = stack.enter_context(cluster(plan.n_brokers))
        source = stack.enter_context(cluster()) if plan.two_clusters else sink
        yield source, sink


def run(name: str, plan: Plan, artifact: Path, n_good: int, n_faults: int) -> Row:
    """Run one scenario to its end, the last alert included."""
    start = time.monotonic()
    n_bad = round(n_good * plan.bad_share)
    with (
        TemporaryDirectory() as folder,
        clusters(plan) as (source, sink),
        trial(source, sink, Path(folder), artifact, n_good, n_bad) as running,
    ):
        running.start()
        plan.scenario(running, max(1, round(plan.share * n_faults)) if plan.share else 0)
        running.wait_for(running.finished, "every message")
        time.sleep(2.0)  # whatever comes twice comes late
        return count(name, running, time.monotonic() - start)


def count(name: str, done: Trial, wall_s: float) -> Row:
    """Count what was lost and what came twice, alerts and dead letters."""
    lost = done.n_good - len(done.watch.ids) + done.n_bad - len(done.watch.letters)
    repeated = done.watch.ids.total() - len(done.watch.ids)
    repeated += done.watch.letters.total() - len(done.watch.letters)
    faults, slowest = len(done.recoveries_s), max(done.recoveries_s, default=0.0)
    letters = len(done.watch.letters)
    return Row(name, done.n_good, faults, lost, repeated, letters, slowest, wall_s)


def main() -> int:
    """Run the plans that were asked for, print the table, return 1 where one is not sound."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--alerts", type=int, default=20_000)
    parser.add_argument("--faults", type=int, default=10)
    parser.add_argument("--only", action="append", choices=tuple(PLANS))
    parser.add_argument("--artifact", type=Path, help="default: a tiny one, made for this")
    options = parser.parse_args()
    rows = []
    with TemporaryDirectory() as folder:
        artifact = options.artifact or tiny_artifact(Path(folder))
        for name in options.only or PLANS:
            rows.append(run(name, PLANS[name], artifact, options.alerts, options.faults))
            print(line(rows[-1]), flush=True)
    print(
        "\n| scenario | alerts | faults | lost | twice | dead letters | slowest recovery | wall |"
    )
    print("|---|---|---|---|---|---|---|---|")
    print("\n".join(line(row) for row in rows))
    return 0 if all(row.sound for row in rows) else 1


def line(row: Row) -> str:
    """The row as one of a table."""
    numbers = f"{row.n_good:,} | {row.faults} | {row.lost} | {row.repeated} | {row.letters}"
    return f"| {row.name} | {numbers} | {row.recovery_s:.1f} s | {row.wall_s:.0f} s |"


if __name__ == "__main__":
    sys.exit(main())

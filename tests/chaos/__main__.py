"""Run the chaos: `python -m tests.chaos`, or `--only "kill -9"` and more of them."""

import argparse
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from consumer.avro import WIRE_ID, schema_text
from consumer.registry import Registry
from consumer.sections import RegistrySettings
from sedflow_core.testing import tiny_artifact
from tests.integration.apicurio import registry

from . import scenarios
from .brokers import Cluster, cluster
from .feed import Feed
from .proxy import Proxy
from .trial import FarRegistry, StuckError, Trial, trial

BAD_SHARE = 0.01
LATE_S = 20.0
"""How long after the last worker left something might still be committed: a transaction's life."""


@dataclass(frozen=True)
class Plan:
    """A scenario, what flows meanwhile, and where."""

    scenario: scenarios.Scenario
    n_alerts: int
    rate: float | None
    """Alerts a second; None: all are there at the start."""
    n_faults: int = 1
    n_brokers: int = 1
    two_clusters: bool = False
    bad_share: float = BAD_SHARE
    small_disk: bool = False
    registry: bool = False


PLANS = {
    "kill -9": Plan(scenarios.kill_workers, 100_000, None, 50),
    "kill -9, two clusters": Plan(scenarios.kill_workers, 100_000, None, 50, two_clusters=True),
    "killed and not replaced": Plan(scenarios.kill_for_good, 5_000, 60),
    "killed and not replaced, two clusters": Plan(
        scenarios.kill_for_good, 5_000, 60, two_clusters=True
    ),
    "scale-in 4 to 1": Plan(scenarios.scale_in, 6_000, 60),
    "SIGSTOP past the session": Plan(scenarios.freeze_worker, 9_000, 60, 3),
    "SIGSTOP, two clusters": Plan(scenarios.freeze_worker, 9_000, 60, 3, two_clusters=True),
    "rebalances": Plan(scenarios.rebalance, 18_000, 60, 20),
    "broker killed and back": Plan(scenarios.restart_broker, 6_000, 60, 2),
    "broker killed, two clusters": Plan(scenarios.restart_broker, 9_000, 60, 4, two_clusters=True),
    "one of three brokers": Plan(scenarios.kill_one_of_three, 9_000, 60, 3, n_brokers=3),
    "coordinators restarted": Plan(scenarios.restart_coordinators, 9_000, 60, 4, n_brokers=3),
    "leaders moved": Plan(scenarios.move_leaders, 6_000, 60, 4, n_brokers=3),
    "network cut 60 s": Plan(scenarios.cut_network, 7_200, 60),
    "one worker cut off 60 s": Plan(scenarios.cut_one_worker, 12_000, 60, 2),
    "registry down 2 min": Plan(scenarios.lose_registry, 12_000, 60, registry=True),
    "disk full": Plan(scenarios.fill_disk, 5_000, 60, small_disk=True),
    "poison 10 %": Plan(scenarios.poison, 20_000, None, bad_share=0.1),
}


@dataclass(frozen=True)
class Row:
    """What came of a scenario."""

    name: str
    n_alerts: int
    faults: int
    lost: int
    repeated: int
    recovery_s: float
    stall_s: float
    wall_s: float
    codes: tuple[int, ...]
    """Exit codes of the daemons that were not killed."""

    @property
    def sound(self) -> bool:
        """Whether nothing was lost, nothing came twice, and all left in order."""
        return self.lost == self.repeated == 0 and not any(self.codes)


@contextmanager
def clusters(plan: Plan) -> Iterator[tuple[Cluster, Cluster]]:
    """The clusters of the input and of the output, which may be one."""
    with ExitStack() as stack:
        sink = stack.enter_context(cluster(plan.n_brokers, small_disk=plan.small_disk))
        source = stack.enter_context(cluster()) if plan.two_clusters else sink
        yield source, sink


@contextmanager
def far_registry() -> Iterator[FarRegistry]:
    """A registry that holds the schema of alerts."""
    with registry() as url:
        near = url.split("/")[2]
        wire = Proxy(int(near.rpartition(":")[2]))
        client = Registry(RegistrySettings(url=url), url)
        schema_id = client.register("alerts", schema_text("hostAlert"))
        try:
            yield FarRegistry(url.replace(near, wire.address), wire, schema_id)
        finally:
            wire.close()


def run(name: str, plan: Plan, artifact: Path, folder: Path) -> Row:
    """Run one scenario to its end, the last alert included; logs go to `folder`."""
    start = time.monotonic()
    with ExitStack() as stack:
        source, sink = stack.enter_context(clusters(plan))
        schemas = stack.enter_context(far_registry()) if plan.registry else None
        n_bad = round(plan.n_alerts * plan.bad_share)
        schema_id = WIRE_ID if schemas is None else schemas.schema_id
        feed = Feed(plan.n_alerts, n_bad, plan.rate, schema_id)
        running = stack.enter_context(trial(source, sink, folder, artifact, feed, schemas))
        try:
            plan.scenario(running, plan.n_faults)
            running.wait_for(running.finished, "every message")
        except StuckError as error:  # what is missing is counted
            print(error, file=sys.stderr)
        codes = running.leave()
        time.sleep(LATE_S)
        return make_row(name, running, codes, start)


def make_row(name: str, done: Trial, codes: list[int], start_s: float) -> Row:
    """Count what came out, and put it beside what was seen meanwhile."""
    lost, repeated = done.count()
    return Row(
        name,
        done.feed.n_good,
        done.n_faults,
        lost,
        repeated,
        max(done.watch.recoveries_s, default=0.0),
        done.watch.longest_stall_s,
        time.monotonic() - start_s,
        tuple(codes),
    )


def main() -> int:
    """Run the plans that were asked for, print the table, return 1 where one is not sound."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--only", action="append", choices=tuple(PLANS))
    parser.add_argument("--artifact", type=Path, help="default: a tiny one, made for this")
    parser.add_argument("--logs", type=Path, help="folder where the logs of the daemons stay")
    options = parser.parse_args()
    rows = []
    with TemporaryDirectory() as scratch:
        artifact = options.artifact or tiny_artifact(Path(scratch))
        for name in options.only or PLANS:
            folder = Path(options.logs or scratch, name.replace(" ", "-"))
            folder.mkdir(parents=True)
            rows.append(run(name, PLANS[name], artifact, folder))
            print(line(rows[-1]), flush=True)
    print(f"\n{HEAD}")
    print("\n".join(line(row) for row in rows))
    return 0 if all(row.sound for row in rows) else 1


HEAD = """\
| trial | alerts | faults | lost | duplicated | slowest recovery | longest stall | wall |
|---|---|---|---|---|---|---|---|"""


def line(row: Row) -> str:
    """The row as one of a table."""
    numbers = f"{row.n_alerts:,} | {row.faults} | {row.lost} | {row.repeated}"
    times = f"{row.recovery_s:.1f} s | {row.stall_s:.1f} s | {row.wall_s:.0f} s"
    codes = "" if not any(row.codes) else f" exit codes {row.codes}"
    return f"| {row.name} | {numbers} | {times} |{codes}"


if __name__ == "__main__":
    sys.exit(main())

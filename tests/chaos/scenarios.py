"""What is done to running workers. Each scenario returns once the last fault is over.

A recovery is timed from the fault itself where the workers can go on at once (a worker dies, one of
three brokers dies), and from the moment the world is whole again where they cannot (the only broker
is gone, the network is cut).
"""

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress

from tests.integration.broker import N_PARTITION
from tests.integration.conftest import Daemon

from .brokers import N_WIRE, Broker
from .trial import Trial

AWAY_S = 3.0
CUT_S = 60.0
REGISTRY_DOWN_S = 120.0
FULL_S = 20.0
ASLEEP_S = 25.0
"""Longer than a member may be silent before its group goes on without it, and longer than a
transaction may last.
"""
LOOKS = 5
"""How often in a row a transaction must be found open to be that of a sleeper."""

Scenario = Callable[[Trial, int], None]


def kill_workers(trial: Trial, n_faults: int) -> None:
    """kill -9 at moments chosen by chance; one in four hits the supervisor.

    A dead supervisor is started again at once, as a service manager does.
    """
    crew = trial.start(workers=2)
    for mark in sorted(trial.chance.uniform(0.02, 0.95) for _ in range(n_faults)):
        trial.wait_for(lambda m=mark: trial.share_done() >= m, "progress")  # type: ignore[misc]
        time.sleep(trial.chance.uniform(0.0, 1.0))
        if trial.chance.random() < 0.25:
            crew = replace_supervisor(trial, crew)
        else:
            trial.signal_one(signal.SIGKILL)
        trial.strike()


def kill_for_good(trial: Trial, _: int) -> None:
    """One of two workers is killed in the middle of a transaction, and nobody replaces it."""
    start_apart(trial, 2)
    kill_in_transaction(trial)
    trial.strike()
    trial.recover()


def scale_in(trial: Trial, _: int) -> None:
    """Three of four workers are asked to leave at once; timed from when the last has left."""
    _, *leaving = start_apart(trial, 4)
    for worker in leaving:
        worker.process.terminate()
    for worker in leaving:
        worker.process.wait()
    trial.strike()
    trial.recover()


def freeze_worker(trial: Trial, n_faults: int) -> None:
    """A worker sleeps through its session, then wakes up and tries to go on."""
    trial.start(workers=2)
    for i in range(n_faults):
        trial.wait_for_share(i, n_faults)
        pid = trial.signal_one(signal.SIGSTOP)
        trial.strike()
        time.sleep(ASLEEP_S)
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
        trial.recover()


def rebalance(trial: Trial, n_faults: int) -> None:
    """A third worker comes and goes: two rebalances each time."""
    trial.start(workers=2)
    for i in range(n_faults // 2):
        trial.wait_for_share(i, n_faults // 2)
        guest = trial.start(slot=f"guest-{i}")
        trial.wait_assigned(guest)
        trial.strike()
        trial.recover()
        guest.process.terminate()
        trial.strike()
        trial.recover()


def restart_broker(trial: Trial, n_faults: int) -> None:
    """The only broker is killed, stays away, and comes back with its data; of two, each in turn."""
    trial.start(workers=2)
    for i in range(n_faults):
        trial.wait_for_share(i, n_faults)
        broker = trial.clusters[i % len(trial.clusters)].brokers[0]
        broker.kill()
        time.sleep(AWAY_S)
        broker.start()
        broker.wait()
        trial.strike()
        trial.recover()


def kill_one_of_three(trial: Trial, n_faults: int) -> None:
    """One broker after the other is killed and stays away until the others do its work."""
    trial.start(workers=2)
    for i in range(n_faults):
        trial.wait_for_share(i, n_faults)
        kill_until_recovered(trial, trial.sink.brokers[i % len(trial.sink.brokers)])


def restart_coordinators(trial: Trial, n_faults: int) -> None:
    """The broker that coordinates a worker's transactions is killed, then that of the group."""
    trial.start(workers=2)
    for i in range(n_faults):
        trial.wait_for_share(i, n_faults)
        group = trial.topics.alerts
        key, topic = (
            (f"{group}-0-0", "__transaction_state") if i % 2 == 0 else (group, "__consumer_offsets")
        )
        partition = java_hash(key) % N_PARTITION
        kill_until_recovered(trial, trial.sink.find_leader(topic, partition))


def move_leaders(trial: Trial, n_faults: int) -> None:
    """A broker gives its partitions away and leaves; then it gets them back, all being alive."""
    trial.start(workers=2)
    for i in range(n_faults // 2):
        trial.wait_for_share(i, n_faults // 2)
        broker = trial.sink.brokers[i % len(trial.sink.brokers)]
        broker.stop()
        trial.strike()
        trial.recover()
        broker.start()
        broker.wait()
        time.sleep(AWAY_S)  # until its copies are whole
        trial.sink.elect_preferred(trial.topics.alerts, trial.topics.summaries)
        trial.strike()
        trial.recover()


def cut_network(trial: Trial, n_faults: int) -> None:
    """Nothing passes between any worker and any broker."""
    trial.start(workers=2)
    for i in range(n_faults):
        trial.wait_for_share(i, n_faults)
        cut_wire(trial, 0)
        trial.strike()
        trial.recover()


def cut_one_worker(trial: Trial, n_faults: int) -> None:
    """One of two workers is cut off; the other takes over, and the first comes back."""
    start_apart(trial, 2, workers=1)
    for i in range(n_faults):
        trial.wait_for_share(i, n_faults)
        trial.strike()
        cut_wire(trial, i % 2)
        trial.recover()


def lose_registry(trial: Trial, _: int) -> None:
    """The registry does not answer, and the workers that knew its schemas die."""
    assert trial.registry is not None
    trial.start(workers=2)
    trial.wait_for_share(0, 2)
    trial.registry.wire.cut()
    for pid in trial.workers():
        os.kill(pid, signal.SIGKILL)
    time.sleep(REGISTRY_DOWN_S)
    trial.registry.wire.mend()
    trial.strike()
    trial.recover()


def fill_disk(trial: Trial, _: int) -> None:
    """The broker's disk is full until someone makes room; its service manager restarts it."""
    trial.start(workers=2)
    trial.wait_for_share(0, 2)
    broker = trial.sink.brokers[0]
    ballast = broker.data / "ballast"
    with suppress(OSError), ballast.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(65_536))
    trial.wait_for(lambda: broker.ended, "a broker that gives up")
    time.sleep(FULL_S)
    ballast.unlink()
    broker.start()
    broker.wait()
    trial.strike()
    trial.recover()


def poison(trial: Trial, _: int) -> None:
    """One message in ten cannot be read, of every kind in turn; nothing else is done."""
    trial.start(workers=2)


def kill_in_transaction(trial: Trial) -> None:
    """Kill a worker that is found with an open transaction when it is put to sleep."""
    pid = trial.signal_one(signal.SIGSTOP)
    while not is_held_up(trial):
        os.kill(pid, signal.SIGCONT)
        time.sleep(trial.chance.uniform(0.0, 0.3))
        pid = trial.signal_one(signal.SIGSTOP)
    os.kill(pid, signal.SIGKILL)


def is_held_up(trial: Trial) -> bool:
    """Whether readers of the summaries wait, and not for a worker that goes on."""
    for _ in range(LOOKS):
        if not trial.sink.holds_readers_up(trial.topics.summaries):
            return False
        time.sleep(0.1)
    return True


def replace_supervisor(trial: Trial, crew: Daemon) -> Daemon:
    """Kill a supervisor and start another; return once the workers of the first have left."""
    orphans = trial.workers()
    crew.process.kill()
    successor = trial.start(workers=2)
    trial.wait_for(lambda: not set(orphans) & set(trial.workers()), "workers that leave")
    return successor


def start_apart(trial: Trial, n: int, workers: int | None = None) -> list[Daemon]:
    """Start `n` daemons, on either wire in turn; wait until all have partitions."""
    daemons = [trial.start(workers, slot=str(i), wire=i % N_WIRE) for i in range(n)]
    for daemon in daemons:
        trial.wait_assigned(daemon)
    trial.wait_for_share(0, 2)
    trial.watch.forget_stalls()
    return daemons


def kill_until_recovered(trial: Trial, broker: Broker) -> None:
    """Kill a broker; let it come back once every partition is served without it."""
    broker.kill()
    trial.strike()
    trial.recover()
    broker.start()
    broker.wait()
    time.sleep(AWAY_S)  # until its copies are whole: the next fault may take another


def cut_wire(trial: Trial, wire: int) -> None:
    """Let nothing pass a wire of each broker for a while."""
    wires = [broker.wires[wire] for cluster in trial.clusters for broker in cluster.brokers]
    for each in wires:
        each.cut()
    time.sleep(CUT_S)
    for each in wires:
        each.mend()


def java_hash(text: str) -> int:
    """Return what Kafka makes of an id to find its coordinator's partition: never negative."""
    value = 0
    for letter in text.encode("utf-16-be")[1::2]:
        value = (31 * value + letter) & 0xFFFF_FFFF
    return value & 0x7FFF_FFFF

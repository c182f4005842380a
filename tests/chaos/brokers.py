"""Clusters of one broker or three that can be killed and come back with their data."""

import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from confluent_kafka import ElectionType, IsolationLevel, TopicCollection, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic, OffsetSpec

from tests.integration.broker import (
    JAVA_OPTIONS,
    N_PARTITION,
    SERVER_PROPERTIES,
    BrokerUnavailableError,
    cluster_id,
    free_ports,
    install_jars,
    start_process,
    stop_process,
    wait_until_ready,
)

from .proxy import Proxy

N_WIRE = 2
"""How many wires lead to each broker; each can be cut alone."""
SMALL_DISK = "256m"
MOUNT, UNMOUNT = "/usr/bin/mount", "/usr/bin/umount"
REPLICATED = """\
broker.session.timeout.ms=3000
broker.heartbeat.interval.ms=500
controller.quorum.election.timeout.ms=500
controller.quorum.fetch.timeout.ms=1000
replica.lag.time.max.ms=3000
auto.leader.rebalance.enable=false
"""
LISTENERS = """\
listeners=PLAINTEXT://127.0.0.1:{direct},CONTROLLER://127.0.0.1:{controller},\
WIRE0://127.0.0.1:{wire0},WIRE1://127.0.0.1:{wire1}
advertised.listeners=PLAINTEXT://127.0.0.1:{direct},WIRE0://{far0},WIRE1://{far1}
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,\
WIRE0:PLAINTEXT,WIRE1:PLAINTEXT
"""
FASTER_THAN_USUAL = "transaction.abort.timed.out.transaction.cleanup.interval.ms=1000\n"


class Broker:
    """One broker and controller, reached directly or through wires that can be cut."""

    def __init__(self, folder: Path, node: int) -> None:
        self.controller, direct, *ends = free_ports(2 + N_WIRE)
        self.address = f"127.0.0.1:{direct}"
        self.wires = [Proxy(port) for port in ends]
        self.node, self.data = node, folder / "data"
        self._ports = {"direct": direct, "wire0": ends[0], "wire1": ends[1]}
        self._properties = folder / "server.properties"
        self._classpath = f"{install_jars()}/*"
        self._process: subprocess.Popen[bytes] | None = None

    def prepare(self, quorum: str, initial: str, cluster: str, n: int) -> None:
        """Write its settings, and format its storage as one of the `n` controllers `initial`."""
        self._properties.write_text(self._settings(quorum, n))
        tool = ["java", "-Xmx128m", *JAVA_OPTIONS, "-cp", self._classpath]
        tool += ["kafka.tools.StorageTool", "format", "-t", cluster, "-c", str(self._properties)]
        tool += ["--initial-controllers", initial]
        done = subprocess.run(tool, check=False, capture_output=True)
        if done.returncode != 0:
            raise BrokerUnavailableError(done.stderr.decode()[-1000:])

    def start(self) -> None:
        """Start it, from the data it has."""
        self._process, self._log = start_process(self._classpath, self._properties)

    def wait(self) -> None:
        """Return once it answers."""
        assert self._process is not None
        wait_until_ready(self._process, self.address, self._log)

    def kill(self) -> None:
        """End it without a word."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        """End it in order: its partitions get other leaders first."""
        assert self._process is not None
        stop_process(self._process)

    @property
    def ended(self) -> bool:
        """Whether it does not run."""
        return self._process is None or self._process.poll() is not None

    def close(self) -> None:
        """Stop it and its wires."""
        if not self.ended:
            self.stop()
        for wire in self.wires:
            wire.close()

    def _settings(self, quorum: str, n: int) -> str:
        text = SERVER_PROPERTIES.format(controller_port=0, log_dir=self.data)
        text = text.replace(FASTER_THAN_USUAL, "")
        text = text.replace("node.id=1", f"node.id={self.node}")
        text = text.replace("bootstrap.servers=127.0.0.1:0", f"bootstrap.servers={quorum}")
        text = text.replace("replication.factor=1", f"replication.factor={n}")
        text = text.replace("min.isr=1", f"min.isr={n // 2 + 1}")
        far = {f"far{i}": wire.address for i, wire in enumerate(self.wires)}
        text += LISTENERS.format(controller=self.controller, **self._ports, **far)
        return f"{text}min.insync.replicas={n // 2 + 1}\n" + (REPLICATED if n > 1 else "")


class Cluster:
    """Brokers that hold each partition as often as there are brokers."""

    def __init__(self, brokers: list[Broker]) -> None:
        self.brokers = brokers
        self.bootstrap = ",".join(broker.address for broker in brokers)
        self._admin = AdminClient({"bootstrap.servers": self.bootstrap, "log_level": 0})

    def by_wire(self, wire: int) -> str:
        """Return the addresses at the far ends of one wire of each broker."""
        return ",".join(broker.wires[wire].address for broker in self.brokers)

    def create_topics(
        self, *names: str, compacted: bool = False, copies: int | None = None
    ) -> None:
        """Create topics of four partitions, one if compacted; copies: one on each broker."""
        config = {"cleanup.policy": "compact"} if compacted else {}
        n = 1 if compacted else N_PARTITION
        wanted = [NewTopic(name, n, copies or len(self.brokers), config=config) for name in names]
        for created in self._admin.create_topics(wanted).values():
            created.result()

    def find_leader(self, topic: str, partition: int) -> Broker:
        """Return the broker that leads a partition now."""
        found = self._admin.describe_topics(TopicCollection([topic]))[topic].result()
        return self.brokers[int(found.partitions[partition].leader.id) - 1]

    def holds_readers_up(self, topic: str) -> bool:
        """Whether a transaction is open that readers of what is committed wait for."""
        committed = self._find_ends(topic, IsolationLevel.READ_COMMITTED)
        return committed != self._find_ends(topic, IsolationLevel.READ_UNCOMMITTED)

    def _find_ends(self, topic: str, level: IsolationLevel) -> list[int]:
        ends = {TopicPartition(topic, p): OffsetSpec.latest() for p in range(N_PARTITION)}
        found = self._admin.list_offsets(ends, isolation_level=level)
        return [end.result().offset for end in found.values()]

    def elect_preferred(self, *topics: str) -> None:
        """Move the leadership of each partition to the broker it was first given to."""
        partitions = [TopicPartition(topic, p) for topic in topics for p in range(N_PARTITION)]
        self._admin.elect_leaders(ElectionType.PREFERRED, partitions).result()


@contextmanager
def cluster(n: int = 1, *, small_disk: bool = False) -> Iterator[Cluster]:
    """Start `n` brokers as one cluster. Raises BrokerUnavailableError without Java or Maven."""
    with ExitStack() as stack:
        folders = [Path(stack.enter_context(TemporaryDirectory())) for _ in range(n)]
        brokers = [Broker(folder, i + 1) for i, folder in enumerate(folders)]
        quorum = ",".join(f"127.0.0.1:{b.controller}" for b in brokers)
        initial = ",".join(f"{b.node}@127.0.0.1:{b.controller}:{cluster_id()}" for b in brokers)
        identity = cluster_id()
        for broker in brokers:
            if small_disk:
                stack.enter_context(disk_of_its_own(broker.data))
            stack.callback(broker.close)
            broker.prepare(quorum, initial, identity, n)
            broker.start()
        for broker in brokers:
            broker.wait()
        yield Cluster(brokers)


@contextmanager
def disk_of_its_own(folder: Path) -> Iterator[None]:
    """Mount a small file system at `folder`; needs the right to mount."""
    folder.mkdir()
    options = ["-t", "tmpfs", "-o", f"size={SMALL_DISK}", "sedflow", str(folder)]
    subprocess.run([MOUNT, *options], check=True)
    try:
        yield
    finally:
        subprocess.run([UNMOUNT, "--lazy", str(folder)], check=True)

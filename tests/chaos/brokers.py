"""Clusters of one broker or three that can be killed and come back with their data."""

import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from confluent_kafka.admin import AdminClient, NewTopic

from tests.integration.broker import (
    JAVA_OPTIONS,
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

REPLICATED = """\
broker.session.timeout.ms=3000
broker.heartbeat.interval.ms=500
controller.quorum.election.timeout.ms=500
controller.quorum.fetch.timeout.ms=1000
replica.lag.time.max.ms=3000
"""
LISTENERS = """\
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}
advertised.listeners=PLAINTEXT://{advertised}
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
"""


class Broker:
    """One broker and controller, reached through a proxy of its own."""

    def __init__(self, folder: Path, node: int) -> None:
        self.port, self.controller = free_ports(2)
        self.proxy = Proxy(self.port)
        self.node, self._folder = node, folder
        self._properties = folder / "server.properties"
        self._classpath = f"{install_jars()}/*"
        self._process: subprocess.Popen[bytes] | None = None

    def prepare(self, quorum: str, initial: str, cluster: str, n: int) -> None:
        """Write its settings, and format its storage as one of the `n` controllers `initial`."""
        text = SERVER_PROPERTIES.format(controller_port=0, log_dir=self._folder / "data")
        text = text.replace("node.id=1", f"node.id={self.node}")
        text = text.replace(
            "quorum.bootstrap.servers=127.0.0.1:0", f"quorum.bootstrap.servers={quorum}"
        )
        text = text.replace("replication.factor=1", f"replication.factor={n}")
        text = text.replace("min.isr=1", f"min.isr={n // 2 + 1}")
        places = {"port": self.port, "controller": self.controller}
        listeners = LISTENERS.format(advertised=self.proxy.address, **places)
        replicas = f"min.insync.replicas={n // 2 + 1}\n"
        self._properties.write_text(text + listeners + replicas + (REPLICATED if n > 1 else ""))
        tool = [
            "java",
            "-Xmx128m",
            *JAVA_OPTIONS,
            "-cp",
            self._classpath,
            "kafka.tools.StorageTool",
        ]
        tool += ["format", "-t", cluster, "-c", str(self._properties)]
        done = subprocess.run(
            [*tool, "--initial-controllers", initial], check=False, capture_output=True
        )
        if done.returncode != 0:
            raise BrokerUnavailableError(done.stderr.decode()[-1000:])

    def start(self) -> None:
        """Start it, from the data it has."""
        self._process, self._log = start_process(self._classpath, self._properties)

    def wait(self) -> None:
        """Return once it answers."""
        assert self._process is not None
        wait_until_ready(self._process, f"127.0.0.1:{self.port}", self._log)

    def kill(self) -> None:
        """End it without a word."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        """Stop it and its proxy."""
        if self._process is not None:
            stop_process(self._process)
        self.proxy.close()


class Cluster:
    """Brokers that hold each partition `replicas` times."""

    def __init__(self, brokers: list[Broker]) -> None:
        self.brokers = brokers
        self.bootstrap = ",".join(broker.proxy.address for broker in brokers)

    def create_topics(self, *names: str, compacted: bool = False) -> None:
        """Create topics of four partitions, one if compacted."""
        client = AdminClient({"bootstrap.servers": self.bootstrap, "log_level": 0})
        config = {"cleanup.policy": "compact"} if compacted else {}
        n, replicas = (1 if compacted else 4), len(self.brokers)
        wanted = [NewTopic(name, n, replicas, config=config) for name in names]
        for created in client.create_topics(wanted).values():
            created.result()


@contextmanager
def cluster(n: int = 1) -> Iterator[Cluster]:
    """Start `n` brokers as one cluster. Raises BrokerUnavailableError without Java or Maven."""
    with ExitStack() as stack:
        folders = [Path(stack.enter_context(TemporaryDirectory())) for _ in range(n)]
        brokers = [Broker(folder, i + 1) for i, folder in enumerate(folders)]
        quorum = ",".join(f"127.0.0.1:{b.controller}" for b in brokers)
        initial = ",".join(f"{b.node}@127.0.0.1:{b.controller}:{cluster_id()}" for b in brokers)
        identity = cluster_id()
        for broker in brokers:
            stack.callback(broker.close)
            broker.prepare(quorum, initial, identity, n)
            broker.start()
        for broker in brokers:
            broker.wait()
        yield Cluster(brokers)

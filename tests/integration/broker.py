"""A real Kafka broker for tests and for the demo: ``with kafka_broker() as bootstrap: ...``.

Where it comes from, first that applies:

1. the environment variable ``KAFKA_BOOTSTRAP`` names a running one;
2. a Docker engine answers: testcontainers starts one;
3. Java 17 and Maven are there: Apache Kafka 4.3.1 from Maven Central, kept in
   ``${XDG_CACHE_HOME:-~/.cache}/sedflow/kafka-4.3.1``, as one process on 127.0.0.1;
4. none of them: `BrokerUnavailableError` with the reason.
"""

import base64
import os
import shutil
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from confluent_kafka import Consumer, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic, OffsetSpec

KAFKA_VERSION = "4.3.1"
N_PARTITION = 4
FOR_EVER = {"retention.ms": "-1"}
"""Messages of the tests bear old timestamps, by which a broker deletes them every five minutes."""
POM = Path(__file__).with_name("pom.xml")
DOCKER_SOCKET = Path("/var/run/docker.sock")
START_TIMEOUT_S = 180.0
STOP_TIMEOUT_S = 15.0
JAVA_OPTIONS = ("-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")

SERVER_PROPERTIES = """\
process.roles=broker,controller
node.id=1
controller.listener.names=CONTROLLER
controller.quorum.bootstrap.servers=127.0.0.1:{controller_port}
log.dirs={log_dir}
auto.create.topics.enable=false
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=4
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
share.coordinator.state.topic.num.partitions=1
transaction.abort.timed.out.transaction.cleanup.interval.ms=1000
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=1000
group.consumer.min.session.timeout.ms=1000
group.consumer.session.timeout.ms=3000
group.consumer.min.heartbeat.interval.ms=200
group.consumer.heartbeat.interval.ms=500
log.segment.bytes=16777216
log.cleaner.dedupe.buffer.size=2097152
"""
LISTENERS = """\
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller_port}
advertised.listeners=PLAINTEXT://127.0.0.1:{port}
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
"""


class BrokerUnavailableError(Exception):
    """No Kafka broker can be had here; the message says what was looked for."""


@contextmanager
def kafka_broker() -> Iterator[str]:
    """Yield the bootstrap servers of a broker that answers; stop it again if it was started here.

    Raises
    ------
    BrokerUnavailableError
        No address is set, no Docker engine answers, and Java 17 or Maven is missing.
    """
    named = os.environ.get("KAFKA_BOOTSTRAP")
    if named:
        yield named
    elif docker_answers():
        with container_broker() as bootstrap:
            yield bootstrap
    else:
        with java_broker() as bootstrap:
            yield bootstrap


def docker_answers() -> bool:
    """Whether a Docker engine answers within two seconds."""
    if "DOCKER_HOST" not in os.environ and not DOCKER_SOCKET.exists():
        return False
    import docker

    try:
        client = docker.from_env(timeout=2)
    except docker.errors.DockerException:
        return False
    try:
        return bool(client.ping())
    except docker.errors.DockerException:
        return False
    finally:
        client.close()


@contextmanager
def container_broker() -> Iterator[str]:
    """A broker in a container, KRaft mode."""
    from testcontainers.community.kafka import KafkaContainer

    container = KafkaContainer().with_kraft()
    container.with_env("KAFKA_AUTO_CREATE_TOPICS_ENABLE", "false")
    container.with_env("KAFKA_TRANSACTION_STATE_LOG_REPLICATION_FACTOR", "1")
    container.with_env("KAFKA_TRANSACTION_STATE_LOG_MIN_ISR", "1")
    with container:
        yield str(container.get_bootstrap_server())


@dataclass(frozen=True)
class BrokerFiles:
    """Where a broker keeps everything, and how it listens."""

    folder: Path
    listeners: str
    """Lines for server.properties."""
    controller_port: int

    @property
    def properties(self) -> Path:
        """The file server.properties."""
        return self.folder / "server.properties"

    def write(self) -> None:
        """Write server.properties."""
        common = SERVER_PROPERTIES.format(
            controller_port=self.controller_port, log_dir=self.folder / "data"
        )
        self.properties.write_text(common + self.listeners)


@contextmanager
def java_broker() -> Iterator[str]:
    """One broker and controller in one Java process, its data in a temporary folder."""
    with tempfile.TemporaryDirectory(prefix="sedflow-kafka-") as folder:
        port, controller_port = free_ports(2)
        listeners = LISTENERS.format(port=port, controller_port=controller_port)
        bootstrap = f"127.0.0.1:{port}"
        with running_broker(BrokerFiles(Path(folder), listeners, controller_port), bootstrap):
            yield bootstrap


@contextmanager
def running_broker(
    files: BrokerFiles, bootstrap: str, add_scram: Sequence[str] = ()
) -> Iterator[None]:
    """Write its files, start it, and stop it again; `add_scram` are its first users."""
    classpath = f"{install_jars()}/*"
    files.write()
    format_storage(classpath, files.properties, add_scram)
    process, log = start_process(classpath, files.properties)
    try:
        wait_until_ready(process, bootstrap, log)
        yield
    finally:
        stop_process(process)


def install_jars() -> Path:
    """The folder that holds the broker's jars, filled from Maven Central on first use."""
    for program in ("java", "mvn"):
        if shutil.which(program) is None:
            raise BrokerUnavailableError(
                f"no Kafka broker: KAFKA_BOOTSTRAP is not set, no Docker engine answers, "
                f"and {program} is not on the PATH"
            )
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sedflow"
    jars = cache / f"kafka-{KAFKA_VERSION}"
    if not jars.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f"kafka-{KAFKA_VERSION}-", dir=cache))
        download_jars(partial)
        try:
            partial.rename(jars)
        except OSError:  # another run was faster
            shutil.rmtree(partial)
    return jars


def download_jars(folder: Path) -> None:
    """Copy the pom's run-time dependencies into ``folder``; on failure leave nothing behind."""
    command = ["mvn", "-B", "-ntp", "-q", "-f", str(POM), "dependency:copy-dependencies"]
    command += [f"-DoutputDirectory={folder}", "-DincludeScope=runtime"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        shutil.rmtree(folder)
        raise BrokerUnavailableError(f"Maven could not fetch the broker:\n{done.stdout[-2000:]}")


def free_ports(n: int) -> list[int]:
    """``n`` TCP ports of 127.0.0.1 that nothing listens on."""
    sockets = [socket.socket() for _ in range(n)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]
    finally:
        for each in sockets:
            each.close()


def format_storage(classpath: str, properties: Path, add_scram: Sequence[str] = ()) -> None:
    """Write the cluster id and the first users into the empty log folder, as KRaft asks for."""
    command = ["java", "-Xmx128m", *JAVA_OPTIONS, "-cp", classpath, "kafka.tools.StorageTool"]
    command += ["format", "--standalone", "-t", cluster_id(), "-c", str(properties)]
    for user in add_scram:
        command += ["--add-scram", user]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise BrokerUnavailableError(
            f"the broker's storage: {done.stdout[-1000:]}{done.stderr[-1000:]}"
        )


def cluster_id() -> str:
    """A new cluster id in the form Kafka writes them: 22 characters of URL-safe base 64."""
    return base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=").replace("-", "_")


def start_process(classpath: str, properties: Path) -> tuple[subprocess.Popen[bytes], Path]:
    """Start the broker; also returns the file its output goes to."""
    log = properties.with_name("broker.log")
    command = ["java", "-Xms256m", "-Xmx256m", *JAVA_OPTIONS, "-cp", classpath, "kafka.Kafka"]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, str(properties)], stdout=output, stderr=subprocess.STDOUT
        )
    return process, log


def wait_until_ready(process: subprocess.Popen[bytes], bootstrap: str, log: Path) -> None:
    """Return once the broker answers a metadata request."""
    client = AdminClient({"bootstrap.servers": bootstrap, "log_level": 0})
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        try:
            client.list_topics(timeout=1.0)
            return
        except KafkaException:
            time.sleep(0.1)
    raise BrokerUnavailableError(f"the broker did not start:\n{log.read_text()[-2000:]}")


def stop_process(process: subprocess.Popen[bytes]) -> None:
    """Ask the broker to stop, insist after a while, and reap it."""
    process.terminate()
    try:
        process.wait(timeout=STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def create_topics(
    bootstrap: str, names: Iterable[str], config: Mapping[str, str] = FOR_EVER
) -> None:
    """Create topics of four partitions, and wait until they are there."""
    client = AdminClient({"bootstrap.servers": bootstrap})
    wanted = [NewTopic(name, N_PARTITION, 1, config=dict(config)) for name in names]
    for created in client.create_topics(wanted).values():
        created.result()
    places = [TopicPartition(each.topic, p) for each in wanted for p in range(N_PARTITION)]
    while not _can_be_read(client, places):
        time.sleep(0.1)


def _can_be_read(client: AdminClient, places: Iterable[TopicPartition]) -> bool:
    """Whether the broker serves the partitions; just after they were made it may not."""
    offsets = client.list_offsets(dict.fromkeys(places, OffsetSpec.earliest()))
    return all(future.exception() is None for future in offsets.values())


def committed_consumer(bootstrap: str, topic: str) -> Consumer:
    """A consumer of what is committed to the topic, from its beginning; ends are reported."""
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": uuid.uuid4().hex,
            "auto.offset.reset": "earliest",
            "isolation.level": "read_committed",
            "enable.auto.commit": False,
            "enable.partition.eof": True,
        }
    )
    consumer.subscribe([topic])
    return consumer

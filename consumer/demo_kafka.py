"""The demo's alerts through topics of a real broker, summarised by a daemon in its own process.

The broker is the one of the integration tests, so this part needs a checkout of the repository.
"""

import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from confluent_kafka import Producer

from consumer.avro import Record, decode_summary, encode
from consumer.errors import BrokerError
from consumer.writers import AvroWriter

try:
    from tests.integration.broker import (
        BrokerUnavailableError,
        committed_consumer,
        create_topics,
        kafka_broker,
    )
except ImportError:
    raise BrokerError("--kafka: expected a checkout with tests/, got none here") from None

STOP_TIMEOUT_S = 60.0
SILENCE_TIMEOUT_S = 120.0
SETTINGS = """\
[artifact]
name = "{artifact}"
allow_unvalidated = true
allow_unpinned = true
[input]
bootstrap = "{bootstrap}"
topics = ["{alerts}"]
group = "{alerts}"
[output]
bootstrap = "{bootstrap}"
topic = "{summaries}"
[http]
port = 0
"""


def pass_through_kafka(artifact: str, alerts: Sequence[Record], out: Path) -> None:
    """Produce the alerts, run the daemon until all are answered, write `summaries.avro`.

    Leaves the daemon's settings and log in `out` as well. Raises BrokerError where no broker can be
    had or the daemon ends early.
    """
    try:
        with kafka_broker() as bootstrap:
            print(f"Kafka broker at {bootstrap}")
            name = f"demo-{uuid4().hex[:8]}"
            topics = {"alerts": name, "summaries": f"{name}.summaries"}
            create_topics(bootstrap, [*topics.values(), f"{name}.sedflow.dlq"])
            settings = SETTINGS.format(artifact=artifact, bootstrap=bootstrap, **topics)
            (out / "daemon.toml").write_text(settings)
            _produce(bootstrap, topics["alerts"], alerts)
            start = time.perf_counter()
            with _daemon(out) as daemon:
                summaries = _collect(bootstrap, topics["summaries"], len(alerts), daemon)
    except BrokerUnavailableError as error:
        raise BrokerError(str(error)) from None
    seconds = time.perf_counter() - start
    print(f"{len(summaries):,} summaries read committed, {seconds:.1f} s after the daemon's start")
    writer = AvroWriter(out / "summaries.avro")
    writer.write(sorted(summaries, key=lambda value: int(decode_summary(value)["alertId"])))
    writer.finish()


def _produce(bootstrap: str, topic: str, alerts: Sequence[Record]) -> None:
    producer = Producer({"bootstrap.servers": bootstrap, "linger.ms": 20})
    for alert in alerts:
        producer.produce(topic, encode(alert, "hostAlert"), key=alert["objectId"])
        producer.poll(0)
    if waiting := producer.flush(30):
        raise BrokerError(f"{topic}: expected all alerts delivered, got {waiting} still waiting")
    print(f"{len(alerts):,} alerts in topic {topic}")


@contextmanager
def _daemon(out: Path) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "consumer.cli", "run", "--config", str(out / "daemon.toml")]
    with (out / "daemon.log").open("wb") as log, subprocess.Popen(command, stderr=log) as daemon:
        try:
            yield daemon
        finally:
            daemon.terminate()
            daemon.wait(STOP_TIMEOUT_S)
    print(f"daemon stopped by SIGTERM, exit code {daemon.returncode}")


def _collect(
    bootstrap: str, topic: str, n_alerts: int, daemon: subprocess.Popen[bytes]
) -> list[bytes]:
    """The first `n_alerts` committed summaries of the topic."""
    consumer = committed_consumer(bootstrap, topic)
    summaries: list[bytes] = []
    last = time.monotonic()
    while len(summaries) < n_alerts:
        for message in consumer.consume(500, 0.5):
            if message.error() is None and (value := message.value()):
                summaries.append(value)
                last = time.monotonic()
        if daemon.poll() is not None:
            raise BrokerError(f"expected a running daemon, got exit code {daemon.returncode}")
        if time.monotonic() - last > SILENCE_TIMEOUT_S:
            raise BrokerError(f"expected {n_alerts} summaries, got {len(summaries)} and no more")
    consumer.close()
    return summaries

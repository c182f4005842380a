"""The demo's galaxies as alerts on the input topic, over and over.

`python -m consumer.demo_alerts` is for the compose file and for first steps: somebody who has no
stream yet sees one. The settings are the daemon's. Needs the extra `demo`.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from itertools import count as count_from
from itertools import cycle, islice
from typing import Any

from confluent_kafka import KafkaError, Producer

from consumer.avro import encode
from consumer.demo import describe_galaxy, load_galaxies
from consumer.errors import BrokerError, SettingsError, exit_code
from consumer.kafka_client import LOG
from consumer.sections import DATE
from consumer.settings import Settings, load_settings
from consumer.start_checks import options_taken
from sedflow_core import load_artifact
from sedflow_core.argument_types import positive_float, positive_int
from sedflow_core.errors import SedflowError

TOPIC = "sedflow.v1_0.hostAlert"
N_GALAXIES = 10_000
FLUSH_S = 30.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Produce until interrupted; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m consumer.demo_alerts", description=__doc__)
    parser.add_argument("--config", metavar="TOML", help="settings of the daemon")
    parser.add_argument("--rate", type=positive_float, default=5.0, help="alerts per second")
    parser.add_argument("--limit", type=positive_int, help="stop after so many")
    options = parser.parse_args(arguments)
    try:
        produce(load_settings(options.config), rate=options.rate, limit=options.limit)
    except SedflowError as error:
        print(f"demo_alerts: {error}", file=sys.stderr)
        return exit_code(error)
    except KeyboardInterrupt:
        return 0
    return 0


def produce(settings: Settings, *, rate: float, limit: int | None) -> None:
    """Produce `limit` alerts, or without end, to the first input topic at `rate` per second.

    Raises BrokerError where one of them cannot be delivered, SettingsError where no topic can be
    told or the client refuses its options.
    """
    artifact = load_artifact(settings.artifact.name)
    galaxies = load_galaxies(artifact, N_GALAXIES)
    topic = (*settings.input.topics, TOPIC)[0]
    if DATE in topic:
        raise SettingsError(f"input.topics: expected a topic without {DATE} first, got {topic}")
    with options_taken("input"):
        producer = Producer(settings.input.client_config(), logger=LOG)
    refused: list[str] = []

    def note(error: KafkaError | None, _: Any) -> None:
        if error is not None:
            refused.append(error.str())

    print(f"{rate:g} alerts a second to {topic}; Ctrl-C ends it", flush=True)
    for number, i in zip(islice(count_from(0), limit), cycle(range(len(galaxies.names)))):
        alert = describe_galaxy(galaxies, artifact, i) | {"alertId": number}
        value, key = encode(alert, "hostAlert"), alert["objectId"]
        try:
            producer.produce(topic, value, key=key, on_delivery=note)
        except BufferError as error:
            raise BrokerError(f"{topic}: expected alerts to leave, got {error}") from None
        producer.poll(0)
        _check(topic, refused)
        time.sleep(1.0 / rate)
    waiting = producer.flush(FLUSH_S)
    _check(topic, refused or [f"{waiting} waiting for {FLUSH_S:.0f} s"] * bool(waiting))


def _check(topic: str, refused: Sequence[str]) -> None:
    if refused:
        raise BrokerError(f"{topic}: expected every alert delivered, got {refused[0]}")


if __name__ == "__main__":
    sys.exit(main())

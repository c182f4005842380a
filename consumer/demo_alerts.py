"""The demo's galaxies as alerts on the input topic, over and over.

`python -m consumer.demo_alerts` is for the compose file and for first steps: somebody who has no
stream yet sees one. The settings are the daemon's. Needs the extra `demo`.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from itertools import count, cycle

from confluent_kafka import Producer

from consumer.avro import encode
from consumer.demo import describe_galaxy, load_galaxies
from consumer.settings import Settings, load_settings
from sedflow_core import load_artifact
from sedflow_core.errors import SedflowError

TOPIC = "sedflow.v1_0.hostAlert"
N_GALAXIES = 10_000


def main(arguments: Sequence[str] | None = None) -> int:
    """Produce until interrupted; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m consumer.demo_alerts", description=__doc__)
    parser.add_argument("--config", metavar="TOML", help="settings of the daemon")
    parser.add_argument("--rate", type=float, default=5.0, help="alerts per second")
    parser.add_argument("--limit", type=int, help="stop after so many")
    options = parser.parse_args(arguments)
    try:
        produce(load_settings(options.config), rate=options.rate, limit=options.limit)
    except SedflowError as error:
        print(f"demo_alerts: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 0
    return 0


def produce(settings: Settings, *, rate: float, limit: int | None) -> None:
    """Produce `limit` alerts, or without end, to the first input topic at `rate` per second."""
    artifact = load_artifact(settings.artifact.name)
    galaxies = load_galaxies(artifact, N_GALAXIES)
    producer = Producer(settings.input.client_config())
    topic = (*settings.input.topics, TOPIC)[0]
    print(f"{rate:g} alerts a second to {topic}; Ctrl-C ends it", flush=True)
    numbers = count() if limit is None else range(limit)
    for number, i in zip(numbers, cycle(range(len(galaxies.names))), strict=False):
        alert = describe_galaxy(galaxies, artifact, i) | {"alertId": number}
        producer.produce(topic, encode(alert, "hostAlert"), key=alert["objectId"])
        producer.poll(0)
        time.sleep(1.0 / rate)
    producer.flush(30)


if __name__ == "__main__":
    sys.exit(main())

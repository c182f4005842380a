"""A window that the broker refuses is rolled back, read again and published once."""

from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from threading import Event

import pytest
from prometheus_client import CollectorRegistry

from consumer.daemon import run
from consumer.files import ArchiveSource
from consumer.health import Health
from consumer.kafka import KafkaSource
from consumer.kafka_client import BROKER_DEFAULT_BYTES
from consumer.kafka_sink import KafkaSink
from consumer.message import DeadLetter, Message, Result, Window
from consumer.metrics import Metrics
from consumer.settings import Settings

from .conftest import Topics
from .traffic import Sent, make_good, produce, read_exactly

N_GOOD = 20


class RefusedOnce:
    """A step that echoes; its first window holds a summary that is too large for the broker."""

    def __init__(self) -> None:
        self.stop = Event()
        self.windows: list[Window] = []

    def __call__(self, messages: Sequence[Message], **rest: object) -> Window:
        first, *others = messages
        values = [message.value or b"" for message in others]
        if not self.windows:
            values.append(bytes(BROKER_DEFAULT_BYTES + 1))
        results = tuple(Result(None, value, (), "OK", "ZTF") for value in values)
        letter = DeadLetter(first, "decode", "DecodeError", "expected", datetime.now(UTC))
        self.windows.append(Window(tuple(messages), results, (letter,)))
        if sum(len(window.consumed) for window in self.windows[1:]) == N_GOOD:
            self.stop.set()
        return self.windows[-1]


@pytest.fixture
def settings(bootstrap: str, topics: Topics) -> Settings:
    source = {"bootstrap": bootstrap, "topics": [topics.alerts], "group": topics.alerts}
    sink = {"topic": topics.summaries, "dead_letter_topic": topics.dead_letters}
    return Settings.model_validate({"input": source, "output": {"bootstrap": bootstrap, **sink}})


def write_folder(folder: Path, messages: Sequence[Sent]) -> list[str]:
    for i, message in enumerate(messages):
        (folder / f"{i}.avro").write_bytes(message.value or b"")
    return [str(folder)]


@pytest.mark.parametrize("archived", [False, True])
def test_a_refused_window(
    settings: Settings, topics: Topics, tmp_path: Path, archived: bool
) -> None:
    bootstrap, sent = settings.output.bootstrap, list(make_good(N_GOOD))
    metrics, health, step = Metrics(CollectorRegistry()), Health(), RefusedOnce()
    source: ArchiveSource | KafkaSource
    if archived:
        source = ArchiveSource(write_folder(tmp_path, sent))
        sink = KafkaSink(settings, metrics)
    else:
        produce(bootstrap, topics.alerts, sent)
        source = KafkaSource(settings, metrics, health)
        sink = KafkaSink(settings, metrics, source)
        source.subscribe()
    limits = {"max_batch": 8, "max_delay_s": 0.5}
    with closing(source):
        tally = run(source, sink, step, step.stop, **limits, metrics=metrics, health=health)
    assert tally.messages == N_GOOD
    assert metrics.registry.get_sample_value("sedflow_commit_failures_total") == 1
    n_letter = len(step.windows) - 1  # the first window was rolled back
    published = read_exactly(bootstrap, topics.summaries, N_GOOD - n_letter)
    published += read_exactly(bootstrap, topics.dead_letters, n_letter)
    assert Counter(m.value() for m in published) == Counter(message.value for message in sent)

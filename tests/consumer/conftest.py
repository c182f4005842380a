"""Fixtures of the consumer's tests: settings, a step, alerts and messages."""

import copy
import io
import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import fastavro
import pytest

from consumer.avro import Decoder, encode, own_schema, schemas_path
from consumer.message import Message
from consumer.settings import Settings
from consumer.step import Step
from sedflow_core import Artifact

Record = dict[str, Any]


@pytest.fixture(scope="session")
def settings() -> Settings:
    return Settings.model_validate({"artifact": {"n_samples": 64}})


@pytest.fixture(scope="session")
def step(tiny: Artifact, settings: Settings) -> Step:
    return Step(tiny, settings)


@pytest.fixture(scope="session")
def sample_alert() -> Record:
    """The documented sample of the input schema: a bright SDSS galaxy."""
    path = schemas_path() / "1" / "0" / "sample_data" / "hostAlert.json"
    record: Record = Decoder().decode(encode(json.loads(path.read_text()), "hostAlert")).record
    return record


@pytest.fixture(scope="session")
def make_alert(sample_alert: Record) -> Callable[..., Record]:
    """Return a builder of hostAlert records: `make_alert(3, redshift=0.1)` changes the host."""

    def make(alert_id: int = 1, **host: Any) -> Record:
        record = copy.deepcopy(sample_alert)
        record |= {"alertId": alert_id, "objectId": f"object-{alert_id}"}
        record["host"] |= host
        return record

    return make


@pytest.fixture(scope="session")
def make_message(make_alert: Callable[..., Record]) -> Callable[..., Message]:
    """Return a builder of messages on the topic `hosts`, offset = alert id."""

    def make(alert_id: int = 1, **host: Any) -> Message:
        value = encode(make_alert(alert_id, **host), "hostAlert")
        return Message(value=value, key=b"k%d" % alert_id, topic="hosts", offset=alert_id)

    return make


@pytest.fixture(scope="session")
def write_container() -> Callable[..., bytes]:
    """Return fastavro's own writer of containers, the independent truth for ours."""

    def write(records: list[Record], codec: str = "null") -> bytes:
        stream = io.BytesIO()
        fastavro.writer(stream, own_schema("hostAlert"), records, codec=codec)
        return stream.getvalue()

    return write


@pytest.fixture(scope="session")
def now() -> Callable[[], datetime]:
    """A clock that stands still."""
    return lambda: datetime(2026, 1, 2, 3, 4, 5, 678000, tzinfo=UTC)

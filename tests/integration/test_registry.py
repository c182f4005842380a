"""Confluent wire format in and out with a real registry, up, down and without an id."""

import json
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from consumer.avro import VERSION, WIRE_ID, Decoder, RecordName, encode, schema_text
from consumer.errors import DecodeError, SettingsError
from consumer.registry import Registry, RegistryError
from consumer.sections import RegistrySettings
from tests.services import service

from .apicurio import registry as running_registry
from .broker import free_ports
from .traffic import make_alert

ALERT = make_alert(7)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with service(running_registry()) as address:
        yield address


def connect(url: str, **more: Any) -> Registry:
    return Registry(RegistrySettings(url=url, **more), url)


def fetch(address: str) -> Any:
    with urllib.request.urlopen(address, timeout=10) as answer:
        return json.load(answer)


def changed(**field: Any) -> bytes:
    """Our schema of summaries with a field more."""
    schema = json.loads(schema_text("posteriorSummary"))
    schema["fields"].append(field)
    return json.dumps(schema).encode()


def test_in_and_out(url: str) -> None:
    schema_id = connect(url).register("alerts", schema_text("hostAlert"))
    value = encode(ALERT, "hostAlert", schema_id)
    assert int.from_bytes(value[1:5], "big") == schema_id
    decoded = Decoder(registry=connect(url)).decode(value)
    assert decoded.record["alertId"] == ALERT["alertId"]
    assert connect(url).register("alerts", schema_text("hostAlert")) == schema_id


def test_newer_schemas_must_be_readable_by_older_readers(url: str) -> None:
    """The registry itself holds every later version to FORWARD_TRANSITIVE."""
    connect(url).register("summaries", schema_text("posteriorSummary"))
    later = changed(name="extra", type=["null", "long"], default=None, doc="More.")
    assert connect(url).register("summaries", later)
    schema = json.loads(later)
    schema["fields"] = [f for f in schema["fields"] if f["name"] != "alertId"]
    with pytest.raises(SettingsError, match="takes as FORWARD_TRANSITIVE, got 409"):
        connect(url).register("summaries", json.dumps(schema).encode())


@pytest.mark.parametrize("record", ["hostAlert", "posteriorSummary"])
def test_every_version_of_our_schemas_is_one_more_of_the_last(url: str, record: RecordName) -> None:
    """Each minor version, in order, passes the registry's check against all before it."""
    ids = [
        connect(url).register(f"published.{record}", schema_text(record, minor))
        for minor in range(VERSION[1] + 1)
    ]
    subject = f"published.{record}-value"
    assert fetch(f"{url}/subjects/{subject}/versions") == list(range(1, 1 + len(set(ids))))
    level = fetch(f"{url}/config/{subject}")
    assert level == {"compatibilityLevel": "FORWARD_TRANSITIVE"}


def test_bundled_schemas_where_the_registry_knows_no_id(url: str) -> None:
    decoder = Decoder(registry=connect(url))
    assert decoder.decode(encode(ALERT, "hostAlert", WIRE_ID)).record["alertId"] == 7


def test_an_unknown_id_is_undecodable_and_remembered_for_a_while(url: str) -> None:
    now = [0.0]
    settings = RegistrySettings(url=url, forget_unknown_s=60)
    registry = Registry(settings, url, clock=lambda: now[0])
    value = encode(ALERT, "hostAlert", 424_242)
    for _ in range(2):
        with pytest.raises(DecodeError, match=r"schema id: expected one of.*got 424242"):
            Decoder(registry=registry).decode(value)
    elsewhere = Registry(settings, "http://127.0.0.1:1", clock=lambda: now[0])
    elsewhere._unknown = registry._unknown  # the same memory, nobody to ask
    assert elsewhere.schema(424_242) is None
    now[0] = 61.0
    with pytest.raises(RegistryError):
        elsewhere.schema(424_242)


def test_what_is_no_avro_is_undecodable(url: str) -> None:
    registry = connect(url)
    draft = '{"$schema": "http://json-schema.org/draft-07/schema#", "type": "object"}'
    schema = {"schemaType": "JSON", "schema": draft}
    answer = registry._ask("/subjects/json-value/versions", "POST", schema)
    assert answer is not None
    with pytest.raises(DecodeError, match="expected Avro"):
        Decoder(registry=connect(url)).decode(encode(ALERT, "hostAlert", answer["id"]))


def test_a_registry_that_is_down_halts_and_comes_back() -> None:
    """What was known goes on being read; what was not waits, and is never a dead letter."""
    (port,) = free_ports(1)
    with service(running_registry(port)) as url:
        registry = connect(url)
        known = registry.register("alerts", schema_text("hostAlert"))
        decoder = Decoder(registry=registry)
        assert decoder.decode(encode(ALERT, "hostAlert", known))
    assert decoder.decode(encode(ALERT, "hostAlert", known))
    with pytest.raises(RegistryError, match=f"expected an answer of {url}, got"):
        decoder.decode(encode(ALERT, "hostAlert", known + 1))


def test_the_password_goes_to_the_registry_and_nowhere_else(url: str) -> None:
    registry = connect(url, username="u", password="correct-horse")  # noqa: S106
    assert registry.schema(424_243) is None
    silent = Registry(registry._settings, "http://127.0.0.1:1")
    with pytest.raises(RegistryError) as caught:
        silent.schema(1)
    assert "correct-horse" not in str(caught.value)

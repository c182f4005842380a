"""What any bytes must hold to: a message becomes an alert, or an error that says why, at once.

The first byte of an input tells how to read the rest.
"""

import contextlib
import io
import json
import time
from collections.abc import Iterator
from typing import Any

from consumer.alerts import adapt
from consumer.avro import Decoder, encode, encode_body, holds_one_record, schema_text, schemas_path
from consumer.container import make_block, make_header
from consumer.errors import AdaptError, DecodeError
from consumer.records import split_container as split
from consumer.surveys import SURVEYS, SurveyMap

MAX_CPU_S = 1.0
"""Longest that one input may take [s of this process]."""
VALUE, KEY_AND_VALUE, ARCHIVE, OWN_SCHEMA, SURVEY = range(5)
LEAF = ["null", "double", "long", "string", "boolean", "bytes", {"type": "array", "items": "int"}]
SCHEMA_NAMES = (
    *("sedflow.v1_0.hostAlert", "elasticc.v0_9.alert", "ztf.alert"),
    *("lsst.v11_1.alert", "topLevelRecord"),
)
"""A schema name for each of SURVEYS."""
DECODER = Decoder()


class TooSlowError(Exception):
    """An input took longer than MAX_CPU_S."""


def check(data: bytes) -> None:
    """Read the input; raises what reading must never raise."""
    start = time.process_time()
    for value, key in messages(data):
        with contextlib.suppress(DecodeError, AdaptError):
            adapt(DECODER.decode(value, key))
    if (taken := time.process_time() - start) > MAX_CPU_S:
        raise TooSlowError(f"expected at most {MAX_CPU_S} s, got {taken}")


def messages(data: bytes) -> Iterator[tuple[bytes, bytes | None]]:
    """The messages in an input: values and keys."""
    kind, rest = (data[0] if data else 0), data[1:]
    if kind == KEY_AND_VALUE:
        key, _, value = rest.partition(b"\n")
        yield value, key
    elif kind == ARCHIVE:
        holds_one_record(rest)
        yield from split(io.BytesIO(rest))
    elif kind == OWN_SCHEMA:
        yield rest, schema_text("hostAlert")
    elif kind >= SURVEY:
        place = (kind - SURVEY) % len(SURVEYS)
        yield rest, survey_schema(SURVEYS[place], SCHEMA_NAMES[place])
    else:
        yield rest, None


def survey_schema(survey: SurveyMap, name: str) -> bytes:
    """A schema with every field that a survey's map names, each of any type: the bytes decide."""
    tree: dict[str, Any] = {}
    bands = [path for pair in survey.bands.values() for path in pair]
    for paths in (*survey.alert.values(), *survey.host.values(), *bands):
        for path in paths.split(" or "):
            *outer, last = path.split(".")
            node = tree
            for part in outer:
                node = node.setdefault(part, {})
            node.setdefault(last, None)
    return json.dumps(as_record(name, tree)).encode()


def as_record(name: str, tree: dict[str, Any]) -> dict[str, Any]:
    """A record of nullable records, and of leaves of any type."""
    fields = [
        {"name": part, "type": LEAF if below is None else ["null", as_record(f"{part}_", below)]}
        for part, below in tree.items()
    ]
    return {"type": "record", "name": name, "fields": fields}


def seeds() -> Iterator[bytes]:
    """Inputs to start from: one alert in every framing, each survey's fields, some schemas."""
    path = schemas_path() / "1" / "0" / "sample_data" / "hostAlert.json"
    alert = json.loads(path.read_text())
    schema, body = schema_text("hostAlert"), encode_body(alert, "hostAlert")
    yield bytes([VALUE]) + encode(alert, "hostAlert")
    yield bytes([OWN_SCHEMA]) + body
    flat = json.dumps(json.loads(schema)).encode()
    yield bytes([KEY_AND_VALUE]) + flat + b"\n" + body
    for codec in ("null", "deflate"):
        header, sync = make_header(schema, codec)
        for kind, n in ((VALUE, 1), (ARCHIVE, 1), (ARCHIVE, 3)):
            yield bytes([kind]) + header + make_block([body] * n, sync, codec)
    for types in (["null", "int"], {"type": "map", "values": {"type": "array", "items": "long"}}):
        small = {"type": "record", "name": "R", "fields": [{"name": "f", "type": types}]}
        yield bytes([KEY_AND_VALUE]) + json.dumps(small).encode() + b"\n\x02\x04"
    for place in range(len(SURVEYS)):
        yield bytes([SURVEY + place]) + b"\x02" * 60

"""Messages that cannot be used, of every kind a stream may bring, and what must become of each.

A kind leads to a dead letter of a stage, or to a summary with a status; nothing else may happen.
"""

import gzip
import io
import json
import random
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import fastavro

from consumer.avro import encode, encode_body, own_schema
from consumer.container import MAX_BYTES, make_block, make_header

from .traffic import Headers, Record, Sent, in_container, make_alert

LARGE_BYTES = 10_000_000
ALERT = make_alert(0)
WIRE, CONTAINER = encode(ALERT, "hostAlert"), in_container(ALERT)
NAN, INFINITY = float("nan"), float("inf")
CHANCE = random.Random(6)
HEADERS: Headers = [("id", b"\x00\xff"), ("empty", b""), ("null", None), ("id", b"2")]

Make = Callable[[int], "bytes | None"]


@dataclass(frozen=True)
class Kind:
    """A kind of message, and the stage of its dead letter or the status of its summary."""

    make: Make
    outcome: str
    key: bytes = b""

    @property
    def dies(self) -> bool:
        """Whether it becomes a dead letter."""
        return self.outcome.islower()


def host(**changes: Any) -> Make:
    """An alert whose host has other values."""
    return lambda i: alert(i, host=ALERT["host"] | changes)


def alert(i: int, **changes: Any) -> bytes:
    """An alert with other values."""
    return encode(ALERT | {"alertId": i, "objectId": f"poison-{i}"} | changes, "hostAlert")


def typed(name: str, type_: Any, value: Any) -> Make:
    """An alert in a container, one of its fields of another type than it should be."""

    def make(i: int) -> bytes:
        schema = _plain(own_schema("hostAlert"))
        fields = [
            {"name": name, "type": type_} if f["name"] == name else f for f in schema["fields"]
        ]
        schema |= {"fields": fields}
        stream = io.BytesIO()
        changed = ALERT | {"alertId": i, "objectId": f"poison-{i}", name: value}
        fastavro.writer(stream, schema, [changed])
        return stream.getvalue()

    return make


def _plain(node: Any) -> Any:
    """A parsed schema without what the parser has left in it."""
    if isinstance(node, dict):
        return {k: _plain(v) for k, v in node.items() if not k.startswith("__")}
    return [_plain(item) for item in node] if isinstance(node, list) else node


def container_of(schema: Record, *records: bytes) -> bytes:
    """A container with a schema of one's own."""
    header, sync = make_header(json.dumps(schema).encode())
    return header + make_block(list(records), sync)


def record(name: str, *types: Any) -> Record:
    """The schema of a record."""
    fields = [{"name": f"f{i}", "type": type_} for i, type_ in enumerate(types)]
    return {"type": "record", "name": name, "fields": fields}


def wordy(_: int) -> bytes:
    """An alert whose summary, with its key, would be larger than its topic takes."""
    changed = ALERT | {"objectId": "x" * 550_000, "survey": "y" * 50_000}
    return WIRE[:5] + encode_body(changed, "hostAlert")


def large(_: int) -> bytes:
    """10 MB that pack badly."""
    return b"\xff" + CHANCE.randbytes(LARGE_BYTES - 1)


KINDS: dict[str, Kind] = {
    "wire, cut off": Kind(lambda i: WIRE[: 5 + i % (len(WIRE) - 5)], "decode"),
    "container, cut off": Kind(lambda i: CONTAINER[: 4 + i % (len(CONTAINER) - 4)], "decode"),
    "random bytes": Kind(lambda i: b"\xff" + CHANCE.randbytes(i % 1000), "decode"),
    "random body": Kind(lambda _: WIRE[:5] + CHANCE.randbytes(300), "decode"),
    "empty": Kind(lambda _: b"", "decode"),
    "null": Kind(lambda _: None, "decode"),
    "10 MB": Kind(large, "decode"),
    "unknown framing": Kind(lambda _: b"\x01" + WIRE[1:], "decode"),
    "unknown container": Kind(lambda _: b"Obj\x02" + CONTAINER[4:], "decode"),
    "packed": Kind(lambda _: gzip.compress(WIRE, mtime=0), "decode"),
    "JSON": Kind(lambda _: json.dumps(ALERT).encode(), "decode"),
    "unknown schema id": Kind(lambda _: struct.pack(">bI", 0, 999_999) + WIRE[5:], "decode"),
    "bytes behind the record": Kind(lambda _: WIRE + b"\x00", "decode"),
    "two records": Kind(lambda _: container_of(record("R", "int"), b"\x02", b"\x02"), "decode"),
    "recursive schema": Kind(
        lambda _: container_of(record("R", ["null", "R"]), b"\x02" * 50 + b"\x00"), "decode"
    ),
    "bomb": Kind(lambda _: container_of(record("R", "bytes"), bytes(MAX_BYTES + 1)), "decode"),
    "schema in the key, no Avro": Kind(lambda _: WIRE[5:], "decode", b'{"fields": 3}'),
    "text that is no UTF-8": Kind(lambda _: WIRE.replace(b"object-0", b"object-\xff"), "decode"),
    "wrong schema": Kind(lambda _: container_of(record("Weather", "int"), b"\x02"), "adapt"),
    "string for a number": Kind(typed("ra", "string", "150.0"), "adapt"),
    "string for the host": Kind(typed("host", "string", "M31"), "adapt"),
    "endless names": Kind(wordy, "encode"),
    "null for the id": Kind(typed("alertId", ["null", "long"], None), "adapt"),
    "no host": Kind(lambda i: alert(i, host=None), "NO_HOST"),
    "NaN": Kind(host(g_flux=NAN), "INVALID_INPUT"),
    "infinity": Kind(host(r_flux=INFINITY), "INVALID_INPUT"),
    "minus infinity": Kind(host(r_flux=-INFINITY), "INVALID_INPUT"),
    "negative error": Kind(host(i_fluxErr=-1.0), "INVALID_INPUT"),
    "zero error": Kind(host(z_fluxErr=0.0), "INVALID_INPUT"),
    "negative redshift": Kind(host(redshift=-3.0), "OUT_OF_SUPPORT"),
    "missing band": Kind(host(u_flux=None), "MISSING_BANDS"),
    "no redshift": Kind(host(redshift=None), "NO_REDSHIFT"),
    "other filters": Kind(host(filterSystem="DECam"), "WRONG_FILTERS"),
    "absurdly bright": Kind(host(**{f"{b}_flux": 1e12 for b in "ugriz"}), "OUT_OF_SUPPORT"),
}


def make_poison(n: int, kinds: dict[str, Kind] = KINDS) -> Iterator[tuple[str, Sent]]:
    """`n` messages of the kinds in turn, with the name of each; the headers tell its number."""
    names, now_ms = list(kinds), int(time.time() * 1e3)
    for i in range(n):
        name = names[i % len(names)]
        kind = kinds[name]
        headers: Headers = [*HEADERS, ("number", b"%d" % i)]
        yield name, Sent(kind.key or b"poison-%d" % i, kind.make(i), headers, now_ms - i)

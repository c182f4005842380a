"""Every framing decodes; whatever else the bytes hold ends in DecodeError."""

import contextlib
import io
import json
import struct
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fastavro
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consumer.avro import (
    VERSION,
    WIRE_ID,
    Decoder,
    decode_summary,
    encode,
    encode_body,
    holds_one_record,
    own_schema,
    parse_writer_schema,
    schema_text,
    schemas_path,
    wire_body,
)
from consumer.container import MAX_BYTES, long_bytes, make_block, make_header
from consumer.errors import DecodeError, EncodeError, SettingsError
from consumer.records import split_container

Record = dict[str, Any]
DECODER = Decoder()
WIRE = struct.pack(">bI", 0, WIRE_ID)


def record_schema(*types: Any, name: str = "Thing") -> bytes:
    fields = [{"name": f"f{i}", "type": type_} for i, type_ in enumerate(types)]
    return json.dumps({"type": "record", "name": name, "fields": fields}).encode()


def in_container(schema: bytes, body: bytes, count: int = 1, codec: str = "null") -> bytes:
    header, sync = make_header(schema, codec)
    return header + long_bytes(count) + long_bytes(len(body)) + body + sync


@pytest.mark.parametrize("codec", ["null", "deflate", "snappy"])
def test_container(codec: str, sample_alert: Record, write_container: Callable[..., bytes]) -> None:
    decoded = DECODER.decode(write_container([sample_alert], codec))
    assert decoded.schema_name == "sedflow.v1_2.hostAlert"
    assert decoded.record["host"]["hostId"] == sample_alert["host"]["hostId"]


def test_confluent_wire(sample_alert: Record) -> None:
    value = encode(sample_alert, "hostAlert")
    assert value[:5] == b"\x00\x00\x00\x00\x66"
    assert DECODER.decode(value).record["alertId"] == sample_alert["alertId"]


def test_schema_in_the_key(sample_alert: Record) -> None:
    body = encode_body(sample_alert, "hostAlert")
    decoded = DECODER.decode(body, schema_text("hostAlert"))
    assert decoded.record["objectId"] == sample_alert["objectId"]


def test_a_schema_may_begin_with_white_space(sample_alert: Record) -> None:
    body = encode_body(sample_alert, "hostAlert")
    decoded = DECODER.decode(body, b"\n  " + schema_text("hostAlert"))
    assert decoded.record["objectId"] == sample_alert["objectId"]


def test_a_key_that_is_json_but_no_schema_is_a_key(sample_alert: Record) -> None:
    value = encode(sample_alert, "hostAlert")
    assert DECODER.decode(value, b'{"objectId": "x"}') == DECODER.decode(value)


def test_configured_schema(sample_alert: Record, tmp_path: Path) -> None:
    path = tmp_path / "writer.avsc"
    path.write_bytes(schema_text("hostAlert"))
    decoder = Decoder(schema_file=path)
    assert decoder.decode(encode_body(sample_alert, "hostAlert")).record["survey"] == "ZTF"


def test_all_framings_give_the_same_record(
    sample_alert: Record, write_container: Callable[..., bytes]
) -> None:
    body = encode_body(sample_alert, "hostAlert")
    records = [
        DECODER.decode(write_container([sample_alert])).record,
        DECODER.decode(WIRE + body).record,
        DECODER.decode(body, schema_text("hostAlert")).record,
    ]
    assert records[0] == records[1] == records[2]


def test_unknown_schema_id_names_the_ids_and_the_setting() -> None:
    with pytest.raises(
        DecodeError, match=r"expected one of \[100, 101, 102\], got 900.*schema_folder"
    ):
        DECODER.decode(struct.pack(">bI", 0, 900) + b"x")


def test_schema_folder(tmp_path: Path) -> None:
    (tmp_path / "7.avsc").write_bytes(record_schema("long"))
    decoded = Decoder(schema_folder=tmp_path).decode(b"\x00\x00\x00\x00\x07\x54")
    assert (decoded.schema_name, decoded.record) == ("Thing", {"f0": 42})


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("seven.avsc", '"x"', r"expected <id>.avsc, got seven.avsc"),
        ("7.avsc", "{", r"input\.schema_folder: expected a writer schema, got .*7\.avsc: schema: "),
        ("readme.txt", "", r"expected <id>.avsc files, got none"),
    ],
)
def test_bad_schema_folder(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(SettingsError, match=message):
        Decoder(schema_folder=tmp_path)


def test_schema_file_that_is_none(tmp_path: Path) -> None:
    told = r"input\.schema_file: expected a writer schema, got .*none\.avsc"
    with pytest.raises(SettingsError, match=told):
        Decoder(schema_file=tmp_path / "none.avsc")


@pytest.mark.parametrize("value", [None, b"", b"\x00", b"not avro", b"\xc3\x01" + bytes(8)])
def test_no_framing(value: bytes | None) -> None:
    with pytest.raises(DecodeError, match="expected"):
        DECODER.decode(value)


def test_trailing_bytes_are_not_ignored(sample_alert: Record) -> None:
    with pytest.raises(DecodeError, match="to fill"):
        DECODER.decode(encode(sample_alert, "hostAlert") + b"\x00")


def test_two_records_in_one_message(
    sample_alert: Record, write_container: Callable[..., bytes]
) -> None:
    with pytest.raises(DecodeError, match="one record per message, got 2"):
        DECODER.decode(write_container([sample_alert, sample_alert]))


RECURSIVE = json.dumps(
    {"type": "record", "name": "N", "fields": [{"name": "n", "type": ["null", "N"]}]}
).encode()
DEEP = b'{"type":"array","items":' * 200 + b'"int"' + b"}" * 200
INTERNAL = b'{"type":"record","name":"N","fields":[],"__fastavro_parsed_schema":true}'


@pytest.mark.parametrize(
    "key",
    [
        RECURSIVE,
        INTERNAL,
        record_schema("null"),
        record_schema({"type": "array", "items": "null"}),
        record_schema({"type": "array", "items": {"type": "record", "name": "E", "fields": []}}),
        record_schema({"type": "fixed", "name": "F", "size": 0}),
        record_schema(json.loads(DEEP)),
        record_schema("Unknown"),
        b'{"type":' * 100_000,
        b'{"type":"int"}',
        b"{}",
        b"{\xff}",
    ],
)
def test_unsafe_writer_schema(key: bytes) -> None:
    with pytest.raises(DecodeError, match="expected"):
        DECODER.decode(b"\x02" * 100, key)


def test_a_schema_that_only_looks_recursive_is_fine() -> None:
    """The same named type twice, side by side, is no recursion."""
    point = {"type": "record", "name": "P", "fields": [{"name": "x", "type": "int"}]}
    assert parse_writer_schema(record_schema(point, {"type": "array", "items": "P"}))


@pytest.mark.parametrize(
    ("type_", "body"),
    [
        ("string", long_bytes(2**40) + b"ab"),
        ("bytes", b"\x01"),
        ("string", b"\x02\xff"),
        ("long", b"\xff" * 5000),
        ({"type": "enum", "name": "E", "symbols": ["a"]}, b"\x04"),
        (["null", "int"], b"\x08"),
        ({"type": "array", "items": "boolean"}, long_bytes(2**50) + b"\x01"),
        ({"type": "map", "values": "int"}, long_bytes(2**50)),
        ({"type": "long", "logicalType": "timestamp-millis"}, long_bytes(2**60)),
        ({"type": "fixed", "name": "F", "size": 8}, b"abc"),
    ],
)
def test_hostile_body(type_: Any, body: bytes) -> None:
    start = time.process_time()
    with pytest.raises(DecodeError):
        DECODER.decode(body, record_schema(type_))
    assert time.process_time() - start < 1.0


def deflate_bomb() -> bytes:
    deflate = zlib.compressobj(wbits=-15)
    return deflate.compress(bytes(MAX_BYTES + 1)) + deflate.flush()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (in_container(record_schema("bytes"), deflate_bomb(), codec="deflate"), "at most"),
        (in_container(record_schema("int"), b"not deflate", codec="deflate"), "deflate"),
        (in_container(record_schema("int"), b"\x02", codec="lzma"), "codec"),
        (in_container(record_schema("int"), b"\x02", count=2**40), "records"),
        (in_container(record_schema("int"), long_bytes(2**30) + bytes(4), codec="snappy"), "most"),
        (in_container(record_schema("int"), b"\x02")[:-1], "16 bytes, got 15"),
        (in_container(record_schema("int"), b"\x02")[:-1] + b"?", "sync"),
        (in_container(b"[]", b"\x02"), "schema"),
        (in_container(record_schema("int"), b""), "records"),
        (b"Obj\x01", "1 bytes, got 0"),
        (b"Obj\x01" + long_bytes(2**40), "entries"),
        (b"Obj\x01\x00" + bytes(16), "avro.schema"),
        (b"Obj\x01" + b"\xff" * 12, "64 bits"),
        (bytes(MAX_BYTES + 1), "at most"),
    ],
)
def test_hostile_container(value: bytes, message: str) -> None:
    with pytest.raises(DecodeError, match=message):
        DECODER.decode(value)


def decode_or_refuse(value: bytes | None, key: bytes | None = None) -> None:
    """Decode; anything but a record or DecodeError fails the test."""
    with contextlib.suppress(DecodeError):
        DECODER.decode(value, key)


@given(st.binary(max_size=200), st.none() | st.binary(max_size=50))
def test_arbitrary_bytes(value: bytes, key: bytes | None) -> None:
    decode_or_refuse(value, key)


@given(st.sampled_from([WIRE, b"Obj\x01", make_header(record_schema("string"))[0]]), st.binary())
def test_arbitrary_bytes_behind_a_framing(prefix: bytes, rest: bytes) -> None:
    decode_or_refuse(prefix + rest)


@given(st.binary(max_size=200))
def test_arbitrary_bytes_with_our_schema_in_the_key(value: bytes) -> None:
    decode_or_refuse(value, schema_text("hostAlert"))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.just("record"),
    lambda children: (
        st.lists(children, max_size=3)
        | st.dictionaries(
            st.sampled_from(["type", "name", "fields", "items"]), children, max_size=4
        )
    ),
)


@given(st.dictionaries(st.sampled_from(["type", "name", "fields"]), JSON), st.binary(max_size=20))
def test_arbitrary_writer_schema(schema: Any, value: bytes) -> None:
    decode_or_refuse(value, json.dumps(schema).encode())


@settings(max_examples=300)
@given(st.data())
def test_damaged_message(
    sample_alert: Record, write_container: Callable[..., bytes], data: st.DataObject
) -> None:
    whole = data.draw(
        st.sampled_from([encode(sample_alert, "hostAlert"), write_container([sample_alert])])
    )
    value = bytearray(whole)
    for place in data.draw(st.lists(st.integers(0, len(value) - 1), min_size=1, max_size=4)):
        value[place] = data.draw(st.integers(0, 255))
    decode_or_refuse(bytes(value[: data.draw(st.integers(0, len(value)))]))


def test_encode_names_the_record() -> None:
    with pytest.raises(EncodeError, match="expected a posteriorSummary record"):
        encode({"alertId": 1}, "posteriorSummary")


def test_encode_refuses_unknown_fields(sample_alert: Record) -> None:
    with pytest.raises(EncodeError, match="expected a hostAlert record"):
        encode(sample_alert | {"extra": 1}, "hostAlert")


@pytest.mark.parametrize("value", [b"", b"\x00\x00\x00\x00\x65", WIRE, WIRE + b"\x02"])
def test_decode_summary_refuses(value: bytes) -> None:
    with pytest.raises(DecodeError, match="expected"):
        decode_summary(value)


@pytest.mark.parametrize("minor", range(VERSION[1] + 1))
def test_decode_summary_reads_every_minor_version(minor: int) -> None:
    """One topic holds them all; what an older one lacks is null."""
    folder = schemas_path() / "1" / str(minor)
    sample = json.loads((folder / "sample_data" / "posteriorSummary.json").read_text())
    schema = fastavro.parse_schema(json.loads(schema_text("posteriorSummary", minor)))
    body = io.BytesIO()
    fastavro.schemaless_writer(body, schema, sample)
    record = decode_summary(struct.pack(">bI", 0, 4711) + body.getvalue())
    assert list(record) == [field["name"] for field in own_schema("posteriorSummary")["fields"]]
    assert {name for name in record if name not in sample} == {"trust", "refit"} - sample.keys()
    assert all(record[name] is None for name in record.keys() - sample.keys())
    assert record["posterior"]["paramOrder"] == sample["posterior"]["paramOrder"]
    assert (record["trust"] is None) == (sample.get("trust") is None)


def test_our_container_is_read_by_fastavro(sample_alert: Record) -> None:
    header, sync = make_header(schema_text("hostAlert"))
    bodies = [encode_body(sample_alert | {"alertId": i}, "hostAlert") for i in range(5)]
    container = header + make_block(bodies[:3], sync) + make_block(bodies[3:], sync)
    records = list(fastavro.reader(io.BytesIO(container)))
    assert [record["alertId"] for record in records if isinstance(record, dict)] == list(range(5))


def test_split_container_keeps_the_bytes_of_each_record(
    sample_alert: Record, write_container: Callable[..., bytes]
) -> None:
    alerts = [sample_alert | {"alertId": i} for i in range(20)]
    container = write_container(alerts, "deflate")
    parts = list(split_container(io.BytesIO(container)))
    assert [body for body, _ in parts] == [encode_body(alert, "hostAlert") for alert in alerts]
    assert [DECODER.decode(*part).record["alertId"] for part in parts] == list(range(20))


def test_split_container_yields_what_is_broken_as_it_is(sample_alert: Record) -> None:
    header, sync = make_header(schema_text("hostAlert"))
    good = header + make_block([encode_body(sample_alert, "hostAlert")], sync)
    broken = make_block([b"x" * 100], sync)[:-5]
    parts = list(split_container(io.BytesIO(good + broken)))
    assert len(parts) == 2
    assert parts[1] == (broken, None)


@pytest.mark.parametrize("item", ["float", "double", "boolean"])
def test_split_container_ends_where_the_bytes_do(item: str) -> None:
    """Whatever number of items they claim: fastavro would skip each of them."""
    schema = record_schema({"type": "array", "items": item})
    header, sync = make_header(schema)
    claim = long_bytes(2**50) + b"\x01" * 8
    assert list(split_container(io.BytesIO(header + make_block([claim], sync)))) == [
        (claim, schema)
    ]


@pytest.mark.parametrize("count", [0, 1, 2])
def test_holds_one_record(
    count: int, sample_alert: Record, write_container: Callable[..., bytes]
) -> None:
    assert holds_one_record(write_container([sample_alert] * count)) == (count == 1)


def test_wire_body_is_the_bare_body(sample_alert: Record) -> None:
    assert wire_body(encode(sample_alert, "hostAlert")) == encode_body(sample_alert, "hostAlert")
    assert own_schema("hostAlert")["name"] == "sedflow.v1_2.hostAlert"


@pytest.mark.parametrize(
    ("name", "schema_name"),
    [
        ("ztf_v4_02_ZTF17aaarzyp.avro", "ztf.alert"),
        ("lsst_v11_1_fakeAlert.avro", "lsst.v11_1.alert"),
        ("alerce_elasticc_obj1131.avro", "elasticc.v0_9.alert"),
    ],
)
def test_real_container(shared_data: Path, name: str, schema_name: str) -> None:
    value = (shared_data / "alerts" / name).read_bytes()
    decoded = DECODER.decode(value)
    assert decoded.schema_name == schema_name
    assert decoded.record == next(fastavro.reader(io.BytesIO(value)))


@pytest.mark.parametrize(
    ("name", "schema_id"), [("boom_lsst_7912941781254298", 900), ("pg_lsst.v11_1", 1101)]
)
def test_real_wire_without_its_schema(shared_data: Path, name: str, schema_id: int) -> None:
    value = (shared_data / "alerts" / f"{name}.avro").read_bytes()
    with pytest.raises(DecodeError, match=f"got {schema_id}"):
        DECODER.decode(value)


def test_real_wire_with_its_schema(shared_data: Path, tmp_path: Path) -> None:
    """The v11.1 container carries the writer schema that the v11.1 wire message needs."""
    with (shared_data / "alerts" / "lsst_v11_1_fakeAlert.avro").open("rb") as stream:
        schema = fastavro.reader(stream).writer_schema
    (tmp_path / "1101.avsc").write_text(json.dumps(schema))
    value = (shared_data / "alerts" / "pg_lsst.v11_1.avro").read_bytes()
    decoded = Decoder(schema_folder=tmp_path).decode(value)
    assert decoded.schema_name == "lsst.v11_1.alert"
    assert decoded.record["diaSource"]["diaSourceId"] == 281323062375219200


def test_real_container_of_several(shared_data: Path) -> None:
    with (shared_data / "alerts" / "fink_lsst_part-2-918301.avro").open("rb") as stream:
        parts = list(split_container(stream))
        stream.seek(0)
        truth = list(fastavro.reader(stream))
    assert repr([DECODER.decode(*part).record for part in parts]) == repr(truth)
    assert len(truth) == 7

"""What a hostile schema, message or archive can cost: memory, time and depth are bounded."""

import gzip
import io
import json
import tarfile
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import fastavro
import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumer.avro import Decoder, holds_one_record, parse_writer_schema
from consumer.container import MAGIC, MAX_BYTES, long_bytes, make_header, read_header
from consumer.errors import ArchiveError, DecodeError
from consumer.files import ArchiveSource
from consumer.schema_limits import MAX_RECORD_MEMORY, MAX_SCHEMA_BYTES, longest_record

Node = Any
N = 20_000
DECODER = Decoder()


def record(name: str, *types: Node) -> Node:
    fields = [{"name": f"f{i}", "type": type_} for i, type_ in enumerate(types)]
    return {"type": "record", "name": name, "fields": fields}


def array(items: Node) -> Node:
    return {"type": "array", "items": items}


def nest(levels: int) -> Node:
    """A record around a record, and so on, around an integer."""
    node: Node = "int"
    for i in range(levels):
        node = record(f"N{i}", node)
    return node


def items(n: int, item: bytes = b"\x01") -> bytes:
    """The body of an array, or of a map, of `n` equal items."""
    return long_bytes(n) + item * n + b"\x00"


COSTLY = {
    "integers": (array("long"), items(N, b"\xff\x03")),
    "empty arrays": (array(array("long")), items(N, b"\x00")),
    "empty maps": (array({"type": "map", "values": "long"}), items(N, b"\x00")),
    "records": (array(record("I", "int")), items(N)),
    "wide records": (array(record("W", *["int"] * 6)), items(N, b"\x01" * 6)),
    "nested records": (array(nest(20)), items(N // 20)),
    "arrays of one": (array(array(array("int"))), items(N // 5, b"\x02\x02\x01\x00\x00")),
    "maps of one": (array({"type": "map", "values": "int"}), items(N // 5, b"\x02\x02a\x01\x00")),
    "map": (
        {"type": "map", "values": "int"},
        long_bytes(N) + b"".join(b"\x08%04x\x01" % i for i in range(N)) + b"\x00",
    ),
    "strings": (array("string"), items(N // 3, b"\x04ab")),
    "times": (array({"type": "long", "logicalType": "timestamp-millis"}), items(N)),
    "nullable": (array(["null", record("I", ["null", "int"])]), items(N // 2, b"\x02\x00")),
    "fixed": (array({"type": "fixed", "name": "F", "size": 1}), items(N)),
}
"""Types that take much memory for few bytes, and such bytes."""


@pytest.mark.parametrize("name", COSTLY)
def test_a_record_takes_no_more_memory_than_its_schemas_price(name: str) -> None:
    type_, body = COSTLY[name]
    key = json.dumps(record("R", type_)).encode()
    rate = MAX_RECORD_MEMORY / parse_writer_schema(key).longest_record
    tracemalloc.start()
    kept = DECODER.decode(body, key)
    used, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept
    assert used <= peak <= rate * len(body) + 20_000


@pytest.mark.parametrize("name", COSTLY)
def test_longer_records_are_refused_unread(name: str) -> None:
    key = json.dumps(record("R", COSTLY[name][0])).encode()
    longest = parse_writer_schema(key).longest_record
    with pytest.raises(DecodeError, match=rf"expected a R of at most {longest} bytes, got"):
        DECODER.decode(bytes(longest + 1), key)


def test_the_price_leaves_room_for_real_alerts(shared_data: Path) -> None:
    """A message of LSST, cutouts included, takes 0.14 MB; of ZTF 0.07 MB."""
    n_container = 0
    for path in (shared_data / "alerts").glob("*.avro"):
        if path.read_bytes().startswith(b"Obj\x01"):
            with path.open("rb") as stream:
                schema = json.dumps(fastavro.reader(stream).writer_schema).encode()
            assert parse_writer_schema(schema).longest_record > 1_500_000
            n_container += 1
    assert n_container >= 3


def chain(levels: int) -> Node:
    """Records that hold one another by name: as deep as nested ones, but not to the eye."""
    first = record("S0", "int")
    return record("R", first, *(record(f"S{i}", f"S{i - 1}") for i in range(1, levels)))


def test_depth_is_counted_through_references() -> None:
    """Found by hand: 20,000 levels overflowed the stack of the C code that reads them."""
    assert longest_record(fastavro.parse_schema(chain(30)))
    with pytest.raises(DecodeError, match="at most 64 levels"):
        parse_writer_schema(json.dumps(chain(3_000)).encode())


def test_a_schema_is_short() -> None:
    with pytest.raises(DecodeError, match=f"schema: expected at most {MAX_SCHEMA_BYTES} bytes"):
        parse_writer_schema(b"{" + b" " * MAX_SCHEMA_BYTES + b"}")


def test_decimals_stay_bytes() -> None:
    """Found by hand: a decimal of 1 MB took minutes to convert."""
    type_ = {"type": "bytes", "logicalType": "decimal", "precision": 10, "scale": 2}
    value = b"\x55" * 1_000_000
    decoded = DECODER.decode(
        long_bytes(len(value)) + value, json.dumps(record("R", type_)).encode()
    )
    assert decoded.record == {"f0": value}


def test_null_may_be_written_as_a_type_of_its_own() -> None:
    plain, as_type = (
        parse_writer_schema(json.dumps(record("R", [null, "int"])).encode()).longest_record
        for null in ("null", {"type": "null"})
    )
    assert plain == as_type


def test_a_header_is_bounded_as_a_whole() -> None:
    entry = long_bytes(1) + b"a" + long_bytes(MAX_BYTES // 2) + bytes(MAX_BYTES // 2)
    with pytest.raises(DecodeError, match="expected a header of at most"):
        read_header(io.BytesIO(MAGIC + long_bytes(3) + entry * 3))


@pytest.mark.parametrize("type_", [[], {"type": "fixed", "name": "F", "size": 1e3}])
def test_types_without_a_price(type_: Node) -> None:
    with pytest.raises(DecodeError, match="schema: expected"):
        parse_writer_schema(json.dumps(record("R", type_)).encode())


def blocks(n: int, count: int) -> bytes:
    """A container of blocks that each unpack to MAX_BYTES zeros."""
    deflate = zlib.compressobj(level=9, wbits=-15)
    data = deflate.compress(bytes(MAX_BYTES)) + deflate.flush()
    header, sync = make_header(json.dumps(record("R", "bytes")).encode())
    return header + (long_bytes(count) + long_bytes(len(data)) + data + sync) * n


@pytest.mark.parametrize("count", [0, 1, 2])
def test_many_blocks_are_not_unpacked_at_once(count: int) -> None:
    """Found by hand: a message of 1 MB unpacked to 1 GB before its records were counted."""
    bomb = blocks(20, count)
    tracemalloc.start()
    with pytest.raises(DecodeError, match="container: expected"):
        DECODER.decode(bomb)
    assert not holds_one_record(bomb)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 * MAX_BYTES


def test_a_snappy_block_says_its_size_before_it_is_unpacked() -> None:
    """Run lengths of 64 bytes for 3: a message of 1 MB would unpack to 21 MB."""
    run = b"\xfe\x01\x00"  # copy 64 bytes from one byte back
    size = 1 + 64 * 350_000
    prefix = bytes([*(size >> 7 * i & 0x7F | 0x80 for i in range(3)), size >> 21])
    data = prefix + b"\x00\x00" + run * 350_000 + bytes(4)
    header, sync = make_header(json.dumps(record("R", "bytes")).encode(), "snappy")
    bomb = header + long_bytes(1) + long_bytes(len(data)) + data + sync
    tracemalloc.start()
    with pytest.raises(DecodeError, match=f"expected a block of at most {MAX_BYTES} bytes"):
        DECODER.decode(bomb)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 3 * len(bomb)


def read(path: Path) -> list[bytes | None]:
    source = ArchiveSource([str(path)])
    messages = []
    while not source.exhausted:
        messages += [message.value for message in source.poll(100, 0.0)]
    return messages


@pytest.mark.parametrize("name", ["a.avro.gz", "n.tar.gz"])
def test_a_gzip_bomb_is_not_unpacked(tmp_path: Path, name: str) -> None:
    """It is kept as it is, packed, for the dead letters; a night of others is still read."""
    bomb = gzip.compress(bytes(4 * MAX_BYTES))
    path = tmp_path / name
    if name == "n.tar.gz":
        with tarfile.open(path, "w:gz") as archive:
            for part, data in (("bomb.avro.gz", bomb), ("small.avro", b"abc")):
                member = tarfile.TarInfo(part)
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    else:
        path.write_bytes(bomb)
    tracemalloc.start()
    assert read(path) == [bomb, b"abc"][: 1 + (name == "n.tar.gz")]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 3 * MAX_BYTES


def test_a_tar_of_nested_long_names(tmp_path: Path) -> None:
    """Each header of this kind makes tarfile call itself to read the next one."""
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 1
    member = info.tobuf(tarfile.GNU_FORMAT) + bytes(512)
    path = tmp_path / "n.tar"
    path.write_bytes(member * 5_000)
    with pytest.raises(ArchiveError, match=r"n\.tar: expected a readable archive"):
        read(path)


@given(data=st.binary(max_size=2_000), place=st.integers(0, 511))
def test_a_damaged_tar_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, place: int
) -> None:
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name in ("a.avro", "é" * 120 + ".avro"):
            member = tarfile.TarInfo(name)
            member.size = 3
            archive.addfile(member, io.BytesIO(b"abc"))
    damaged = bytearray(whole.getvalue())
    damaged[place : place + len(data)] = data
    path = tmp_path_factory.mktemp("tar") / "n.tar"
    path.write_bytes(damaged)
    try:
        read(path)
    except ArchiveError as error:
        assert "expected" in str(error)  # noqa: PT017


def test_links_out_of_a_tar_are_not_followed(tmp_path: Path) -> None:
    secret = tmp_path / "secret.avro"
    secret.write_bytes(b"secret")
    path = tmp_path / "n.tar"
    with tarfile.open(path, "w") as archive:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE):
            member = tarfile.TarInfo("link.avro")
            member.type, member.linkname = kind, str(secret)
            archive.addfile(member)
    assert read(path) == []


def test_devices_are_no_archives() -> None:
    with pytest.raises(ArchiveError, match="expected a file, folder or glob"):
        ArchiveSource(["/dev/zero"])


def test_records_of_an_archive_are_split_without_building_them(tmp_path: Path) -> None:
    """Each of the two would take 200 MB."""
    key = json.dumps(record("R", array(nest(30)))).encode()
    header, sync = make_header(key, "null")
    body = items(30_000)  # 900,000 records
    path = tmp_path / "a.avro"
    block = long_bytes(2) + long_bytes(2 * len(body)) + 2 * body + sync
    path.write_bytes(header + block)
    tracemalloc.start()
    assert read(path) == [body, body]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**20

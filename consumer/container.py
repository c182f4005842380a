"""Avro object containers, byte by byte: header, blocks, codecs, and the limits on their sizes.

A container is `Obj\\x01`, a map of metadata, a 16-byte sync marker, then blocks of
(record count, byte size, records, sync marker); see the Avro 1.11 specification. Blocks are kept as
bytes here: what the records mean is `avro.py`'s business.
"""

import hashlib
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from cramjam import DecompressionError, snappy

from consumer.errors import DecodeError

MAGIC = b"Obj\x01"
SYNC_SIZE = 16
MAX_BYTES = 16 * 1024 * 1024
"""Largest header or block, decompressed [bytes]; an LSST alert with cutouts takes 0.2 MB."""
_MAX_ENTRIES = 1000


@dataclass(frozen=True, slots=True)
class Header:
    """Metadata of a container."""

    schema: bytes
    codec: str
    sync: bytes


@dataclass(frozen=True, slots=True)
class Block:
    """The records of one block, decompressed, one after the other."""

    count: int
    records: bytes


def read_header(stream: BinaryIO) -> Header:
    """Read the header. Raises DecodeError when there is none."""
    if (magic := stream.read(len(MAGIC))) != MAGIC:
        raise DecodeError(f"container: expected the magic {MAGIC!r}, got {magic!r}")
    metadata: dict[bytes, bytes] = {}
    n_entry = n_byte = 0
    while count := read_long(stream):
        if count < 0:
            read_long(stream)
        n_entry += abs(count)
        if n_entry > _MAX_ENTRIES:
            raise DecodeError(f"container: expected under {_MAX_ENTRIES} entries, got {n_entry}")
        for _ in range(abs(count)):
            name = _read_bytes(stream)
            metadata[name] = _read_bytes(stream)
            n_byte += len(name) + len(metadata[name])
            if n_byte > MAX_BYTES:
                raise DecodeError(f"container: expected a header of at most {MAX_BYTES} bytes")
    if b"avro.schema" not in metadata:
        raise DecodeError("container: expected avro.schema in the header, got none")
    codec = metadata.get(b"avro.codec", b"null").decode(errors="replace")
    return Header(metadata[b"avro.schema"], codec, _read_exactly(stream, SYNC_SIZE))


def read_blocks(stream: BinaryIO, header: Header) -> Iterator[Block]:
    """Read the blocks that follow the header. Raises DecodeError at the first bad one."""
    while first := stream.read(1):
        count = read_long(stream, first)
        data = _read_bytes(stream)
        if (sync := _read_exactly(stream, SYNC_SIZE)) != header.sync:
            raise DecodeError(f"container: expected the sync marker, got {sync.hex()}")
        records = decompress(data, header.codec)
        if not bool(records) <= count <= len(records):
            raise DecodeError(
                f"container: expected 1 to {len(records)} records in a block, got {count}"
            )
        yield Block(count, records)


def make_header(schema: bytes, codec: str = "deflate") -> tuple[bytes, bytes]:
    """Return a header and its sync marker; both depend on the schema alone."""
    sync = hashlib.sha256(schema).digest()[:SYNC_SIZE]
    entries = b"".join(
        long_bytes(len(part)) + part
        for part in (b"avro.schema", schema, b"avro.codec", codec.encode())
    )
    return MAGIC + long_bytes(2) + entries + long_bytes(0) + sync, sync


def make_block(records: list[bytes], sync: bytes, codec: str = "deflate") -> bytes:
    """Return the encoded records as one block."""
    data = b"".join(records)
    if codec == "deflate":
        deflate = zlib.compressobj(wbits=-15)
        data = deflate.compress(data) + deflate.flush()
    return long_bytes(len(records)) + long_bytes(len(data)) + data + sync


def decompress(data: bytes, codec: str) -> bytes:
    """Return a block's records. Raises DecodeError above MAX_BYTES or for an unknown codec."""
    if codec == "null":
        return data
    if codec == "deflate":
        return _inflate(data)
    if codec == "snappy":
        return _unsnap(data)
    raise DecodeError(f"container: expected codec null, deflate or snappy, got {codec!r}")


def _inflate(data: bytes) -> bytes:
    try:
        records = zlib.decompressobj(-15).decompress(data, MAX_BYTES + 1)
    except zlib.error as error:
        raise DecodeError(f"container: expected a deflate block, got {error}") from None
    return _bounded(records)


def _unsnap(data: bytes) -> bytes:
    body = data[:-4]  # a CRC-32 of the records ends the block
    try:
        if snappy.decompress_raw_len(body) > MAX_BYTES:
            raise DecodeError(f"container: expected a block of at most {MAX_BYTES} bytes")
        records = bytes(snappy.decompress_raw(body))
    except DecompressionError as error:
        raise DecodeError(f"container: expected a snappy block, got {error}") from None
    if zlib.crc32(records) != int.from_bytes(data[-4:], "big"):
        raise DecodeError("container: expected the block's CRC-32 to match")
    return records


def _bounded(records: bytes) -> bytes:
    if len(records) > MAX_BYTES:
        raise DecodeError(f"container: expected a block of at most {MAX_BYTES} bytes")
    return records


def read_long(stream: BinaryIO, first: bytes = b"") -> int:
    """Read a zigzag varint; `first` is its first byte when that was read already."""
    value = shift = 0
    while shift < 64:
        byte = (first or _read_exactly(stream, 1))[0]
        first = b""
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return (value >> 1) ^ -(value & 1)
        shift += 7
    raise DecodeError("container: expected an integer of at most 64 bits")


def long_bytes(value: int) -> bytes:
    """Return `value` >= 0 as a zigzag varint."""
    value <<= 1
    parts = bytearray()
    while value >= 0x80:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    parts.append(value)
    return bytes(parts)


def _read_bytes(stream: BinaryIO) -> bytes:
    return _read_exactly(stream, read_long(stream))


def _read_exactly(stream: BinaryIO, size: int) -> bytes:
    if not 0 <= size <= MAX_BYTES:
        raise DecodeError(f"container: expected 0 to {MAX_BYTES} bytes, got {size}")
    data = stream.read(size)
    if len(data) != size:
        raise DecodeError(f"container: expected {size} bytes, got {len(data)}")
    return data

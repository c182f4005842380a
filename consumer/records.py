"""The records of an Avro container, split without being decoded."""

import io
from collections.abc import Iterator
from typing import BinaryIO

from fastavro import parse_schema, schemaless_reader

from consumer.avro import Schema, parse_writer_schema
from consumer.container import MAX_BYTES, read_blocks, read_header
from consumer.errors import DecodeError


def split_container(stream: BinaryIO) -> Iterator[tuple[bytes, bytes | None]]:
    """Yield each record of a container, still encoded, and its writer schema as JSON.

    What comes after the last good block, or all of it, is yielded as it is where the container
    breaks, without a schema, up to MAX_BYTES: it does not decode, and so nothing is lost in
    silence.
    """
    good = stream.tell()
    try:
        header = read_header(stream)
        schema = parse_writer_schema(header.schema).parsed
        for block in read_blocks(stream, header):
            yield from ((body, header.schema) for body in _split(block.records, schema))
            good = stream.tell()
    except DecodeError:
        stream.seek(good)
        yield stream.read(MAX_BYTES), None


class _Records(io.BytesIO):
    """Bytes whose end is an error: fastavro skips some types behind it, for as long as they say."""

    def read(self, size: int | None = -1) -> bytes:
        """Return so many bytes. Raises EOFError where there are fewer."""
        data = super().read(size)
        if size is not None and len(data) < size:
            raise EOFError
        return data


def _split(records: bytes, schema: Schema) -> Iterator[bytes]:
    """Yield the records of a block; bytes in which no record's end is found are yielded as one."""
    nothing = parse_schema({"type": "record", "name": schema["name"], "fields": []})
    start, stream = 0, _Records(records)
    while start < len(records):
        try:
            schemaless_reader(stream, schema, nothing)  # skips every field
        except Exception:
            yield records[start:]
            return
        yield records[start : stream.tell()]
        start = stream.tell()

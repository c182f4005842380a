"""Avro bytes to records and back: the framings seen in the wild, and our own schemas.

Framings: object container, one record each (ZTF, ELAsTiCC); Confluent wire, 0x00 and a big-endian
schema id before the body (LSST, and what we publish); a bare body with its writer schema as JSON in
the message's key (Fink) or in a configured file. Whatever the bytes hold, decoding ends in a record
or in DecodeError.
"""

import io
import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple, Protocol

from fastavro import parse_schema, schemaless_reader, schemaless_writer

from consumer.container import MAGIC, MAX_BYTES, Header, read_blocks, read_header
from consumer.errors import BrokerError, ConsumerError, DecodeError, EncodeError, SettingsError
from consumer.schema_limits import MAX_SCHEMA_BYTES, longest_record

Schema = dict[str, Any]
Record = dict[str, Any]
RecordName = Literal["hostAlert", "posteriorSummary"]

VERSION = (1, 2)
WIRE_ID = 100 * VERSION[0] + VERSION[1]
"""Confluent id of our own records, 100 * major + minor; a topic carries one kind of record."""
MAX_ENCODED_BYTES = 100_000
"""A summary takes some 2 kB: what makes it longer is text that it and its key take over as it is,
and a topic refuses messages of more than 1 MB.
"""
_WIRE = struct.Struct(">bI")


class WriterSchema(NamedTuple):
    """A schema that is safe to read with."""

    parsed: Schema
    longest_record: int
    """The longest record that is read with it [bytes]."""


@dataclass(frozen=True, slots=True)
class Decoded:
    """A record and the full name of the schema that wrote it."""

    record: Any
    schema_name: str


class SchemaSource(Protocol):
    """Where schemas are found by their Confluent id."""

    def schema(self, schema_id: int, *, has_other: bool) -> bytes | None:
        """Return a schema as JSON, None where it is unknown; BrokerError where nobody can tell."""


class Decoder:
    """Decodes message values in any known framing; parsed schemas are kept.

    `schema_file` is the writer schema (.avsc) of bare bodies; `schema_folder` holds writer schemas
    by Confluent id, `<id>.avsc` or `<id>.json`, for ids that `registry` does not know. `record` is
    which of our own records to expect under our own ids; where `resolved`, wire bytes are read as
    our current version of it, whichever wrote them. Raises SettingsError when a schema cannot be
    used.
    """

    def __init__(
        self,
        *,
        record: RecordName = "hostAlert",
        resolved: bool = False,
        schema_file: Path | None = None,
        schema_folder: Path | None = None,
        registry: SchemaSource | None = None,
    ) -> None:
        self._registry = registry
        self._reader = own_schema(record) if resolved else None
        self._bare = _read_writer_schema("input.schema_file", schema_file) if schema_file else None
        major, latest = VERSION
        self._by_id = {
            100 * major + minor: parse_writer_schema(schema_text(record, minor))
            for minor in range(latest + 1)
        }
        if schema_folder is not None:
            self._by_id |= dict(_load_folder(schema_folder))

    def decode(self, value: bytes | None, key: bytes | None = None) -> Decoded:
        """Return the one record of a message, whole.

        A reader schema of what the surveys' maps use would take fastavro twice as long for the
        packets that carry hosts (ELAsTiCC: 0.07 ms instead of 0.03), and two thirds for ZTF's.

        Raises DecodeError, or BrokerError where the registry does not answer, and nothing else.
        """
        try:
            return self._decode(value, key)
        except (DecodeError, BrokerError):
            raise
        except Exception as error:
            raise DecodeError(f"expected an Avro record, got {_describe(error)}") from None

    def _decode(self, value: bytes | None, key: bytes | None) -> Decoded:
        if not value:
            raise DecodeError(f"expected a value, got {value!r}")
        if len(value) > MAX_BYTES:
            raise DecodeError(f"expected at most {MAX_BYTES} bytes, got {len(value)}")
        if value.startswith(MAGIC):
            return _decode_container(value)
        if key is not None and key.lstrip().startswith(b"{") and b'"fields"' in key:
            return _read_body(value, parse_writer_schema(key))
        if self._bare is not None:
            return _read_body(value, self._bare)
        return self._decode_wire(value)

    def _decode_wire(self, value: bytes) -> Decoded:
        if value[0] != 0 or len(value) < _WIRE.size:
            raise DecodeError(f"expected a known framing, got the first bytes {value[:5].hex()}")
        _, schema_id = _WIRE.unpack_from(value)
        is_ours = schema_id in self._by_id
        found = self._registry.schema(schema_id, has_other=is_ours) if self._registry else None
        schema = parse_writer_schema(found) if found is not None else self._by_id.get(schema_id)
        if schema is None:
            raise DecodeError(
                f"schema id: expected one of {sorted(self._by_id)}, got {schema_id}; "
                "name a folder with its schema in [input] schema_folder"
            )
        return _read_body(value[_WIRE.size :], schema, self._reader)


def encode(record: Record, name: RecordName, schema_id: int = WIRE_ID) -> bytes:
    """Return the record of our own schema as Confluent wire bytes.

    Raises EncodeError, also for a body of more than MAX_ENCODED_BYTES.
    """
    body = encode_body(record, name)
    if len(body) > MAX_ENCODED_BYTES:
        raise EncodeError(
            f"expected a {name} of at most {MAX_ENCODED_BYTES} bytes, got {len(body)}"
        )
    return _WIRE.pack(0, schema_id) + body


def encode_body(record: Record, name: RecordName) -> bytes:
    """Return the record of our own schema as a bare Avro body. Raises EncodeError."""
    body = io.BytesIO()
    named = {
        field: (branch, record[field])
        for field, branch in _optional_records(name).items()
        if isinstance(record.get(field), dict)
    }
    try:
        schemaless_writer(body, own_schema(name), record | named, strict_allow_default=True)
    except Exception as error:
        raise EncodeError(f"expected a {name} record, got {_describe(error)}") from None
    return body.getvalue()


@cache
def _optional_records(name: RecordName) -> dict[str, str]:
    """Fields that are null or a record, whose name spares the writer to try both."""
    return {
        field["name"]: branch["name"]
        for field in own_schema(name)["fields"]
        if isinstance(field["type"], list)
        for branch in field["type"]
        if isinstance(branch, dict) and branch["type"] == "record"
    }


def decode_summary(value: bytes) -> Record:
    """Return the posteriorSummary in Confluent wire bytes, of this or an older minor version.

    Fields that its version lacks have their defaults. Raises DecodeError.
    """
    body, refusals = wire_body(value), []
    # An older body ends before the fields that came later, so it fills its own schema alone.
    for minor in reversed(range(VERSION[1] + 1)):
        try:
            return _read_summary(body, minor)
        except Exception as error:
            refusals.append(_describe(error))
    raise DecodeError(f"expected a posteriorSummary, got {refusals[0]}")


def _read_summary(body: bytes, minor: int) -> Record:
    writer = parse_writer_schema(schema_text("posteriorSummary", minor))
    record: Record = _read_body(body, writer, own_schema("posteriorSummary")).record
    return record


def wire_body(value: bytes) -> bytes:
    """Return what follows the header of Confluent wire bytes, whatever id a registry gave them.

    Raises DecodeError.
    """
    if len(value) < _WIRE.size or value[0] != 0:
        raise DecodeError(f"expected a header of {_WIRE.size} bytes, got {value[:5].hex()}")
    return value[_WIRE.size :]


def holds_one_record(container: bytes) -> bool:
    """Tell whether the bytes are a whole container of exactly one record."""
    stream = io.BytesIO(container)
    try:
        return _only_record(stream, read_header(stream))[0] is not None
    except DecodeError:
        return False


@cache
def schemas_path() -> Path:
    """Return the folder of our schemas: in the installed package, or beside it in a checkout."""
    package = Path(__file__).parent
    installed = package / "schemas"
    return installed if installed.is_dir() else package.parent / "schemas"


@cache
def schema_text(name: RecordName, minor: int = VERSION[1]) -> bytes:
    """Return our schema of a record as JSON, the current one or that of an older minor version."""
    major = VERSION[0]
    path = schemas_path() / str(major) / str(minor) / f"sedflow.v{major}_{minor}.{name}.avsc"
    return path.read_bytes()


@cache
def own_schema(name: RecordName) -> Schema:
    """Return our current schema of a record, parsed."""
    return parse_writer_schema(schema_text(name)).parsed


@lru_cache(maxsize=64)
def parse_writer_schema(text: bytes) -> WriterSchema:
    """Parse a writer schema. Raises DecodeError unless it is JSON, Avro and safe to read with.

    Safe means: no recursive types and no types of zero bytes outside unions, so that reading
    n bytes takes at most O(n) time and memory and a bounded depth; decimals are read as the bytes
    they are, because converting them takes quadratic time.
    """
    if len(text) > MAX_SCHEMA_BYTES:
        raise DecodeError(f"schema: expected at most {MAX_SCHEMA_BYTES} bytes, got {len(text)}")
    try:
        schema = parse_schema(json.loads(text, object_hook=_make_plain))
        longest = longest_record(schema)
    except DecodeError:
        raise
    except Exception as error:
        raise DecodeError(f"schema: expected an Avro schema, got {_describe(error)}") from None
    if not isinstance(schema, dict) or "fields" not in schema:
        raise DecodeError(f"schema: expected a record, got {str(schema)[:80]}")
    return WriterSchema(schema, longest)


def _make_plain(node: Record) -> Record:
    if any(name.startswith("__") for name in node):
        raise DecodeError(f"schema: expected plain Avro, got the keys {sorted(node)[:5]}")
    if node.get("logicalType") == "decimal":
        del node["logicalType"]
    return node


def _decode_container(value: bytes) -> Decoded:
    stream = io.BytesIO(value)
    header = read_header(stream)
    body, count = _only_record(stream, header)
    if body is None:
        raise DecodeError(f"container: expected one record per message, got {count}")
    return _read_body(body, parse_writer_schema(header.schema))


def _only_record(stream: BinaryIO, header: Header) -> tuple[bytes | None, int]:
    """Return the record of a container of one, else None, and how many there are at least."""
    body, count = None, 0
    for block in read_blocks(stream, header):
        body, count = body or block.records, count + block.count
        if count > 1:
            return None, count
    return body if count else None, count


def _read_body(body: bytes, writer: WriterSchema, reader: Schema | None = None) -> Decoded:
    name = writer.parsed["name"]
    if len(body) > writer.longest_record:
        raise DecodeError(
            f"expected a {name} of at most {writer.longest_record} bytes, got {len(body)}"
        )
    stream = io.BytesIO(body)
    record = schemaless_reader(stream, writer.parsed, reader)
    if stream.tell() != len(body):
        raise DecodeError(f"expected a {name} to fill {len(body)} bytes, got {stream.tell()}")
    return Decoded(record, name)


def _read_writer_schema(key: str, path: Path) -> WriterSchema:
    try:
        return parse_writer_schema(path.read_bytes())
    except (OSError, ConsumerError) as error:
        raise SettingsError(f"{key}: expected a writer schema, got {path}: {error}") from None


def _load_folder(folder: Path) -> Iterator[tuple[int, WriterSchema]]:
    paths = [path for path in folder.glob("*") if path.suffix in (".avsc", ".json")]
    if not paths:
        raise SettingsError(f"input.schema_folder: expected <id>.avsc files, got none in {folder}")
    for path in sorted(paths):
        if not path.stem.isdecimal():
            raise SettingsError(f"input.schema_folder: expected <id>.avsc, got {path.name}")
        yield int(path.stem), _read_writer_schema("input.schema_folder", path)


def _describe(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:500]

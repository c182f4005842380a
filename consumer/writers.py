"""Writers of encoded summaries into one file: an Avro container, or a flat Parquet table."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from consumer.avro import Record, decode_summary, own_schema, schema_text, wire_body
from consumer.container import make_block, make_header
from sedflow_core import Artifact
from sedflow_core.errors import MissingExtraError
from sedflow_core.summary import EVENTS

FileFormat = Literal["avro", "parquet"]
FieldPath = tuple[str, ...]
"""Names of nested fields and map keys, from the outermost in."""

_ARROW_NAMES = {
    "boolean": "bool_",
    "int": "int32",
    "long": "int64",
    "float": "float32",
    "double": "float64",
    "string": "string",
}
_PREFIXES = {
    "posterior": "",
    "parameters": "",
    "derived": "",
    "provenance": "",
    "probabilities": "p",
    "assumptions": "assumption",
}


BLOCK_BYTES = 1_000_000
"""Most bytes in a block of an Avro container, before compression."""


class SummaryWriter(Protocol):
    """Writes summaries, as Confluent wire bytes, into a file not complete before `finish`."""

    def write(self, summaries: Sequence[bytes]) -> None:
        """Append summaries."""

    def finish(self) -> None:
        """Complete the file."""


class AvroWriter:
    """An Avro container of posteriorSummary records; the same summaries give the same file."""

    def __init__(self, path: Path) -> None:
        self._stream = path.open("wb")
        header, self._sync = make_header(schema_text("posteriorSummary"))
        self._stream.write(header)

    def write(self, summaries: Sequence[bytes]) -> None:
        """Append summaries, Confluent wire bytes, in blocks that every reader takes, ours too."""
        block: list[bytes] = []
        for body in map(wire_body, summaries):
            if block and sum(map(len, block)) + len(body) > BLOCK_BYTES:
                self._stream.write(make_block(block, self._sync))
                block.clear()
            block.append(body)
        if block:
            self._stream.write(make_block(block, self._sync))

    def finish(self) -> None:
        """Complete the file."""
        self._stream.close()


class ParquetWriter:
    """A Parquet table with a row per summary and a column per number.

    Columns are named as in the record, `host_` before the host's and `inputs_` before the inputs';
    posteriors are `<parameter>_<mean|std|q025|q16|q50|q84|q975>`, probabilities `p_<name>`, and the
    judgements of a posterior begin with `trust_`. Raises MissingExtraError without pyarrow.
    """

    def __init__(self, path: Path, artifact: Artifact) -> None:
        try:
            import pyarrow
            import pyarrow.parquet
        except ImportError:
            raise MissingExtraError("pyarrow", "tables") from None
        map_keys = {
            "parameters": artifact.param_names,
            "derived": artifact.derived_names,
            "constraint": artifact.param_names + artifact.derived_names,
            "probabilities": tuple(EVENTS),
            "assumptions": tuple(artifact.assumptions),
        }
        schema = own_schema("posteriorSummary")
        self._columns = {
            _column_name(path): (path, _arrow_type(pyarrow, node))
            for path, node in _leaves(schema, (), map_keys, {})
        }
        self._schema = pyarrow.schema((name, type_) for name, (_, type_) in self._columns.items())
        self._table = pyarrow.table
        self._writer = pyarrow.parquet.ParquetWriter(path, self._schema)

    def write(self, summaries: Sequence[bytes]) -> None:
        """Append summaries, Confluent wire bytes, as rows."""
        records = [decode_summary(value) for value in summaries]
        columns = {
            name: [_look_up(record, path) for record in records]
            for name, (path, _) in self._columns.items()
        }
        self._writer.write_table(self._table(columns, schema=self._schema))

    def finish(self) -> None:
        """Complete the file."""
        self._writer.close()


def _leaves(
    node: Any, path: FieldPath, map_keys: Mapping[str, Sequence[str]], named: dict[str, Any]
) -> Iterator[tuple[FieldPath, Any]]:
    """Yield the path and type of each number, text or list in a schema; maps have known keys."""
    node = _without_null(node)
    node = named.get(node, node) if isinstance(node, str) else node
    if not isinstance(node, dict) or node["type"] not in ("record", "map"):
        yield path, node
    elif node["type"] == "record":
        named[node["name"]] = node
        for field in node["fields"]:
            yield from _leaves(field["type"], (*path, field["name"]), map_keys, named)
    else:
        for key in map_keys[path[-1]]:
            yield from _leaves(node["values"], (*path, key), map_keys, named)


def _without_null(node: Any) -> Any:
    return next(branch for branch in node if branch != "null") if isinstance(node, list) else node


def _arrow_type(pyarrow: Any, node: Any) -> Any:
    if isinstance(node, dict):
        if node["type"] == "array":
            return pyarrow.list_(_arrow_type(pyarrow, _without_null(node["items"])))
        if node.get("logicalType") == "timestamp-millis":
            return pyarrow.timestamp("ms", tz="UTC")
        node = node["type"]
    return getattr(pyarrow, _ARROW_NAMES[node])()


def _column_name(path: FieldPath) -> str:
    *outer, name = path
    return "_".join((*filter(None, (_PREFIXES.get(part, part) for part in outer)), name))


def _look_up(record: Record, path: FieldPath) -> Any:
    value: Any = record
    for name in path:
        if value is None:
            return None
        value = value.get(name)
    return value

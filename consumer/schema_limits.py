"""What a writer schema can cost: how much memory a byte of its records can take, and how deep.

Avro's own rules let a few bytes become gigabytes: an array of small records, records nested through
references, decimals converted in quadratic time. Here a schema gets a price before anything is read
with it, and the price sets how long its records may be.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from consumer.errors import DecodeError

Node = dict[str, Any]

MAX_SCHEMA_BYTES = 512 * 1024
"""Largest schema [bytes]; LSST's takes 41 kB with its documentation."""
MAX_RECORD_MEMORY = 400 * 1024 * 1024
"""What one decoded record may take, at the worst its schema allows [bytes]."""
_MAX_DEPTH = 64


class Price(NamedTuple):
    """What values of a type can cost."""

    least: int
    """The fewest bytes that encode a value."""
    rate: float
    """The most memory that a byte of encoded values can take [bytes]."""
    depth: int
    """Levels of types below, and through references."""


_SCALAR, _ENTRY, _DICT, _SLOT = 56, 50, 200, 10
"""Memory of a number or text, of an entry in a dict, of a small dict, of a list's place [bytes]."""

_PRIMITIVES: Mapping[str, Price] = {
    "boolean": Price(1, _SLOT, 1),
    "int": Price(1, _SCALAR, 1),
    "long": Price(1, _SCALAR, 1),
    "float": Price(4, _SCALAR / 4, 1),
    "double": Price(8, _SCALAR / 8, 1),
    "bytes": Price(1, _SCALAR, 1),
    "string": Price(1, _SCALAR, 1),
    "enum": Price(1, _SCALAR, 1),
}
_NULL = Price(1, _SLOT, 1)


def longest_record(schema: Any) -> int:
    """Return the length of the longest record that is safe to read with a parsed schema [bytes].

    Raises DecodeError for a schema that is recursive, deeper than 64 levels counted through
    references, or has a type of zero bytes outside a union: its records have no such length.
    """
    return int(MAX_RECORD_MEMORY / _price(schema, {}, _MAX_DEPTH).rate)


def _price(node: Any, known: dict[str, Price | None], levels: int) -> Price:
    """Return the price of a type; `known` holds those of named types, None while they are open."""
    if levels == 0:
        raise DecodeError(f"schema: expected at most {_MAX_DEPTH} levels")
    if isinstance(node, list):
        price = _price_union(node, known, levels - 1)
    elif isinstance(node, dict):
        price = _price_complex(node, known, levels - 1)
    else:
        found = _PRIMITIVES.get(node) or known.get(node)
        if found is None:
            raise DecodeError(f"schema: expected no empty or recursive type, got {node}")
        price = found
    if price.depth > _MAX_DEPTH:
        raise DecodeError(f"schema: expected at most {_MAX_DEPTH} levels")
    return price


def _price_union(branches: list[Any], known: dict[str, Price | None], levels: int) -> Price:
    is_null = [b == "null" or (isinstance(b, dict) and b.get("type") == "null") for b in branches]
    prices = [
        _NULL if null else _price(b, known, levels)
        for b, null in zip(branches, is_null, strict=True)
    ]
    if not prices:
        raise DecodeError("schema: expected a union of types, got none")
    # A branch takes one byte for its place in the union before its own.
    least = 1 if any(is_null) else 1 + min(price.least for price in prices)
    return Price(least, max(p.rate for p in prices), 1 + max(p.depth for p in prices))


def _price_complex(node: Node, known: dict[str, Price | None], levels: int) -> Price:
    kind = node["type"]
    if kind in ("record", "error"):
        return _price_record(node, known, levels)
    if kind == "array":
        item = _price(node["items"], known, levels)
        own = _SCALAR / (2 + item.least) + _SLOT / item.least
        return Price(1, max(_SCALAR, item.rate + own), 1 + item.depth)
    if kind == "map":
        value = _price(node["values"], known, levels)
        own = _DICT / (3 + value.least) + (_SCALAR + _ENTRY) / (1 + value.least)
        return Price(1, max(_SCALAR, value.rate + own), 1 + value.depth)
    if kind == "fixed":
        return _name(node, known, _price_fixed(node))
    if kind == "enum":
        return _name(node, known, _PRIMITIVES[kind])
    return _price(kind, known, levels)


def _price_record(node: Node, known: dict[str, Price | None], levels: int) -> Price:
    if not node["fields"]:
        raise DecodeError(f"schema: expected fields, got none in {node['name']}")
    known[node["name"]] = None
    prices = [_price(field["type"], known, levels) for field in node["fields"]]
    least = sum(price.least for price in prices)
    own = (_DICT + _ENTRY * (len(prices) - 1)) / least
    rate = own + max(price.rate for price in prices)
    return _name(node, known, Price(least, rate, 1 + max(price.depth for price in prices)))


def _price_fixed(node: Node) -> Price:
    size = node["size"]
    if not isinstance(size, int) or size < 1:
        raise DecodeError(f"schema: expected a size, got {size!r:.40} in {node['name']}")
    return Price(size, _SCALAR / size + 1, 1)


def _name(node: Node, known: dict[str, Price | None], price: Price) -> Price:
    known[node["name"]] = price
    return price

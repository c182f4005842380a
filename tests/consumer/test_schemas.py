"""The schemas keep the rules of the broker conventions, and every version round-trips."""

import io
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fastavro
import pytest

from consumer.avro import VERSION, schemas_path

Node = Any
ROOT = Path(__file__).parents[2]
VERSIONS = sorted(
    (int(path.parent.name), int(path.name))
    for path in (ROOT / "schemas").glob("*/*")
    if path.name.isdecimal()
)
FILES = [
    path
    for major, minor in VERSIONS
    for path in sorted((ROOT / "schemas" / str(major) / str(minor)).glob("*.avsc"))
]
BANDS = "ugrizy"
DIMENSIONLESS = {
    *("associationProb", "redshift", "redshiftErr", "covariance", "probabilities"),
    *("mean", "std", "q025", "q16", "q50", "q84", "q975"),
}


def load(path: Path) -> Node:
    return json.loads(path.read_text())


def load_sample(path: Path) -> Node:
    name = path.stem.rsplit(".", 1)[-1]
    return load(path.parent / "sample_data" / f"{name}.json")


def walk(node: Node) -> Iterator[dict[str, Any]]:
    """Yield every complex type and field below a schema."""
    if isinstance(node, dict):
        yield node
        for value in node.values():
            yield from walk(value)
    elif isinstance(node, list):
        for value in node:
            yield from walk(value)


def fields(schema: Node) -> list[dict[str, Any]]:
    return [field for node in walk(schema) for field in node.get("fields", [])]


def write(schema: Node, record: Node) -> bytes:
    body = io.BytesIO()
    fastavro.schemaless_writer(body, fastavro.parse_schema(schema), record, strict=True)
    return body.getvalue()


def test_both_records_exist_in_every_version() -> None:
    assert VERSIONS
    names = {path.name for path in FILES}
    for major, minor in VERSIONS:
        for record in ("hostAlert", "posteriorSummary"):
            assert f"sedflow.v{major}_{minor}.{record}.avsc" in names


def test_latest_is_the_newest_version_and_the_one_in_use() -> None:
    latest = (ROOT / "schemas" / "latest.txt").read_text().strip()
    assert latest == "{}.{}".format(*VERSIONS[-1])
    assert VERSIONS[-1] == VERSION
    assert schemas_path() == ROOT / "schemas"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_namespace_and_name_follow_the_file(path: Path) -> None:
    schema = load(path)
    major, minor = path.parent.parent.name, path.parent.name
    assert schema["namespace"] == f"sedflow.v{major}_{minor}"
    assert path.name == f"{schema['namespace']}.{schema['name']}.avsc"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_field_is_documented(path: Path) -> None:
    schema = load(path)
    assert all(field["doc"].endswith(".") for field in fields(schema))
    assert all(node["doc"] for node in walk(schema) if node.get("type") == "record")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_measured_number_has_its_unit_in_the_doc(path: Path) -> None:
    for field in fields(load(path)):
        measured = re.search(r"'(float|double|timestamp-millis)'", str(field["type"]))
        if measured and "record" not in str(field["type"]) and field["name"] not in DIMENSIONLESS:
            assert re.search(r"\[[^\]]+\]\.$", field["doc"]), field["name"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_nullable_fields_are_null_first_with_default_null(path: Path) -> None:
    for field in fields(load(path)):
        if isinstance(field["type"], list):
            assert field["type"][0] == "null"
            assert len(field["type"]) == 2
            assert field["default"] is None
        else:
            assert "default" not in field


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_words_are_strings_not_enums(path: Path) -> None:
    assert all(node.get("type") != "enum" for node in walk(load(path)))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_sample_round_trips(path: Path) -> None:
    schema, sample = load(path), load_sample(path)
    encoded = write(schema, sample)
    record = fastavro.schemaless_reader(io.BytesIO(encoded), fastavro.parse_schema(schema), None)
    assert write(schema, record) == encoded
    assert record["alertId"] == sample["alertId"]
    assert record.keys() == sample.keys()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_older_readers_of_the_same_major_read_the_sample(path: Path) -> None:
    """FORWARD_TRANSITIVE: what a new minor version writes, every older one reads."""
    encoded = write(load(path), load_sample(path))
    writer = fastavro.parse_schema(load(path))
    major, minor = (int(part.name) for part in (path.parent.parent, path.parent))
    for older in range(minor + 1):
        name = path.name.replace(f"v{major}_{minor}", f"v{major}_{older}")
        reader = fastavro.parse_schema(load(ROOT / "schemas" / str(major) / str(older) / name))
        record = fastavro.schemaless_reader(io.BytesIO(encoded), writer, reader)
        assert record["alertId"] == load_sample(path)["alertId"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_samples_hold_no_nan(path: Path) -> None:
    text = (path.parent / "sample_data" / f"{path.stem.rsplit('.', 1)[-1]}.json").read_text()
    assert not re.search(r"NaN|Infinity", text)
    assert math.isfinite(load_sample(path)["ra"])


def test_host_alert_has_the_fields_of_the_conventions() -> None:
    schema = load(ROOT / "schemas/1/0/sedflow.v1_0.hostAlert.avsc")
    assert [field["name"] for field in schema["fields"]] == [
        *("alertId", "diaSourceId", "diaObjectId", "objectId", "survey", "ra", "dec"),
        *("midpointMjdTai", "alertPublishTimestamp", "brokerIngestTimestamp", "host"),
    ]
    host = next(node for node in walk(schema) if node.get("name") == "hostGalaxy")
    fluxes = [f"{band}_{kind}" for band in BANDS for kind in ("flux", "fluxErr")]
    assert [field["name"] for field in host["fields"]] == [
        *("catalog", "hostId", "ra", "dec", "separation", "associationMethod", "associationProb"),
        *fluxes,
        *("fluxType", "filterSystem", "dereddened", "abCorrected", "errorFloorIncluded", "ebv"),
        *("photFlags", "redshift", "redshiftErr", "redshiftType", "redshiftSource"),
        "luminosityDistance",
    ]


def test_summary_has_the_fields_of_the_conventions() -> None:
    schema = load(ROOT / "schemas/1/0/sedflow.v1_0.posteriorSummary.avsc")
    names = {field["name"] for field in fields(schema)}
    assert names >= {
        *("status", "statusReasons", "supportFlags", "inputs", "posterior", "paramOrder"),
        *("covariance", "probabilities", "nSamples", "seed", "assumptions", "replay"),
        *("pluginVersion", "artifactName", "artifactVersion", "artifactSha256", "configHash"),
        *("inputTopic", "inputPartition", "inputOffset", "sourceSchema"),
        *("alertPublishTimestamp", "brokerIngestTimestamp", "startTimestamp", "endTimestamp"),
    }

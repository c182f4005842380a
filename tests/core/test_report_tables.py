"""The tables of the validation report tell what the document holds."""

import re
from typing import Any

import pytest

from sedflow_core import Artifact
from sedflow_core.report_tables import tables, verdict
from sedflow_core.validate import LIMITS

Document = dict[str, Any]
Rows = list[list[str]]


@pytest.fixture(scope="module")
def document(shipped: Artifact) -> Document:
    recorded: Document = shipped.manifest["validation"]
    return recorded


@pytest.fixture(scope="module")
def page(document: Document) -> dict[str, Rows]:
    """Heading -> rows of the table below it, its head left out."""
    page = "".join(tables(document))
    found = {}
    for heading, table in re.findall(r"<h2>(.*?)</h2>.*?<table>(.*?)</table>", page, re.DOTALL):
        rows = re.findall(r"<tr>(.*?)</tr>", table, re.DOTALL)
        found[heading] = [re.findall(r"<td.*?>(.*?)</td>", row, re.DOTALL) for row in rows[1:]]
    return found


def row(rows: Rows, start: str) -> list[str]:
    """The one row whose first cell begins so."""
    (found,) = (cells for cells in rows if cells[0].startswith(start))
    return found


def test_every_table_is_there(page: dict[str, Rows]) -> None:
    assert list(page) == [
        "In short",
        "Against the exact posterior",
        "Each quantity",
        "As published",
        "Slices",
    ]
    assert all(rows for rows in page.values())


def test_the_largest_distance_and_its_limit(page: dict[str, Rows], document: Document) -> None:
    distances = document["ks_distance_independent"]
    _, value, limit, _ = row(page["In short"], "largest KS distance, 11 network parameters")
    name = value[value.index("(") + 1 : -1]
    assert float(value.split()[0]) == pytest.approx(distances[name], abs=5e-5)
    of_parameters = list(distances.values())[:11]
    assert distances[name] == max(of_parameters)
    assert float(limit) == LIMITS["ks_distance"]


def test_what_a_network_could_gain_stands_overall_and_by_magnitude(
    page: dict[str, Rows], document: Document
) -> None:
    rows, gap = page["Against the exact posterior"], document["gap"]
    told = row(rows, "mean ln p - ln q")[1]
    assert told == f"{gap['mean']:.3f} ± {gap['error']:.3f}"
    parts = [cells[1].split()[0] for cells in rows if cells[0].startswith("the same, mag_r from")]
    assert parts == [f"{part['mean']:.3f}" for part in gap["slices"]["mag_r"]]
    assert len(parts) == 5


def test_each_quantity_has_its_row_and_each_slice(
    page: dict[str, Rows], document: Document
) -> None:
    names = list(document["ks_distance_independent"])
    assert [cells[0] for cells in page["Each quantity"]] == names
    for cells in page["Each quantity"]:
        assert float(cells[1]) == pytest.approx(
            document["ks_distance_independent"][cells[0]], abs=5e-5
        )
        assert float(cells[-1]) == pytest.approx(
            document["bias_and_width"][cells[0]]["inside_95"], abs=5e-4
        )
    of_each = document["slices"].values()
    assert len(page["Slices"]) == sum(len(parts) for parts in of_each)


def test_a_failure_is_told_with_its_reason(document: Document) -> None:
    assert verdict(document).startswith("<strong>Passed</strong> on 20,000 simulations")
    failed = document | {"passed": False, "failures": ["tarp: expected at most 1, got <2>"]}
    assert verdict(failed).endswith("tarp: expected at most 1, got &lt;2&gt;.")

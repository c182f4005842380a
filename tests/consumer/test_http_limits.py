"""The HTTP endpoints: on loopback unless told, and no request is larger than it needs to be."""

import http.client

import pytest
from prometheus_client import CollectorRegistry

from consumer.health import Health, serve
from consumer.sections import HttpSettings

LOOPBACK = "127.0.0.1"


def test_loopback_unless_told() -> None:
    assert HttpSettings().host == LOOPBACK


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/livez?" + "x" * 70_000, {}, 414),
        ("/livez", {"X-Long": "x" * 70_000}, 431),
        ("/livez", {f"X-{i}": "x" for i in range(200)}, 431),
    ],
)
def test_large_requests_are_refused(path: str, headers: dict[str, str], status: int) -> None:
    with serve(Health(), CollectorRegistry(), LOOPBACK, 0) as port:
        connection = http.client.HTTPConnection(LOOPBACK, port, timeout=60)
        connection.request("GET", path, headers=headers)
        with connection.getresponse() as answer:
            assert answer.status == status
        connection.close()

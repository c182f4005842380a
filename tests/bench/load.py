"""Alerts for the stream: how many, when, and of which galaxies."""

import time
from collections.abc import Iterator
from dataclasses import dataclass

from consumer.avro import encode
from sedflow_core import Observation
from sedflow_core.units import njy_from_nanomaggy


@dataclass(frozen=True)
class Load:
    """Bursts of alerts: each is spread evenly over `spread_s`, and they start `period_s` apart."""

    burst: int
    n_burst: int = 1
    spread_s: float = 0.0
    period_s: float = 0.0

    @property
    def n_alerts(self) -> int:
        """All of them."""
        return self.burst * self.n_burst

    def times_s(self) -> Iterator[float]:
        """When each alert is due, from the start."""
        for k in range(self.n_burst):
            for i in range(self.burst):
                yield k * self.period_s + i * self.spread_s / self.burst


LOADS = {
    "short": Load(4_000),
    "sustained": Load(167, n_burst=600, spread_s=1.0, period_s=1.0),
    "backlog": Load(100_000),
    "visits": Load(10_000, n_burst=10, spread_s=5.0, period_s=60.0),
    "half": Load(84, n_burst=180, spread_s=1.0, period_s=1.0),
}


def make_alerts(observation: Observation, n: int) -> Iterator[tuple[bytes, bytes]]:
    """Key and encoded hostAlert of n alerts, each of a galaxy of the observation in turn."""
    hosts = [_host(observation, i) for i in range(len(observation))]
    for i in range(n):
        record = {
            "alertId": i,
            "diaSourceId": i,
            "diaObjectId": i,
            "objectId": f"bench-{i}",
            "survey": "LSST",
            "ra": 150.0,
            "dec": 2.0,
            "midpointMjdTai": 61_000.0,
            "alertPublishTimestamp": None,
            "brokerIngestTimestamp": None,
            "host": hosts[i % len(hosts)],
        }
        yield str(i).encode(), encode(record, "hostAlert")


def _host(observation: Observation, i: int) -> dict[str, object]:
    flux, flux_err = (
        dict(zip("ugriz", njy_from_nanomaggy(values[i]).tolist(), strict=True))
        for values in (observation.flux, observation.flux_err)
    )
    return {
        "catalog": "simulated",
        "hostId": f"galaxy-{i}",
        "ra": 150.0,
        "dec": 2.0,
        "separation": 1.0,
        "associationMethod": "simulated",
        "associationProb": 1.0,
        **{f"{band}_flux": value for band, value in flux.items()},
        **{f"{band}_fluxErr": value for band, value in flux_err.items()},
        "y_flux": None,
        "y_fluxErr": None,
        "fluxType": "model",
        "filterSystem": "SDSS",
        "dereddened": True,
        "abCorrected": True,
        "errorFloorIncluded": True,
        "ebv": None,
        "photFlags": None,
        "redshift": float(observation.redshift[i]),
        "redshiftErr": None,
        "redshiftType": "spec",
        "redshiftSource": None,
        "luminosityDistance": None,
    }


def wait_until(moment_s: float) -> None:
    """Sleep until a moment of the monotonic clock."""
    left = moment_s - time.monotonic()
    if left > 0:
        time.sleep(left)

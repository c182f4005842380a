"""A host's photometry and its row of the posterior -> the posteriorSummary record.

No number that is not finite ever gets into a record: it is null.
"""

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from consumer.alerts import Host, HostAlert
from consumer.avro import WIRE_ID, encode
from consumer.errors import EncodeError
from consumer.message import count_bytes
from consumer.photometry import Photometry
from consumer.settings import Settings
from sedflow_core import Artifact, Observation, Summary
from sedflow_core.summary import EVENTS, LEVEL_NAMES
from sedflow_core.trust import is_trusted
from sedflow_core.units import nanomaggy_from_njy, njy_from_nanomaggy
from sedflow_core.version import __version__

Record = dict[str, Any]

TRACE_BYTES = 1_000
"""Room for what a trace adds to a message's headers; see `tracing.py`."""
FLOAT_MAX = float(np.finfo(np.float32).max)
MOMENTS = ("mean", "std", *LEVEL_NAMES)


@dataclass(frozen=True, slots=True)
class SummaryForm:
    """How summaries are written: the id of their schema, and how large their topic takes them."""

    schema_id: int = WIRE_ID
    max_bytes: int = sys.maxsize
    """Of a message, its key included."""

    def encode(self, record: Record, key: bytes | None) -> bytes:
        """Return the summary in Confluent wire bytes.

        Raises EncodeError, also where the text that it and its key take over from the alert makes
        it so large that the broker would refuse it time and again.
        """
        value = encode(record, "posteriorSummary", self.schema_id)
        if (size := TRACE_BYTES + count_bytes(key, value, ())) > self.max_bytes:
            raise EncodeError(
                f"expected a summary of at most {self.max_bytes} bytes, which is what the output "
                f"topic takes, got {size}"
            )
        return value


@dataclass(frozen=True, slots=True)
class Posterior:
    """One galaxy's row of a Summary: its support flags, and the records of posterior and trust.

    A record is None where it is not finite, or the artifact cannot judge.
    """

    flags: int
    reasons: tuple[str, ...]
    record: Record | None
    trust: Record | None


def split_summary(summary: Summary, n_param: int) -> list[Posterior]:
    """Return the rows of a Summary; the first `n_param` names are the model's parameters."""
    moments = np.concatenate(
        (summary.mean[..., None], summary.std[..., None], summary.quantiles), axis=-1
    ).tolist()
    upper = np.triu_indices(n_param)
    covariance = summary.covariance[:, *upper].tolist()
    constraint = summary.constraint().tolist()
    nothing = np.full(len(summary), np.nan)
    probabilities = {name: summary.probabilities.get(name, nothing).tolist() for name in EVENTS}
    return [
        Posterior(
            flags=flags,
            reasons=tuple(summary.reasons(row)),
            record=_posterior_record(
                summary.names,
                n_param,
                moments[row],
                covariance[row],
                {name: values[row] for name, values in probabilities.items()},
            ),
            trust=_trust_record(summary, row, constraint[row]),
        )
        for row, flags in enumerate(summary.flags.tolist())
    ]


def _posterior_record(
    names: Sequence[str],
    n_param: int,
    moments: Sequence[Sequence[float]],
    covariance: list[float],
    probabilities: Mapping[str, float],
) -> Record | None:
    marginals = {name: _marginal(row) for name, row in zip(names, moments, strict=True)}
    parameters = {name: marginals[name] for name in names[:n_param]}
    if None in parameters.values() or not all(map(math.isfinite, covariance)):
        return None
    return {
        "parameters": parameters,
        "derived": {name: marginals[name] for name in names[n_param:]},
        "paramOrder": list(names[:n_param]),
        "covariance": covariance,
        "probabilities": {name: finite(value) for name, value in probabilities.items()},
    }


def _trust_record(summary: Summary, row: int, constraint: Sequence[float]) -> Record | None:
    if not summary.trust:
        return None
    trust = {name: float(values[row]) for name, values in summary.trust.items()}
    return {
        "trusted": is_trusted(trust["p_value"], trust["efficiency"]),
        "chiSquare": finite(trust["chi_square"]),
        "pValue": finite(trust["p_value"]),
        "efficiency": finite(trust["efficiency"]),
        "paretoK": finite(trust["pareto_k"]),
        "constraint": {
            name: width
            for name, width in zip(summary.names, constraint, strict=True)
            if finite(width) is not None
        },
    }


def _marginal(values: Sequence[float]) -> Record | None:
    if not all(map(math.isfinite, values)):
        return None
    return dict(zip(MOMENTS, values, strict=True))


def observation_of(inputs: Record) -> Observation:
    """Return the photometry that the record `inputs` of a summary tells; NaN where it is null."""
    return Observation(
        nanomaggy_from_njy([inputs["flux"]]),
        nanomaggy_from_njy([inputs["fluxErr"]]),
        np.array([inputs["redshift"]]),
    )


def describe_provenance(artifact: Artifact, settings: Settings) -> Record:
    """Return the part of `provenance` that all answers of a process share."""
    return {
        "pluginVersion": __version__,
        "artifactName": artifact.name,
        "artifactVersion": artifact.version,
        "artifactSha256": artifact.sha256,
        "configHash": settings.config_hash(),
    }


def describe_alert(alert: HostAlert) -> Record:
    """Return the fields of the record that echo the alert."""
    return {
        "alertId": alert.alert_id,
        "diaSourceId": alert.dia_source_id,
        "diaObjectId": alert.dia_object_id,
        "objectId": alert.object_id,
        "survey": alert.survey,
        "ra": finite(alert.ra),
        "dec": finite(alert.dec),
        "midpointMjdTai": finite(alert.midpoint_mjd_tai),
        "host": None if alert.host is None else _describe_host(alert.host),
        "alertPublishTimestamp": alert.alert_publish_timestamp,
        "brokerIngestTimestamp": alert.broker_ingest_timestamp,
    }


def _describe_host(host: Host) -> Record:
    return {
        "catalog": host.catalog,
        "hostId": host.host_id,
        "ra": finite(host.ra),
        "dec": finite(host.dec),
        "separation": finite(host.separation),
        "associationMethod": host.association_method,
        "associationProb": finite(host.association_prob),
    }


def describe_inputs(host: Host | None, photometry: Photometry, bands: Sequence[str]) -> Any:
    """Return the `inputs` of the record, fluxes in nJy; None where there is no host."""
    if host is None:
        return None
    return {
        "filterSystem": host.filter_system,
        "fluxType": host.flux_type,
        "bands": list(bands),
        "flux": [finite(flux) for flux in njy_from_nanomaggy(photometry.flux).tolist()],
        "fluxErr": [finite(error) for error in njy_from_nanomaggy(photometry.flux_err).tolist()],
        "redshift": finite(host.redshift),
        "redshiftErr": finite(host.redshift_err),
        "redshiftType": host.redshift_type,
        "redshiftSource": host.redshift_source,
        "luminosityDistance": finite(host.luminosity_distance),
        "ebv": finite(host.ebv),
        "photFlags": host.phot_flags,
        "correctionsApplied": list(photometry.applied),
        "correctionsMissing": list(photometry.missing),
    }


def finite(value: float | None) -> float | None:
    """Return the value, None where a 32-bit float cannot hold it."""
    return value if value is not None and abs(value) <= FLOAT_MAX else None

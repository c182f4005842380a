"""Where each survey's alert records hold what: one declarative `SurveyMap` per survey.

psfFlux, templateFlux and the PSF magnitudes of nearest sources are never a galaxy's flux: surveys
that carry nothing else have no host here.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

BANDS = "ugrizy"


@dataclass(frozen=True, slots=True)
class SurveyMap:
    """Where a survey's records hold what; a path is the names of nested fields, joined by dots."""

    schema: re.Pattern[str]
    alert: Mapping[str, str]
    """HostAlert attribute -> path; of `a or b` the first that is neither null nor 0, no id."""
    survey: str | None = None
    """Name of the survey; None: the record tells."""
    host_if: str | None = None
    """Path of a field that is missing where there is no host; None: never a host."""
    host: Mapping[str, str] = field(default_factory=dict)
    """Host attribute -> path."""
    constants: Mapping[str, Any] = field(default_factory=dict)
    """Host attribute -> value, where the survey says the same of every host."""
    bands: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    """Band -> path of the flux or magnitude, path of its error."""
    unit: Literal["nJy", "mag"] = "nJy"
    sentinels: frozenset[float] = frozenset()
    """Numbers that stand for "missing" in the host's fields."""
    nan_is_missing: bool = True


HOST_ALERT = SurveyMap(
    schema=re.compile(r"sedflow\.v1_\d+\.hostAlert"),
    alert={
        "alert_id": "alertId",
        "object_id": "objectId",
        "survey": "survey",
        "ra": "ra",
        "dec": "dec",
        "dia_source_id": "diaSourceId",
        "dia_object_id": "diaObjectId",
        "midpoint_mjd_tai": "midpointMjdTai",
        "alert_publish_timestamp": "alertPublishTimestamp",
        "broker_ingest_timestamp": "brokerIngestTimestamp",
    },
    host_if="host",
    host={
        "catalog": "host.catalog",
        "host_id": "host.hostId",
        "ra": "host.ra",
        "dec": "host.dec",
        "separation": "host.separation",
        "association_method": "host.associationMethod",
        "association_prob": "host.associationProb",
        "flux_type": "host.fluxType",
        "filter_system": "host.filterSystem",
        "dereddened": "host.dereddened",
        "ab_corrected": "host.abCorrected",
        "error_floor_included": "host.errorFloorIncluded",
        "ebv": "host.ebv",
        "phot_flags": "host.photFlags",
        "redshift": "host.redshift",
        "redshift_err": "host.redshiftErr",
        "redshift_type": "host.redshiftType",
        "redshift_source": "host.redshiftSource",
        "luminosity_distance": "host.luminosityDistance",
    },
    bands={band: (f"host.{band}_flux", f"host.{band}_fluxErr") for band in BANDS},
    nan_is_missing=False,
)

ELASTICC = SurveyMap(
    schema=re.compile(r"elasticc\.v0_9\.alert"),
    survey="ELAsTiCC",
    alert={
        "alert_id": "alertId",
        "object_id": "diaSource.diaObjectId or diaSource.diaSourceId",
        "ra": "diaSource.ra",
        "dec": "diaSource.decl",
        "dia_source_id": "diaSource.diaSourceId",
        "dia_object_id": "diaSource.diaObjectId",
        "midpoint_mjd_tai": "diaSource.midPointTai",
    },
    host_if="diaObject.hostgal_snsep",
    host={
        "separation": "diaObject.hostgal_snsep",
        "ebv": "diaObject.mwebv",
        "redshift": "diaObject.hostgal_z",
        "redshift_err": "diaObject.hostgal_z_err",
    },
    constants={
        "catalog": "ELAsTiCC host library",
        "flux_type": "unknown",
        "filter_system": "LSST",
        "dereddened": True,  # the library's magnitudes are free of Galactic extinction
        "ab_corrected": True,
        "error_floor_included": False,
        "redshift_type": "spec",
    },
    bands={
        band: (f"diaObject.hostgal_mag_{suffix}", f"diaObject.hostgal_magerr_{suffix}")
        for band, suffix in zip(BANDS, "ugrizY", strict=True)
    },
    unit="mag",
    sentinels=frozenset((999.0, -999.0, -9.0)),
)

ZTF = SurveyMap(
    schema=re.compile(r"ztf\.alert"),
    survey="ZTF",
    alert={
        "alert_id": "candid",
        "object_id": "objectId",
        "ra": "candidate.ra",
        "dec": "candidate.dec",
        "dia_source_id": "candid",
    },
)

LSST = SurveyMap(
    schema=re.compile(r"lsst\.v\d+_\d+\.alert"),
    survey="LSST",
    alert={
        "alert_id": "diaSource.diaSourceId",
        "object_id": "diaSource.diaObjectId or diaSource.ssObjectId or diaSource.diaSourceId",
        "ra": "diaSource.ra",
        "dec": "diaSource.dec",
        "dia_source_id": "diaSource.diaSourceId",
        "dia_object_id": "diaSource.diaObjectId",
        "midpoint_mjd_tai": "diaSource.midpointMjdTai",
    },
)

FINK_LSST = replace(LSST, schema=re.compile(r"topLevelRecord(\.value)?"))
"""LSST's fields under the name that Spark gives to every record; others lack the fields."""

SURVEYS = (HOST_ALERT, ELASTICC, ZTF, LSST, FINK_LSST)

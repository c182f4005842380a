"""Alert records of any known survey -> HostAlert, fluxes in nJy, by the maps of `surveys.py`."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from types import NoneType, UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import numpy as np

from consumer.avro import Decoded
from consumer.errors import AdaptError
from consumer.surveys import SURVEYS, SurveyMap
from sedflow_core.units import POGSON, nanomaggy_from_mag, njy_from_nanomaggy

T = TypeVar("T")
V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class Host:
    """The host galaxy: association, total photometry [nJy], redshift. None is missing."""

    catalog: str
    host_id: str | None
    ra: float | None
    dec: float | None
    separation: float | None
    association_method: str | None
    association_prob: float | None
    flux: Mapping[str, float | None]
    flux_err: Mapping[str, float | None]
    flux_type: str
    filter_system: str
    dereddened: bool
    ab_corrected: bool
    error_floor_included: bool
    ebv: float | None
    phot_flags: int | None
    redshift: float | None
    redshift_err: float | None
    redshift_type: str
    redshift_source: str | None
    luminosity_distance: float | None


@dataclass(frozen=True, slots=True)
class HostAlert:
    """An alert and its host galaxy, whatever survey it comes from. None is missing."""

    alert_id: int
    object_id: str
    survey: str
    ra: float | None
    dec: float | None
    dia_source_id: int | None
    dia_object_id: int | None
    midpoint_mjd_tai: float | None
    alert_publish_timestamp: datetime | None
    broker_ingest_timestamp: datetime | None
    host: Host | None
    source_schema: str


def adapt(decoded: Decoded) -> HostAlert:
    """Return the alert in a decoded record, fluxes in nJy.

    Raises AdaptError, naming the field, when the record is not an alert of a survey known here.
    """
    survey = _find_survey(decoded.schema_name)
    record = decoded.record
    values = {name: _first(record, paths) for name, paths in survey.alert.items()}
    if survey.survey is not None:
        values["survey"] = survey.survey
    values["host"] = _adapt_host(record, survey)
    values["source_schema"] = decoded.schema_name
    return _build(HostAlert, values)


def find_alert_id(decoded: Decoded) -> int | None:
    """Return the id of an alert that may not be usable otherwise; None where it has none."""
    try:
        survey = _find_survey(decoded.schema_name)
        found = _first(decoded.record, survey.alert["alert_id"])
    except AdaptError:
        return None
    return found if type(found) is int else None


def _find_survey(schema_name: str) -> SurveyMap:
    for survey in SURVEYS:
        if survey.schema.fullmatch(schema_name):
            return survey
    known = ", ".join(survey.schema.pattern for survey in SURVEYS)
    raise AdaptError(f"schema: expected one of {known}, got {schema_name!r}")


def _adapt_host(record: Any, survey: SurveyMap) -> Host | None:
    if survey.host_if is None or _present(_get(record, survey.host_if), survey) is None:
        return None
    values = {name: _present(_get(record, path), survey) for name, path in survey.host.items()}
    flux: dict[str, float | None] = {}
    flux_err: dict[str, float | None] = {}
    for band, (path, err_path) in survey.bands.items():
        value, error = _number(record, path, survey), _number(record, err_path, survey)
        flux[band], flux_err[band] = _flux_njy(value, error, survey.unit)
    return _build(Host, {**survey.constants, **values, "flux": flux, "flux_err": flux_err})


def _number(record: Any, path: str, survey: SurveyMap) -> float | None:
    value: float | None = _convert(path, float, True, _get(record, path))
    return _present(value, survey)


def _flux_njy(
    value: float | None, error: float | None, unit: str
) -> tuple[float | None, float | None]:
    if unit == "nJy":
        return value, error
    if value is None:
        return None, None
    with np.errstate(over="ignore"):
        flux = float(njy_from_nanomaggy(nanomaggy_from_mag(value)))
    return flux, None if error is None else flux * error / POGSON


def _present(value: V, survey: SurveyMap) -> V | None:
    """Return the value, or None where the survey means that it has none."""
    if isinstance(value, float) and (
        value in survey.sentinels or (survey.nan_is_missing and math.isnan(value))
    ):
        return None
    return value


def _first(record: Any, paths: str) -> Any:
    found = [_get(record, path) for path in paths.split(" or ")]
    return next(filter(None, found), found[-1])


def _get(record: Any, path: str) -> Any:
    node = record
    for name in path.split("."):
        if node is None:
            return None
        if not isinstance(node, dict) or name not in node:
            raise AdaptError(f"{path}: expected in the record, got none")
        node = node[name]
    return node


def _build(cls: type[T], values: Mapping[str, Any]) -> T:
    """Return a record of `cls`, each value checked against the type its attribute declares."""
    converted = {
        name: _convert(name, kind, nullable, values.get(name))
        for name, (kind, nullable) in _ATTRIBUTES[cls].items()
    }
    return cls(**converted)


def _attribute_types(cls: type) -> dict[str, tuple[type, bool]]:
    """Return the type of each attribute of a record, and whether it may be None."""
    types = {}
    for name, hint in get_type_hints(cls).items():
        options = [option for option in get_args(hint) if option is not NoneType]
        nullable = isinstance(hint, UnionType)
        types[name] = (options[0] if nullable else get_origin(hint) or hint, nullable)
    return types


def _convert(name: str, kind: type, nullable: bool, value: Any) -> Any:
    if value is None and nullable:
        return None
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind is str and isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise AdaptError(f"{name}: expected {kind.__name__}, got {value!r:.80}")
    return value


_ATTRIBUTES: Mapping[type, Mapping[str, tuple[type, bool]]] = {
    record: _attribute_types(record) for record in (Host, HostAlert)
}

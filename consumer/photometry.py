"""A HostAlert -> the photometry the network is asked about, or the status that tells why not.

Of the statuses that apply the first is given: NO_HOST, INVALID_INPUT, NO_REDSHIFT, WRONG_FILTERS,
MISSING_BANDS, OUT_OF_SUPPORT, OK. OUT_OF_SUPPORT is the artifact's to find, the others are decided
here.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from consumer.alerts import Host, HostAlert
from consumer.sections import CorrectionSettings
from sedflow_core import Artifact
from sedflow_core.corrections import (
    AB_FACTORS,
    ERROR_FLOOR_MAG,
    EXTINCTION_PER_EBV,
    add_error_floor,
    apply_ab_factors,
    deredden,
)
from sedflow_core.units import nanomaggy_from_njy, njy_from_nanomaggy

Status = Literal[
    "OK",
    "OUT_OF_SUPPORT",
    "MISSING_BANDS",
    "WRONG_FILTERS",
    "NO_HOST",
    "NO_REDSHIFT",
    "INVALID_INPUT",
]
Array = NDArray[np.float64]
Correction = Callable[[Array, Array], tuple[Array, Array]]
"""(flux, flux_err) -> (flux, flux_err), corrected."""


@dataclass(frozen=True, slots=True)
class Photometry:
    """What one alert's host looks like, corrected; to be inferred from where status is OK.

    flux, flux_err (n_band,) nanomaggies AB in the artifact's bands, NaN where missing.
    """

    status: Status
    reasons: tuple[str, ...]
    flux: Array
    flux_err: Array
    redshift: float
    applied: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()


def measure(alert: HostAlert, artifact: Artifact, settings: CorrectionSettings) -> Photometry:
    """Return the host's photometry in the artifact's bands, corrected as the settings say."""
    host = alert.host
    if host is None:
        nothing = np.full(len(artifact.bands.names), np.nan)
        return Photometry("NO_HOST", ("no_host",), nothing, nothing, math.nan)
    bands = artifact.bands.names
    flux, flux_err = (_in_bands(values, bands) for values in (host.flux, host.flux_err))
    status, reasons = _find_status(host, artifact, settings)
    redshift = math.nan if host.redshift is None else host.redshift
    raw = Photometry(status, reasons, flux, flux_err, redshift)
    if status != "OK":
        return replace(raw, missing=tuple(_find_due(host)))
    corrected = _correct(host, artifact, settings, raw)
    return replace(
        corrected,
        flux=_as_published(corrected.flux),
        flux_err=_as_published(corrected.flux_err),
    )


def _as_published(flux: Array) -> Array:
    """The flux as the output tells it, so that what is published leads to the same posterior."""
    with np.errstate(over="ignore"):
        told = njy_from_nanomaggy(flux).astype(np.float32)
    return np.where(np.isfinite(told), nanomaggy_from_njy(told), flux)


def _find_status(
    host: Host, artifact: Artifact, settings: CorrectionSettings
) -> tuple[Status, tuple[str, ...]]:
    bands = artifact.bands.names
    ladder: tuple[tuple[Status, Iterator[str]], ...] = (
        ("INVALID_INPUT", _find_invalid(host, bands, settings)),
        ("NO_REDSHIFT", _find_no_redshift(host, settings)),
        ("WRONG_FILTERS", _find_wrong_filters(host, artifact.bands.system, settings)),
        ("MISSING_BANDS", _find_missing_bands(host, bands)),
    )
    for status, found in ladder:
        if reasons := tuple(found):
            return status, reasons
    return "OK", tuple(_find_remarks(host, artifact.bands.system))


def _find_invalid(host: Host, bands: Sequence[str], settings: CorrectionSettings) -> Iterator[str]:
    for band in bands:
        flux, flux_err = host.flux.get(band), host.flux_err.get(band)
        if flux is not None and not math.isfinite(flux):
            yield f"non_finite_flux_{band}"
        if flux_err is not None and not math.isfinite(flux_err):
            yield f"non_finite_error_{band}"
        elif flux_err is not None and flux_err <= 0:
            yield f"non_positive_error_{band}"
    if host.redshift is not None and not math.isfinite(host.redshift):
        yield "non_finite_redshift"
    if host.redshift_type not in ("spec", "phot", "none"):
        yield "unknown_redshift_type"
    distance = host.luminosity_distance
    if distance is not None and not (math.isfinite(distance) and distance > 0):
        yield "invalid_luminosity_distance"
    if settings.deredden and not host.dereddened and not _is_reddening(host.ebv):
        yield "no_ebv_to_deredden_with" if host.ebv is None else "invalid_ebv"


def _is_reddening(ebv: float | None) -> bool:
    return ebv is not None and math.isfinite(ebv) and ebv >= 0


def _find_no_redshift(host: Host, settings: CorrectionSettings) -> Iterator[str]:
    if host.redshift is None or host.redshift_type == "none":
        yield "no_redshift"
    elif host.redshift_type == "phot" and not settings.accept_photometric_redshift:
        yield "photometric_redshift"


def _find_wrong_filters(host: Host, system: str, settings: CorrectionSettings) -> Iterator[str]:
    if host.filter_system != system and not settings.accept_other_filters:
        yield f"filter_system_{host.filter_system}"


def _find_missing_bands(host: Host, bands: Sequence[str]) -> Iterator[str]:
    for band in bands:
        if host.flux.get(band) is None or host.flux_err.get(band) is None:
            yield f"missing_band_{band}"


def _find_remarks(host: Host, system: str) -> Iterator[str]:
    """Yield what a reader of an OK must know: what the settings accepted."""
    if host.redshift_type == "phot":
        yield "accepted_photometric_redshift"
    if host.filter_system != system:
        yield f"accepted_filter_system_{host.filter_system}"


def _in_bands(values: Mapping[str, float | None], bands: Sequence[str]) -> Array:
    """Return values [nJy] as (n_band,) nanomaggies, NaN where missing."""
    found = [values.get(band) for band in bands]
    return nanomaggy_from_njy([math.nan if value is None else value for value in found])


def _correct(
    host: Host, artifact: Artifact, settings: CorrectionSettings, raw: Photometry
) -> Photometry:
    flux, flux_err = raw.flux, raw.flux_err
    applied: list[str] = []
    missing: list[str] = []
    with np.errstate(over="ignore", invalid="ignore"):
        for name, correct in _find_corrections(host, artifact, settings).items():
            if correct is None:
                missing.append(name)
            else:
                flux, flux_err = correct(flux, flux_err)
                applied.append(name)
    corrected = replace(
        raw, flux=flux, flux_err=flux_err, applied=tuple(applied), missing=tuple(missing)
    )
    if np.isfinite(flux).all() and np.isfinite(flux_err).all():
        return corrected
    return replace(corrected, status="INVALID_INPUT", reasons=("non_finite_after_corrections",))


def _find_corrections(
    host: Host, artifact: Artifact, settings: CorrectionSettings
) -> dict[str, Correction | None]:
    """Return the corrections the host still needs, in order; None: not to be had or not wanted."""
    ways = {
        "dereddened": _dereddening if settings.deredden else None,
        "ab_factors": _ab_factors if settings.ab_factors else None,
        "error_floor": _error_floor if settings.error_floor else None,
        "luminosity_distance": _rescaling,
    }
    found = ((name, ways[name]) for name in _find_due(host))
    return {name: None if find is None else find(host, artifact) for name, find in found}


def _find_due(host: Host) -> Iterator[str]:
    """Yield the corrections that the catalogue left to be made, in their order."""
    if not host.dereddened:
        yield "dereddened"
    if not host.ab_corrected:
        yield "ab_factors"
    if not host.error_floor_included:
        yield "error_floor"
    if host.luminosity_distance is not None:
        yield "luminosity_distance"


def _table(
    tables: Mapping[str, Mapping[str, float]], host: Host, artifact: Artifact
) -> Array | None:
    """Return (n_band,) numbers of the host's filter system, None where it has none."""
    table = tables.get(host.filter_system, {})
    bands = artifact.bands.names
    return np.array([table[band] for band in bands]) if set(bands) <= set(table) else None


def _dereddening(host: Host, artifact: Artifact) -> Correction | None:
    per_ebv = _table(EXTINCTION_PER_EBV, host, artifact)
    if per_ebv is None or host.ebv is None:
        return None
    extinction_mag = per_ebv * host.ebv
    return lambda flux, flux_err: deredden(flux, flux_err, extinction_mag)


def _ab_factors(host: Host, artifact: Artifact) -> Correction | None:
    factors = _table(AB_FACTORS, host, artifact)
    if factors is None:
        return None
    return lambda flux, flux_err: apply_ab_factors(flux, flux_err, factors)


def _error_floor(host: Host, artifact: Artifact) -> Correction | None:
    floor_mag = _table(ERROR_FLOOR_MAG, host, artifact)
    if floor_mag is None:
        return None
    return lambda flux, flux_err: (flux, add_error_floor(flux, flux_err, floor_mag))


def _rescaling(host: Host, artifact: Artifact) -> Correction | None:
    """Bring the host from its distance to that of its redshift: flux goes with (D/D(z))^2."""
    distance, redshift = host.luminosity_distance, host.redshift
    if distance is None or redshift is None or not 0 < redshift <= artifact.redshift_max:
        return None
    (expected,) = artifact.luminosity_distance_mpc(np.array([redshift]))
    factor = (distance / expected) ** 2
    return lambda flux, flux_err: (flux * factor, flux_err * factor)

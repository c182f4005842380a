"""Ordered sets of photometric bands and their transmission curves.

A band set is named "<filter group>-<bands>", such as "sdss2010-ugriz", "lsst2023-ugrizy" or
"decam2014-griz"; the curves come from speclite. Errors are known of ugriz alone, see
`sedflow_core.noise`.
"""

from typing import NamedTuple

import numpy as np

from sedflow_core.errors import BandError, MissingExtraError
from sedflow_core.units import Array

FILTER_SYSTEMS = {"sdss2010": "SDSS", "lsst2016": "LSST", "lsst2023": "LSST", "decam2014": "DECam"}
"""Filter group -> the name of the photometric system in alerts and corrections."""


BLUE_TO_RED = "ugrizy"
MIN_BANDS = 3


class BandSet(NamedTuple):
    """Bands from blue to red, the order of every flux array.

    Attributes:
        group: speclite's filter group, such as "sdss2010".
        names: one letter each, such as ("u", "g", "r", "i", "z").
    """

    group: str
    names: tuple[str, ...]

    @property
    def name(self) -> str:
        """The set's name, such as "sdss2010-ugriz"."""
        return f"{self.group}-{''.join(self.names)}"

    @property
    def system(self) -> str:
        """Photometric system, as in `FILTER_SYSTEMS`."""
        return FILTER_SYSTEMS[self.group]

    @property
    def filter_ids(self) -> tuple[str, ...]:
        """speclite's filter names, such as ("sdss2010-u", ...)."""
        return tuple(f"{self.group}-{band}" for band in self.names)

    @property
    def colors(self) -> tuple[tuple[int, int], ...]:
        """Index pairs (bluer, redder) of every colour."""
        n = len(self.names)
        return tuple((i, j) for i in range(n) for j in range(i + 1, n))


class Transmission(NamedTuple):
    """One filter: wave [Angstrom] ascending and its response, both (n_wave,)."""

    wave: Array
    response: Array


def parse_band_set(name: str) -> BandSet:
    """The band set of a name such as "sdss2010-ugriz".

    Raises:
        BandError: the filter group is unknown, or the bands are not at least `MIN_BANDS` of
            `BLUE_TO_RED` in this order.
    """
    group, _, bands = name.partition("-")
    if group not in FILTER_SYSTEMS or not bands:
        raise BandError(
            f"band set: expected '<group>-<bands>' with a group of {sorted(FILTER_SYSTEMS)}, "
            f"got {name!r}"
        )
    places = [BLUE_TO_RED.find(band) for band in bands]
    if len(bands) < MIN_BANDS or -1 in places or places != sorted(set(places)):
        raise BandError(
            f"band set: expected {MIN_BANDS} or more of {BLUE_TO_RED}, from blue to red, "
            f"got {bands!r} in {name!r}"
        )
    return BandSet(group, tuple(bands))


def load_transmission(bands: BandSet) -> tuple[Transmission, ...]:
    """Transmission curves of every band, from speclite.

    Raises:
        MissingExtraError: speclite is not installed.
        BandError: speclite does not know a filter.
    """
    try:
        from speclite.filters import load_filter
    except ImportError as error:
        raise MissingExtraError("speclite", "sim") from error
    curves = []
    for filter_id in bands.filter_ids:
        try:
            curve = load_filter(filter_id)
        except (ValueError, OSError) as error:
            raise BandError(
                f"filter: expected one that speclite knows, got {filter_id!r}"
            ) from error
        wave = np.asarray(curve.wavelength, dtype=np.float64)
        curves.append(Transmission(wave, np.asarray(curve.response, dtype=np.float64)))
    return tuple(curves)


def rest_wave_range(
    curves: tuple[Transmission, ...], redshift_max: float, step: float
) -> tuple[float, float]:
    """Rest wavelengths [Angstrom] that the curves reach for redshifts 0..redshift_max.

    The range is widened to whole steps.
    """
    low = min(float(c.wave[0]) for c in curves) / (1.0 + redshift_max)
    high = max(float(c.wave[-1]) for c in curves)
    return float(np.floor(low / step) * step), float(np.ceil(high / step) * step)

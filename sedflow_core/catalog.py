"""Galaxy catalogues on disk (FITS, Parquet, CSV) -> an Observation the flow can be asked about.

A `ColumnMap` says which columns hold what and what is still to be corrected; `nsa_columns` and
`sdss_columns` know two public catalogues. Missing values become NaN, which the support check flags:
no row is dropped and nothing becomes zero. Needs the extra `tables`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sedflow_core.bands import BandSet
from sedflow_core.corrections import (
    AB_FACTORS,
    ERROR_FLOOR_MAG,
    EXTINCTION_PER_EBV,
    add_error_floor,
    apply_ab_factors,
    deredden,
)
from sedflow_core.errors import CatalogError
from sedflow_core.observation import Observation
from sedflow_core.tables import Table, open_table
from sedflow_core.units import POGSON, Array, nanomaggy_from_mag, nanomaggy_from_njy

UNITS = ("nanomaggy", "njy", "mag")
SDSS_BANDS = "ugriz"
"""Bands of the last five elements of SDSS and NSA array columns."""

NSA_FLUXES = (
    *("NMGY", "SERSIC_NMGY", "ELPETRO_NMGY"),
    *("SERSICFLUX", "SERSIC_FLUX", "ELPETRO_FLUX", "PETROFLUX", "PETRO_FLUX"),
)
"""Flux columns of the NASA-Sloan Atlas v0_1_2 and v1_0_1, preferred first. Those named NMGY are
dereddened AB fluxes whose inverse variances include the error floor; the others are as measured."""


class QualityCut(NamedTuple):
    """A cut on SDSS photo flags: rejects where all bits are set, or where they are not."""

    name: str
    bits: int
    rejects_set: bool


QUALITY_CUTS = (
    QualityCut("peak_center", 1 << 5, True),  # PEAKCENTER
    QualityCut("not_checked", 1 << 19, True),  # NOTCHECKED
    QualityCut("psf_flux_interpolated", 1 << 47, True),  # PSF_FLUX_INTERP
    QualityCut("bad_counts_error", 1 << 40, True),  # BAD_COUNTS_ERROR
    QualityCut("interpolated_cosmic_ray", 1 << 44 | 1 << 12, True),  # INTERP_CENTER, COSMIC_RAY
    QualityCut("not_detected", 1 << 28, False),  # BINNED1: detected at 5 sigma, unbinned
    QualityCut("saturated", 1 << 18, True),  # SATURATED
    QualityCut("no_profile", 1 << 7, True),  # NOPROFILE
)
"""The paper's cuts (Hahn & Melchior 2022, Sec. 4) as bits of the 64-bit SDSS photo flags (the
PhotoFlags of the SDSS database: `FLAGS` plus `FLAGS2` shifted by 32)."""
CUT_NAMES = tuple(f"quality_{cut.name}" for cut in QUALITY_CUTS)
"""As reasons why a row has no posterior."""


@dataclass(frozen=True, slots=True)
class ColumnMap:
    """Which columns hold what, and which corrections the fluxes still need.

    A name that stands for one value per band is "u=COL1,g=COL2,...", a pattern such as
    "flux_{band}", or an array column whose last five elements are u g r i z.

    Attributes:
        flux: flux or magnitude per band, in `unit`.
        flux_err: its error, in `unit`; `ivar`: its inverse variance. Exactly one of the two.
        unit: "nanomaggy", "njy" or "mag" (AB-like, not asinh).
        redshift: redshift column.
        row_id: identifier to carry along; `None`: none.
        extinction: Galactic extinction per band [mag]; `ebv`: E(B-V) [mag]. One, or neither
            where the fluxes are dereddened.
        ab_factors, error_floor: whether to bring to AB and to add the error floor in quadrature.
        quality: SDSS photo flags, one 64-bit column or the columns of the low and the high word,
            for `QUALITY_CUTS`; of a column with a value per band the r band is used.
    """

    flux: str
    redshift: str
    flux_err: str | None = None
    ivar: str | None = None
    unit: str = "nanomaggy"
    row_id: str | None = None
    extinction: str | None = None
    ebv: str | None = None
    ab_factors: bool = False
    error_floor: bool = False
    quality: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.unit not in UNITS:
            raise CatalogError(f"unit: expected one of {', '.join(UNITS)}, got {self.unit!r}")
        if (self.flux_err is None) == (self.ivar is None):
            raise CatalogError(
                "flux errors: expected the columns of errors or of inverse variances, "
                f"got {self.flux_err!r} and {self.ivar!r}"
            )
        if self.extinction and self.ebv:
            raise CatalogError(
                f"extinction: expected magnitudes per band or E(B-V), got both "
                f"{self.extinction!r} and {self.ebv!r}"
            )
        if len(self.quality) > 2:
            raise CatalogError(f"quality: expected one or two columns, got {self.quality}")

    @property
    def corrections(self) -> tuple[str, ...]:
        """Names of the corrections to apply, in order."""
        dereddened = bool(self.extinction or self.ebv)
        wanted = (dereddened, self.ab_factors, self.error_floor)
        names = ("dereddened", "ab_factors", "error_floor")
        return tuple(name for name, apply in zip(names, wanted, strict=True) if apply)


@dataclass(frozen=True, slots=True)
class Catalog:
    """A catalogue's photometry, ready for `estimate`; n rows in the order of the file.

    Attributes:
        observation: corrected fluxes and errors [nanomaggy] and redshifts.
        row_id: (n,) identifiers, or None.
        quality: (n,) bit i set where `QUALITY_CUTS[i]` rejects the row; 0: none does.
        columns: what was read from where.
    """

    observation: Observation
    row_id: NDArray[Any] | None
    quality: NDArray[np.int64]
    columns: ColumnMap

    def __len__(self) -> int:
        return len(self.observation)


def nsa_columns(names: Sequence[str], flux: str | None = None) -> ColumnMap:
    """Columns of the NASA-Sloan Atlas, v0_1_2 or v1_0_1, among the file's `names`.

    `flux`: one of `NSA_FLUXES`; by default the first that is there. The atlas's main file has no
    photo flags: they are OBJC_FLAGS and OBJC_FLAGS2 of its SDSS source file, by row ISDSS.
    """
    present = {name.casefold() for name in names}
    flux = flux or next((name for name in NSA_FLUXES if name.casefold() in present), None)
    if flux is None:
        raise CatalogError(f"expected a flux column among {', '.join(NSA_FLUXES)}, got none")
    raw = not flux.upper().endswith("NMGY")
    return ColumnMap(
        flux=flux,
        ivar=f"{flux}_IVAR",
        redshift="Z",
        row_id="NSAID" if "nsaid" in present else None,
        extinction="EXTINCTION" if raw else None,
        ab_factors=raw,
        error_floor=raw,
    )


def sdss_columns(flux: str | None = None) -> ColumnMap:
    """Columns of SDSS photometric catalogues: `flux` (PETROFLUX), EXTINCTION and Z."""
    flux = flux or "PETROFLUX"
    return ColumnMap(
        flux=flux,
        ivar=f"{flux}_IVAR",
        redshift="Z",
        extinction="EXTINCTION",
        ab_factors=True,
        error_floor=True,
    )


def read_catalog(path: Path | str, columns: ColumnMap, bands: BandSet) -> Catalog:
    """Read a catalogue and bring it to total, dereddened AB fluxes with the error floor.

    Raises CatalogError, naming the column, unit or value, where that is not possible, and
    MissingExtraError without the extra `tables`.
    """
    with open_table(Path(path)) as table:
        flux, flux_err = _read_flux(table, columns, bands)
        flux, flux_err = _correct(flux, flux_err, table, columns, bands)
        return Catalog(
            observation=Observation(flux, flux_err, table.numbers(columns.redshift)),
            row_id=table.labels(columns.row_id) if columns.row_id else None,
            quality=_read_quality(table, columns.quality, len(flux)),
            columns=columns,
        )


def check_quality(photo_flags: NDArray[np.int64]) -> NDArray[np.int64]:
    """Bits of `QUALITY_CUTS` that reject each row of SDSS photo flags (n,)."""
    rejected = np.zeros(photo_flags.shape, dtype=np.int64)
    for bit, cut in enumerate(QUALITY_CUTS):
        all_set = (photo_flags & cut.bits) == cut.bits
        rejected |= (all_set == cut.rejects_set).astype(np.int64) << bit
    return rejected


def _read_bands(table: Table, name: str, bands: BandSet) -> Array:
    """(n, n_band) from a mapping, a pattern or an array column."""
    if "=" in name:
        parts = (part.partition("=") for part in name.split(","))
        pairs = {band.strip(): column.strip() for band, _, column in parts}
        missing = [band for band in bands.names if not pairs.get(band)]
        if missing:
            raise CatalogError(
                f"columns {name!r}: expected every band of {bands.name}, "
                f"got none for {', '.join(missing)}"
            )
        return np.stack([table.numbers(pairs[band]) for band in bands.names], axis=1)
    if "{band}" in name:
        columns = [name.replace("{band}", band) for band in bands.names]
        return np.stack([table.numbers(column) for column in columns], axis=1)
    return _read_array_column(table, name, bands)


def _read_array_column(table: Table, name: str, bands: BandSet) -> Array:
    values = table.numbers(name)
    if values.size == 0:  # no rows, or lists that are all missing
        return np.full((len(values), len(bands.names)), np.nan)
    width = values.shape[1] if values.ndim == 2 else 1
    if width not in (5, 7):
        raise CatalogError(
            f"column {name!r}: expected 5 (u g r i z) or 7 (F N u g r i z) values per row, "
            f"got {width}; one column per band is written 'u=COL1,g=COL2' or 'flux_{{band}}'"
        )
    if bands.system != "SDSS":
        raise CatalogError(f"column {name!r}: expected SDSS bands, got {bands.name}")
    return values[:, -5:][:, [SDSS_BANDS.index(band) for band in bands.names]]


def _read_flux(table: Table, columns: ColumnMap, bands: BandSet) -> tuple[Array, Array]:
    """Flux and error in nanomaggies; unmeasured (inverse variance <= 0) errors are NaN."""
    values = _read_bands(table, columns.flux, bands)
    if columns.flux_err is not None:
        error = _read_bands(table, columns.flux_err, bands)
    else:
        ivar = _read_bands(table, str(columns.ivar), bands)
        error = np.where(ivar > 0, ivar, np.nan) ** -0.5
    if columns.unit == "njy":
        return nanomaggy_from_njy(values), nanomaggy_from_njy(error)
    if columns.unit == "mag":
        with np.errstate(over="ignore"):
            flux = nanomaggy_from_mag(values)
            return flux, flux * error / POGSON
    return values, error


def _correct(
    flux: Array, flux_err: Array, table: Table, columns: ColumnMap, bands: BandSet
) -> tuple[Array, Array]:
    extinction = _read_extinction(table, columns, bands)
    if extinction is not None:
        flux, flux_err = deredden(flux, flux_err, extinction)
    if columns.ab_factors:
        factors = _per_band(AB_FACTORS, "AB factors", bands)
        flux, flux_err = apply_ab_factors(flux, flux_err, factors)
    if columns.error_floor:
        floor = _per_band(ERROR_FLOOR_MAG, "an error floor", bands)
        flux_err = add_error_floor(flux, flux_err, floor)
    return flux, flux_err


def _read_extinction(table: Table, columns: ColumnMap, bands: BandSet) -> Array | None:
    """Extinction [mag] to correct for, None where the catalogue gives none; NaN what is none."""
    if columns.extinction:
        extinction = _read_bands(table, columns.extinction, bands)
    elif columns.ebv:
        per_ebv = _per_band(EXTINCTION_PER_EBV, "extinction per E(B-V)", bands)
        extinction = table.numbers(columns.ebv)[:, None] * per_ebv
    else:
        return None
    return np.where(extinction >= 0, extinction, np.nan)


def _per_band(table: dict[str, dict[str, float]], what: str, bands: BandSet) -> Array:
    if bands.system not in table:
        raise CatalogError(f"expected {what} of one of {', '.join(table)}, got {bands.system}")
    return np.array([table[bands.system][band] for band in bands.names])


def _read_quality(table: Table, names: tuple[str, ...], n: int) -> NDArray[np.int64]:
    if not names:
        return np.zeros(n, dtype=np.int64)
    words = [_read_word(table, name) for name in names]
    photo_flags = words[0] if len(words) == 1 else (words[0] & 0xFFFFFFFF) | (words[1] << 32)
    return check_quality(photo_flags)


def _read_word(table: Table, name: str) -> NDArray[np.int64]:
    values = table.read(name)
    if values.dtype.kind not in "iu":
        missing = int(np.isnan(values).sum()) if values.dtype.kind == "f" else 0
        got = f"none in {missing} of {len(values)}" if missing else str(values.dtype)
        raise CatalogError(f"column {name!r}: expected an integer in each row, got {got}")
    word = values.astype(np.int64)
    if values.dtype.itemsize <= 4:
        word &= 0xFFFFFFFF  # its highest bit is a flag, not a sign
    return word[:, -3] if word.ndim == 2 else word

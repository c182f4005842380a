import gzip
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from astropy import units as u
from astropy.io import fits
from astropy.table import Table as AstropyTable

from sedflow_core.bands import parse_band_set
from sedflow_core.catalog import (
    NSA_FLUXES,
    QUALITY_CUTS,
    ColumnMap,
    check_quality,
    nsa_columns,
    read_catalog,
    sdss_columns,
)
from sedflow_core.errors import CatalogError
from sedflow_core.tables import open_table, write_table

UGRIZ = parse_band_set("sdss2010-ugriz")
BANDS = "ugriz"
PER_BAND = ColumnMap(flux="flux_{band}", flux_err="err_{band}", redshift="z")
AB_FACTORS = np.array([1.0337, 0.9890, 0.9908, 0.9745, 0.9638])
FLOOR = np.array([0.05, 0.02, 0.02, 0.02, 0.03])


@pytest.fixture
def flux() -> np.ndarray:
    return np.random.default_rng(3).uniform(5.0, 500.0, size=(6, 5))


def per_band_columns(flux: np.ndarray, err: np.ndarray) -> dict[str, np.ndarray]:
    columns = {f"flux_{band}": flux[:, i] for i, band in enumerate(BANDS)}
    columns |= {f"err_{band}": err[:, i] for i, band in enumerate(BANDS)}
    return columns | {
        "z": np.linspace(0.01, 0.1, len(flux)),
        "name": np.arange(100, 100 + len(flux)),
    }


def write_fits(path: Path, **columns: np.ndarray) -> Path:
    AstropyTable(columns).write(path, overwrite=True)
    return path


LONG = 1237648720693755918
"""An identifier of the SDSS, which a float does not hold."""


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        ([LONG, LONG + 1], [LONG, LONG + 1]),
        ([LONG, None], [str(LONG), None]),
        (["007", "7"], ["007", "7"]),
        ([str(2**64), "b"], [str(2**64), "b"]),
    ],
    ids=["integers", "one missing", "text with zeros", "text"],
)
@pytest.mark.parametrize("suffix", [".fits", ".parquet", ".csv"])
def test_identifiers_stay_as_they_are(
    tmp_path: Path, suffix: str, ids: list[Any], expected: list[Any]
) -> None:
    path = tmp_path / f"galaxies{suffix}"
    if suffix == ".fits":
        is_missing = [i is None for i in ids]
        known = ids if not any(is_missing) else np.ma.array([i or 0 for i in ids], mask=is_missing)
        AstropyTable({"id": known}).write(path)
    elif suffix == ".csv":
        path.write_text("\n".join(["id,z", *(f"{'' if i is None else i},0.1" for i in ids)]) + "\n")
    else:
        pq.write_table(pa.table({"id": ids}), path)
    with open_table(path) as table:
        read = table.labels("id").tolist()
    assert [text or None for text in read] == expected


@pytest.mark.parametrize("suffix", [".fits", ".parquet", ".csv"])
def test_a_catalogue_may_have_no_rows(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"galaxies{suffix}"
    columns = per_band_columns(np.ones((0, 5)), np.ones((0, 5)))
    if suffix == ".csv":
        path.write_text(",".join(columns) + "\n")
    else:
        write_table(path, columns, {})
    catalog = read_catalog(path, ColumnMap(**_fields(PER_BAND), row_id="name"), UGRIZ)
    assert len(catalog) == len(catalog.row_id) == 0
    assert catalog.observation.flux.shape == (0, 5)


@pytest.mark.parametrize("n", [0, 2])
def test_lists_that_are_all_missing_are_bands_that_are(tmp_path: Path, n: int) -> None:
    path = tmp_path / "galaxies.parquet"
    lists = pa.array([None] * n, pa.list_(pa.float64()))
    pq.write_table(pa.table({"FLUX": lists, "ERR": lists, "Z": pa.array([0.1] * n)}), path)
    columns = ColumnMap(flux="FLUX", flux_err="ERR", redshift="Z")
    flux = read_catalog(path, columns, UGRIZ).observation.flux
    np.testing.assert_array_equal(flux, np.full((n, 5), np.nan))


def test_flags_that_are_missing_or_no_integers_are_named(tmp_path: Path, flux: np.ndarray) -> None:
    path = tmp_path / "galaxies.parquet"
    flags = pa.array([None, 1, 2, 3, 4, 5], pa.int64())
    columns = {k: pa.array(v) for k, v in per_band_columns(flux, 0.03 * flux).items()}
    pq.write_table(pa.table({**columns, "flags": flags}), path)
    for name, got in (("flags", "none in 1 of 6"), ("z", "float64")):
        with pytest.raises(CatalogError, match=f"'{name}': expected an integer.*, got {got}"):
            read_catalog(path, ColumnMap(**_fields(PER_BAND), quality=(name,)), UGRIZ)


@pytest.mark.parametrize("suffix", [".fits", ".parquet", ".csv"])
def test_every_format_gives_the_same_arrays(tmp_path, flux, suffix):
    path = tmp_path / f"galaxies{suffix}"
    write_table(path, per_band_columns(flux, 0.03 * flux), {})
    catalog = read_catalog(path, ColumnMap(**_fields(PER_BAND), row_id="name"), UGRIZ)
    np.testing.assert_array_equal(catalog.observation.flux, flux)
    np.testing.assert_array_equal(catalog.observation.flux_err, 0.03 * flux)
    np.testing.assert_array_equal(catalog.row_id, np.arange(100, 106))
    assert len(catalog) == 6
    assert not catalog.quality.any()
    assert catalog.columns.corrections == ()


def _fields(columns: ColumnMap) -> dict[str, str | None]:
    return {"flux": columns.flux, "flux_err": columns.flux_err, "redshift": columns.redshift}


@pytest.mark.parametrize("suffix", [".fits", ".parquet", ".csv"])
def test_missing_values_are_nan_and_no_row_is_lost(tmp_path, flux, suffix):
    flux[2, 1] = np.nan
    path = tmp_path / f"galaxies{suffix}"
    write_table(path, per_band_columns(flux, 0.03 * np.abs(flux)), {})
    read = read_catalog(path, PER_BAND, UGRIZ).observation
    assert np.argwhere(np.isnan(read.flux)).tolist() == [[2, 1]]


def test_what_stands_for_missing_integers_in_fits_is_missing(tmp_path):
    columns = [
        fits.Column("n", "J", array=np.array([3, -99]), null=-99),
        fits.Column("flux", "E", array=np.array([1.0, 2.0])),
        fits.Column("whole", "J", array=np.array([3, 4]), null=-99),
    ]
    fits.BinTableHDU.from_columns(columns).writeto(tmp_path / "a.fits")
    with open_table(tmp_path / "a.fits") as table:
        np.testing.assert_array_equal(table.numbers("n"), [3.0, np.nan])
        assert table.labels("n").tolist() == ["3", None]
        np.testing.assert_array_equal(table.numbers("flux"), [1.0, 2.0])
        np.testing.assert_array_equal(table.read("n"), [3.0, np.nan])
        assert table.read("whole").dtype == np.int32


def test_parquet_null_and_csv_words_for_nothing_are_nan(tmp_path):
    pq.write_table(pa.table({"z": [0.1, None]}), tmp_path / "a.parquet")
    (tmp_path / "a.csv").write_text("z,w\n0.1,1\n,2\nNaN,3\nnull,4\n")
    for name, n_missing in (("a.parquet", 1), ("a.csv", 3)):
        with open_table(tmp_path / name) as table:
            assert np.isnan(table.numbers("z")).sum() == n_missing


def test_integer_that_turns_into_a_decimal_late_in_a_csv_is_read(tmp_path):
    rows = ["1"] * 400_000 + ["1.5"]
    (tmp_path / "a.csv").write_text("\n".join(["flux", *rows]))
    with open_table(tmp_path / "a.csv") as table:
        assert table.numbers("flux")[-1] == 1.5


def test_columns_by_mapping_in_any_order_and_case(tmp_path, flux):
    path = write_fits(
        tmp_path / "a.fits",
        **{f"F_{b.upper()}": flux[:, i] for i, b in enumerate(BANDS)},
        Z=flux[:, 0],
    )
    names = "z=f_z, u=f_u, i=f_i, g=f_g, r=f_r"
    catalog = read_catalog(path, ColumnMap(flux=names, flux_err=names, redshift="z"), UGRIZ)
    np.testing.assert_array_equal(catalog.observation.flux, flux)


def test_units_against_astropy(tmp_path, flux):
    mag = (flux * u.nmgy).to_value(u.ABmag, u.zero_point_flux(1.0 * u.AB))
    write_table(tmp_path / "m.csv", per_band_columns(mag, np.full((6, 5), 0.1)), {})
    magnitudes = read_catalog(tmp_path / "m.csv", ColumnMap(**_fields(PER_BAND), unit="mag"), UGRIZ)
    np.testing.assert_allclose(magnitudes.observation.flux, flux, rtol=1e-12)
    relative = magnitudes.observation.flux_err / magnitudes.observation.flux
    np.testing.assert_allclose(relative, 0.1 * np.log(10) / 2.5, rtol=1e-12)
    write_table(tmp_path / "n.csv", per_band_columns(flux * 3631, flux * 363.1), {})
    njy = read_catalog(tmp_path / "n.csv", ColumnMap(**_fields(PER_BAND), unit="njy"), UGRIZ)
    np.testing.assert_allclose(njy.observation.flux, flux, rtol=1e-12)
    np.testing.assert_allclose(njy.observation.flux_err, 0.1 * flux, rtol=1e-12)


def test_sdss_catalogue_is_dereddened_brought_to_ab_and_floored(tmp_path, flux):
    extinction = np.linspace(0.0, 1.0, 30).reshape(6, 5)
    path = write_fits(
        tmp_path / "sdss.fits",
        PETROFLUX=flux,
        PETROFLUX_IVAR=1 / (0.01 * flux) ** 2,
        EXTINCTION=extinction,
        Z=np.full(6, 0.05),
    )
    catalog = read_catalog(path, sdss_columns(), UGRIZ)
    expected = flux * 10 ** (extinction / 2.5) * AB_FACTORS
    np.testing.assert_allclose(catalog.observation.flux, expected)
    magnitude_error = catalog.observation.flux_err / expected * 2.5 / np.log(10)
    statistical = 0.01 * 2.5 / np.log(10)
    np.testing.assert_allclose(
        magnitude_error, np.broadcast_to(np.hypot(statistical, FLOOR), (6, 5))
    )
    assert catalog.columns.corrections == ("dereddened", "ab_factors", "error_floor")


def test_nsa_ready_fluxes_equal_its_raw_ones_corrected(tmp_path, flux):
    """NMGY is SERSICFLUX dereddened, in AB, with the floor: both ways to read a file agree."""
    seven = np.concatenate([np.full((6, 2), -1.0), flux], axis=1)
    extinction = np.full((6, 7), 0.3)
    factors = np.array([1.0, 1.0, *AB_FACTORS]) * 10 ** (0.4 * 0.3)
    sigma = np.hypot(0.01, np.array([0.0, 0.0, *FLOOR]) * np.log(10) / 2.5)
    path = write_fits(
        tmp_path / "nsa.fits",
        SERSICFLUX=seven,
        SERSICFLUX_IVAR=1 / (0.01 * seven) ** 2,
        NMGY=seven * factors,
        NMGY_IVAR=1 / (sigma * seven * factors) ** 2,
        EXTINCTION=extinction,
        Z=np.full(6, 0.03),
        NSAID=np.arange(6),
    )
    with open_table(path) as table:
        ready, raw = nsa_columns(table.names), nsa_columns(table.names, "SERSICFLUX")
    assert ready.flux == "NMGY"
    assert ready.corrections == ()
    first, second = (read_catalog(path, columns, UGRIZ) for columns in (ready, raw))
    np.testing.assert_allclose(first.observation.flux, second.observation.flux)
    np.testing.assert_allclose(first.observation.flux_err, second.observation.flux_err)
    assert first.row_id.tolist() == list(range(6))


@pytest.mark.parametrize("flux_name", NSA_FLUXES)
def test_nsa_flux_columns_of_both_releases_are_found(flux_name):
    columns = nsa_columns((flux_name, f"{flux_name}_IVAR", "Z", "EXTINCTION"))
    assert columns.flux == flux_name
    assert (columns.corrections == ()) == flux_name.endswith("NMGY")


def test_reddening_by_ebv_is_stronger_in_the_blue(tmp_path, flux):
    columns = per_band_columns(flux, 0.03 * flux) | {"ebv": np.full(6, 0.1)}
    write_table(tmp_path / "a.csv", columns, {})
    catalog = read_catalog(tmp_path / "a.csv", ColumnMap(**_fields(PER_BAND), ebv="ebv"), UGRIZ)
    magnitudes = 2.5 * np.log10(catalog.observation.flux / flux)
    assert np.all(np.diff(magnitudes, axis=1) < 0)
    np.testing.assert_allclose(magnitudes[:, 2], 0.2285, atol=1e-6)  # Schlafly & Finkbeiner: A_r


@pytest.mark.parametrize("ebv", [-1.0, -0.01, np.nan])
def test_a_reddening_that_is_none_leaves_nothing_to_fit(tmp_path, flux, ebv):
    columns = per_band_columns(flux, 0.03 * flux) | {"ebv": np.array([0.1, ebv, *4 * [0.0]])}
    write_table(tmp_path / "a.csv", columns, {})
    catalog = read_catalog(tmp_path / "a.csv", ColumnMap(**_fields(PER_BAND), ebv="ebv"), UGRIZ)
    usable = np.isfinite(catalog.observation.flux)
    assert usable.all(axis=1).tolist() == [True, False, *4 * [True]]
    assert not usable[1].any()


def test_unmeasured_inverse_variance_is_a_missing_error(tmp_path, flux):
    ivar = 1 / (0.1 * flux) ** 2
    ivar[0, 0], ivar[1, 1] = 0.0, -1.0
    path = write_fits(tmp_path / "a.fits", F=flux, F_IVAR=ivar, Z=flux[:, 0])
    read = read_catalog(path, ColumnMap(flux="F", ivar="F_IVAR", redshift="Z"), UGRIZ).observation
    assert np.argwhere(np.isnan(read.flux_err)).tolist() == [[0, 0], [1, 1]]


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (0x20, "peak_center"),
        (0x80000, "not_checked"),
        (0x800000000000, "psf_flux_interpolated"),
        (0x10000000000, "bad_counts_error"),
        (0x100000001000, "interpolated_cosmic_ray"),
        (0x40000, "saturated"),
        (0x80, "no_profile"),
    ],
)
def test_each_bit_of_the_sdss_database_is_cut(flags, reason):
    """Values are those of the PhotoFlags table of the SDSS database."""
    detected = 0x10000000
    bits = check_quality(np.array([detected | flags, detected]))
    assert [cut.name for i, cut in enumerate(QUALITY_CUTS) if bits[0] >> i & 1] == [reason]
    assert bits[1] == 0


def test_undetected_objects_are_cut_and_lone_bits_of_a_pair_are_not():
    names = [cut.name for cut in QUALITY_CUTS]
    bits = check_quality(np.array([0, 0x10000000 | 1 << 44, 0x10000000 | 1 << 12]))
    assert bits.tolist() == [1 << names.index("not_detected"), 0, 0]


def test_quality_from_two_words_and_from_the_r_band(tmp_path, flux):
    low = np.full(6, 0x10000000, dtype=np.int32)
    low[1] |= np.int32(0x40000)
    low[2] |= np.int32(-(1 << 31))  # MOVED, the word's sign bit: no reason to cut
    high = np.zeros(6, dtype=np.int32)
    high[3] = 1 << 8
    per_band = np.zeros((6, 5), dtype=np.int32)
    per_band[:, 2] = low
    path = write_fits(
        tmp_path / "a.fits", F=flux, Z=flux[:, 0], LOW=low, HIGH=high, PER_BAND=per_band
    )
    base = {"flux": "F", "flux_err": "F", "redshift": "Z"}
    names = [cut.name for cut in QUALITY_CUTS]
    saturated, bad_counts = (1 << names.index(n) for n in ("saturated", "bad_counts_error"))
    object_flags = read_catalog(path, ColumnMap(**base, quality=("LOW", "HIGH")), UGRIZ)
    assert object_flags.quality.tolist() == [0, saturated, 0, bad_counts, 0, 0]
    r_band = read_catalog(path, ColumnMap(**base, quality=("PER_BAND",)), UGRIZ)
    assert r_band.quality.tolist() == [0, saturated, 0, 0, 0, 0]


def test_real_sdss_sample(tmp_path):
    folder = Path(find_spec("kcorrect").submodule_search_locations[0])
    catalog = read_catalog(folder / "data/test/gst_tests_small.fits", sdss_columns(), UGRIZ)
    assert len(catalog) == 10_000
    observation = catalog.observation
    assert np.isfinite(observation.flux_err).all()
    relative = observation.flux_err / np.abs(observation.flux) * 2.5 / np.log(10)
    assert np.all(relative >= FLOOR - 1e-9)
    g_r = -2.5 * np.log10(np.median(observation.flux[:, 1] / observation.flux[:, 2]))
    assert 0.5 < g_r < 1.1  # the SDSS main sample


def test_dev_galaxies(shared_data):
    columns = ColumnMap(flux="flux_{band}", flux_err="flux_err_{band}", redshift="z")
    catalog = read_catalog(shared_data / "galaxies_dev.csv.gz", columns, UGRIZ)
    assert len(catalog) == 10_661
    assert np.isfinite(catalog.observation.redshift).all()


def test_lists_of_a_parquet_column_are_band_arrays(tmp_path, flux):
    pq.write_table(pa.table({"F": flux.tolist(), "Z": flux[:, 0]}), tmp_path / "a.parquet")
    columns = ColumnMap(flux="F", flux_err="F", redshift="Z")
    read = read_catalog(tmp_path / "a.parquet", columns, UGRIZ)
    np.testing.assert_array_equal(read.observation.flux, flux)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"flux": "flx_{band}"}, r"column 'flx_u'.*nearest: flux_u"),
        ({"flux": "u=flux_u,g=flux_g"}, r"every band of sdss2010-ugriz, got none for r, i, z"),
        ({"flux": "flux_u"}, r"'flux_u': expected 5 .* or 7 .* got 1"),
        ({"redshift": "word"}, r"'word': expected float64 values, got: .*abc"),
        ({"redshift": "zz"}, r"expected a column 'zz'"),
        ({"unit": "jansky"}, r"unit: expected one of nanomaggy, njy, mag, got 'jansky'"),
        ({"ivar": "err_{band}"}, r"errors or of inverse variances"),
        ({"flux_err": None}, r"errors or of inverse variances"),
        ({"ebv": "z", "extinction": "z"}, r"got both"),
        ({"quality": ("name", "z", "z")}, r"one or two columns"),
    ],
)
def test_errors_name_the_column_or_value(tmp_path, flux, columns, message):
    content = per_band_columns(flux, 0.03 * flux) | {"word": np.array(["1", "abc", *"2345"])}
    write_table(tmp_path / "a.csv", content, {})
    fields = _fields(PER_BAND) | columns
    with pytest.raises(CatalogError, match=message):
        read_catalog(tmp_path / "a.csv", ColumnMap(**fields), UGRIZ)


def test_a_file_that_is_cut_off_is_named(tmp_path, flux):
    write_fits(tmp_path / "a.fits", **per_band_columns(*[np.tile(flux, (100, 1))] * 2))
    for name in ("a.fits", "a.csv.gz"):
        path = tmp_path / name
        if name == "a.csv.gz":
            path.write_bytes(gzip.compress(b"z\n" + b"\n".join(b"%d" % i for i in range(9999))))
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with pytest.raises(CatalogError, match="expected"), open_table(path) as table:
            table.numbers("z")


def test_a_text_of_few_kinds_may_be_missing(tmp_path):
    kinds = pa.array(["spiral", None, "spiral"]).dictionary_encode()
    pq.write_table(pa.table({"kind": kinds}), tmp_path / "a.parquet")
    with open_table(tmp_path / "a.parquet") as table:
        assert table.labels("kind").tolist() == ["spiral", None, "spiral"]


def test_errors_name_the_file(tmp_path):
    (tmp_path / "a.fits").write_text("no FITS")
    (tmp_path / "a.parquet").write_text("no Parquet")
    fits.PrimaryHDU(np.zeros((2, 2))).writeto(tmp_path / "image.fits")
    for name in ("a.fits", "a.parquet", "image.fits", "none.csv", "a.txt"):
        with pytest.raises(CatalogError, match=name), open_table(tmp_path / name):
            pass


def test_ab_factors_of_a_system_without_any_are_refused(tmp_path, flux):
    lsst = parse_band_set("lsst2023-ugriz")
    write_table(tmp_path / "a.csv", per_band_columns(flux, 0.03 * flux), {})
    with pytest.raises(CatalogError, match="error floor of one of SDSS, got LSST"):
        read_catalog(tmp_path / "a.csv", ColumnMap(**_fields(PER_BAND), error_floor=True), lsst)
    path = write_fits(tmp_path / "a.fits", F=flux, Z=flux[:, 0])
    with pytest.raises(CatalogError, match="expected SDSS bands, got lsst2023-ugriz"):
        read_catalog(path, ColumnMap(flux="F", flux_err="F", redshift="Z"), lsst)


def test_a_table_appears_only_once_complete(tmp_path):
    unequal = {"a": np.zeros(3), "b": np.zeros(2)}
    with pytest.raises(ValueError, match="length"):
        write_table(tmp_path / "a.fits", unequal, {})
    assert not (tmp_path / "a.fits").exists()
    with pytest.raises(CatalogError, match=r"a\.csv\.gz"):
        write_table(tmp_path / "a.csv.gz", {"a": np.zeros(3)}, {})

import argparse
import json
from importlib.util import find_spec
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from astropy.io import fits
from astropy.table import Table as AstropyTable

from sedflow_core import estimate
from sedflow_core.catalog import read_catalog, sdss_columns
from sedflow_core.columns import column_map, read_galaxies
from sedflow_core.errors import CatalogError
from sedflow_core.fit import add_fit_arguments, row_status, run_fit
from sedflow_core.summary import LEVEL_NAMES, quantiles
from sedflow_core.tables import open_table
from sedflow_core.threads import torch_threads
from sedflow_core.trust import MIN_EFFICIENCY, MIN_P_VALUE

N_SAMPLES = 128
N_ROWS = 40


@pytest.fixture
def catalog_path(tmp_path: Path) -> Path:
    """Real galaxies; row 1 lacks a flux, 2 a redshift, 3 an error, 4 is saturated and lacks one."""
    package = Path(find_spec("kcorrect").submodule_search_locations[0])
    table = AstropyTable.read(package / "data/test/gst_tests_small.fits")[:N_ROWS]
    table["PETROFLUX"][1, 2] = np.nan
    table["Z"][2] = np.nan
    table["PETROFLUX_IVAR"][3, 0] = 0.0
    table["PETROFLUX"][4, 4] = np.nan
    table["PHOTFLAGS"] = np.full(N_ROWS, 1 << 28, dtype=np.int64)
    table["PHOTFLAGS"][4] |= 1 << 18
    path = tmp_path / "galaxies.fits"
    table.write(path)
    return path


@pytest.fixture
def fit(tiny_path: Path, catalog_path: Path, tmp_path: Path):
    """Run the command on the catalogue and return the path of its table."""

    def run(name: str, *arguments: str, catalog: Path = catalog_path) -> Path:
        parser = argparse.ArgumentParser()
        add_fit_arguments(parser)
        out = tmp_path / name
        base = [catalog, "--out", out, "--artifact", tiny_path, "--n-samples", N_SAMPLES]
        args = parser.parse_args([*map(str, base), *arguments])
        assert run_fit(args) == 0
        return out

    return run


def test_one_row_out_per_row_in_and_reasons_where_there_is_no_posterior(fit):
    table = AstropyTable.read(fit("fit.fits", "--layout", "sdss", "--quality-columns", "PHOTFLAGS"))
    assert table["row"].tolist() == list(range(N_ROWS))
    assert table["status"][1:5].tolist() == [
        "MISSING_BANDS",
        "NO_REDSHIFT",
        "MISSING_BANDS",
        "QUALITY_CUT",
    ]
    assert "non_finite_r" in table["reasons"][1].split(";")
    assert "non_finite_redshift" in table["reasons"][2].split(";")
    assert "non_finite_u" in table["reasons"][3].split(";")
    assert {"non_finite_z", "quality_saturated"} <= set(table["reasons"][4].split(";"))
    assert table["flags"][4] != 0
    fitted = table["status"] == "OK"
    assert 0 < fitted.sum() < N_ROWS
    values = np.asarray(table["log_mstar_q50"])
    assert np.isfinite(values[fitted]).all()
    assert np.isnan(values[~fitted]).all()


def test_rows_are_those_of_estimate(fit, tiny, catalog_path):
    table = AstropyTable.read(fit("fit.fits", "--layout", "sdss"))
    catalog = read_catalog(catalog_path, sdss_columns(), tiny.bands)
    summary = estimate(tiny, catalog.observation, n_samples=N_SAMPLES, seed=0)
    for i, name in enumerate(summary.names):
        for j, level in enumerate(LEVEL_NAMES):
            expected = summary.quantiles[:, i, j].astype(np.float32)
            np.testing.assert_array_equal(np.asarray(table[f"{name}_{level}"]), expected)
        for statistic, values in (("mean", summary.mean), ("std", summary.std)):
            found = np.asarray(table[f"{name}_{statistic}"])
            np.testing.assert_array_equal(found, values[:, i].astype(np.float32))
    for event, values in summary.probabilities.items():
        np.testing.assert_array_equal(np.asarray(table[f"p_{event}"]), values.astype(np.float32))
    np.testing.assert_array_equal(np.asarray(table["flags"]), summary.flags)
    for name, values in summary.trust.items():
        np.testing.assert_array_equal(np.asarray(table[name]), values.astype(np.float32))
    assert np.isfinite(summary.trust["efficiency"]).any()
    verdict = (summary.trust["p_value"] >= MIN_P_VALUE) & (
        summary.trust["efficiency"] >= MIN_EFFICIENCY
    )
    np.testing.assert_array_equal(np.asarray(table["trusted"]), verdict)


def test_a_catalogue_may_be_in_any_unit_and_not_yet_corrected(tiny, tmp_path):
    """1 nanomaggy is 3631 nJy, and 22.5 mag; factors and floors of SDSS as the NASA-Sloan Atlas
    has them."""
    flux, err = np.array([57.3, 253.8, 549.0, 792.3, 1060.8]), np.array([3.2, 5, 10, 15, 30])
    factor = [1.0337, 0.9890, 0.9908, 0.9745, 0.9638]
    floor = np.array([0.05, 0.02, 0.02, 0.02, 0.03]) * np.log(10) / 2.5
    corrected = flux * factor, np.hypot(err * factor, flux * factor * floor)
    mag = 22.5 - 2.5 * np.log10(flux), 2.5 / np.log(10) * err / flux
    catalogs = {
        "nanomaggy": (corrected, []),
        "njy": ([3631.0 * t for t in corrected], ["--unit", "njy"]),
        "mag": (mag, ["--unit", "mag", "--ab-factors", "--error-floor"]),
    }
    parser = argparse.ArgumentParser()
    add_fit_arguments(parser)
    for name, (values, options) in catalogs.items():
        names = [f"{kind}_{band}" for kind in ("flux", "err") for band in "ugriz"]
        row = dict(zip(names, np.concatenate(values), strict=True)) | {"z": 0.0366}
        path = tmp_path / f"{name}.csv"
        AstropyTable([row]).write(path)
        arguments = [str(path), "--out", "x.fits", "--redshift-column", "z", *options]
        arguments += ["--flux-columns", "flux_{band}", "--err-columns", "err_{band}"]
        observed = read_galaxies(parser.parse_args(arguments), path, tiny.bands).observation
        np.testing.assert_allclose(observed.flux[0], corrected[0], rtol=1e-6)
        np.testing.assert_allclose(observed.flux_err[0], corrected[1], rtol=1e-6)


def test_threads_share_the_rows_and_change_no_bit(fit, monkeypatch):
    monkeypatch.setattr("sedflow_core.fit.CHUNK_ROWS", 4)
    one = pq.read_table(fit("one.parquet", "--layout", "sdss"))
    with torch_threads(3):
        assert pq.read_table(fit("three.parquet", "--layout", "sdss")).equals(one)
        assert torch.get_num_threads() == 3


def test_formats_hold_the_same_table_and_say_what_was_done(fit, tiny):
    fits_path, parquet_path, csv_path = (
        fit(f"fit{suffix}", "--layout", "sdss") for suffix in (".fits", ".parquet", ".csv")
    )
    expected = np.asarray(AstropyTable.read(fits_path)["a_v_q84"])
    parquet = pq.read_table(parquet_path)
    np.testing.assert_array_equal(parquet["a_v_q84"].to_numpy(), expected)
    assert parquet["a_v_q84"].null_count == np.isnan(expected).sum()
    csv = AstropyTable.read(csv_path, format="ascii.csv")
    np.testing.assert_allclose(csv["a_v_q84"].filled(np.nan), expected, rtol=1e-6)
    header = fits.getheader(fits_path, 1)
    meta = json.loads(csv_path.with_name("fit.csv.json").read_text())
    assert header["CORRECT"] == meta["correct"] == "dereddened,ab_factors,error_floor"
    assert header["SHA256"] == tiny.sha256
    assert parquet.schema.metadata[b"artifact"].decode() == tiny.name


def test_samples_have_the_quantiles_of_the_table(fit, tiny, tmp_path):
    samples_path = tmp_path / "samples.h5"
    given = ["--layout", "sdss", "--samples", str(samples_path), "--seed", "3"]
    table = AstropyTable.read(fit("fit.fits", *given))
    with h5py.File(samples_path) as file:
        samples = file["samples"]
        assert samples.shape == (N_ROWS, N_SAMPLES, 12)
        assert samples.dtype == np.float32
        assert tuple(samples.attrs["names"]) == tiny.param_names
        np.testing.assert_array_equal(file["flags"][:], table["flags"])
        values = samples[:]
    fitted = np.asarray(table["status"] == "OK")
    assert np.isnan(values[~fitted]).all()
    column = tiny.param_names.index("log_mstar")
    median = quantiles(torch.tensor(np.sort(values[fitted, :, column], axis=1)), (0.5,))[:, 0]
    np.testing.assert_allclose(median, np.asarray(table["log_mstar_q50"])[fitted], rtol=1e-6)


@pytest.mark.parametrize("suffix", [".fits", ".parquet", ".csv"])
def test_no_galaxies_are_an_empty_table(fit, catalog_path, tmp_path, suffix):
    nobody = catalog_path.with_name("nobody.fits")
    AstropyTable.read(catalog_path)[:0].write(nobody)
    samples_path = tmp_path / "samples.h5"
    given = ["--layout", "sdss", "--samples", str(samples_path)]
    with open_table(fit(f"fit{suffix}", *given, catalog=nobody)) as table:
        assert len(table.numbers("log_mstar_q50")) == 0
    with h5py.File(samples_path) as file:
        assert file["samples"].shape == (0, N_SAMPLES, 12)


def test_identifiers_travel(fit):
    table = AstropyTable.read(fit("fit.fits", "--layout", "sdss", "--id-column", "PHOTFLAGS"))
    assert table["id"][4] == (1 << 28 | 1 << 18)


def test_names_travel(fit, catalog_path):
    """Of any length, and where there is none."""
    table = AstropyTable.read(catalog_path)
    names = [f"NGC{10 ** (i % 4)}" for i in range(N_ROWS)]
    fluxes = {f"f{i}": table["PETROFLUX"][:, -5 + i] for i in range(5)}
    columns = {"name": pa.array([None, *names[1:]]), "z": table["Z"].tolist()}
    columns |= {key: values.tolist() for key, values in fluxes.items()}
    path = catalog_path.with_suffix(".parquet")
    pq.write_table(pa.table(columns), path)
    bands = ", ".join(f"{band}=f{i}" for i, band in enumerate("ugriz"))
    given = ["--flux-columns", bands, "--err-columns", bands, "--redshift-column", "z"]
    written = fit("fit.fits", *given, "--id-column", "name", catalog=path)
    ids = AstropyTable.read(written)["id"].tolist()
    assert [text or "" for text in ids] == ["", *names[1:]]


def test_names_that_fits_cannot_hold_are_refused_before_the_work(fit, catalog_path, tmp_path):
    table = AstropyTable.read(catalog_path)
    names = [f"Şirin {i}" for i in range(len(table))]
    columns = {"name": names, "f": np.ones(len(table)), "z": np.full(len(table), 0.1)}
    csv = tmp_path / "named.csv"
    AstropyTable(columns).write(csv)
    options = ["--flux-columns", "u=f,g=f,r=f,i=f,z=f", "--err-columns", "u=f,g=f,r=f,i=f,z=f"]
    with pytest.raises(CatalogError, match="expected ASCII text for FITS, got 'Şirin 0'"):
        fit("x.fits", *options, "--redshift-column", "z", "--id-column", "name", catalog=csv)


def test_columns_do_not_depend_on_what_can_be_fitted(fit, catalog_path):
    table = AstropyTable.read(catalog_path)
    table["Z"] = np.nan
    hopeless = catalog_path.with_name("hopeless.fits")
    table.write(hopeless)
    whole, nothing = (
        pq.read_table(fit(f"{path.stem}.parquet", "--layout", "sdss", catalog=path)).column_names
        for path in (catalog_path, hopeless)
    )
    assert nothing == whole


@pytest.mark.parametrize(
    ("reasons", "status"),
    [
        ([], "OK"),
        (["sigma_high_u", "color_blue_u-g"], "OUT_OF_SUPPORT"),
        (["non_positive_flux_u"], "OUT_OF_SUPPORT"),
        (["sigma_high_u", "non_finite_r"], "MISSING_BANDS"),
        (["non_finite_r", "non_finite_redshift"], "NO_REDSHIFT"),
        (["non_finite_redshift", "non_positive_error_u"], "INVALID_INPUT"),
        (["non_positive_error_u", "quality_saturated"], "QUALITY_CUT"),
    ],
)
def test_worst_status_wins(reasons, status):
    assert row_status(reasons) == status


@pytest.mark.parametrize(
    ("option", "column", "given", "dropped"),
    [
        ("--err-columns", "E", "flux_err", "ivar"),
        ("--ivar-columns", "I", "ivar", "flux_err"),
        ("--ebv-column", "EBV", "ebv", "extinction"),
        ("--extinction-columns", "A", "extinction", "ebv"),
    ],
)
def test_what_is_said_takes_the_place_of_a_layouts_column(option, column, given, dropped):
    parser = argparse.ArgumentParser()
    add_fit_arguments(parser)
    arguments = ["a.fits", "--out", "b.fits", "--layout", "sdss", option, column]
    columns = column_map(parser.parse_args(arguments), Path("a.fits"))
    assert getattr(columns, given) == column
    assert getattr(columns, dropped) is None


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("fit.fits", [], "--flux-columns: expected a column name"),
        ("fit.fits", ["--flux-columns", "PETROFLUX"], "--redshift-column: expected a column name"),
        ("fit.txt", ["--layout", "sdss"], r"expected a file named \.fits.*fit\.txt"),
        ("none/fit.fits", ["--layout", "sdss"], "--out: expected an existing folder"),
        (
            "fit.fits",
            ["--layout", "sdss", "--samples", "none/x.h5"],
            "--samples: expected an exist",
        ),
        ("fit.fits", ["--layout", "nsa", "--flux-columns", "NMGY"], "'NMGY'"),
        (
            "fit.fits",
            ["--layout", "sdss", "--ebv-column", "Z", "--extinction-columns", "A"],
            "got both",
        ),
        ("fit.fits", ["--layout", "sdss", "--flux-columns", "u=A,g"], "got none for g, r, i, z"),
    ],
)
def test_what_cannot_be_done_is_said(fit, name, arguments, message):
    with pytest.raises(CatalogError, match=message):
        fit(name, *arguments)

"""`sedflow plot`: figures and summary of one galaxy of a catalogue or an archive."""

from pathlib import Path

import numpy as np
import pytest

from sedflow_core import load_artifact
from sedflow_core.cli import main

COLUMNS = "flux_u,flux_g,flux_r,flux_i,flux_z,err_u,err_g,err_r,err_i,err_z,z"
GALAXY = "57.3,253.8,549.0,792.3,1060.8,3.2,4.9,10.3,14.9,30.3,0.0366"


def plot(tmp_path: Path, artifact: Path, galaxy: str) -> int:
    return command("plot", tmp_path, artifact, galaxy, ["--out", str(tmp_path)])


def command(name: str, tmp_path: Path, artifact: Path, galaxy: str, more: list[str]) -> int:
    catalog = tmp_path / "galaxies.csv"
    catalog.write_text(f"{COLUMNS}\n{galaxy}\n")
    columns = ["--flux-columns", "flux_{band}", "--err-columns", "err_{band}"]
    options = ["--artifact", str(artifact), "--redshift-column", "z", *more]
    return main([name, str(catalog), "--row", "0", *options, *columns])


def test_figures_and_summary_are_written(
    tiny_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert plot(tmp_path, tiny_path, GALAXY) == 0
    for name in ("corner.png", "sed.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    header, first, *_, verdict = capsys.readouterr().out.splitlines()
    assert header.split() == ["median", "16", "%", "..", "84", "%"]
    assert first.split()[0] == "log_mstar"
    assert first.split()[-1] == "log10(Msun)"
    assert "trusted, chi_square" in verdict


def test_samples_of_the_exact_posterior_say_what_they_are(
    tiny_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "exact.npz"
    options = ["--out", str(out), "--max-seconds", "1", "--likelihood", "gaussian"]
    status = command("mcmc", tmp_path, tiny_path, GALAXY, options)
    with np.load(out) as held:
        assert held["theta"].shape == (2_000, len(held["names"]))
        assert bool(held["converged"]) == (status == 0)
        assert str(held["likelihood"]) == "gaussian"
        assert held["n_calls"] > 0
        assert str(held["artifact_sha256"]) == load_artifact(tiny_path).sha256
    assert command("mcmc", tmp_path, tiny_path, GALAXY, ["--out", str(tmp_path / "exact")]) == 2
    assert "expected a file named .npz" in capsys.readouterr().err


def test_a_band_without_magnitude_is_left_out(
    tiny_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert plot(tmp_path, tiny_path, "-1.3" + GALAXY.removeprefix("57.3")) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("non_positive_flux_u; ")
    assert (tmp_path / "sed.png").exists()


def test_a_galaxy_without_a_posterior_is_told_why(
    tiny_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert plot(tmp_path, tiny_path, GALAXY.removeprefix("57.3")) == 2
    assert "expected a galaxy with a posterior, got 0: non_finite_u" in capsys.readouterr().err
    assert not list(tmp_path.glob("*.png"))


def test_a_saturated_galaxy_is_refused_by_name(
    tiny_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    catalog = tmp_path / "galaxies.csv"
    saturated = 1 << 18 | 1 << 28  # and detected
    catalog.write_text(f"{COLUMNS},flags\n{GALAXY},{saturated}\n")
    columns = ["--flux-columns", "flux_{band}", "--err-columns", "err_{band}"]
    columns += ["--redshift-column", "z", "--quality-columns", "flags"]
    options = ["--artifact", str(tiny_path), "--row", "0", "--out", str(tmp_path / "drawn")]
    assert main(["plot", str(catalog), *options, *columns]) == 2
    expected = "--row: expected a galaxy with sound photometry, got 0: quality_saturated"
    assert expected in capsys.readouterr().err

"""The table of support rules: corruptions do what they say, and the figures add up."""

import argparse
from pathlib import Path

import numpy as np
import pytest
import torch
from astropy.table import Table
from scipy import stats

from sedflow_core import Artifact, Observation
from sedflow_core.bands import parse_band_set
from sedflow_core.corruptions import CLEAN, Setting, all_corruptions, corrupted_simulations
from sedflow_core.fresh_simulations import forward_model
from sedflow_core.simulation import ForwardConfig, simulate_noisy
from sedflow_core.support_report import (
    _read_real,
    add_support_table_arguments,
    render_markdown,
)
from sedflow_core.support_table import judge_online, measure_support, rank_correlation
from sedflow_core.units import mag_err_from_flux

N = 200


@pytest.fixture(scope="module")
def populations(tiny: Artifact) -> dict[str, Observation]:
    return corrupted_simulations(tiny, N, seed=3)


def test_every_way_of_going_wrong_has_its_simulations(
    tiny: Artifact, populations: dict[str, Observation]
) -> None:
    assert list(populations) == list(all_corruptions(tiny.bands))
    assert len(populations) == 14
    assert all(len(observation) == N for observation in populations.values())
    other = all_corruptions(parse_band_set("lsst2023-ugrizy"))
    assert [name for name in other if name.startswith("filters")] == []


def test_every_corruption_changes_something(tiny: Artifact) -> None:
    config = ForwardConfig(**tiny.manifest["provenance"]["forward_model"])
    model = forward_model(tiny)
    setting = Setting(config, model, torch.Generator().manual_seed(1))
    rows = simulate_noisy(model, 20, seed=1)
    corruptions = all_corruptions(tiny.bands)
    sound = corruptions.pop(CLEAN)(rows, setting)
    for name, corrupt in corruptions.items():
        if name.startswith(("noise", "no_error_floor", "filters")):
            continue  # their noise is drawn anew, so that they differ anyway
        photometry = corrupt(rows, setting)
        changed = [bool((a != b).any()) for a, b in zip(photometry, sound, strict=True)]
        assert changed[2] == (name == "redshift_off"), name
        assert ((photometry[2] >= 0.001) & (photometry[2] <= 0.2)).all(), name
        assert any(changed), name


def test_real_galaxies_are_chosen_by_group(tiny: Artifact, tmp_path: Path) -> None:
    """As many of each group at most; with no column for it they are one group."""
    names = [f"{kind}_{band}" for kind in ("flux", "err") for band in "ugriz"]
    rows = np.arange(1.0, 8.0)
    columns = dict.fromkeys(names, 100.0 * rows) | {"z": 0.01 * rows}
    path = tmp_path / "galaxies.fits"
    Table({**columns, "kind": list("aaaabbc")}).write(path)
    parser = argparse.ArgumentParser()
    add_support_table_arguments(parser)
    arguments = [tiny.name, "--out", str(tmp_path), "--catalog", str(path), "--n", "3"]
    arguments += ["--flux-columns", "flux_{band}", "--err-columns", "err_{band}"]
    arguments += ["--redshift-column", "z"]
    groups = _read_real(parser.parse_args([*arguments, "--group-column", "kind"]), tiny)
    assert {name: len(group) for name, group in groups.items()} == {"a": 3, "b": 2, "c": 1}
    np.testing.assert_allclose(groups["b"].redshift, [0.05, 0.06])
    (whole,) = _read_real(parser.parse_args(arguments), tiny).values()
    assert len(whole) == 3


def test_errors_are_scaled_as_their_names_say(populations: dict[str, Observation]) -> None:
    clean = np.median(sigma(populations[CLEAN]))
    for factor in (2, 5, 10):
        noisy = np.nanmedian(sigma(populations[f"noise_x{factor}"]))
        assert noisy / clean == pytest.approx(factor, rel=0.15)
    assert np.median(sigma(populations["no_error_floor"])) < 0.8 * clean


def sigma(observation: Observation) -> np.ndarray:
    return mag_err_from_flux(observation.flux, observation.flux_err)


def test_the_rules_see_what_is_far_outside(
    tiny: Artifact, populations: dict[str, Observation]
) -> None:
    for name, rule, share in (
        ("noise_x5", "sigma_high", 0.95),
        ("no_error_floor", "sigma_low", 0.5),
        ("order_reversed", "color_blue", 0.9),
        ("njy_as_nanomaggy", "mag_range", 0.95),
        ("one_band_off", "density_low", 0.5),
    ):
        tests = judge_online(tiny, populations[name]).tests
        assert tests[rule].mean() >= share, (name, tests[rule].mean())
        assert (tests["flags"] >= tests[rule]).all()
    clean = judge_online(tiny, populations[CLEAN]).tests
    assert (clean["flags"] & ~clean["paper"]).mean() <= 0.03


def test_ranks_correlate_as_in_scipy() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 6, (2, 50)).astype(float)
    assert rank_correlation(a, b) == pytest.approx(stats.spearmanr(a, b).statistic)
    assert rank_correlation(a, np.ones(50)) is None


def test_document_and_markdown_hold_every_population(
    tiny: Artifact, populations: dict[str, Observation]
) -> None:
    few = {name: populations[name].rows(slice(0, 3)) for name in (CLEAN, "one_band_off")}
    near = few[CLEAN].rows(slice(0, 2))
    real = {"too far": Observation(near.flux, near.flux_err, np.array([0.5, 0.6]))}
    done: list[int] = []
    document = measure_support(tiny, few, real=real, n_clean=20, n_exact=100, progress=done.append)
    assert done == [3, 3, 2]
    rates = document["populations"]
    assert rates["every galaxy"]["n"] == 8
    far = rates["too far"]
    assert far["fails"] == far["tests"]["redshift_range"]["recall"] == 1.0
    text = render_markdown(document)
    for name in (*few, *real, "every simulation", "every real galaxy", "`density_low`"):
        assert f"| {name} |" in text

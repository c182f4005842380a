"""Training sets that survive a kill, and simulations that do not depend on their number."""

import filecmp
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from sedflow_core import Artifact, simulate
from sedflow_core import simulation as simulation_module
from sedflow_core.build import build_artifact
from sedflow_core.errors import GridError, SimulationError
from sedflow_core.flow import FlowConfig, MaskedAutoregressiveFlow
from sedflow_core.fresh_simulations import forward_model
from sedflow_core.galaxy import calc_band_flux
from sedflow_core.noise import in_mag_range, mag_from_flux
from sedflow_core.prior import from_u, to_u
from sedflow_core.sfh import calc_derived
from sedflow_core.simulation import (
    ForwardConfig,
    ForwardModel,
    draw_redshift,
    load_training_set,
    simulate_noisy,
    stream_generator,
    write_training_set,
)

SYNTHETIC = ForwardConfig(ssp="synthetic")
SETTINGS = {"n_rows": 20_000, "seed": 4, "blocks_per_shard": 1}


def files_of(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_killed_run_continues_and_ends_with_the_bytes_of_an_unbroken_one(
    training_folder: Path, tmp_path: Path
) -> None:
    killed = write_training_set(tmp_path, SYNTHETIC, **SETTINGS)
    next(killed)
    killed.close()
    half_written = (training_folder / "shard-00001.safetensors").read_bytes()[:5_000]
    (tmp_path / "shard-00001.safetensors.partial").write_bytes(half_written)
    assert list(write_training_set(tmp_path, SYNTHETIC, **SETTINGS))[-1] >= 20_000
    assert files_of(tmp_path) == files_of(training_folder)
    assert len(files_of(tmp_path)) == 4
    _, different, unreadable = filecmp.cmpfiles(
        tmp_path, training_folder, files_of(tmp_path), shallow=False
    )
    assert different == unreadable == []


def test_a_lost_shard_is_made_again(training_folder: Path, tmp_path: Path) -> None:
    for name in files_of(training_folder):
        if name != "shard-00000.safetensors":
            (tmp_path / name).write_bytes((training_folder / name).read_bytes())
    list(write_training_set(tmp_path, SYNTHETIC, **SETTINGS))
    first = "shard-00000.safetensors"
    assert (tmp_path / first).read_bytes() == (training_folder / first).read_bytes()


@pytest.mark.parametrize(
    "change",
    [{"seed": 5}, {"blocks_per_shard": 2}, {"config": SYNTHETIC._replace(bands="sdss2010-gri")}],
    ids=["seed", "shards", "bands"],
)
def test_another_configuration_is_refused(training_folder: Path, change: dict) -> None:
    settings = {"config": SYNTHETIC, **SETTINGS, **change}
    with pytest.raises(SimulationError, match=r"same configuration.*training-set\.json"):
        next(write_training_set(training_folder, **settings))


def test_shards_of_other_stellar_populations_are_not_mixed(
    training_folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(training_folder, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "training-set.json"
    document = json.loads(path.read_text())
    document["ssp"] = document["ssp"] | {"imf": "Salpeter"}
    path.write_text(json.dumps(document))
    with pytest.raises(SimulationError, match="stellar populations"):
        next(write_training_set(tmp_path, SYNTHETIC, **SETTINGS))


def test_shards_whose_configuration_is_gone_are_not_taken_for_ours(
    training_folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(training_folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / "training-set.json").unlink()
    with pytest.raises(SimulationError, match=r"got shards without training-set\.json"):
        next(write_training_set(tmp_path, SYNTHETIC, **SETTINGS))


def test_rows_of_other_parameters_are_not_trained_on(training_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(training_folder, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "training-set.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"prior_sha256": "other"}))
    with pytest.raises(SimulationError, match=r"expected rows of the parameters .*, got other"):
        load_training_set(tmp_path)


def test_a_model_that_nobody_could_see_is_refused(
    forward: ForwardModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    noise = forward.noise._replace(mag_range=forward.noise.mag_range - 30.0)
    unseen = forward._replace(noise=noise)
    monkeypatch.setattr(simulation_module, "MAX_EMPTY_BLOCKS", 2)
    with pytest.raises(SimulationError, match="got none of 2 blocks"):
        simulate_noisy(unseen, 10, seed=0)
    monkeypatch.setattr(ForwardConfig, "build", lambda _: unseen)
    with pytest.raises(SimulationError, match="got none of 1 blocks"):
        next(write_training_set(tmp_path, SYNTHETIC, n_rows=10, seed=0, blocks_per_shard=1))
    assert not list(tmp_path.glob("shard-*"))


def test_an_artifact_is_built_with_the_stellar_populations_of_its_training_set(
    tiny: Artifact, tmp_path: Path
) -> None:
    flow_config = FlowConfig(**tiny.manifest["flow"])
    with pytest.raises(GridError, match="training set: stellar populations: expected"):
        build_artifact(
            tmp_path,
            name="other",
            version="0",
            flow=MaskedAutoregressiveFlow(flow_config),
            flow_config=flow_config,
            scale=tiny.scale,
            forward=SYNTHETIC,
            training={"training_set": {"ssp": {"imf": "Salpeter"}}},
        )


def test_more_rows_may_be_asked_of_the_same_set(training_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "grown"
    shutil.copytree(training_folder, folder)
    before = {p.name: p.read_bytes() for p in folder.glob("shard-*")}
    n_rows = len(load_training_set(folder).u) + 1
    *_, rows = write_training_set(folder, SYNTHETIC, **(SETTINGS | {"n_rows": n_rows}))
    assert rows >= n_rows
    assert len(list(folder.glob("shard-*"))) == len(before) + 1
    assert all((folder / name).read_bytes() == content for name, content in before.items())


def test_rows_hold_parameters_and_the_noiseless_flux_they_lead_to(
    training_folder: Path, forward: ForwardModel
) -> None:
    rows = load_training_set(training_folder, 500)
    flux = calc_band_flux(forward.galaxy, from_u(rows.u.double()), rows.redshift.double())
    torch.testing.assert_close(rows.flux, flux.float(), rtol=1e-4, atol=0)
    whole = load_training_set(training_folder)
    assert torch.equal(whole.u[:500], rows.u)
    assert rows.bands.name == "sdss2010-ugriz"


def test_rows_are_kept_beyond_the_magnitude_range_by_the_margins(
    training_folder: Path, forward: ForwardModel
) -> None:
    mag = mag_from_flux(load_training_set(training_folder).flux)
    bright, faint = forward.noise.mag_range.float().unbind(dim=1)
    assert ((mag > bright - 0.501) & (mag < faint + 1.501)).all()
    assert (mag > faint + 1.4).any()


def test_unusable_training_sets_are_named(training_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(SimulationError, match=r"expected a training set with training-set\.json"):
        load_training_set(tmp_path)
    (tmp_path / "training-set.json").write_text("{}")
    with pytest.raises(SimulationError, match="expected shards"):
        load_training_set(tmp_path)
    with pytest.raises(SimulationError, match="expected 1000000 rows, got"):
        load_training_set(training_folder, 1_000_000)


def test_no_simulations_are_none(forward: ForwardModel) -> None:
    assert len(simulate_noisy(forward, 0, seed=1).flux) == 0


def test_half_of_the_redshifts_are_log_uniform() -> None:
    low, high = 0.001, 0.2
    redshift = draw_redshift(200_000, (low, high), torch.Generator().manual_seed(0)).numpy()

    uniform, log_uniform = stats.uniform(low, high - low), stats.loguniform(low, high)

    def cdf(z: np.ndarray) -> np.ndarray:
        return 0.5 * (uniform.cdf(z) + log_uniform.cdf(z))

    assert stats.kstest(redshift, cdf).pvalue > 1e-3


def test_simulations_are_accepted_on_their_noisy_photometry(forward: ForwardModel) -> None:
    rows = simulate_noisy(forward, 20_000, seed=6)
    assert in_mag_range(rows.flux, forward.noise).all()
    noiseless_inside = in_mag_range(rows.noiseless_flux, forward.noise).double().mean()
    assert 0.9 < noiseless_inside < 1.0


def test_first_simulations_are_the_same_for_any_number(tiny: Artifact) -> None:
    few, many = simulate(tiny, 7, seed=3), simulate(tiny, 9_000, seed=3)
    assert len(many.observation) == 9_000
    np.testing.assert_array_equal(few.theta, many.theta[:7])
    np.testing.assert_array_equal(few.noiseless_flux, many.noiseless_flux[:7])
    np.testing.assert_array_equal(few.observation.flux, many.observation.flux[:7])
    np.testing.assert_allclose(few.derived, many.derived[:7], rtol=1e-5)


def test_other_stellar_populations_than_those_of_training_are_refused(tiny: Artifact) -> None:
    provenance = tiny.manifest["provenance"]
    changed = {**provenance, "ssp": {**provenance["ssp"], "imf": "Salpeter"}}
    other = replace(tiny, manifest={**tiny.manifest, "provenance": changed})
    with pytest.raises(GridError, match="expected imf Salpeter, got"):
        forward_model(other)


def test_simulations_are_no_rows_of_a_training_set(
    training_folder: Path, forward: ForwardModel
) -> None:
    """The same seed for training and for testing must not test on the training rows."""
    trained = load_training_set(training_folder).u
    fresh = simulate_noisy(forward, 10_000, seed=SETTINGS["seed"]).u.float()
    assert set(map(tuple, trained.tolist())).isdisjoint(map(tuple, fresh.tolist()))


def test_seeds_share_no_block_of_proposals() -> None:
    seeds = [0, 1, 2, 4096, 7_000, 90_000, 1 << 31]
    first = {(s, b): stream_generator(s, b).initial_seed() for s in seeds for b in range(2_000)}
    assert len(set(first.values())) == len(first)
    draws = [
        torch.rand(4, generator=stream_generator(s, b)).tolist() for s in seeds for b in (0, 1)
    ]
    assert len({tuple(draw) for draw in draws}) == len(draws)


def test_simulations_carry_their_truth(tiny: Artifact, forward: ForwardModel) -> None:
    rows = simulate(tiny, 200, seed=1)
    theta = torch.tensor(rows.theta)
    redshift = torch.tensor(rows.observation.redshift)
    flux = calc_band_flux(forward.galaxy, theta, redshift).numpy()
    np.testing.assert_allclose(rows.noiseless_flux, flux, rtol=1e-4)
    derived = calc_derived(theta[:, None].float(), redshift, tiny.tables, tiny.derived_names)
    np.testing.assert_allclose(rows.derived, derived[:, 0].numpy(), rtol=1e-6)
    pull = (rows.observation.flux - flux) / rows.observation.flux_err
    assert 0.9 < pull.std() < 1.05
    assert to_u(theta).isfinite().all()

"""A new prior: its distributions, training on reweighted rows, and the exact posterior under it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from sedflow_core import Artifact, Observation, estimate, sample
from sedflow_core.batches import draw_order, noisy_batches
from sedflow_core.build import assumptions
from sedflow_core.cli import main
from sedflow_core.errors import PriorError, TrainingError
from sedflow_core.flow import FlowConfig
from sedflow_core.importance import weigh
from sedflow_core.new_prior import log_prior_weight, parse_factors, read_prior_file
from sedflow_core.observation import to_context
from sedflow_core.prior import PARAM_NAMES, column, from_u
from sedflow_core.quantities import calc_quantities
from sedflow_core.reweighting import new_prior, reweigh
from sedflow_core.simulation import (
    ForwardModel,
    TrainingSet,
    draw_params,
    draw_prior,
    load_training_set,
    stream_generator,
    write_training_set,
)
from sedflow_core.train import TrainedFlow, fit, load_run
from sedflow_core.train_config import TrainConfig

from .conftest import SYNTHETIC, PriorDraws, golden

DUST = """
[tau_ism]
distribution = "normal"
mean = 0.4
std = 0.5
"""
THIN_DUST = """
[tau_ism]
distribution = "exponential"
mean = 0.5
"""
QUIESCENCE = """
[log_ssfr_1gyr]
distribution = "histogram"
edges = [-13.0, -11.0, -9.5]
density = [0.2, 0.4]
"""
YOUTH = """
[t_age_mw]
distribution = "exponential"
mean = 3.0
"""
N = 60_000


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("prior") / "dust.toml"
    path.write_text(DUST)
    return path


def with_prior(forward: ForwardModel, path: Path) -> ForwardModel:
    return forward._replace(prior=parse_factors(new_prior(forward, path)))


def drawn(forward: ForwardModel, name: str) -> np.ndarray:
    u, redshift = draw_params(forward, N, torch.Generator().manual_seed(1))
    return calc_quantities(from_u(u), redshift, forward.galaxy.tables, (name,))[:, 0].numpy()


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (DUST, stats.truncnorm((0.0 - 0.4) / 0.5, (3.0 - 0.4) / 0.5, 0.4, 0.5)),
        (THIN_DUST, stats.truncexpon(3.0 / 0.5, scale=0.5)),
    ],
    ids=["normal", "exponential"],
)
def test_a_parameter_follows_the_wanted_distribution(
    forward: ForwardModel, tmp_path: Path, text: str, wanted: Any
) -> None:
    path = tmp_path / "dust.toml"
    path.write_text(text)
    values = drawn(with_prior(forward, path), "tau_ism")
    assert len(values) > 5_000
    assert stats.kstest(values, wanted.cdf).statistic < 1.63 / np.sqrt(len(values)) + 1e-3


def test_a_derived_quantity_follows_the_wanted_distribution(
    forward: ForwardModel, tmp_path: Path
) -> None:
    path = tmp_path / "quiescence.toml"
    path.write_text(QUIESCENCE)
    values = drawn(with_prior(forward, path), "log_ssfr_1gyr")
    assert len(values) > 1_000
    assert values.min() > -13.2
    assert values.max() < -9.4
    for edge, below in ((-12.0, 0.2), (-11.0, 0.4), (-10.25, 0.7)):
        assert (values < edge).mean() == pytest.approx(below, abs=0.04)


def test_nothing_is_left_beyond_the_bounds_of_a_uniform_prior(
    forward: ForwardModel, tmp_path: Path
) -> None:
    path = tmp_path / "slopes.toml"
    path.write_text("[n_dust]\ndistribution = 'uniform'\nlow = -1.0\nhigh = 0.4")
    narrowed = with_prior(forward, path)
    u, redshift = draw_prior(narrowed, N, torch.Generator().manual_seed(3))
    values = column(from_u(u), "n_dust")
    assert len(values) == len(redshift) == N
    assert values.min() >= -1.0
    assert values.max() <= 0.4


def test_the_assumptions_name_the_prior(forward: ForwardModel, file: Path) -> None:
    config = SYNTHETIC._replace(prior=new_prior(forward, file))
    assert assumptions(SYNTHETIC, forward)["prior"] == "of the parameter table"
    assert assumptions(config, forward)["prior"] == (
        "of the parameter table, but for tau_ism: normal (mean 0.4, std 0.5)"
    )


@pytest.mark.parametrize(
    "text", [DUST, QUIESCENCE + YOUTH], ids=["one quantity", "dependent quantities"]
)
def test_weights_are_none_without_a_prior_and_of_mean_one_with(
    forward: ForwardModel, tmp_path: Path, text: str
) -> None:
    file = tmp_path / "prior.toml"
    file.write_text(text)
    u, redshift = draw_params(forward, N, torch.Generator().manual_seed(2))
    theta, tables = from_u(u), forward.galaxy.tables
    assert not log_prior_weight((), theta, redshift, tables).any()
    factors = with_prior(forward, file).prior
    weight = log_prior_weight(factors, theta, redshift, tables).exp()
    assert weight.mean() == pytest.approx(1.0, abs=0.02)


CONFIG = TrainConfig(
    FlowConfig(2, 32, "hardswish", n_embedding=8),
    batch_size=256,
    warm_up_steps=20,
    max_epochs=12,
    validation_fraction=0.05,
)


def rows_of(training_set: TrainingSet, index: slice) -> TrainingSet:
    tensors = ("u", "redshift", "flux")
    return training_set._replace(**{name: getattr(training_set, name)[index] for name in tensors})


@pytest.fixture(scope="module")
def old_rows(training_folder: Path) -> TrainingSet:
    return load_training_set(training_folder)


@pytest.fixture(scope="module")
def new_rows(
    old_rows: TrainingSet, forward: ForwardModel, file: Path, tmp_path_factory
) -> TrainingSet:
    """Rows simulated from the new prior itself, twice as many as train."""
    folder = tmp_path_factory.mktemp("new-rows")
    config = SYNTHETIC._replace(prior=new_prior(forward, file))
    list(write_training_set(folder, config, n_rows=20_000, seed=5, blocks_per_shard=4))
    return load_training_set(folder)


def test_reweighted_rows_are_those_of_a_simulation_from_the_new_prior(
    old_rows: TrainingSet, new_rows: TrainingSet, file: Path
) -> None:
    rows = reweigh(old_rows, file)
    assert rows.config["forward_model"]["prior"][0]["wanted"]["mean"] == 0.4
    assert 1_000 < rows.config["n_effective_rows"] < len(old_rows.u)
    order = draw_order(rows, torch.Generator().manual_seed(0))
    assert len(order) == len(rows.u)
    bound = 1.63 * np.sqrt(1 / rows.config["n_effective_rows"] + 1 / len(new_rows.u))
    ours, direct = from_u(rows.u[order]), from_u(new_rows.u)
    for name in ("tau_ism", "log_mstar", "n_dust", "fburst"):
        assert stats.ks_2samp(column(ours, name), column(direct, name)).statistic < bound
    for band in range(5):
        pair = (torch.log10(f[:, band]) for f in (rows.flux[order], new_rows.flux))
        assert stats.ks_2samp(*pair).statistic < bound


@torch.no_grad()
def mean_loss(trained: TrainedFlow, rows: TrainingSet, forward: ForwardModel) -> float:
    """Mean -ln q of the same noisy photometry of these rows."""
    batches = noisy_batches(
        rows,
        forward.noise,
        stream_generator(0, 1),
        lambda *photometry: to_context(*photometry, trained.scale),
        4096,
    )
    return -float(torch.cat([trained.flow(b.u, b.context) for b in batches]).mean())


def test_training_on_reweighted_rows_is_training_on_the_new_prior(
    old_rows: TrainingSet,
    new_rows: TrainingSet,
    forward: ForwardModel,
    file: Path,
    tmp_path: Path,
) -> None:
    """Judged by the loss on simulations from the new prior; seeds show the noise of training."""
    test = rows_of(new_rows, slice(-8_000, None))
    effective = reweigh(old_rows, file)
    direct = rows_of(new_rows, slice(0, effective.config["n_effective_rows"]))
    train = {
        "reweighted": effective,
        "direct": direct,
        "old": rows_of(old_rows, slice(0, len(direct.u))),
    }
    loss = {}
    for name, rows in train.items():
        # As many steps for each.
        epochs = round(CONFIG.max_epochs * len(effective.u) / len(rows.u))
        config = replace(CONFIG, max_epochs=epochs)
        trained = fit(rows, forward.noise, config=config, folder=tmp_path / name)
        loss[name] = mean_loss(trained, test, forward)
    print(loss)
    assert loss["reweighted"] < loss["direct"] + 0.1
    assert loss["old"] > max(loss["reweighted"], loss["direct"]) + 0.2
    assert load_run(tmp_path / "reweighted").provenance["training_set"]["forward_model"]["prior"]
    with pytest.raises(TrainingError, match="expected a checkpoint of rows with prior"):
        fit(
            rows_of(old_rows, slice(0, len(effective.u))),
            forward.noise,
            config=CONFIG,
            folder=tmp_path / "reweighted",
        )


def test_importance_weights_lead_to_the_posterior_under_the_new_prior(
    tiny: Artifact,
    vague: ForwardModel,
    vague_observation: Observation,
    prior_draws: PriorDraws,
    file: Path,
) -> None:
    model = with_prior(vague, file)
    weighted = weigh(tiny, model, vague_observation, n_samples=20_000, seed=1)
    ours = weighted.weights[:, 0] @ weighted.theta[:, 0, PARAM_NAMES.index("tau_ism")]
    tau = column(from_u(prior_draws.u), "tau_ism").numpy()
    posterior = np.exp(prior_draws.exact - prior_draws.exact.max())
    # The wanted density itself, with no bins.
    posterior_new = posterior * stats.norm(0.4, 0.5).pdf(tau)
    expected, old = (np.average(tau, weights=w) for w in (posterior_new, posterior))
    assert abs(ours - expected) < 0.05
    assert abs(old - expected) > 0.2


def test_the_online_efficiency_knows_the_prior(
    tiny: Artifact, forward: ForwardModel, tmp_path: Path
) -> None:
    """No sample of the new prior, no efficiency; with some of them, at most their share."""
    path, log_mstar = tmp_path / "mass.toml", PARAM_NAMES.index("log_mstar")
    masses = sample(tiny, golden(tiny), 256)[..., log_mstar]
    same = estimate(tiny, golden(tiny), n_samples=256).trust["efficiency"]
    for high in (12.5, 7.5, 7.006):
        path.write_text(f'[log_mstar]\ndistribution = "uniform"\nlow = 7.0\nhigh = {high}\n')
        artifact = replace(tiny, prior=parse_factors(new_prior(forward, path)))
        efficiency = estimate(artifact, golden(tiny), n_samples=256).trust["efficiency"]
        allowed = (masses < high).mean(axis=0)
        np.testing.assert_array_equal(efficiency == 0.0, allowed == 0.0)
        assert (efficiency <= allowed + 1e-6).all()
        if high == 12.5:
            np.testing.assert_allclose(efficiency, same, rtol=0.02)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tau_ism = 3", r"expected a table \[tau_ism\]"),
        ("", "expected at least one quantity, got none"),
        ("[", "expected a TOML file"),
        ("[mass]\ndistribution = 'normal'", "expected quantities among .* got 'mass'"),
        ("[a_v]\ndistribution = 'gamma'", "a_v: expected a distribution among .* got 'gamma'"),
        ("[a_v]\ndistribution = 'normal'\nmean = 1", r"expected normal with \['mean', 'std'\]"),
        ("[a_v]\ndistribution = 'normal'\nmean = 1\nstd = 0", "expected a positive std"),
        ("[a_v]\ndistribution = 'exponential'\nmean = -1", "expected a positive mean, got -1"),
        ("[a_v]\ndistribution = 'uniform'\nlow = 'a'\nhigh = 1", "expected numbers"),
        ("[a_v]\ndistribution = 'uniform'\nlow = nan\nhigh = 1", "expected finite numbers"),
        ("[a_v]\ndistribution = 'uniform'\nlow = 2\nhigh = 1", "expected low < high"),
        ("[a_v]\ndistribution = 'uniform'\nlow = [1, 2]\nhigh = 3", "expected low < high"),
        (
            "[a_v]\ndistribution = 'histogram'\nedges = [0, 1]\ndensity = [-1]",
            "expected densities above zero",
        ),
    ],
)
def test_a_file_that_says_something_else(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "prior.toml"
    path.write_text(text)
    with pytest.raises(PriorError, match=message):
        read_prior_file(path)


def test_priors_that_cannot_be_met(forward: ForwardModel, old_rows, tmp_path: Path) -> None:
    path = tmp_path / "prior.toml"
    path.write_text("[a_v]\ndistribution = 'uniform'\nlow = -9\nhigh = -8")
    with pytest.raises(PriorError, match="a_v: expected a distribution within"):
        new_prior(forward, path)
    path.write_text("[log_mstar]\ndistribution = 'uniform'\nlow = 7.0\nhigh = 7.05")
    with pytest.raises(PriorError, match="leaves 1000 effective rows"):
        reweigh(old_rows, path)
    path.write_text(
        "[log_mstar]\ndistribution = 'uniform'\nlow = 7\nhigh = 8\n"
        "[log_mstar_surviving]\ndistribution = 'uniform'\nlow = 11\nhigh = 12"
    )
    with pytest.raises(PriorError, match="satisfies together, got log_mstar, log_mstar_surviving"):
        new_prior(forward, path)
    path.write_text(DUST)
    with pytest.raises(PriorError, match="expected rows of the table's prior"):
        reweigh(reweigh(old_rows, path), path)


def test_the_command_trains_for_a_new_prior(
    training_folder: Path, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--prior", str(file), "--epochs", "1", "--threads", "1"]
    assert main(["train", str(training_folder), str(tmp_path / "run"), *options]) == 0
    assert "effective" in capsys.readouterr().out
    prior = load_run(tmp_path / "run").provenance["training_set"]["forward_model"]["prior"]
    assert prior[0]["wanted"] == {"distribution": "normal", "mean": 0.4, "std": 0.5}

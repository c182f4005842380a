"""The comparison of a flow with the exact posterior, where the answer is known."""

import csv
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from sedflow_core import Artifact, Observation
from sedflow_core.chains import Chains
from sedflow_core.cli import main
from sedflow_core.comparison import Difference, difference, per_galaxy, table, why
from sedflow_core.estimation import estimate, sample
from sedflow_core.importance import Weighted
from sedflow_core.mcmc import ExactPosterior
from sedflow_core.prior import PARAM_NAMES, to_u
from sedflow_core.summary import LEVELS

NO_TEST = np.empty(0)
"""p-values that nobody looks at."""

N = 4_000


@pytest.fixture(scope="module")
def galaxy() -> Observation:
    flux = 10 ** (0.4 * (22.5 - np.array([[19.0, 17.6, 17.0, 16.7, 16.5]])))
    return Observation(flux, 0.05 * flux, [0.08])


@pytest.fixture(scope="module")
def own(tiny: Artifact, galaxy: Observation) -> Weighted:
    """The flow's own draws, of equal weight: as if the flow were exact."""
    theta = sample(tiny, galaxy, N, seed=1, independent=True)
    equal = np.full((N, 1), 1.0 / N)
    return Weighted(theta, equal, equal, NO_TEST)


def as_mcmc(theta: np.ndarray) -> ExactPosterior:
    u = to_u(torch.tensor(theta).double()).numpy()
    walk = (np.ones(11), np.full(11, 5e3), np.full(11, 9.0))
    chains = Chains(np.zeros((2, 0, 4, 11)), *walk, 0.2, 100, 1.5)
    return ExactPosterior(u, np.ones(len(u)), 0.99, chains)


def test_a_flow_does_not_differ_from_its_own_draws(
    tiny: Artifact, galaxy: Observation, own: Weighted
) -> None:
    found = difference(tiny, galaxy, own, as_mcmc(own.theta[:, 0]))
    assert np.abs(found.by_weights).max() < 0.12
    assert found.by_mcmc == pytest.approx(found.by_weights, abs=0.02)
    assert found.efficiency == pytest.approx(1.0)
    assert (found.gaussian == 0).all()
    assert (found.kl_exact_flow, found.total_variation) == pytest.approx((0.0, 0.0), abs=1e-9)


def test_the_exact_quantiles_are_those_of_the_weighted_draws(
    tiny: Artifact, galaxy: Observation, own: Weighted
) -> None:
    heavy = own.theta[:, 0, PARAM_NAMES.index("log_mstar")] > 9.0
    weights = (heavy / heavy.sum())[:, None]
    found = difference(tiny, galaxy, own._replace(weights=weights), None)
    names = tiny.param_names + tiny.derived_names
    alone = np.quantile(own.theta[heavy, 0], LEVELS, axis=0).T
    spread = own.theta[heavy, 0].std(axis=0)[:, None]
    assert np.abs(found.exact[:12] - alone).max() < 0.02 * spread.max()
    assert found.kl_exact_flow == pytest.approx(-np.log(heavy.mean()))
    assert found.total_variation == pytest.approx(1.0 - heavy.mean())
    surviving = found.exact[names.index("log_mstar_surviving")]
    assert (surviving < found.exact[names.index("log_mstar")]).all()


def test_a_shift_is_measured_in_exact_standard_deviations(
    tiny: Artifact, galaxy: Observation, own: Weighted
) -> None:
    column = PARAM_NAMES.index("tau_ism")
    summary = estimate(tiny, galaxy, include_unsupported=True)
    theta = own.theta.copy()
    theta[..., column] += 0.5 * summary.std[0, summary.names.index("tau_ism")]
    found = difference(tiny, galaxy, own._replace(theta=theta), None)
    assert found.by_weights[column] == pytest.approx(-0.5, abs=0.08)
    assert np.isnan(found.by_mcmc).all()


def made_up(
    size: float,
    *,
    reasons: tuple[str, ...] = (),
    r_hat: float = 1.001,
    converged: bool = True,
) -> Difference:
    sizes = np.full(12, size)
    mcmc = sizes if r_hat > 0 else np.full(12, np.nan)
    scalars = (0.3, 0.4, 0.2, 0.2, r_hat if r_hat > 0 else float("nan"), 2e3, 5.0, 0.99)
    exact = np.ones((12, 5))
    return Difference(sizes, mcmc, 0.1 * sizes, exact, *scalars, converged, reasons)


def test_the_table_holds_medians_against_bounds() -> None:
    rows = table([made_up(0.05), made_up(-0.12), made_up(0.9)])
    by_name = {row["parameter"]: row for row in rows}
    assert list(by_name) == list(PARAM_NAMES)
    assert by_name["tburst"]["by_weights"] == by_name["tburst"]["by_mcmc"] == 0.12
    assert by_name["tburst"]["held"] is True
    assert by_name["log_mstar"]["held"] is False  # its bound is tighter
    no_mcmc = table([made_up(0.05, r_hat=0.0)])
    assert all(row["held"] for row in no_mcmc)
    lost = made_up(0.05, converged=False)._replace(by_mcmc=np.full(12, 9.0))
    assert all(row["held"] for row in table([lost]))


def test_galaxies_far_off_are_explained() -> None:
    assert why(made_up(0.2)) == ""
    assert why(made_up(0.5)).endswith("the flow's own bias")
    assert "outside the support: sigma_high_u" in why(made_up(0.5, reasons=("sigma_high_u",)))
    assert "walkers not converged: R-hat 1.200" in why(made_up(0.5, r_hat=1.2, converged=False))
    columns = per_galaxy([made_up(0.2), made_up(0.5)], PARAM_NAMES)
    assert columns["by_mcmc_n_dust"].tolist() == [0.2, 0.5]
    assert [bool(text) for text in columns["why"]] == [False, True]


def test_the_command_compares_simulations(
    tiny_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "compared.csv"
    options = ["--n-galaxies", "2", "--n-mcmc", "1", "--n-draws", "500", "--max-seconds", "1"]
    assert main(["compare", "--out", str(tmp_path / "none/compared.csv")]) == 2
    assert "--out: expected an existing folder" in capsys.readouterr().err
    status = main(["compare", "--artifact", str(tiny_path), "--out", str(out), *options])
    text = capsys.readouterr().out
    assert status == 1  # the flow is not trained
    assert " NO " in text
    assert all(name in text for name in PARAM_NAMES)
    assert re.search("MCMC of 1, [01] converged: R-hat", text)
    header, *rows = csv.reader(out.read_text().splitlines())
    assert {"row", "efficiency", "kl_exact_flow", "by_mcmc_tau_bc", "why"} <= set(header)
    assert {"exact_log_mstar_q50", "exact_a_v_q975"} <= set(header)
    assert len(rows) == 2

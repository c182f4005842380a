"""Does each support rule, and the verdict, find the posteriors that fail?

The criterion is the simulator's own: importance weights of 10,000 draws of the flow, where the
verdict has some of the published samples and the emulator. What no draw reaches neither sees; MCMC
does (`sedflow compare`). A posterior fails where this importance efficiency is below 1 % or the
exact posterior-predictive p-value below 0.001. Galaxies are the model's own simulations, clean and
corrupted, and a catalogue's.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sedflow_core.artifact import Artifact
from sedflow_core.corruptions import CLEAN
from sedflow_core.estimation import estimate
from sedflow_core.fresh_simulations import forward_model, simulate
from sedflow_core.importance import weigh
from sedflow_core.observation import Observation
from sedflow_core.simulation import ForwardModel
from sedflow_core.support import any_flag, can_encode
from sedflow_core.trust import (
    CLEAR_EFFICIENCY,
    MIN_EFFICIENCY,
    MIN_P_VALUE,
    N_DRAWS,
    is_trusted,
)
from sedflow_core.units import Array

N_EXACT = 10_000
MIN_EXACT_EFFICIENCY = 0.01
MIN_EXACT_P_VALUE = 1e-3
PAPER = ("sigma_high", "color_blue")
"""The two rules of Hahn & Melchior (2022)."""
ADDED = ("mag_range", "redshift_range", "sigma_low", "density_low", "non_")
SEED = 60_000

Bools = NDArray[np.bool_]
Progress = Callable[[int], None]


class Judged(NamedTuple):
    """What the alert stream says of n galaxies; `tests`: name -> (n,) whether it objects."""

    tests: dict[str, Bools]
    efficiency: Array


class Exact(NamedTuple):
    """Efficiency, that of the smoothed weights, and p-value of the exact posterior; (n,) each."""

    efficiency: Array
    smoothed_efficiency: Array
    p_value: Array

    def fails(self) -> Bools:
        """Whether each posterior fails by the criterion."""
        return (self.efficiency < MIN_EXACT_EFFICIENCY) | (self.p_value < MIN_EXACT_P_VALUE)


class Measured(NamedTuple):
    """Some galaxies; `again`: the criterion by other draws, only of those inside the support."""

    judged: Judged
    exact: Exact
    again: Exact


def judge_online(artifact: Artifact, observation: Observation) -> Judged:
    """Support rules and verdict as every alert gets them, outside the support too."""
    summary = estimate(artifact, observation, include_unsupported=True)
    names = artifact.flag_names
    tests = {rule: any_flag(summary.flags, names, (rule,)) for rule in PAPER + ADDED}
    tests["paper"] = any_flag(summary.flags, names, PAPER)
    tests["flags"] = summary.flags != 0
    of_galaxy = zip(summary.trust["p_value"], summary.trust["efficiency"], strict=True)
    tests["verdict"] = np.array([not is_trusted(*values) for values in of_galaxy], dtype=bool)
    tests["whole"] = tests["flags"] | tests["verdict"]
    return Judged(tests, summary.trust["efficiency"])


def measure_exact(
    artifact: Artifact, model: ForwardModel, observation: Observation, *, n_exact: int, seed: int
) -> Exact:
    """The criterion; zeros for what the model cannot describe, such as too high a redshift."""
    possible = can_encode(*observation.tensors()).numpy()
    possible &= observation.redshift <= artifact.redshift_max
    exact = Exact(*(np.zeros(len(observation)) for _ in Exact._fields))
    for i in np.flatnonzero(possible):
        row = observation.rows(slice(i, i + 1))
        weighted = weigh(artifact, model, row, n_samples=n_exact, seed=seed + int(i))
        exact.efficiency[i] = weighted.efficiency()[0]
        exact.smoothed_efficiency[i] = float(weighted.smoothed().efficiency()[0])
        exact.p_value[i] = weighted.p_value[0]
    return exact


def measure_support(
    artifact: Artifact,
    populations: Mapping[str, Observation],
    *,
    real: Mapping[str, Observation],
    n_clean: int,
    n_exact: int = N_EXACT,
    seed: int = SEED,
    progress: Progress = lambda _: None,
) -> dict[str, Any]:
    """The document of `sedflow support-table`.

    Args:
        artifact: see `load_artifact`.
        populations: of simulations, by name, `CLEAN` among them.
        real: galaxies of a catalogue, by name.
        n_clean: fresh simulations behind the rates of false alarms.
        n_exact: draws behind the criterion.
        seed: of simulations and draws.
        progress: called with the number of galaxies done in each step.
    """
    model, measured = forward_model(artifact), {}
    for k, (name, observation) in enumerate({**populations, **real}.items()):
        measured[name] = measure(
            artifact, model, observation, n_exact=n_exact, seed=seed + 1_000_000 * k
        )
        progress(len(observation))
    clean = judge_online(artifact, simulate(artifact, n_clean, seed=seed + 1).observation)
    every = {
        "every simulation": list(populations),
        "every real galaxy": list(real),
        "every galaxy": list(measured),
    }
    every = {label: names for label, names in every.items() if names}
    groups = {**{name: [name] for name in measured}, **every}
    joined = {label: _join([measured[n] for n in names]) for label, names in groups.items()}
    return {
        **_settings(artifact, n_exact),
        "populations": {label: _rates(galaxies) for label, galaxies in joined.items()},
        "false_alarms": _false_alarms(clean.tests),
        "rank_correlation": {label: _correlations(joined[label]) for label in (CLEAN, *every)},
    }


def _settings(artifact: Artifact, n_exact: int) -> dict[str, Any]:
    return {
        "artifact": {"name": artifact.name, "version": artifact.version, "sha256": artifact.sha256},
        "criterion": {
            "n_draws": n_exact,
            "min_efficiency": MIN_EXACT_EFFICIENCY,
            "min_p_value": MIN_EXACT_P_VALUE,
        },
        "verdict": {
            "n_draws": N_DRAWS,
            "all_draws_below": CLEAR_EFFICIENCY,
            "min_efficiency": MIN_EFFICIENCY,
            "min_p_value": MIN_P_VALUE,
        },
    }


def measure(
    artifact: Artifact, model: ForwardModel, observation: Observation, *, n_exact: int, seed: int
) -> Measured:
    """Verdict and criterion of n galaxies, the criterion twice for those inside the support."""
    judged = judge_online(artifact, observation)
    inside = observation.rows(~judged.tests["flags"])
    return Measured(
        judged,
        measure_exact(artifact, model, observation, n_exact=n_exact, seed=seed),
        measure_exact(artifact, model, inside, n_exact=n_exact, seed=seed + 500_000),
    )


def _join(parts: list[Measured]) -> Measured:
    tests = {
        test: np.concatenate([part.judged.tests[test] for part in parts])
        for test in parts[0].judged.tests
    }
    efficiency = np.concatenate([part.judged.efficiency for part in parts])
    exact, again = (
        Exact(*(np.concatenate(column) for column in zip(*measured, strict=True)))
        for measured in ([part.exact for part in parts], [part.again for part in parts])
    )
    return Measured(Judged(tests, efficiency), exact, again)


def _rates(galaxies: Measured) -> dict[str, Any]:
    """Shares of n galaxies; precision and recall of each test, null where nothing is divided."""
    exact, tests = galaxies.exact, galaxies.judged.tests
    fails, inefficient = exact.fails(), exact.efficiency < MIN_EXACT_EFFICIENCY
    return {
        "n": len(fails),
        "fails": _share(fails),
        "efficiency_below_limit": _share(inefficient),
        "p_value_below_limit": _share(exact.p_value < MIN_EXACT_P_VALUE),
        "inefficient_found": _share(tests["whole"][inefficient]),
        "tests": {
            name: {
                "objects": _share(objects),
                "precision": _share(fails[objects]),
                "recall": _share(objects[fails]),
                "false_alarms": _share(objects[~fails]),
            }
            for name, objects in tests.items()
        },
    }


def _share(values: Bools) -> float | None:
    return float(values.mean()) if len(values) else None


def _false_alarms(tests: dict[str, Bools]) -> dict[str, Any]:
    """Rates on simulations as the flow was trained on, each beyond those before it."""
    paper, flags = tests["paper"], tests["flags"]
    return {
        "n": len(paper),
        **{rule: _share(tests[rule]) for rule in PAPER + ADDED},
        "paper": _share(paper),
        "added_beyond_paper": _share(flags & ~paper),
        "verdict_beyond_flags": _share(tests["verdict"] & ~flags),
        "added_and_verdict_beyond_paper": _share(tests["whole"] & ~paper),
    }


def _correlations(galaxies: Measured) -> dict[str, Any]:
    """Spearman's, over galaxies inside the support: ours with the exact, and that with itself."""
    inside = ~galaxies.judged.tests["flags"]
    online = galaxies.judged.efficiency[inside]
    exact, again = Exact(*(column[inside] for column in galaxies.exact)), galaxies.again
    smoothed, plain = exact.smoothed_efficiency, exact.efficiency
    return {
        "n": len(online),
        "online_with_smoothed": rank_correlation(online, smoothed),
        "online_with_plain": rank_correlation(online, plain),
        "smoothed_with_itself": rank_correlation(smoothed, again.smoothed_efficiency),
        "plain_with_itself": rank_correlation(plain, again.efficiency),
    }


def rank_correlation(a: Array, b: Array) -> float | None:
    """Spearman's rank correlation of a and b (n,), ties sharing their mean rank.

    None where one of them has no two values that differ.
    """
    if min(len(np.unique(a)), len(np.unique(b))) < 2:
        return None
    return float(np.corrcoef(_ranks(a), _ranks(b))[0, 1])


def _ranks(values: Array) -> Array:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return np.asarray((np.cumsum(counts) - 0.5 * counts)[inverse])

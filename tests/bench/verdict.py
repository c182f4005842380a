"""How many samples a verdict needs: `make bench-verdict`.

For several numbers of samples behind the verdict: how well the importance efficiency that alerts
get ranks galaxies inside the support as 10,000 exact weights do, how many posteriors that fail and
that no flag finds it objects to, how many sound simulations, and what it costs. Galaxies are the
model's own simulations, clean and corrupted, and real ones.
"""

import argparse
import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar
from unittest.mock import patch

import numpy as np

from sedflow_core import Artifact, Observation, consequences, estimate, load_artifact
from sedflow_core.corruptions import corrupted_simulations
from sedflow_core.estimation import MOST_TOGETHER
from sedflow_core.fresh_simulations import forward_model, simulate
from sedflow_core.support_table import (
    N_EXACT,
    SEED,
    Exact,
    Judged,
    judge_online,
    measure_exact,
    rank_correlation,
)
from tests.bench.pure import supported
from tests.bench.report import identify, write_report
from tests.bench.sample_count import real_galaxies
from tests.bench.timing import cpu_seconds_in_turn, describe_machine

COUNTS = (128, 192, 256, 384, 512, 1024)
N_ROUNDS = 9

T = TypeVar("T")


class Judge:
    """`estimate` with `n_draws` samples behind the verdict."""

    def __init__(self, artifact: Artifact, n_draws: int) -> None:
        # What was traced is kept by artifact: each judge needs its own.
        self.artifact, self.n_draws = replace(artifact), n_draws

    def __call__(self, answer: Callable[[Artifact, Observation], T], of: Observation) -> T:
        """The answer for some galaxies."""
        with patch.object(consequences, "N_DRAWS", self.n_draws):
            return answer(self.artifact, of)


def join(observations: list[Observation]) -> Observation:
    """All galaxies one after the other."""
    columns = zip(*((o.flux, o.flux_err, o.redshift) for o in observations), strict=True)
    return Observation(*(np.concatenate(column) for column in columns))


def measure_costs(judges: list[Judge], galaxies: Observation) -> list[float]:
    """CPU seconds of an alert's verdict, median, for each judge."""
    artifact = judges[0].artifact
    unjudged = replace(artifact, trust=None)
    calls = [lambda: estimate(unjudged, galaxies)]
    calls += [lambda judge=judge: judge(estimate, galaxies) for judge in judges]
    rounds = np.array(cpu_seconds_in_turn(calls, N_ROUNDS))
    spent = rounds[:, 1:] - rounds[:, :1]
    return [statistics.median(column) / len(galaxies) for column in spent.T.tolist()]


def agreement(judged: Judged, exact: Exact) -> dict[str, float | None]:
    """The verdicts on some galaxies beside their exact posteriors."""
    inside, fails = ~judged.tests["flags"], exact.fails()
    objects = judged.tests["verdict"]
    rank = rank_correlation(judged.efficiency[inside], exact.smoothed_efficiency[inside])
    unflagged = inside & fails
    return {
        "rank correlation": rank,
        "% of unflagged failing posteriors found": _percent(objects[unflagged]),
        "% of unflagged sound posteriors objected to": _percent(objects[inside & ~fails]),
    }


def _percent(objects: np.ndarray) -> float | None:
    return 100.0 * float(objects.mean()) if len(objects) else None


def main() -> None:
    """Measure, print, keep as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--artifact", default="sdss-ugriz")
    parser.add_argument("--galaxies", type=Path, help="table with flux_u.., flux_err_u.., z")
    parser.add_argument("--n", type=int, default=40, help="simulations of each kind")
    parser.add_argument("--n-real", type=int, default=200)
    parser.add_argument("--n-clean", type=int, default=5_000, help="sound simulations")
    parser.add_argument("--out", type=Path, default=Path("bench-output"))
    options = parser.parse_args()
    artifact = load_artifact(options.artifact)
    model, judges = forward_model(artifact), [Judge(artifact, n) for n in COUNTS]
    groups = {"simulations": join([*corrupted_simulations(artifact, options.n, SEED).values()])}
    if options.galaxies:
        groups["real galaxies"] = real_galaxies(artifact, options.galaxies, options.n_real)
    costs = measure_costs(judges, supported(artifact, MOST_TOGETHER))
    figures: dict[str, float] = {
        f"ms, verdict of {n} samples": 1e3 * cost for n, cost in zip(COUNTS, costs, strict=True)
    }
    for group, galaxies in groups.items():
        exact = measure_exact(artifact, model, galaxies, n_exact=N_EXACT, seed=SEED)
        figures[f"{group} that fail"] = int(exact.fails().sum())
        for judge in judges:
            found = agreement(judge(judge_online, galaxies), exact)
            figures |= {
                f"{what}, {group}, {judge.n_draws} samples": value
                for what, value in found.items()
                if value is not None
            }
    clean = simulate(artifact, options.n_clean, seed=SEED + 1).observation
    for judge in judges:
        tests = judge(judge_online, clean).tests
        share = float((tests["verdict"] & ~tests["flags"]).mean())
        figures[f"% objected to, unflagged simulations, {judge.n_draws} samples"] = 100 * share
    write_report(
        options.out,
        "verdict",
        figures,
        machine=describe_machine(),
        artifact=identify(artifact),
    )


if __name__ == "__main__":
    main()

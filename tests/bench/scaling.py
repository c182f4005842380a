"""What an alert costs in short and long runs, and with more workers: `make bench-scaling`.

Runs take turns, round by round, each with a broker and workers of its own, so that a machine whose
speed changes weighs on all alike. Costs are compared twice: by the milliseconds of the same round,
and in units of `estimate` beside them, which flatter a worker that has the machine to itself where
`estimate` has not.
"""

import argparse
import statistics
from pathlib import Path

from sedflow_core import load_artifact
from tests.bench.load import Load
from tests.bench.report import identify, write_report
from tests.bench.stream import CPU_MS, PER_ESTIMATE, all_answered, run_load
from tests.bench.timing import describe_machine

RUNS = {
    "1,000 alerts, 2 workers": (Load(1_000), 2),
    "12,000 alerts, 1 worker": (Load(12_000), 1),
    "12,000 alerts, 2 workers": (Load(12_000), 2),
    "12,000 alerts, 4 workers": (Load(12_000), 4),
}
REFERENCE = "12,000 alerts, 2 workers"


def compare(rounds: dict[str, list[dict[str, float]]]) -> dict[str, float]:
    """Medians over the rounds of each run, and of what each costs more than the reference."""
    figures = {}
    for name, runs in rounds.items():
        for unit, of in (("ms", CPU_MS), ("units of estimate", PER_ESTIMATE)):
            costs = [run[of] for run in runs]
            figures[f"CPU per alert, {unit}, {name}"] = statistics.median(costs)
            if name == REFERENCE:
                continue
            ratios = [cost / run[of] for cost, run in zip(costs, rounds[REFERENCE], strict=True)]
            figures[f"% above {REFERENCE}, {unit}, {name}"] = 100 * (statistics.median(ratios) - 1)
    return figures


def main() -> None:
    """Run the rounds, print the table, keep it as JSON with every run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--artifact", default="sdss-ugriz")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("bench-output"))
    options = parser.parse_args()
    machine = describe_machine()
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in RUNS}
    for number in range(options.rounds):
        for name, (load, n_workers) in RUNS.items():
            run = run_load(load, options.artifact, n_workers)
            if not all_answered(run):
                raise RuntimeError(f"{name}: expected one posterior for each alert, got {run}")
            rounds[name].append(run)
            print(f"round {number + 1}, {name}: {run[CPU_MS]:.2f} ms, {run[PER_ESTIMATE]:.3f}")
    artifact = identify(load_artifact(options.artifact))
    figures = compare(rounds)
    write_report(options.out, "scaling", figures, machine=machine, artifact=artifact, runs=rounds)


if __name__ == "__main__":
    main()

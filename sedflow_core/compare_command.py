"""`sedflow compare`: how far the flow is from the exact posterior, as a table."""

import argparse
from pathlib import Path

import numpy as np

from sedflow_core.argument_types import non_negative_int, positive_float, positive_int
from sedflow_core.artifact import Artifact
from sedflow_core.columns import add_column_arguments, read_galaxies
from sedflow_core.comparison import Difference, compare, per_galaxy, table, why
from sedflow_core.errors import CatalogError
from sedflow_core.estimation import find_flags, load_artifact
from sedflow_core.fresh_simulations import forward_model, simulate
from sedflow_core.observation import Observation
from sedflow_core.tables import check_folder, table_writer, write_table


def add_compare_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `sedflow compare`."""
    parser.add_argument("catalog", type=Path, nargs="?", help="default: fresh simulations")
    parser.add_argument("--artifact", default="sdss-ugriz", help="a shipped artifact, or a folder")
    parser.add_argument("--out", type=Path, required=True, help="FITS, Parquet or CSV per galaxy")
    parser.add_argument(
        "--n-galaxies", type=positive_int, default=100, help="drawn from the support"
    )
    parser.add_argument(
        "--n-mcmc", type=non_negative_int, default=20, help="of them sampled by MCMC too"
    )
    parser.add_argument(
        "--n-draws", type=positive_int, default=10_000, help="of the flow, to be weighted"
    )
    parser.add_argument(
        "--max-seconds", type=positive_float, default=60.0, help="of MCMC, per galaxy"
    )
    parser.add_argument("--seed", type=non_negative_int, default=0)
    add_column_arguments(parser)


def run_compare(args: argparse.Namespace) -> int:
    """Print the table and write a row per galaxy; exit status 1 where a bound is exceeded."""
    table_writer(args.out)
    check_folder(args.out)
    artifact = load_artifact(args.artifact)
    row, observation = _choose(args, artifact)
    differences: list[Difference] = []
    for difference in compare(
        artifact,
        forward_model(artifact),
        observation,
        n_draws=args.n_draws,
        n_mcmc=args.n_mcmc,
        max_seconds=args.max_seconds,
        seed=args.seed,
    ):
        differences.append(difference)
        if text := why(difference):
            print(f"row {row[len(differences) - 1]}: {text}", flush=True)
    names = artifact.param_names + artifact.derived_names
    meta = {"artifact": artifact.name, "sha256": artifact.sha256}
    write_table(args.out, {"row": row, **per_galaxy(differences, names)}, meta)
    return _report(differences)


def _choose(args: argparse.Namespace, artifact: Artifact) -> tuple[np.ndarray, Observation]:
    """Rows and photometry of the galaxies to compare: supported ones, at random."""
    catalog = read_galaxies(args, args.catalog, artifact.bands)
    if catalog is None:
        observation = simulate(artifact, 2 * args.n_galaxies, seed=args.seed).observation
        usable = np.arange(len(observation))
    else:
        observation, usable = catalog.observation, np.flatnonzero(catalog.quality == 0)
    shuffled = np.random.default_rng(args.seed).permutation(usable)[: 4 * args.n_galaxies]
    flags = find_flags(artifact, observation.rows(shuffled))
    chosen = shuffled[flags == 0][: args.n_galaxies]
    if len(chosen) < args.n_galaxies:
        raise CatalogError(
            f"--n-galaxies: expected at least {args.n_galaxies} galaxies inside the support among "
            f"{len(shuffled)}, got {len(chosen)}"
        )
    return chosen, observation.rows(chosen)


def _report(differences: list[Difference]) -> int:
    rows = table(differences)
    print(f"{'median |difference| [sigma]':<28} weights   MCMC  bound  held  Gaussian likelihood")
    for r in rows:
        numbers = f"{r['by_weights']:7.3f} {r['by_mcmc']:6.3f} {r['bound']:6.2f}"
        held = "yes" if r["held"] else "NO"
        print(f"{r['parameter']:<28} {numbers} {held:>5} {r['gaussian_shift']:20.3f}")
    efficiency = np.array([d.efficiency for d in differences])
    walked = [d for d in differences if not np.isnan(d.r_hat)]
    print(f"median efficiency of {len(differences)} galaxies: {np.median(efficiency):.3f}")
    if walked:
        figures = [(d.r_hat, d.ess, d.seconds, d.correction) for d in walked]
        r_hat, ess, seconds, correction = np.transpose(figures)
        n_converged = sum(d.converged for d in walked)
        print(
            f"MCMC of {len(walked)}, {n_converged} converged: R-hat <= {r_hat.max():.4f}, "
            f"effective samples >= {ess.min():.0f}, {np.median(seconds):.1f} s median, "
            f"{seconds.max():.1f} s longest, efficiency of the emulator's correction >= "
            f"{correction.min():.3f}"
        )
    return 0 if all(r["held"] for r in rows) else 1

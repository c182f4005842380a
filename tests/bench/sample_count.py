"""How many samples a summary needs: `make bench-samples`.

The error of every published quantile, in posterior sigma, against the quantiles of `N_TRUTH`
samples, for summaries of scrambled-Sobol points and for numpy's quantiles of independent draws,
over simulated and real galaxies. The smallest number of Sobol points whose error is nowhere above
that of 2,000 independent draws is the one to publish with. Beside it: what the sets of base points
add to the KS distance of the ranks of a perfect flow, because some galaxies share a set.
"""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sedflow_core import Artifact, Observation, estimate, load_artifact
from sedflow_core.estimation import N_SETS, sobol_normal
from sedflow_core.observation import to_context
from sedflow_core.prior import N_U, from_u
from sedflow_core.sfh import calc_derived
from sedflow_core.summary import LEVELS, quantiles
from tests.bench.pure import supported
from tests.bench.report import identify, write_report
from tests.bench.timing import describe_machine

COUNTS = (128, 256, 512, 768, 896, 960, 1024, 1088, 1152, 1216, 1280, 1536, 2048, 4096)
REFERENCE = 2_000
"""Independent draws to be at least as good as."""
N_TRUTH = 102_400
N_CHUNK = 1_024
N_RESAMPLE = 200
"""Sets of galaxies drawn anew, for the error of a ratio."""
TRUTH_SEED = 1_000_000
_GRID = (np.arange(2_048) + 0.5) / 2_048

Base = Callable[[int, int], Tensor]
"""(number of points, seed) -> base points (n_u, number)."""
Quantiles = Callable[[np.ndarray], np.ndarray]
"""Ascending samples (n_name, n_sample) -> quantiles (n_name, n_level)."""


class Truth(NamedTuple):
    """What a galaxy's posterior is: quantiles (n_name, n_level), std (n_name,), and its CDF."""

    quantiles: np.ndarray
    std: np.ndarray
    grid: np.ndarray
    """(n_name, len(_GRID)) quantiles at the levels `_GRID`."""


def draw_independent(n: int, seed: int) -> Tensor:
    """Independent base points."""
    return torch.randn((N_U, n), generator=torch.Generator().manual_seed(seed))


def published(ordered: np.ndarray) -> np.ndarray:
    """The quantiles of a summary."""
    return quantiles(torch.from_numpy(ordered), LEVELS).numpy()


def numpys(ordered: np.ndarray) -> np.ndarray:
    """The quantiles of numpy."""
    return np.quantile(ordered, LEVELS, axis=1).T


def samples_of(artifact: Artifact, galaxy: Observation, base: Tensor) -> np.ndarray:
    """Ascending samples (n_name, n_sample) of one galaxy."""
    flux, flux_err = torch.tensor(galaxy.flux), torch.tensor(galaxy.flux_err)
    redshift = torch.tensor(galaxy.redshift)
    context = to_context(flux, flux_err, redshift, artifact.scale)
    parts = []
    for chunk in base.split(N_CHUNK, dim=1):
        theta = from_u(artifact.flow.sample_u(chunk.contiguous(), context)[0].transpose(1, 2))
        derived = calc_derived(theta, redshift, artifact.tables, artifact.derived_names)
        parts.append(torch.cat([theta[0].T, derived[0].T]))
    return np.sort(torch.cat(parts, dim=1).numpy(), axis=1)


def measure_truth(artifact: Artifact, galaxy: Observation) -> Truth:
    """The quantiles that a summary is to be compared with."""
    ordered = samples_of(artifact, galaxy, sobol_normal(N_TRUTH, TRUTH_SEED))
    index = (_GRID * (ordered.shape[1] - 1)).astype(int)
    return Truth(numpys(ordered), ordered.std(axis=1, dtype=np.float64), ordered[:, index])


class Errors(NamedTuple):
    """How far quantiles are off.

    Attributes:
        squares: (n_galaxy, n_name, n_level) mean square error over seeds, in posterior variances.
        excess: (n_name,) KS distance of ranks.
    """

    squares: np.ndarray
    excess: np.ndarray

    @property
    def rms(self) -> np.ndarray:
        """rms error (n_name, n_level) in posterior sigma."""
        return np.sqrt(self.squares.mean(axis=0))


def measure_errors(
    artifact: Artifact,
    galaxies: list[Observation],
    truths: list[Truth],
    draw: Callable[[int], Tensor],
    quantiles_of: Quantiles,
    n_seeds: int,
) -> Errors:
    """Errors over galaxies and seeds; a galaxy has one of `N_SETS` sets of base points."""
    shape = (len(galaxies), *truths[0].quantiles.shape)
    squares, excess = np.zeros(shape), []
    for seed in range(n_seeds):
        mean_cdf = 0.0
        for k, (galaxy, truth) in enumerate(zip(galaxies, truths, strict=True)):
            base = draw(seed * N_SETS + k % N_SETS)
            ordered = samples_of(artifact, galaxy, base)
            error = (quantiles_of(ordered) - truth.quantiles) / truth.std[:, None]
            squares[k] += error**2 / n_seeds
            cdf = [np.interp(x, t, _GRID) for x, t in zip(ordered, truth.grid, strict=True)]
            mean_cdf = mean_cdf + np.stack(cdf) / len(galaxies)
        n = base.shape[1]
        steps = np.arange(n) / n
        excess.append(np.maximum(abs(mean_cdf - steps), abs(mean_cdf - steps - 1 / n)).max(axis=1))
    return Errors(squares, np.mean(excess, axis=0))


def read_galaxies(artifact: Artifact, n: int, table: Path | None) -> list[Observation]:
    """n galaxies inside the support, half of them real where a table of real ones is given."""
    n_real = n // 2 if table else 0
    rows = [supported(artifact, n - n_real, seed=77)]
    if table:
        rows.append(real_galaxies(artifact, table, n_real))
    return [r.rows(slice(i, i + 1)) for r in rows for i in range(len(r))]


def real_galaxies(artifact: Artifact, table: Path, n: int) -> Observation:
    """n galaxies of a table (CSV) inside the support."""
    from astropy.table import Table

    rows = Table.read(table, format="ascii.csv")
    rows = rows[np.random.default_rng(0).permutation(len(rows))[: 4 * n]]
    flux, flux_err = (
        np.stack([np.asarray(rows[f"{kind}_{band}"], float) for band in artifact.bands.names], 1)
        for kind in ("flux", "flux_err")
    )
    observation = Observation(flux, flux_err, np.asarray(rows["z"], float))
    inside = estimate(artifact, observation, n_samples=2).flags == 0
    return observation.rows(np.flatnonzero(inside)[:n])


def smallest_count(of_sobol: dict[int, Errors], reference: Errors) -> int | None:
    """Smallest number of points from which on no quantile is worse than the reference."""
    enough = None
    for n in sorted(of_sobol, reverse=True):
        if (of_sobol[n].rms > reference.rms).any():
            break
        enough = n
    return enough


class Ratio(NamedTuple):
    """The largest ratio of two rms errors, its quantity and level, and its own error."""

    value: float
    error: float
    of: str


def worst_ratio(errors: Errors, reference: Errors, names: tuple[str, ...]) -> Ratio:
    """Where errors are largest beside those of the reference, both of the same galaxies."""
    ratio = errors.rms / reference.rms
    name, level = np.unravel_index(ratio.argmax(), ratio.shape)
    ours, others = (e.squares[:, name, level] for e in (errors, reference))
    again = np.random.default_rng(0).integers(len(ours), size=(N_RESAMPLE, len(ours)))
    spread = np.sqrt(ours[again].mean(axis=1) / others[again].mean(axis=1)).std()
    return Ratio(float(ratio.max()), float(spread), f"{names[name]} {LEVELS[level]:.1%}")


def draw_figure(path: Path, sobol: dict[int, Errors], drawn: dict[int, Errors]) -> None:
    """The mean error over quantities against the number of samples, one line per level."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6.0, 4.0), layout="constrained")
    for k, level in enumerate(LEVELS):
        for errors, style in ((sobol, "-"), (drawn, ":")):
            values = [e.rms[:, k].mean() for e in errors.values()]
            label = f"{level:.1%}" if errors is sobol else None
            axes.loglog(list(errors), values, style, color=f"C{k}", label=label)
    axes.set(xlabel="samples (solid: Sobol, dotted: independent)", ylabel="rms error [sigma]")
    axes.set_xticks(ticks := [128, 256, 512, 1024, 2048, 4096], [f"{n:,}" for n in ticks])
    axes.minorticks_off()
    axes.legend()
    figure.savefig(path)
    plt.close(figure)


def main() -> None:
    """Measure, print, write JSON and figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--artifact", default="sdss-ugriz")
    parser.add_argument("--galaxies", type=Path, help="table with flux_u.., flux_err_u.., z")
    parser.add_argument("--n-galaxies", type=int, default=200)
    parser.add_argument("--n-seeds", type=int, default=16)
    parser.add_argument("--out", type=Path, default=Path("bench-output"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    artifact = load_artifact(options.artifact)
    galaxies = read_galaxies(artifact, options.n_galaxies, options.galaxies)
    truths = [measure_truth(artifact, galaxy) for galaxy in galaxies]

    def errors_of(base: Base, n: int, quantiles_of: Quantiles, n_seeds: int) -> Errors:
        draw = partial(base, n)
        return measure_errors(artifact, galaxies, truths, draw, quantiles_of, n_seeds)

    sobol = {n: errors_of(sobol_normal, n, published, options.n_seeds) for n in COUNTS}
    # The error of independent draws goes with 1 / sqrt(n): one count, measured well, gives all.
    reference = errors_of(draw_independent, REFERENCE, numpys, 4 * options.n_seeds)
    drawn = {n: reference._replace(squares=reference.squares * (REFERENCE / n)) for n in COUNTS}
    write_study(options.out, artifact, sobol, drawn, reference)


def write_study(
    out: Path,
    artifact: Artifact,
    sobol: dict[int, Errors],
    drawn: dict[int, Errors],
    reference: Errors,
) -> None:
    """Print the table and write the JSON and the figure."""
    figures: dict[str, float] = {}
    names = artifact.param_names + artifact.derived_names
    if (enough := smallest_count(sobol, reference)) is not None:
        figures[f"points at least as good as {REFERENCE} draws in every quantile"] = enough
    for n, errors in sobol.items():
        ratio = errors.rms / reference.rms
        worst = worst_ratio(errors, reference, names)
        figures |= {
            f"error of {n} points / of {REFERENCE} draws, mean of quantiles": ratio.mean(),
            f"error of {n} points / of {REFERENCE} draws, worst quantile, {worst.of}": worst.value,
            f"error of this ratio for {n} points": worst.error,
            f"rms error of {n} points, mean of quantiles [sigma]": errors.rms.mean(),
            f"KS that sets of {n} points add to ranks, worst quantity": errors.excess.max(),
        }
    rows = {f"sobol {n}": e.rms.tolist() for n, e in sobol.items()}
    rows[f"independent {REFERENCE}"] = reference.rms.tolist()
    write_report(
        out,
        "sample-count",
        {name: float(value) for name, value in figures.items()},
        machine=describe_machine(),
        artifact=identify(artifact),
        rms={"names": names, "levels": LEVELS, **rows},
    )
    draw_figure(out / "sample-count.png", sobol, drawn)


if __name__ == "__main__":
    with torch.inference_mode():
        main()

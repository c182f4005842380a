"""`sedflow mcmc` and `sedflow plot`: one galaxy of a catalogue, looked at closely."""

import argparse
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from numpy.typing import NDArray

from sedflow_core.argument_types import non_negative_int, positive_float, positive_int
from sedflow_core.artifact import Artifact
from sedflow_core.catalog import CUT_NAMES, read_catalog
from sedflow_core.chains import MIN_ESS
from sedflow_core.columns import add_column_arguments, column_map
from sedflow_core.errors import CatalogError, check_installed
from sedflow_core.estimation import estimate, load_artifact, sample
from sedflow_core.fresh_simulations import forward_model
from sedflow_core.observation import Observation
from sedflow_core.prior import PARAM_NAMES, U_NAMES
from sedflow_core.quantities import calc_quantities
from sedflow_core.summary import Summary
from sedflow_core.support import reasons_of
from sedflow_core.tables import check_folder
from sedflow_core.target import Likelihood
from sedflow_core.trust import is_trusted
from sedflow_core.units import mag_from_nanomaggy

SHOWN = ("log_mstar_surviving", "log_sfr_1gyr", "t_age_mw", "z_mw", "tau_ism", "fburst")
_N_FIT = 500


def add_mcmc_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `sedflow mcmc`."""
    _add_galaxy_arguments(parser)
    parser.add_argument("--out", type=Path, required=True, help="samples and diagnostics, .npz")
    parser.add_argument(
        "--likelihood",
        choices=get_args(Likelihood),
        default="generative",
        help="of flux and error by the noise model, or the paper's, which takes errors as given",
    )
    parser.add_argument("--min-ess", type=positive_float, default=MIN_ESS, metavar="N")
    parser.add_argument("--max-seconds", type=positive_float, default=60.0)
    parser.add_argument("--n-samples", type=positive_int, default=2_000)


def add_plot_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `sedflow plot`."""
    _add_galaxy_arguments(parser)
    parser.add_argument("--out", type=Path, required=True, help="folder of the figures")


def _add_galaxy_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("catalog", type=Path, help="FITS, Parquet or CSV table")
    parser.add_argument("--row", type=int, required=True, help="which galaxy, from 0")
    parser.add_argument("--artifact", default="sdss-ugriz", help="a shipped artifact, or a folder")
    parser.add_argument("--seed", type=non_negative_int, default=0)
    add_column_arguments(parser)


def _read_galaxy(args: argparse.Namespace, artifact: Artifact) -> Observation:
    catalog = read_catalog(args.catalog, column_map(args, args.catalog), artifact.bands)
    if not 0 <= args.row < len(catalog):
        raise CatalogError(f"--row: expected 0 to {len(catalog) - 1}, got {args.row}")
    if cuts := reasons_of(int(catalog.quality[args.row]), CUT_NAMES):
        raise CatalogError(
            f"--row: expected a galaxy with sound photometry, got {args.row}: {', '.join(cuts)}"
        )
    return catalog.observation.rows(slice(args.row, args.row + 1))


def run_mcmc(args: argparse.Namespace) -> int:
    """Sample the exact posterior of one galaxy; exit status 1 where it has not converged."""
    from sedflow_core.mcmc import sample_exact

    check_folder(args.out)
    if args.out.suffix != ".npz":
        raise CatalogError(f"--out: expected a file named .npz, got {args.out}")
    artifact = load_artifact(args.artifact)
    exact = sample_exact(
        artifact,
        _read_galaxy(args, artifact),
        model=forward_model(artifact),
        likelihood=args.likelihood,
        n_samples=args.n_samples,
        min_ess=args.min_ess,
        max_seconds=args.max_seconds,
        seed=args.seed,
    )
    chains = exact.chains
    converged = exact.converged(args.min_ess)
    np.savez(
        args.out,
        theta=exact.theta(),
        names=PARAM_NAMES,
        r_hat=chains.r_hat,
        ess=chains.ess,
        converged=converged,
        correction=exact.correction,
        n_calls=chains.n_calls,
        likelihood=args.likelihood,
        seed=args.seed,
        artifact_sha256=artifact.sha256,
    )
    for name, r_hat, ess in zip(U_NAMES, chains.r_hat, chains.ess, strict=True):
        print(f"{name:<10} R-hat {r_hat:.4f}  effective samples {ess:7.0f}")
    print(
        f"{chains.n_calls:,} evaluations in {chains.seconds:.1f} s, acceptance "
        f"{chains.acceptance:.2f}, efficiency of the emulator's correction {exact.correction:.3f}"
    )
    if not converged:
        print("not converged: raise --max-seconds")
        return 1
    return 0


def run_plot(args: argparse.Namespace) -> int:
    """Draw corner.png and sed.png, and print the summary of one galaxy."""
    check_installed("matplotlib", "plot")
    artifact = load_artifact(args.artifact)
    observation = _read_galaxy(args, artifact)
    summary = estimate(artifact, observation, seed=args.seed, include_unsupported=True)
    if not np.isfinite(summary.mean).all():
        reasons = ", ".join(summary.reasons(0))
        raise CatalogError(f"--row: expected a galaxy with a posterior, got {args.row}: {reasons}")
    theta = sample(artifact, observation, seed=args.seed)[:, 0]
    title = f"{args.catalog.name}, row {args.row}: redshift {observation.redshift[0]:.4g}"
    title = f"{title}\n{_verdict(summary)}"
    args.out.mkdir(parents=True, exist_ok=True)
    _draw_sed(args.out, artifact, observation, theta[:_N_FIT], title)
    _draw_corner(args.out, artifact, observation, theta, title)
    _print_summary(artifact, summary)
    return 0


def _draw_corner(
    out: Path, artifact: Artifact, observation: Observation, theta: NDArray[np.float32], title: str
) -> None:
    from sedflow_core.figures import corner_plot

    names = PARAM_NAMES + artifact.derived_names
    shown = tuple(name for name in SHOWN if name in names)
    redshift = torch.tensor(observation.redshift)
    samples = calc_quantities(torch.tensor(theta), redshift, artifact.tables, shown)
    corner_plot(samples.numpy(), shown, title=title).savefig(out / "corner.png")


def _draw_sed(
    out: Path, artifact: Artifact, observation: Observation, theta: NDArray[np.float32], title: str
) -> None:
    from sedflow_core.galaxy import calc_band_flux
    from sedflow_core.report_figures import sed_fit
    from sedflow_core.report_galaxies import best_sample, calc_spectrum, magnitudes

    galaxy = forward_model(artifact).galaxy
    redshift = torch.tensor(observation.redshift).expand(len(theta))
    model_flux = calc_band_flux(galaxy, torch.tensor(theta), redshift).numpy()
    best, _ = best_sample(galaxy, observation, theta)
    photometry = magnitudes(galaxy, observation)
    spectrum = calc_spectrum(galaxy, best, observation.redshift)
    model_mag, bands = mag_from_nanomaggy(model_flux), artifact.bands.names
    figure = sed_fit(photometry, model_mag, spectrum, bands, title=title)
    figure.savefig(out / "sed.png")


def _verdict(summary: Summary) -> str:
    """Support and, where it was judged, trust in the posterior."""
    support = ", ".join(summary.reasons(0)) or "inside the support"
    if not summary.trust:
        return support
    trusted = is_trusted(summary.trust["p_value"][0], summary.trust["efficiency"][0])
    return f"{support}; {'trusted' if trusted else 'NOT trusted'}"


def _print_summary(artifact: Artifact, summary: Summary) -> None:
    described = artifact.manifest["parameters"] + artifact.manifest["derived"]
    units = {quantity["name"]: quantity["unit"] for quantity in described}
    print(f"{'':<20} {'median':>10}  {'16 %':>10} .. 84 %")
    for i, name in enumerate(summary.names):
        low, median, high = summary.quantiles[0, i, 1:4]
        print(f"{name:<20} {median:10.4g}  {low:10.4g} .. {high:<10.4g} {units[name]}".rstrip())
    trust = (f"{name} {values[0]:.3g}" for name, values in summary.trust.items())
    print(_verdict(summary), *trust, sep=", ")

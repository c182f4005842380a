"""The exact posterior of one galaxy by MCMC: ensembles of walkers, corrected by the simulator.

emcee (Foreman-Mackey et al. 2013) samples the density that `sedflow_core.importance` weighs flow
samples by, in the 11-d space u. Differential-evolution and stretch moves ask for half an ensemble
at once, and neither the hard edges (the error floor) nor the curved ridges of the posterior need a
gradient or tuning. The walkers use the emulator, ten times as fast as the simulator; its difference
of a millimagnitude is then removed by weights from the simulator itself. Needs the extra `mcmc`.
"""

import itertools
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from sedflow_core.artifact import Artifact
from sedflow_core.emulator import EmulatorTables, emulate, fix_redshift
from sedflow_core.errors import MissingExtraError, ObservationError
from sedflow_core.estimation import log_prob, sample
from sedflow_core.importance import log_posteriors
from sedflow_core.noise import log_likelihood
from sedflow_core.observation import Observation
from sedflow_core.prior import draw_u, from_u, to_u
from sedflow_core.simulation import ForwardModel
from sedflow_core.trust import calc_efficiency
from sedflow_core.units import Array

LogProb = Callable[[Array], Array]
"""Points (n, n_dim) -> log density (n,), up to a constant."""

Independent = Callable[[int | Array], tuple[Array, Array]]
"""Number of fresh points, or points (n, n_dim) -> points and their log density (n,)."""

N_ENSEMBLE = 2
ROUND = 100
"""Steps between two looks at the diagnostics."""
MAX_R_HAT = 1.01
_N_START = 16_384
_SOKAL = 5.0
_SEEDS = 1_000_003


class Chains(NamedTuple):
    """Samples of all walkers after burn-in, and what says whether they are the posterior.

    Attributes:
        samples: (n_ensemble, n_step, n_walker, n_dim).
        r_hat: (n_dim,) split R-hat over the halves of the independent ensembles.
        ess: (n_dim,) effective sample size, from the integrated autocorrelation time.
        acceptance: mean accepted fraction.
        n_calls: evaluations of the density.
        seconds: wall time.
    """

    samples: Array
    r_hat: Array
    ess: Array
    acceptance: float
    n_calls: int
    seconds: float

    def thin(self, n: int) -> Array:
        """n samples (n, n_dim), evenly taken from all."""
        every = self.samples.reshape(-1, self.samples.shape[-1])
        return every[np.linspace(0, len(every) - 1, n).astype(np.int64)]

    def converged(self, min_ess: float) -> bool:
        """Whether R-hat and effective sample size are good enough in every dimension."""
        return bool((self.r_hat <= MAX_R_HAT).all() and (self.ess >= min_ess).all())


class ExactPosterior(NamedTuple):
    """Samples of the exact posterior of one galaxy.

    Attributes:
        u: (n, 11) samples of equal weight.
        correction: importance efficiency of the emulator against the simulator; near 1.
        chains: of the walkers, with their diagnostics.
    """

    u: Array
    correction: float
    chains: Chains

    def theta(self) -> NDArray[np.float32]:
        """The samples as physical parameters (n, 12)."""
        return from_u(torch.tensor(self.u)).float().numpy()


def sample_exact(
    model: ForwardModel,
    emulator: EmulatorTables,
    observation: Observation,
    *,
    artifact: Artifact | None = None,
    n_samples: int = 2_000,
    min_ess: float = 1_000.0,
    max_seconds: float = 60.0,
    n_walkers: int = 192,
    seed: int = 0,
) -> ExactPosterior:
    """Samples of the exact posterior of one galaxy.

    Args:
        model: the forward model, see `sedflow_core.simulated.forward_model`.
        emulator: of its galaxy model, see `sedflow_core.emulator_tables.build_emulator`.
        observation: one galaxy.
        artifact: start from samples of its flow; None to start from the best of many prior draws.
        n_samples: returned.
        min_ess, max_seconds: stop once converged, or when the time is spent.
        n_walkers: of each of the `N_ENSEMBLE` ensembles.
        seed: of start and moves.

    Raises:
        ObservationError: not one galaxy, or the model cannot give it any density.
        MissingExtraError: emcee is not installed.
    """
    if len(observation) != 1:
        raise ObservationError(f"observation: expected one galaxy, got {len(observation)}")
    density = _emulated_density(model, emulator, observation)
    flow = None if artifact is None else _propose_from_flow(artifact, observation, seed)
    candidates = _prior_draws(seed) if flow is None else flow(_N_START // 8)[0]
    start = _choose_start(density, candidates, N_ENSEMBLE * n_walkers, seed)
    chains = run_ensembles(
        density,
        start.reshape(N_ENSEMBLE, n_walkers, -1),
        min_ess=min_ess,
        max_seconds=max_seconds,
        seed=seed,
        independent=flow,
    )
    return _correct(chains, density, model, observation, n_samples)


def _emulated_density(
    model: ForwardModel, emulator: EmulatorTables, observation: Observation
) -> LogProb:
    tables = model.galaxy.tables
    fixed = fix_redshift(emulator, tables, torch.tensor(observation.redshift))
    flux, flux_err = torch.tensor(observation.flux), torch.tensor(observation.flux_err)

    def density(points: Array) -> Array:
        with torch.inference_mode():
            u = torch.tensor(points)
            model_flux = emulate(fixed, tables, from_u(u).float(), flux.shape[1]).double()
            log_like = log_likelihood(flux, flux_err, model_flux, model.noise)
            return (log_like - 0.5 * u.square().sum(dim=-1)).numpy()

    return density


def _correct(
    chains: Chains, density: LogProb, model: ForwardModel, observation: Observation, n: int
) -> ExactPosterior:
    """Resample by the simulator's density over the emulator's: systematic, so little is lost."""
    u = chains.thin(2 * n)
    exact = log_posteriors(model, torch.tensor(u), observation)[0]
    log_weight = exact - torch.tensor(density(u))
    weight = torch.softmax(log_weight, dim=0).numpy()
    index = np.searchsorted(np.cumsum(weight), (np.arange(n) + 0.5) / n).clip(max=len(u) - 1)
    return ExactPosterior(u[index], calc_efficiency(log_weight), chains)


def _prior_draws(seed: int) -> Array:
    return draw_u(_N_START, torch.Generator().manual_seed(seed)).numpy()


def _propose_from_flow(artifact: Artifact, observation: Observation, seed: int) -> Independent:
    seeds = itertools.count(seed * _SEEDS)

    def propose(new: int | Array) -> tuple[Array, Array]:
        if isinstance(new, int):
            theta = sample(artifact, observation, new, next(seeds), independent=True)
            u = to_u(torch.tensor(theta[:, 0]).double()).numpy()
        else:
            u, theta = new, from_u(torch.tensor(new)).float()[:, None].numpy()
        return u, log_prob(artifact, theta, observation)[:, 0].astype(np.float64)

    return propose


def _choose_start(density: LogProb, candidates: Array, n: int, seed: int) -> Array:
    """n different points (n, n_dim) drawn from candidates by a flattened density."""
    log_p = np.concatenate([density(part) for part in np.array_split(candidates, 16)])
    possible = np.flatnonzero(np.isfinite(log_p))
    if len(possible) < n:
        raise ObservationError(
            f"observation: expected a posterior that at least {n} of {len(candidates)} starting "
            f"points touch, got {len(possible)}"
        )
    # Gumbel's trick draws without replacement; a tempered density keeps the walkers apart.
    spread = max(1.0, float(np.ptp(np.sort(log_p[possible])[-n:])) / 10.0)
    keys = log_p[possible] / spread + np.random.default_rng(seed).gumbel(size=len(possible))
    return candidates[possible[np.argsort(keys)[-n:]]]


def run_ensembles(
    density: LogProb,
    start: Array,
    *,
    min_ess: float,
    max_seconds: float,
    seed: int,
    independent: Independent | None = None,
) -> Chains:
    """Run independent ensembles, one thread each, until they agree or time is up.

    The first half of every run is burn-in, so it grows with the run.

    Args:
        density: called with half an ensemble.
        start: (n_ensemble, n_walker, n_dim) starting points.
        min_ess, max_seconds: see `sample_exact`.
        seed: of the moves.
        independent: proposals from a density close to the target, mixed with the moves.
    """
    began = time.monotonic()
    samplers = [_sampler(density, points, seed + i, independent) for i, points in enumerate(start)]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(len(samplers)) as pool:
            while True:
                tasks = [pool.submit(_advance, s, p) for s, p in zip(samplers, start, strict=True)]
                for task in tasks:
                    task.result()
                spent = time.monotonic() - began
                chains = _diagnose(samplers, spent)
                per_round = spent / (samplers[0].iteration / ROUND)
                if chains.converged(min_ess) or spent + per_round > max_seconds:
                    return chains
    finally:
        torch.set_num_threads(threads)


def _sampler(density: LogProb, start: Array, seed: int, independent: Independent | None) -> Any:
    try:
        import emcee
    except ImportError as error:
        raise MissingExtraError("emcee", "mcmc") from error
    moves = [(emcee.moves.DEMove(), 0.6), (emcee.moves.StretchMove(), 0.2)]
    moves.append((emcee.moves.DESnookerMove(), 0.2))
    if independent is not None:
        moves.append((emcee.moves.MHMove(_metropolis(independent)), 0.5))
    sampler = emcee.EnsembleSampler(*start.shape, density, moves=moves, vectorize=True)
    sampler.random_state = np.random.RandomState(seed).get_state()
    return sampler


def _metropolis(independent: Independent) -> Callable[[Array, Any], tuple[Array, Array]]:
    """Independent proposals with the ratio of densities that keeps the posterior exact."""

    def propose(points: Array, _: Any) -> tuple[Array, Array]:
        new, log_new = independent(len(points))
        return new, independent(points)[1] - log_new

    return propose


def _advance(sampler: Any, start: Array) -> None:
    sampler.run_mcmc(start if sampler.iteration == 0 else None, ROUND)


def _diagnose(samplers: list[Any], seconds: float) -> Chains:
    n_step = samplers[0].iteration
    samples = np.stack([s.get_chain(discard=n_step // 2) for s in samplers])
    n_walker = samples.shape[2]
    return Chains(
        samples=samples,
        r_hat=split_r_hat(samples),
        ess=np.prod(samples.shape[:3]) / autocorrelation_time(samples),
        acceptance=float(np.mean([s.acceptance_fraction for s in samplers])),
        n_calls=len(samplers) * n_walker * (n_step + 1),
        seconds=seconds,
    )


def autocorrelation_time(samples: Array) -> Array:
    """Integrated autocorrelation time (n_dim,) in steps of samples (n_ensemble, n_step, ...).

    Autocovariances about the mean of all walkers, so that a walker which never moves counts as
    dependent; summed over the window of Sokal (1997).
    """
    n_step = samples.shape[1]
    centred = samples - samples.mean(axis=(0, 1, 2))
    spectrum = np.abs(np.fft.rfft(centred, n=2 * n_step, axis=1)) ** 2
    covariance = np.fft.irfft(spectrum.mean(axis=(0, 2)), axis=0)[:n_step]
    overlap = np.arange(n_step, 0, -1)[:, None]
    correlation = covariance / overlap / (covariance[0] / n_step)
    times = 2.0 * np.cumsum(correlation, axis=0) - 1.0
    in_window = np.arange(n_step)[:, None] < _SOKAL * times
    last = np.where(in_window.all(axis=0), n_step - 1, in_window.argmin(axis=0))
    return np.asarray(np.maximum(times[last, np.arange(times.shape[1])], 1.0))


def split_r_hat(samples: Array) -> Array:
    """R-hat (n_dim,) of samples (n_ensemble, n_step, n_walker, n_dim) (Gelman et al. 2013, 11.4).

    Walkers of one ensemble depend on each other: a chain here is one half of one ensemble.
    """
    n_half = samples.shape[1] // 2
    halves = np.concatenate([samples[:, :n_half], samples[:, -n_half:]])
    chains = halves.reshape(len(halves), -1, samples.shape[-1])
    n = chains.shape[1]
    between = n * chains.mean(axis=1).var(axis=0, ddof=1)
    within = chains.var(axis=1, ddof=1).mean(axis=0)
    return np.asarray(np.sqrt(((n - 1) / n * within + between / n) / within))

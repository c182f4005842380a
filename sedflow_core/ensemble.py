"""Ensembles of walkers, cooled from the prior to the posterior (emcee, Foreman-Mackey et al. 2013).

Of the samplers at hand emcee updates half an ensemble at once, which the emulator answers ten times
as fast as one by one. zeus, the paper's choice, widens and shrinks its slices in steps that wait
for each other; nautilus trains networks for a minute per galaxy. emcee's own moves list all pairs
or loop over walkers; `Differences` is ter Braak's (2006) move for a thousand of them, in a random
part of the dimensions as in DREAM (Vrugt et al. 2009).

The walkers start as draws from the prior under a likelihood to the power beta = 0. beta rises to 1
so that half of them stay effective at each rise, which resamples them (Del Moral et al. 2006).
So a start needs no flow and no guess, and finds every mode that the prior covers. At beta = 1
proposals of the flow join in, where the walkers take them: one that is taken forgets where its
walker was, and galaxies inside the flow's support take seconds. Needs the extra `mcmc`.
"""

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import emcee
import numpy as np
from emcee.moves import MHMove, RedBlueMove

from sedflow_core.chains import Chains, autocorrelation_time, effective_sample_size, split_r_hat
from sedflow_core.target import Proposal, Target
from sedflow_core.threads import torch_threads
from sedflow_core.units import Array

N_ENSEMBLE = 2
FIRST_STEPS = 50
"""Steps before the first look at the diagnostics; each look doubles them."""
MOST_STEPS = 2_000
"""More would take gigabytes; what has not converged by then needs another sampler."""
_N_PRIOR = 8
"""Draws from the prior for each walker."""
_KEPT = 0.5
_MOVES_PER_RISE = 1.0
"""Accepted moves that a walker makes, on average, before beta rises again."""
_LEAST_STEPS, _MOST_STEPS = 5, 60
_DIMENSIONS = (0.2, 0.5, 1.0)
_JUMP = 0.1
_PROPOSED = 0.3
"""Share of the steps that ask the proposal."""
_MIN_TAKEN = 0.02
"""A proposal of which walkers take less is not asked again."""


class Differences(RedBlueMove):  # type: ignore[misc]
    """Step along the difference of two other walkers, in a part of the dimensions."""

    def get_proposal(
        self, moving: Array, others: Sequence[Array], random: np.random.RandomState
    ) -> tuple[Array, Array]:
        """Proposals (n, n_dim) for the moving walkers, and the ln ratio of their chances, 0."""
        pool = np.concatenate(others)
        n, n_dim = moving.shape
        first = random.randint(len(pool), size=n)
        second = (first + random.randint(1, len(pool), size=n)) % len(pool)
        chosen = random.rand(n, n_dim) < random.choice(_DIMENSIONS, size=n)[:, None]
        chosen[np.arange(n), random.randint(n_dim, size=n)] = True
        scale = 2.38 / np.sqrt(2 * chosen.sum(axis=1)) * np.exp(0.3 * random.normal(size=n))
        scale[random.rand(n) < _JUMP] = 1.0  # from one mode to another
        step = scale[:, None] * (pool[first] - pool[second])
        return moving + np.where(chosen, step, 0.0), np.zeros(n)


class Ensemble:
    """One ensemble of walkers, which knows nothing of any other."""

    def __init__(
        self,
        target: Target,
        seed: int,
        *,
        n_walkers: int,
        deadline: float,
        proposal: Proposal | None,
    ) -> None:
        self._target = target
        self._random = np.random.RandomState(seed)
        self.n_calls = 0
        self._start = self._cool(n_walkers, deadline)
        moves: list[tuple[Any, float]] = [(Differences(), 1.0)]
        if proposal is not None and self._taken(proposal) >= _MIN_TAKEN:
            moves = [(Differences(), 1.0 - _PROPOSED), (MHMove(partial(_ask, proposal)), _PROPOSED)]
        self._sampler_at_1 = self._sampler(1.0, n_walkers, moves)

    def walk(self, n_step: int) -> None:
        """Take steps in the posterior."""
        sampler = self._sampler_at_1
        start = self._start if sampler.iteration == 0 else None
        sampler.run_mcmc(start, n_step, skip_initial_state_check=True)
        self.n_calls += n_step * len(self._start)

    @property
    def n_step(self) -> int:
        """Steps taken in the posterior."""
        return int(self._sampler_at_1.iteration)

    def samples(self) -> Array:
        """The second half of the walk, (n_step, n_walker, n_dim)."""
        return np.asarray(self._sampler_at_1.get_chain(discard=self.n_step // 2))

    def acceptance(self) -> float:
        """Mean accepted fraction."""
        return float(self._sampler_at_1.acceptance_fraction.mean())

    def _cool(self, n: int, deadline: float) -> Array:
        """Walkers (n, n_dim) of the posterior, from draws of the prior."""
        points = self._target.draw_prior(_N_PRIOR * n, self._random)
        beta, n_step = 0.0, _LEAST_STEPS
        while True:
            log_like = self._evaluate(points)
            late = time.monotonic() > deadline
            rise = 1.0 - beta if late else find_rise(log_like, 1.0 - beta, _KEPT * n)
            beta += rise
            points = np.asarray(points[_resample(rise * log_like, n, self._random)])
            if beta >= 1.0:
                return points
            sampler = self._sampler(beta, n)
            state = sampler.run_mcmc(points, n_step, skip_initial_state_check=True)
            points = state.coords
            self.n_calls += n_step * n
            accepted = max(float(sampler.acceptance_fraction.mean()), 1e-3)
            n_step = int(np.clip(_MOVES_PER_RISE / accepted, _LEAST_STEPS, _MOST_STEPS))

    def _evaluate(self, points: Array) -> Array:
        self.n_calls += len(points)
        return self._target(points)[0]

    def _taken(self, proposal: Proposal) -> float:
        """Share of the walkers that would take a point of the proposal."""
        points, ratio = _ask(proposal, self._start, self._random)
        density = partial(_tempered, self._target, 1.0)
        self.n_calls += 2 * len(points)
        change = density(points) - density(self._start) + ratio
        return float(np.exp(np.minimum(np.nan_to_num(change, nan=-np.inf), 0.0)).mean())

    def _sampler(self, beta: float, n: int, moves: Any = None) -> Any:
        density = partial(_tempered, self._target, beta)
        n_dim, moves = self._target.n_dim, moves or Differences()
        sampler = emcee.EnsembleSampler(n, n_dim, density, moves=moves, vectorize=True)
        sampler.random_state = np.random.RandomState(self._random.randint(2**31)).get_state()
        return sampler


def _tempered(target: Target, beta: float, points: Array) -> Array:
    log_like, log_prior = target(points)
    return beta * log_like + log_prior


def _ask(proposal: Proposal, points: Array, random: np.random.RandomState) -> tuple[Array, Array]:
    """Fresh points for walkers at points (n, n_dim), and the ln ratio of their chances."""
    new, log_new = proposal.draw(len(points), random)
    return new, proposal.log_prob(points) - log_new


def find_rise(log_like: Array, most: float, effective: float) -> float:
    """The largest rise of beta, at most `most`, that leaves so many walkers effective."""
    low, high = 0.0, most
    if _effective(most * log_like) >= effective:
        return most
    for _ in range(60):
        middle = 0.5 * (low + high)
        enough = _effective(middle * log_like) >= effective
        low, high = (middle, high) if enough else (low, middle)
    return high


def _effective(log_weight: Array) -> float:
    weight = np.exp(log_weight - log_weight.max())
    return float(weight.sum() ** 2 / (weight**2).sum())


def _resample(log_weight: Array, n: int, random: np.random.RandomState) -> Array:
    """n indices by weight, systematically."""
    cumulative = np.cumsum(np.exp(log_weight - log_weight.max()))
    steps = (np.arange(n) + random.rand()) / n * cumulative[-1]
    return np.asarray(np.searchsorted(cumulative, steps).clip(max=len(log_weight) - 1))


def run_ensembles(
    target: Target,
    *,
    n_walkers: int,
    min_ess: float,
    max_seconds: float,
    seed: int,
    proposal: Proposal | None = None,
) -> Chains:
    """Run independent ensembles, one thread each, until they agree or time is up.

    The first half of every walk is burn-in, so it grows with the walk. Where the time is up before
    the ensembles have cooled they are cooled at once: then they do not agree.

    Args:
        target: the density.
        n_walkers: of each of the `N_ENSEMBLE` ensembles.
        min_ess, max_seconds: see `sedflow_core.mcmc.sample_exact`.
        seed: of starts and moves.
        proposal: a density close to the target, to draw from.
    """
    began = time.monotonic()
    with torch_threads(1), ThreadPoolExecutor(N_ENSEMBLE) as pool:
        deadline = began + 0.5 * max_seconds
        new = partial(Ensemble, target, n_walkers=n_walkers, deadline=deadline, proposal=proposal)
        seeds = np.random.SeedSequence(seed).generate_state(N_ENSEMBLE)
        ensembles = list(pool.map(new, map(int, seeds)))
        n_step = FIRST_STEPS
        while True:
            round_began = time.monotonic()
            list(pool.map(partial(Ensemble.walk, n_step=n_step), ensembles))
            now = time.monotonic()
            chains = _diagnose(ensembles, now - began)
            affordable = int((max_seconds - now + began) / (now - round_began) * n_step)
            affordable = min(affordable, MOST_STEPS - ensembles[0].n_step)
            if chains.converged(min_ess) or affordable < FIRST_STEPS:
                return chains
            n_step = min(ensembles[0].n_step, affordable)


def _diagnose(ensembles: Sequence[Ensemble], seconds: float) -> Chains:
    samples = np.stack([ensemble.samples() for ensemble in ensembles])
    times = autocorrelation_time(samples)
    return Chains(
        samples=samples,
        r_hat=split_r_hat(samples),
        ess=effective_sample_size(samples, times),
        n_times=samples.shape[1] / times,
        acceptance=float(np.mean([ensemble.acceptance() for ensemble in ensembles])),
        n_calls=sum(ensemble.n_calls for ensemble in ensembles),
        seconds=seconds,
    )

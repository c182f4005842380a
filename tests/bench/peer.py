"""The usual way beside ours: MCMC of one galaxy, with the same simulator and the same posterior."""

import time

import emcee
import numpy as np
import torch

from sedflow_core import Artifact, Observation, estimate
from sedflow_core.fresh_simulations import forward_model
from sedflow_core.importance import log_posteriors
from sedflow_core.prior import N_U, from_u

N_WALKER = 128
N_DRAW = 20_000
N_STEP = 50
"""Steps between two looks at the clock and the autocorrelation."""
ENOUGH = 30
"""Autocorrelation times after burn-in, which is the first half."""


def run_emcee(artifact: Artifact, galaxy: Observation, max_seconds: float) -> emcee.EnsembleSampler:
    """Walk from the best of many prior draws until the chain is long enough, or time is up."""
    model = forward_model(artifact)

    def log_posterior(u: np.ndarray) -> np.ndarray:
        exact, _ = log_posteriors(model, torch.tensor(u), galaxy)
        return exact.nan_to_num(nan=-torch.inf, neginf=-torch.inf).numpy()

    moves = [(emcee.moves.DEMove(), 0.8), (emcee.moves.DESnookerMove(), 0.2)]
    sampler = emcee.EnsembleSampler(N_WALKER, N_U, log_posterior, moves=moves, vectorize=True)
    draws = np.random.default_rng(0).standard_normal((N_DRAW, N_U))
    state = draws[np.argsort(log_posterior(draws))[-N_WALKER:]]
    started = time.monotonic()
    while time.monotonic() - started < max_seconds:
        state = sampler.run_mcmc(state, N_STEP)
        if sampler.iteration // 2 > ENOUGH * longest_memory(sampler):
            break
    return sampler


def longest_memory(sampler: emcee.EnsembleSampler) -> float:
    """Largest autocorrelation time after burn-in [steps]; infinite while a walker stands still."""
    with np.errstate(invalid="ignore"):
        tau = sampler.get_autocorr_time(discard=sampler.iteration // 2, tol=0)
    return float(tau.max()) if np.isfinite(tau).all() else np.inf


def measure_peer(artifact: Artifact, galaxy: Observation, max_seconds: float) -> dict[str, float]:
    """What emcee takes for one galaxy, and how far our median mass is from its, in sigma."""
    wall, cpu = time.perf_counter(), time.process_time()
    sampler = run_emcee(artifact, galaxy, max_seconds)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    half = sampler.iteration // 2
    theta = from_u(torch.tensor(sampler.get_chain(discard=half, flat=True))).numpy()
    ours = estimate(artifact, galaxy).quantile("log_mstar", 0.5)[0]
    mass = theta[:, artifact.param_names.index("log_mstar")]
    return {
        "s, emcee on our simulator, one galaxy": wall,
        "CPU s, emcee on our simulator, one galaxy": cpu,
        "likelihoods, emcee": float(N_WALKER * sampler.iteration),
        "independent samples, emcee, worst dimension": N_WALKER * half / longest_memory(sampler),
        "posterior sigma, our median log_mstar less that of emcee": float(
            (ours - np.median(mass)) / mass.std()
        ),
    }

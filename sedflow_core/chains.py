"""What says whether walkers have found their density: R-hat and the effective sample size."""

from typing import NamedTuple

import numpy as np

from sedflow_core.units import Array

MAX_R_HAT = 1.01
MIN_ESS = 400.0
"""Both as Vehtari et al. (2021) recommend."""
_SOKAL = 5.0
_MIN_TIMES = 2.0


class Chains(NamedTuple):
    """Samples of all walkers after burn-in, and what says whether they are the posterior.

    Attributes:
        samples: (n_ensemble, n_step, n_walker, n_dim).
        r_hat: (n_dim,) split R-hat over the halves of the independent ensembles.
        ess: (n_dim,) effective sample size, see `effective_sample_size`.
        n_times: (n_dim,) length of the walk in autocorrelation times of a walker.
        acceptance: mean accepted fraction.
        n_calls: evaluations of the density, annealing included.
        seconds: wall time.
    """

    samples: Array
    r_hat: Array
    ess: Array
    n_times: Array
    acceptance: float
    n_calls: int
    seconds: float

    def thin(self, n: int) -> Array:
        """n samples (n, n_dim), evenly taken from all walkers and steps."""
        # A walker's steps lie together: a stride over walkers may come back to the same ones.
        every = self.samples.swapaxes(1, 2).reshape(-1, self.samples.shape[-1])
        return every[np.linspace(0, len(every) - 1, n).astype(np.int64)]

    def converged(self, min_ess: float) -> bool:
        """Whether R-hat and effective sample size are good enough in every dimension.

        A walk shorter than two autocorrelation times is not: until then walkers remember those they
        were resampled from, which no chain shows.
        """
        return bool(
            (self.r_hat <= MAX_R_HAT).all()
            and (self.ess >= min_ess).all()
            and (self.n_times >= _MIN_TIMES).all()
        )


def effective_sample_size(samples: Array, times: Array) -> Array:
    """Independent samples (n_dim,) that would know the mean as well as samples of all walkers.

    Walkers of one ensemble move along each other's differences, so their mean varies more than that
    of as many independent ones. Its own variance and autocorrelation time say by how much (Goodman
    & Weare 2010, Sec. 4).

    Args:
        samples: (n_ensemble, n_step, n_walker, n_dim).
        times: (n_dim,) autocorrelation times of a walker.
    """
    n_ensemble, n_step, n_walker, _ = samples.shape
    means = samples.mean(axis=2, keepdims=True)
    of_a_mean = samples.var(axis=(0, 1, 2)) / means.var(axis=(0, 1, 2))
    together = n_ensemble * n_step * of_a_mean / autocorrelation_time(means)
    alone = n_ensemble * n_step * n_walker / times
    return np.asarray(np.minimum(together, alone))


def autocorrelation_time(samples: Array) -> Array:
    """Integrated autocorrelation time (n_dim,) in steps of samples (n_ensemble, n_step, ...).

    Autocovariances about the mean of all walkers, so that a walker which never moves counts as
    dependent; summed over the window of Sokal (1997).
    """
    n_step = samples.shape[1]
    covariance = _autocovariance(samples)
    overlap = np.arange(n_step, 0, -1)[:, None]
    correlation = covariance / overlap / (covariance[0] / n_step)
    times = 2.0 * np.cumsum(correlation, axis=0) - 1.0
    in_window = np.arange(n_step)[:, None] < _SOKAL * times
    last = np.where(in_window.all(axis=0), n_step - 1, in_window.argmin(axis=0))
    return np.asarray(np.maximum(times[last, np.arange(times.shape[1])], 1.0))


def _autocovariance(samples: Array) -> Array:
    """Sums of products (n_step, n_dim) by distance in steps, averaged over walkers."""
    n_step = samples.shape[1]
    power = []
    for walks in np.moveaxis(samples, -1, 0):  # one by one: all spectra would take gigabytes
        spectrum = np.fft.rfft(walks - walks.mean(), n=2 * n_step, axis=1)
        power.append((np.abs(spectrum) ** 2).mean(axis=(0, 2)))
    return np.asarray(np.fft.irfft(np.stack(power, axis=-1), axis=0)[:n_step])


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

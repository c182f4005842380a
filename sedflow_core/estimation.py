"""The function in the middle: observations in, posterior summaries out.

support -> context -> flow -> summary. A galaxy's result depends on nothing but its photometry, the
artifact, the number of samples and the seed: no operation rounds its numbers by its company, and
its own photometry chooses its base points among `N_SETS` sets of scrambled-Sobol points. One set
for all would give all galaxies a common error, which no average over galaxies removes.
"""

import zlib
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sedflow_core.artifact import Artifact, read_artifact
from sedflow_core.consequences import find_consequences
from sedflow_core.errors import ArtifactError, ObservationError
from sedflow_core.observation import Observation, Photometry, to_context
from sedflow_core.parallel_inverse import sample_together
from sedflow_core.prior import N_U, PARAM_NAMES, from_u, to_u
from sedflow_core.sfh import DERIVED_NAMES
from sedflow_core.summary import Summary, empty_summary, fill_rows
from sedflow_core.support import can_encode, check_support
from sedflow_core.threads import torch_threads
from sedflow_core.trust import Trust
from sedflow_core.units import Array

GOLDEN_TOLERANCE = 1e-3
"""Largest accepted change of a golden quantile, in posterior standard deviations."""


def load_artifact(path: str | Path, device: str = "cpu") -> Artifact:
    """Read an artifact, compile its flow and check that it reproduces its golden vectors.

    Args:
        path: a folder, or the name of a shipped artifact such as "sdss-ugriz".
        device: where `estimate` shall compute, "cpu" or "cuda".

    Raises:
        ArtifactError: a file, the digest, the names or the golden vectors do not match.
    """
    artifact = read_artifact(path, device)
    golden = artifact.golden
    if not golden:
        raise ArtifactError(f"{path}: expected golden vectors, got none: was its build cut short?")
    observation = Observation(
        golden["flux"].numpy(), golden["flux_err"].numpy(), golden["redshift"].numpy()
    )
    summary = estimate(artifact, observation, n_samples=int(golden["n_samples"]))
    change = np.abs(summary.quantiles - golden["quantiles"].numpy()) / summary.std[..., None]
    if not change.max() <= GOLDEN_TOLERANCE:
        raise ArtifactError(
            f"{path}: expected the golden quantiles within {GOLDEN_TOLERANCE} posterior sigma, "
            f"got {change.max():.3g}"
        )
    return artifact


MOST_TOGETHER = 16
"""Galaxies of a group on the CPU, a power of two."""
N_REGISTER = 16
"""Numbers of single precision in the largest vector register of a CPU."""
N_SAMPLES_ON_GPU = 1 << 18
"""Samples, of all galaxies together, that keep a GPU busy."""
N_SETS = 64
"""Sets of base points; the error that galaxies share falls with the square root."""


def choose_base(observation: Observation, i: int, n_samples: int, seed: int) -> Tensor:
    """Base points (n_u, n_samples) of galaxy i, chosen by a checksum of its photometry."""
    row = (observation.flux[i], observation.flux_err[i], observation.redshift[i])
    checksum = zlib.crc32(b"".join(values.tobytes() for values in row))
    return sobol_normal(n_samples, seed * N_SETS + checksum % N_SETS)


@lru_cache(maxsize=4 * N_SETS)
def sobol_normal(n_samples: int, seed: int) -> Tensor:
    """Scrambled-Sobol points mapped to a standard normal: (n_u, n_samples) float32."""
    engine = torch.quasirandom.SobolEngine(N_U, scramble=True, seed=seed)
    points = engine.draw(n_samples, dtype=torch.float64)
    edge = 0.5 / 2**30
    normal: Tensor = torch.special.ndtri(points.clamp(edge, 1.0 - edge)).float()
    return normal.T.contiguous()


def estimate(
    artifact: Artifact,
    observation: Observation,
    n_samples: int | None = None,
    seed: int = 0,
    *,
    include_unsupported: bool = False,
) -> Summary:
    """Posterior summaries of n galaxies, in the same order.

    Args:
        artifact: see `load_artifact`.
        observation: photometry in the artifact's bands.
        n_samples: posterior samples per galaxy; None for the artifact's number.
        seed: of the Sobol base points; seeds share no set.
        include_unsupported: summarise galaxies outside the training support too, up to the
            artifact's `redshift_max`.

    Returns:
        A `Summary`; rows outside the support are NaN and their flags say why.

    Raises:
        ObservationError: the number of bands is not the artifact's, or there are to be no samples.
    """
    photometry = _tensors(artifact, observation)
    flags = check_support(*photometry, artifact.support, artifact.bands)
    summary = _blank(artifact, flags, n_samples, seed)
    n_samples = summary.n_samples
    is_wanted = can_encode(*photometry) & (photometry[2] <= artifact.redshift_max)
    if not include_unsupported:
        is_wanted &= flags == 0
    wanted = is_wanted.nonzero().flatten()
    with torch.inference_mode(), torch_threads(1):
        for rows in _groups(artifact, wanted, n_samples):
            bases = [choose_base(observation, i, n_samples, seed) for i in rows.tolist()]
            _fill(artifact, summary, rows, photometry, torch.stack(bases).to(artifact.device))
    return summary


def flagged_summary(
    artifact: Artifact, observation: Observation, n_samples: int | None = None, seed: int = 0
) -> Summary:
    """The support flags of n galaxies, in summaries that say nothing else yet.

    Args and errors are those of `estimate`.
    """
    flags = check_support(*_tensors(artifact, observation), artifact.support, artifact.bands)
    return _blank(artifact, flags, n_samples, seed)


def _blank(artifact: Artifact, flags: Tensor, n_samples: int | None, seed: int) -> Summary:
    n_samples = artifact.n_samples if n_samples is None else n_samples
    _check_n_samples(n_samples)
    names = artifact.param_names + artifact.derived_names
    return empty_summary(
        names,
        flags.cpu().numpy(),
        artifact.flag_names,
        n_samples=n_samples,
        seed=seed,
        judgements=() if artifact.trust is None else Trust._fields,
        prior_width=_prior_width(artifact, names),
    )


def _check_n_samples(n_samples: int) -> None:
    if n_samples < 1:
        raise ObservationError(f"n_samples: expected 1 or more, got {n_samples}")


def find_flags(artifact: Artifact, observation: Observation) -> NDArray[np.int64]:
    """Support flags (n,) of n galaxies, without their posteriors.

    Raises:
        ObservationError: the number of bands is not the artifact's.
    """
    photometry = _tensors(artifact, observation)
    flags = check_support(*photometry, artifact.support, artifact.bands)
    return np.asarray(flags.cpu().numpy())


def galaxies_at_once(artifact: Artifact, n_samples: int) -> int:
    """How many galaxies are sampled together: a multiple of so many costs least for each."""
    if artifact.device == "cuda":
        return max(1, N_SAMPLES_ON_GPU // n_samples)
    # The end of an array that does not fill a vector register is rounded in another way.
    return MOST_TOGETHER if n_samples % N_REGISTER == 0 else 1


def _groups(artifact: Artifact, rows: Tensor, n_samples: int) -> tuple[Tensor, ...]:
    """The galaxies (n,) that are sampled, summarised and judged in one go, group by group.

    A power of two each on the CPU, for which little has to be traced. On a GPU products are rounded
    as their shape demands: there groups are of one size, in the last of which a galaxy may repeat.
    """
    size = galaxies_at_once(artifact, n_samples)
    if artifact.device == "cuda":
        starts = range(0, len(rows), size)
        return tuple(rows[torch.arange(i, i + size).clamp_max(len(rows) - 1)] for i in starts)
    n_full, rest = divmod(len(rows), size)
    powers = [1 << bit for bit in reversed(range(rest.bit_length())) if rest >> bit & 1]
    return tuple(rows.split([size] * n_full + powers))


def _fill(
    artifact: Artifact,
    summary: Summary,
    rows: Tensor,
    photometry: Photometry,
    base: Tensor,
) -> None:
    """Fill rows (n,) of the summary, from base points (n, n_u, n_samples)."""
    flux, flux_err, redshift = (t[rows] for t in photometry)
    u, log_q = _sample_u(artifact, base, flux, flux_err, redshift)
    index = rows.cpu().numpy()
    values, *judgement = find_consequences(artifact, u, log_q, (flux, flux_err, redshift))
    fill_rows(summary, index, values)
    for name, of_galaxies in zip(summary.trust, judgement, strict=True):
        summary.trust[name][index] = of_galaxies.cpu().numpy()


def _prior_width(artifact: Artifact, names: tuple[str, ...]) -> Array | None:
    if artifact.trust is None:
        return None
    every = PARAM_NAMES + DERIVED_NAMES
    return artifact.trust.prior_width[[every.index(name) for name in names]].cpu().numpy()


def _tensors(artifact: Artifact, observation: Observation) -> Photometry:
    n_band = len(artifact.bands.names)
    if observation.flux.shape[1] != n_band:
        raise ObservationError(
            f"flux: expected {n_band} bands {''.join(artifact.bands.names)}, "
            f"got {observation.flux.shape[1]}"
        )
    return observation.tensors(artifact.device)


def _sample_u(
    artifact: Artifact, base: Tensor, flux: Tensor, flux_err: Tensor, redshift: Tensor
) -> tuple[Tensor, Tensor]:
    """Samples (n, n_sample, n_u) of encodable rows, and their ln q (n, n_sample)."""
    context = to_context(flux, flux_err, redshift, artifact.scale)
    if artifact.device == "cuda":
        samples, log_q = sample_together(artifact.flow, base, context)
    else:
        samples, log_q = artifact.flow.sample_u(base, context)
    return samples.transpose(1, 2), log_q


def sample(
    artifact: Artifact,
    observation: Observation,
    n_samples: int | None = None,
    seed: int = 0,
    independent: bool = False,
) -> NDArray[np.float32]:
    """Posterior samples (n_samples, n, 12) of the physical parameters.

    Args:
        artifact: see `load_artifact`.
        observation: photometry in the artifact's bands; support flags are not applied.
        n_samples: samples per galaxy; None for the artifact's number.
        seed: of the base points.
        independent: independent draws instead of Sobol points, which are more even than chance.

    Returns:
        float32; NaN for rows whose flux, error or redshift cannot be encoded.

    Raises:
        ObservationError: the number of bands is not the artifact's, or there are to be no samples.
    """
    n_samples = artifact.n_samples if n_samples is None else n_samples
    _check_n_samples(n_samples)
    flux, flux_err, redshift = _tensors(artifact, observation)
    wanted = can_encode(flux, flux_err, redshift).nonzero().flatten()
    theta = np.full((n_samples, len(flux), len(artifact.param_names)), np.nan, dtype=np.float32)
    generator = torch.Generator().manual_seed(seed)
    with torch.inference_mode():
        for i in wanted.tolist():
            row = slice(i, i + 1)
            if independent:
                base = torch.randn((N_U, n_samples), generator=generator)
            else:
                base = choose_base(observation, i, n_samples, seed)
            base = base[None].to(artifact.device)
            u, _ = _sample_u(artifact, base, flux[row], flux_err[row], redshift[row])
            theta[:, i] = from_u(u)[0].cpu()
    return theta


def log_prob(
    artifact: Artifact, theta: NDArray[np.float32], observation: Observation
) -> NDArray[np.float32]:
    """Log density (n_samples, n) of physical parameters in the 11-d space u.

    Args:
        artifact: see `load_artifact`.
        theta: (n_samples, n, 12) physical parameters.
        observation: photometry of the n galaxies.

    Returns:
        ln q(u | context); NaN for rows that cannot be encoded.

    Raises:
        ObservationError: the number of bands or galaxies does not fit.
    """
    flux, flux_err, redshift = _tensors(artifact, observation)
    per_sample = (len(flux), len(artifact.param_names))
    if theta.ndim != 3 or theta.shape[1:] != per_sample:
        raise ObservationError(
            f"theta: expected shape (n_samples, {per_sample[0]}, {per_sample[1]}), "
            f"got {theta.shape}"
        )
    result = np.full(theta.shape[:2], np.nan, dtype=np.float32)
    wanted = can_encode(flux, flux_err, redshift).nonzero().flatten()
    with torch.inference_mode():
        for i in wanted.tolist():
            row = slice(i, i + 1)
            context = to_context(flux[row], flux_err[row], redshift[row], artifact.scale)
            u = to_u(torch.as_tensor(theta[:, i], device=artifact.device).double()).float()
            result[:, i] = artifact.flow(u, context).cpu()
    return result

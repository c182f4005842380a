"""Where the truth of a simulation lies in its posterior, for many simulations; resumes.

A posterior is right if the truth looks like one more sample of it. So a sample that takes the place
of the truth shows what a perfect posterior scores on the same galaxies: the control.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sedflow_core.artifact import Artifact
from sedflow_core.diagnostics import density_ranks, tarp_levels
from sedflow_core.estimation import choose_base
from sedflow_core.fresh_simulations import Simulations
from sedflow_core.observation import Observation
from sedflow_core.prior import N_U, U_NAMES, draw_u, to_u
from sedflow_core.sampling import sample_one, u_and_derived
from sedflow_core.simulation import stream_generator
from sedflow_core.summary import LEVELS
from sedflow_core.units import Array
from sedflow_core.whole_file import written_whole

N_CONTROL = 4
"""Samples that take the place of the truth, for the scores of a perfect posterior."""
_PART = 500
_CHUNK = 50

Progress = Callable[[int], None]


class Calibration(NamedTuple):
    """The truth of n simulations beside their posteriors.

    Attributes:
        names: the 11 network parameters, then the derived quantities.
        ranks: (n, n_name) of the truth among the samples, scaled to (0, 1).
        control: (n, N_CONTROL, n_name) the same of samples that take the place of the truth.
        truth: (n, n_name); quantiles: (n, n_name, 5) at `LEVELS`; parameters in u.
        tarp: (n, n_name + 1) credibility of the truth about a random point (TARP), of each quantity
            and last of the 11 parameters together.
        density: (n,) credibility of the region of highest density that just holds the truth.
        loss: (n,) -ln q(u | context) of the truth.
    """

    names: tuple[str, ...]
    ranks: Array
    control: Array
    truth: Array
    quantiles: Array
    tarp: Array
    density: Array
    loss: Array


class _Part(NamedTuple):
    """Some rows of a `Calibration`."""

    ranks: Array
    control: Array
    truth: Array
    quantiles: Array
    tarp: Array
    density: Array
    loss: Array


def calibrate(
    artifact: Artifact,
    simulations: Simulations,
    *,
    n_samples: int,
    independent: bool,
    folder: Path | None = None,
    progress: Progress = lambda _: None,
) -> Calibration:
    """Compare the truth of simulations with posterior samples.

    Args:
        artifact: see `load_artifact`.
        simulations: of the artifact's forward model, see `simulate`.
        n_samples: posterior samples per simulation.
        independent: independent draws, or the published Sobol points.
        folder: keeps what is done, so that a killed run goes on from there; it must belong to the
            same artifact, simulations and settings.
        progress: called with the number of simulations done in each step.
    """
    parts = []
    n = len(simulations.observation)
    others = np.roll(simulations.derived, 1, axis=0).astype(np.float64)
    kind = "independent" if independent else "published"
    for start in range(0, n, _PART):
        stop = min(start + _PART, n)
        rows = slice(start, stop)
        path = None if folder is None else folder / f"{kind}-{n_samples}-{start}-{stop}.npz"
        if path is not None and path.exists():
            part = _load(path)
        else:
            few, generator = simulations.rows(rows), stream_generator(0, start)
            part = _compare_part(
                artifact,
                few,
                others[rows],
                n_samples=n_samples,
                independent=independent,
                generator=generator,
            )
            _save(path, part)
        parts.append(part)
        progress(stop - start)
    joined = _join(parts)
    return Calibration(U_NAMES + artifact.derived_names, *joined)


def _load(path: Path) -> _Part:
    with np.load(path) as file:
        return _Part(*(file[name] for name in _Part._fields))


def _save(path: Path | None, part: _Part) -> None:
    if path is None:
        return
    with written_whole(path) as partial, partial.open("wb") as stream:
        np.savez(stream, **part._asdict())


def _join(parts: list[_Part]) -> _Part:
    return _Part(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _compare_part(
    artifact: Artifact,
    simulations: Simulations,
    others: Array,
    *,
    n_samples: int,
    independent: bool,
    generator: torch.Generator,
) -> _Part:
    """`others`: derived quantities (n, n_derived) of other simulations, points as random as any."""
    observation, parts = simulations.observation, []
    u_truth, derived = to_u(torch.tensor(simulations.theta)), torch.tensor(simulations.derived)
    truth = torch.cat([u_truth, derived.double()], dim=-1)
    points = torch.cat([draw_u(len(truth), generator), torch.tensor(others)], dim=-1)
    for start in range(0, len(observation), _CHUNK):
        rows = range(start, min(start + _CHUNK, len(observation)))
        drawn = []
        with torch.inference_mode():
            for i in rows:
                base = (
                    torch.randn((N_U, n_samples), generator=generator)
                    if independent
                    else choose_base(observation, i, n_samples, 0)
                )
                drawn.append(_draw(artifact, observation, i, base, u_truth[i]))
            part = slice(rows.start, rows.stop)
            redshift = torch.tensor(observation.redshift[part])
            samples = u_and_derived(artifact, torch.stack([d.u for d in drawn]), redshift)
        parts.append(_compare(samples, truth[part], points[part], drawn))
    return _join(parts)


def _compare(samples: Tensor, truth: Tensor, points: Tensor, drawn: list["_Drawn"]) -> _Part:
    """Samples (n, n_sample, n_name) of n simulations beside truth and points (n, n_name)."""
    log_q = torch.stack([d.log_q for d in drawn], dim=1).numpy()
    log_q_truth = torch.cat([d.log_q_truth for d in drawn]).numpy()
    levels = torch.tensor(LEVELS, dtype=torch.float64)
    return _Part(
        ranks=_ranks(samples, truth).numpy(),
        control=_control(samples).numpy(),
        truth=truth.numpy(),
        quantiles=torch.quantile(samples, levels, dim=1).movedim(0, -1).numpy(),
        tarp=_tarp(samples.numpy(), truth.numpy(), points.numpy()),
        density=density_ranks(log_q, log_q_truth),
        loss=-log_q_truth.astype(np.float64),
    )


class _Drawn(NamedTuple):
    """Samples u (n_sample, n_u), their ln q (n_sample,) and the truth's (1,)."""

    u: Tensor
    log_q: Tensor
    log_q_truth: Tensor


def _draw(
    artifact: Artifact, observation: Observation, i: int, base: Tensor, u_truth: Tensor
) -> _Drawn:
    u, log_q, context = sample_one(artifact, observation.rows(slice(i, i + 1)), base)
    return _Drawn(u, log_q, artifact.flow(u_truth[None].float(), context))


def _ranks(samples: Tensor, truth: Tensor) -> Tensor:
    """Ranks (n, n_name) of truth (n, n_name) among samples (n, n_sample, n_name).

    Half the ties count as below: quantities with a floor or a shared zero stay uniform.
    """
    below = (samples < truth[:, None]).double().sum(dim=1)
    ties = (samples == truth[:, None]).double().sum(dim=1)
    return (below + 0.5 * ties + 0.5) / (samples.shape[1] + 1)


def _control(samples: Tensor) -> Tensor:
    """Ranks (n, N_CONTROL, n_name) of the first samples among all others."""
    n = samples.shape[1]
    every = [_ranks(samples, samples[:, k]) for k in range(N_CONTROL)]
    # A sample ties with itself, which is half a place too much in one place too many.
    return (torch.stack(every, dim=1) * (n + 1) - 0.5) / n


def _tarp(samples: Array, truth: Array, reference: Array) -> Array:
    """TARP levels (n, n_name + 1) of each quantity, and of the parameters together."""
    n_name = samples.shape[-1]
    every = [slice(i, i + 1) for i in range(n_name)] + [slice(0, N_U)]
    levels = [tarp_levels(samples[..., k], truth[:, k], reference[:, k]) for k in every]
    return np.stack(levels, axis=-1)

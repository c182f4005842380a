"""One galaxy in full for the live page: its posterior and the fit to its photometry.

Runs in a process of its own, so that a click costs the daemon nothing but processor time.
"""

import os
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import lru_cache
from multiprocessing import get_context, parent_process
from signal import SIG_IGN, SIGINT, signal
from threading import Lock, Thread
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from consumer.avro import Record
from consumer.summaries import observation_of
from sedflow_core import Artifact, load_artifact, sample
from sedflow_core.errors import MissingExtraError
from sedflow_core.fresh_simulations import forward_model
from sedflow_core.quantities import calc_quantities
from sedflow_core.units import njy_from_nanomaggy

CORNER = ("log_mstar_surviving", "log_sfr_1gyr", "t50", "a_v")
N_SAMPLES = 1024
N_FIT = 200
LEVELS = (0.16, 0.5, 0.84)
TIMEOUT_S = 120.0

Portrait = dict[str, Any]


def warm_up(artifact: str) -> None:
    """Load what portraits need, before the first is asked for.

    The terminal's Ctrl-C reaches every process: the one that serves the page decides what it means.
    """
    signal(SIGINT, SIG_IGN)
    Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    _load(artifact)
    _load_model(artifact)


def _end_with_parent() -> None:
    """The process of a pool does not notice that its parent was killed."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(0)


class Artist:
    """Draws galaxies in a process of its own; in a new one where that has died."""

    def __init__(self, artifact_name: str) -> None:
        self._artifact_name = artifact_name
        self._submitting = Lock()
        self._start()

    def __call__(self, inputs: Record) -> Portrait:
        """Return the portrait of a galaxy. Raises RuntimeError when its process dies meanwhile."""
        return self._submit(inputs).result(TIMEOUT_S)

    def close(self) -> None:
        """Draw no more."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _start(self) -> None:
        self._pool = ProcessPoolExecutor(1, get_context("spawn"))
        self._pool.submit(warm_up, self._artifact_name)

    def _submit(self, inputs: Record) -> Future[Portrait]:
        with self._submitting:
            try:
                return self._pool.submit(draw, self._artifact_name, inputs)
            except BrokenProcessPool:  # by a galaxy before this one
                self._start()
                return self._pool.submit(draw, self._artifact_name, inputs)


def draw(artifact_name: str, inputs: Record) -> Portrait:
    """Return samples of `CORNER`, and observed and predicted fluxes [nJy], of one galaxy.

    Of `CORNER` there is what the artifact has. `inputs` is the record `inputs` of its summary. The
    fit is None, and `no_fit` says why, where the packages of the forward model are not installed.
    """
    artifact = _load(artifact_name)
    observation = observation_of(inputs)
    theta = torch.from_numpy(sample(artifact, observation, N_SAMPLES)[:, 0])
    redshift = torch.from_numpy(observation.redshift)
    names = tuple(name for name in CORNER if name in artifact.derived_names)
    values = calc_quantities(theta, redshift, artifact.tables, names)
    fit, reason = _fit(artifact_name, theta[:N_FIT], redshift)
    return {
        "names": names,
        "samples": [[round(value, 4) for value in row] for row in values.tolist()],
        "bands": inputs["bands"],
        "flux": inputs["flux"],
        "flux_err": inputs["fluxErr"],
        "fit": fit,
        "no_fit": reason,
    }


def _fit(
    artifact_name: str, theta: torch.Tensor, redshift: torch.Tensor
) -> tuple[list[list[float]] | None, str | None]:
    """Return the quantiles `LEVELS` of the flux in each band [nJy], or why there are none."""
    from sedflow_core.galaxy import calc_band_flux

    model = _load_model(artifact_name)
    if isinstance(model, str):
        return None, model
    flux: NDArray[np.float64] = calc_band_flux(model, theta, redshift.expand(len(theta))).numpy()
    quantiles = np.quantile(njy_from_nanomaggy(flux), LEVELS, axis=0)
    return quantiles.tolist(), None


@lru_cache(maxsize=1)
def _load(artifact_name: str) -> Artifact:
    return load_artifact(artifact_name)


@lru_cache(maxsize=1)
def _load_model(artifact_name: str) -> Any:
    """Return the galaxy model, or the reason why it cannot be built."""
    try:
        return forward_model(_load(artifact_name)).galaxy
    except MissingExtraError as error:
        return str(error)

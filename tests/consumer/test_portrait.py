"""A galaxy in full: its posterior agrees with its summary, its fit with its photometry."""

import subprocess
import sys
import time
from contextlib import closing, suppress
from pathlib import Path

import numpy as np
import torch

from consumer.portrait import CORNER, LEVELS, Artist, draw
from sedflow_core import Artifact, Observation, estimate, simulate
from sedflow_core.summary import quantiles
from sedflow_core.units import nanomaggy_from_njy, njy_from_nanomaggy
from tests.bench.processes import read_usage


def test_it_agrees_with_the_summary(shipped: Artifact) -> None:
    seen = simulate(shipped, 8, seed=3).observation
    told, told_err = (njy_from_nanomaggy(f).astype(np.float32) for f in (seen.flux, seen.flux_err))
    galaxy = Observation(nanomaggy_from_njy(told), nanomaggy_from_njy(told_err), seen.redshift)
    summary = estimate(shipped, galaxy, n_samples=1024, include_unsupported=True)
    row = int(np.argmin(summary.flags))
    inputs = {
        "bands": list(shipped.bands.names),
        "flux": told[row].tolist(),
        "fluxErr": told_err[row].tolist(),
        "redshift": float(galaxy.redshift[row]),
    }
    portrait = draw("sdss-ugriz", inputs)
    samples = np.array(portrait["samples"])
    assert samples.shape == (1024, len(CORNER))
    for name, column in zip(CORNER, samples.T, strict=True):
        median = quantiles(torch.tensor(np.sort(column)), (0.5,))[0]
        np.testing.assert_allclose(median, summary.quantile(name, 0.5)[row], atol=0.02)
    fit = np.array(portrait["fit"])
    assert fit.shape == (len(LEVELS), len(shipped.bands.names))
    distance = (fit[1] - inputs["flux"]) / inputs["fluxErr"]
    assert np.abs(distance[1:4]).max() < 3.0


OF_A_PARENT = """
import os, sys, time
from pathlib import Path
from consumer.portrait import Artist

if __name__ == "__main__":
    artist = Artist(sys.argv[1])
    while not artist._pool._processes:
        time.sleep(0.1)
    artist._pool.submit(len, ()).result()
    print(*artist._pool._processes, flush=True)
    os.kill(os.getpid(), 9)
"""


def test_its_process_ends_with_one_that_is_killed(tiny_path: Path, tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(OF_A_PARENT)
    command = [sys.executable, str(script), str(tiny_path)]
    pid = int(subprocess.run(command, stdout=subprocess.PIPE, check=False, timeout=300).stdout)
    deadline = time.monotonic() + 30.0
    with suppress(ProcessLookupError):
        while read_usage(pid):
            assert time.monotonic() < deadline
            time.sleep(0.2)


def test_a_process_that_died_is_replaced(tiny_path: Path, tiny: Artifact) -> None:
    flux, flux_err = (njy_from_nanomaggy(tiny.golden[n].numpy()[0]) for n in ("flux", "flux_err"))
    inputs = {
        "bands": list(tiny.bands.names),
        "flux": flux.tolist(),
        "fluxErr": flux_err.tolist(),
        "redshift": float(tiny.golden["redshift"][0]),
    }
    with closing(Artist(str(tiny_path))) as artist:
        portrait = artist(inputs)
        (process,) = artist._pool._processes.values()
        process.kill()
        with suppress(RuntimeError):  # its death may not be noticed yet
            assert artist(inputs) == portrait
        assert artist(inputs) == portrait

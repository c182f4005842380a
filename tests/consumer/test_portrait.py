"""A galaxy in full: its posterior agrees with its summary, its fit with its photometry."""

import numpy as np

from consumer.portrait import CORNER, LEVELS, draw
from sedflow_core import Artifact, estimate, simulate
from sedflow_core.units import njy_from_nanomaggy


def test_it_agrees_with_the_summary(shipped: Artifact) -> None:
    galaxy = simulate(shipped, 8, seed=3).observation
    summary = estimate(shipped, galaxy, n_samples=1024, include_unsupported=True)
    row = int(np.argmin(summary.flags))
    inputs = {
        "bands": list(shipped.bands.names),
        "flux": njy_from_nanomaggy(galaxy.flux[row]).tolist(),
        "fluxErr": njy_from_nanomaggy(galaxy.flux_err[row]).tolist(),
        "redshift": float(galaxy.redshift[row]),
    }
    portrait = draw("sdss-ugriz", inputs)
    samples = np.array(portrait["samples"])
    assert samples.shape == (1024, len(CORNER))
    for name, column in zip(CORNER, samples.T, strict=True):
        np.testing.assert_allclose(
            np.quantile(column, 0.5), summary.quantile(name, 0.5)[row], atol=0.02
        )
    fit = np.array(portrait["fit"])
    assert fit.shape == (len(LEVELS), len(shipped.bands.names))
    distance = (fit[1] - inputs["flux"]) / inputs["fluxErr"]
    assert np.abs(distance[1:4]).max() < 3.0

"""The same artifact on a GPU; skipped where torch finds none."""

import numpy as np
import pytest
import torch

from sedflow_core import Artifact, Observation, estimate, load_artifact, sample
from sedflow_core.errors import ArtifactError

HAS_GPU = torch.cuda.is_available()
needs_gpu = pytest.mark.skipif(not HAS_GPU, reason="torch finds no GPU")


@pytest.fixture(scope="module")
def on_gpu() -> Artifact:
    return load_artifact("sdss-ugriz", device="cuda")


@pytest.fixture(scope="module")
def on_cpu() -> Artifact:
    return load_artifact("sdss-ugriz")


@pytest.fixture(scope="module")
def golden(on_cpu: Artifact) -> Observation:
    return Observation(*(on_cpu.golden[name] for name in ("flux", "flux_err", "redshift")))


@pytest.mark.skipif(HAS_GPU, reason="there is a GPU")
def test_a_missing_gpu_is_named() -> None:
    with pytest.raises(ArtifactError, match="expected a GPU for 'cuda', got none"):
        load_artifact("sdss-ugriz", device="cuda")


@needs_gpu
@pytest.mark.parametrize("n_samples", [256, 1024, 10_000])
def test_summaries_are_those_of_the_cpu(on_gpu, on_cpu, golden, n_samples) -> None:
    there, here = (estimate(artifact, golden, n_samples) for artifact in (on_gpu, on_cpu))
    np.testing.assert_array_equal(there.flags, here.flags)
    scale = here.std[..., None]
    np.testing.assert_allclose(there.quantiles / scale, here.quantiles / scale, atol=1e-3)
    np.testing.assert_allclose(there.mean / here.std, here.mean / here.std, atol=1e-3)
    np.testing.assert_allclose(there.std / here.std, 1.0, atol=1e-3)
    for name, values in here.probabilities.items():
        np.testing.assert_allclose(there.probabilities[name], values, atol=2 / n_samples)
    for name in ("chi_square", "p_value", "efficiency"):
        np.testing.assert_allclose(there.trust[name], here.trust[name], rtol=0.02, atol=1e-3)


@needs_gpu
def test_samples_are_those_of_the_cpu(on_gpu, on_cpu, golden) -> None:
    there, here = (sample(artifact, golden, 512) for artifact in (on_gpu, on_cpu))
    difference = np.abs(there - here) / here.std(axis=0)
    assert np.quantile(difference, 0.999) < 1e-3


@needs_gpu
def test_batches_change_no_bit(on_gpu, golden) -> None:
    whole = estimate(on_gpu, golden)
    for i in range(len(golden)):
        one = estimate(on_gpu, golden.rows(slice(i, i + 1)))
        np.testing.assert_array_equal(one.quantiles[0], whole.quantiles[i])
        np.testing.assert_array_equal(one.covariance[0], whole.covariance[i])


@needs_gpu
def test_odd_rows_keep_their_flags(on_gpu, on_cpu, golden) -> None:
    flux = golden.flux.copy()
    flux[0, 2], flux[1, 0], flux[2] = np.nan, -3.0, 1e6
    odd = Observation(flux, golden.flux_err, golden.redshift)
    there, here = (estimate(artifact, odd, 64) for artifact in (on_gpu, on_cpu))
    np.testing.assert_array_equal(there.flags, here.flags)
    np.testing.assert_array_equal(np.isnan(there.mean), np.isnan(here.mean))

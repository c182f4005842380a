"""A complete small artifact for tests: real format, synthetic stars, untrained flow."""

from pathlib import Path

from sedflow_core.batches import asinh_softening
from sedflow_core.build import build_artifact
from sedflow_core.flow import FlowConfig, MaskedAutoregressiveFlow
from sedflow_core.observation import fit_context_scale
from sedflow_core.simulation import ForwardConfig, simulate_noisy


def tiny_artifact(folder: Path, seed: int = 0, ssp: str = "synthetic") -> Path:
    """Write an artifact with an untrained two-block flow in ugriz; returns its folder.

    Its posteriors are close to the prior: it exercises every code path but measures nothing.
    """
    forward = ForwardConfig(ssp=ssp)
    model = forward.build()
    rows = simulate_noisy(model, 5_000, seed=seed)
    config = FlowConfig(n_block=2, n_hidden=20, activation="relu", seed=seed)
    build_artifact(
        folder,
        name="tiny",
        version="0",
        flow=MaskedAutoregressiveFlow(config),
        flow_config=config,
        scale=fit_context_scale(
            rows.flux, rows.flux_err, rows.redshift, asinh_softening(model.noise)
        ),
        forward=forward,
        n_samples=64,
        training={"note": "untrained"},
        n_support=20_000,
    )
    return folder

"""A trained flow and its forward model -> an artifact folder."""

from itertools import compress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sedflow_core.artifact import Artifact, read_artifact, write_artifact
from sedflow_core.emulator_tables import build_emulator
from sedflow_core.errors import ArtifactError
from sedflow_core.estimation import estimate
from sedflow_core.flow import FlowConfig, MaskedAutoregressiveFlow
from sedflow_core.galaxy import COSMOLOGY
from sedflow_core.observation import ContextScale, Observation
from sedflow_core.prior import PARAM_NAMES, from_u, prior_digest
from sedflow_core.quantities import calc_quantities
from sedflow_core.sfh import DERIVED_NAMES
from sedflow_core.simulation import (
    ForwardConfig,
    ForwardModel,
    NoisySimulations,
    draw_prior,
    simulate_noisy,
)
from sedflow_core.ssp import check_populations
from sedflow_core.support import check_support, fit_support
from sedflow_core.trust import TrustTables
from sedflow_core.version import __version__

MIN_SUPPORT = 500
"""Simulations below which neither limits nor golden galaxies can be had."""
N_GOLDEN = 8
N_GOLDEN_SAMPLES = 256
SUPPORT_SEED = 7_000
PRIOR_SEED = 8_000
N_PRIOR = 50_000


def build_artifact(
    folder: Path,
    *,
    name: str,
    version: str,
    flow: MaskedAutoregressiveFlow,
    flow_config: FlowConfig,
    scale: ContextScale,
    forward: ForwardConfig,
    n_samples: int = 1024,
    training: dict[str, Any],
    n_support: int = 400_000,
) -> Artifact:
    """Write an artifact: support limits from fresh simulations, serving tables, golden vectors.

    Derived quantities that the stellar populations do not tell are left out.

    Args:
        folder: receives manifest.json and arrays.safetensors.
        name, version: of the artifact.
        flow, flow_config, scale: the trained flow, its size and its context constants.
        forward: the forward model it was trained on.
        n_samples: default number of posterior samples.
        training: provenance of the training run, for the manifest.
        n_support: noisy simulations behind the support limits.

    Raises:
        ArtifactError: fewer simulations than the support can be found from, or a flow of other
            parameters.
        GridError: the stellar populations here are not those of the training set.
    """
    if n_support < MIN_SUPPORT:
        raise ArtifactError(f"n_support: expected {MIN_SUPPORT} or more, got {n_support}")
    model = forward.build()
    seen = training.get("training_set", {}).get("ssp", model.galaxy.ssp_provenance)
    check_populations("training set", seen, model.galaxy.ssp_provenance)
    parameters = training.get("training_set", {}).get("prior_sha256", prior_digest())
    if parameters != prior_digest():
        raise ArtifactError(f"parameters: expected {prior_digest()}, got {parameters}")
    simulations = simulate_noisy(model, n_support, seed=SUPPORT_SEED)
    bands = model.galaxy.bands
    photometry = (simulations.flux, simulations.flux_err, simulations.redshift)
    support = fit_support(
        *photometry, noise=model.noise, redshift_range=model.redshift_range, bands=bands
    )
    flags = check_support(*photometry, support, bands)
    trust = build_trust_tables(model)
    known = trust.prior_width[-len(DERIVED_NAMES) :].isfinite().tolist()
    provenance = {
        "code_version": __version__,
        "forward_model": forward.document(),
        "ssp": model.galaxy.ssp_provenance,
        "training": training,
        "support": {
            "n_simulations": n_support,
            "seed": SUPPORT_SEED,
            "flagged_fraction": float((flags != 0).double().mean()),
        },
    }

    def write(golden: dict[str, Tensor]) -> None:
        write_artifact(
            folder,
            name=name,
            version=version,
            bands=bands,
            flow=flow,
            flow_config=flow_config,
            scale=scale,
            support=support,
            tables=model.galaxy.tables,
            golden=golden,
            n_samples=n_samples,
            assumptions=assumptions(forward, model),
            provenance=provenance,
            derived_names=tuple(compress(DERIVED_NAMES, known)),
            trust=trust,
        )

    write({})
    write(_golden(read_artifact(folder), simulations, flags))
    return read_artifact(folder)


def build_trust_tables(model: ForwardModel) -> TrustTables:
    """Emulator, noise and prior widths of a forward model."""
    generator = torch.Generator().manual_seed(PRIOR_SEED)
    u, redshift = draw_prior(model, N_PRIOR, generator)
    names = PARAM_NAMES + DERIVED_NAMES
    values = calc_quantities(from_u(u), redshift, model.galaxy.tables, names)
    low, high = torch.quantile(values, torch.tensor([0.16, 0.84], dtype=values.dtype), dim=0)
    return TrustTables(build_emulator(model.galaxy), model.noise, 0.5 * (high - low))


def _golden(artifact: Artifact, simulations: NoisySimulations, flags: Tensor) -> dict[str, Tensor]:
    index = (flags == 0).nonzero().flatten()[:N_GOLDEN]
    photometry = [t[index] for t in (simulations.flux, simulations.flux_err, simulations.redshift)]
    observation = Observation(*(t.numpy() for t in photometry))
    summary = estimate(artifact, observation, n_samples=N_GOLDEN_SAMPLES)
    names = ("flux", "flux_err", "redshift")
    return {
        **dict(zip(names, photometry, strict=True)),
        "n_samples": torch.tensor(N_GOLDEN_SAMPLES),
        "quantiles": torch.tensor(summary.quantiles),
    }


def assumptions(forward: ForwardConfig, model: ForwardModel) -> dict[str, str]:
    """What a user of the posteriors must know of the model behind them."""
    ssp = model.galaxy.ssp_provenance
    return {
        "ssp_grid": forward.ssp,
        "imf": str(ssp["imf"]),
        "cosmology": COSMOLOGY,
        "mass_definition": "log_mstar is mass formed; log_mstar_surviving counts living stars "
        "and remnants",
        "birth_cloud_age_gyr": str(forward.birth_cloud_age_gyr),
        "noise": forward.noise,
        "emission": "stars only: no nebular emission, no IGM absorption",
        "prior": _describe_prior(forward.prior or []),
        "prior_note": "below the SSP grid's lowest metallicity the spectra do not depend on gamma",
    }


def _describe_prior(factors: list[dict[str, Any]]) -> str:
    text = "of the parameter table"
    if not factors:
        return text
    departures = (_describe_distribution(factor["name"], **factor["wanted"]) for factor in factors)
    return f"{text}, but for {'; '.join(departures)}"


def _describe_distribution(name: str, distribution: str, **numbers: Any) -> str:
    values = ", ".join(f"{field} {value}" for field, value in numbers.items())
    return f"{name}: {distribution} ({values})"

"""The emulator's tables from a galaxy model: SSPs through the bands, dust at a few wavelengths."""

from typing import NamedTuple

import torch
from torch import Tensor

from sedflow_core.dust import attenuation_curve, birth_cloud_curve
from sedflow_core.emulator import EmulatorTables
from sedflow_core.galaxy import GalaxyModel
from sedflow_core.interpolate import locate
from sedflow_core.prior import column, draw_u, from_u
from sedflow_core.sfh import BIN_EDGES_GYR

REDSHIFT_STEP = 0.01
N_NODE = 5
"""Wavelengths per band at which dust is evaluated."""
_BURST_AGE_MIN = 0.009
_N_CURVE = 2_000
_RCOND = 1e-7


class DustParameters(NamedTuple):
    """Dust parameters (n_curve,) of an ensemble, as `sedflow_core.prior` names them."""

    tau_bc: Tensor
    tau_ism: Tensor
    n_dust: Tensor


def build_emulator(model: GalaxyModel) -> EmulatorTables:
    """Tabulate a galaxy model for `sedflow_core.emulator.emulate`."""
    stride = max(1, round(REDSHIFT_STEP / model.redshift_step))
    index = torch.arange(0, model.photometry.shape[0] + stride - 1, stride)
    index = index.clamp_max(model.photometry.shape[0] - 1).unique()
    redshift = index.double() * model.redshift_step
    n_band = len(model.bands.names)
    photometry = model.photometry[index].double().view(len(index), len(model.wave), n_band)
    age = _ages(model)
    ssp = _ssp_at(model, age)
    dust = _draw_dust()
    wave = _dust_nodes(model, photometry, redshift, dust)
    band_flux = [
        ssp @ _node_weights(model, p, wave / (1.0 + z), dust).flatten(1)
        for p, z in zip(photometry, redshift, strict=True)
    ]
    return EmulatorTables(
        redshift=redshift,
        wave=wave,
        age_gyr=age,
        band_flux=torch.stack(band_flux).float(),
        birth_cloud_age_gyr=torch.tensor([model.birth_cloud_age_gyr], dtype=torch.float64),
    )


def _ages(model: GalaxyModel) -> Tensor:
    """Centres of the time bins, and the grid's own ages where a burst can be."""
    edges = torch.tensor(BIN_EDGES_GYR, dtype=torch.float64)
    grid = 10.0 ** model.tables.ssp_lg_age_gyr.double()
    burst = grid[(grid > _BURST_AGE_MIN) & (grid < 1.05 * BIN_EDGES_GYR[-1])]
    ages: Tensor = torch.cat([0.5 * (edges[1:] + edges[:-1]), burst]).unique()
    return ages


def _ssp_at(model: GalaxyModel, age_gyr: Tensor) -> Tensor:
    """SSP flux (n_met, n_age, n_wave), log-linear over log age, float64."""
    index, fraction = locate(age_gyr.log10(), model.tables.ssp_lg_age_gyr.double())
    ln_ssp = model.ln_ssp.double()
    flux: Tensor = torch.lerp(ln_ssp[:, index], ln_ssp[:, index + 1], fraction[:, None]).exp()
    return flux


def _dust_nodes(
    model: GalaxyModel, photometry: Tensor, redshift: Tensor, dust: DustParameters
) -> Tensor:
    """Observed wavelengths (n_band, n_node), each where the earlier ones say least (greedy).

    Where the dust is thick even a filter's red leak gets a node.
    """
    stretch = 1.0 + float(redshift[len(redshift) // 2])
    everywhere = _transmission(dust, model.wave.double())
    nodes = []
    for band in photometry[len(redshift) // 2].T:
        missing = everywhere * band
        missing = missing / missing.sum(dim=1, keepdim=True)
        chosen = []
        for _ in range(N_NODE):
            chosen.append(int(missing.square().sum(dim=0).argmax()))
            axis = missing[:, chosen[-1]] / missing[:, chosen[-1]].norm()
            missing = missing - axis[:, None] * (axis @ missing)
        nodes.append(model.wave.double()[sorted(chosen)] * stretch)
    return torch.stack(nodes)


def _draw_dust() -> DustParameters:
    """Dust from the prior, half of it without birth clouds."""
    theta = from_u(draw_u(_N_CURVE, torch.Generator().manual_seed(0)))
    in_cloud = (torch.arange(_N_CURVE) % 2).double()
    return DustParameters(*(column(theta, n) for n in DustParameters._fields))._replace(
        tau_bc=column(theta, "tau_bc") * in_cloud
    )


def _transmission(dust: DustParameters, wave_rest: Tensor) -> Tensor:
    """Fraction of light (n_curve, n_wave) that passes each dust of the ensemble."""
    tau_bc, tau_ism, n_dust = (values[:, None] for values in dust)
    diffuse = tau_ism * attenuation_curve(wave_rest, n_dust)
    return torch.exp(-tau_bc * birth_cloud_curve(wave_rest) - diffuse)


def _node_weights(
    model: GalaxyModel, photometry: Tensor, nodes: Tensor, dust: DustParameters
) -> Tensor:
    """Weights (n_wave, n_band, n_node): transmission ~ sum over nodes of weight * value there."""
    everywhere = _transmission(dust, model.wave.double())
    weights = []
    for band, node_wave in zip(photometry.T, nodes, strict=True):
        at_nodes = _transmission(dust, node_wave)
        mean = (everywhere * band).sum(dim=1, keepdim=True) / band.sum()
        solution = torch.linalg.pinv(at_nodes / mean, rtol=_RCOND) @ (everywhere / mean)
        weights.append((solution * band).T)
    return torch.stack(weights, dim=1)

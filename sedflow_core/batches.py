"""Batches of a training set, with noise drawn anew and the cuts made on the noisy photometry."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from sedflow_core.errors import TrainingError
from sedflow_core.noise import NoiseModel, draw_noise, in_mag_range
from sedflow_core.observation import ContextScale, fit_context_scale
from sedflow_core.simulation import TrainingSet
from sedflow_core.units import NANOMAGGY_ZERO_POINT, POGSON

_CHUNK = 65_536
_N_SCALE_ROWS = 300_000


class Batch(NamedTuple):
    """Network inputs: u (n, n_u) and context (n, n_context), float32."""

    u: Tensor
    context: Tensor


def noisy_batches(
    rows: TrainingSet,
    noise: NoiseModel,
    generator: torch.Generator,
    encode: Callable[[Tensor, Tensor, Tensor], Tensor],
    batch_size: int,
) -> Iterator[Batch]:
    """Shuffled batches with fresh noise; rows whose noisy photometry leaves the cuts drop out.

    Only the last batch may be smaller.
    """
    left: Batch | None = None
    for index in draw_order(rows, generator).split(_CHUNK):
        flux, flux_err = draw_noise(rows.flux[index].double(), noise, generator)
        keep = in_mag_range(flux, noise)
        redshift = rows.redshift[index][keep].double()
        ready = Batch(rows.u[index][keep], encode(flux[keep], flux_err[keep], redshift))
        if left is not None:
            ready = Batch(*map(torch.cat, zip(left, ready, strict=True)))
        *full, left = map(Batch, ready.u.split(batch_size), ready.context.split(batch_size))
        yield from full
    if left is not None and len(left.u) > 0:
        yield left


def draw_order(rows: TrainingSet, generator: torch.Generator) -> Tensor:
    """Shuffled indices of as many rows as there are: each row once, or as often as it weighs."""
    device = rows.u.device
    order = torch.randperm(len(rows.u), generator=generator, device=device)
    if rows.weight is None:
        return order
    cumulative = rows.weight.cumsum(dim=0) / rows.weight.sum()
    # One point in each of n equal steps: a row of weight 1 is there once, give or take one.
    offset = torch.rand(len(order), generator=generator, dtype=torch.float64, device=device)
    points = (torch.arange(len(order), device=device) + offset) / len(order)
    return torch.searchsorted(cumulative, points[order]).clamp_max(len(order) - 1)


def split_rows(rows: TrainingSet, fraction: float, seed: int) -> tuple[TrainingSet, TrainingSet]:
    """Training and validation rows."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(rows.u), generator=generator)
    n_validation = int(fraction * len(order))
    if n_validation == 0:
        raise TrainingError(
            f"validation_fraction: expected at least one of {len(order)} rows, got {fraction}"
        )
    validation, training = order[:n_validation], order[n_validation:]
    return rows.map(lambda t: t[training]), rows.map(lambda t: t[validation])


def fit_scale(rows: TrainingSet, noise: NoiseModel, seed: int) -> tuple[ContextScale, float]:
    """Context constants, and the fraction of rows whose noisy photometry passes the cuts.

    Raises:
        TrainingError: too few pass for the constants.
    """
    generator = torch.Generator().manual_seed(seed)
    some = torch.arange(len(rows.u)) if rows.weight is None else draw_order(rows, generator)
    some = some[:_N_SCALE_ROWS]
    flux, flux_err = draw_noise(rows.flux[some].double(), noise, generator)
    keep = in_mag_range(flux, noise)
    least = 2 * flux.shape[1] + 2
    if keep.sum() < least:
        raise TrainingError(
            f"training set: expected at least {least} rows inside the magnitude range, "
            f"got {int(keep.sum())} of {len(keep)}"
        )
    redshift = rows.redshift[some][keep].double()
    scale = fit_context_scale(flux[keep], flux_err[keep], redshift, asinh_softening(noise))
    return scale, float(keep.double().mean())


def asinh_softening(noise: NoiseModel) -> Tensor:
    """Asinh softening (n_band,) [nanomaggies]: a quarter of the error at the faint limit."""
    faint_flux = 10.0 ** (0.4 * (NANOMAGGY_ZERO_POINT - noise.mag_range[:, 1]))
    softening: Tensor = 0.25 * faint_flux * noise.mean[:, -1] / POGSON
    return softening

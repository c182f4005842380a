"""Star-formation and metallicity histories, and the quantities derived from them.

PROVABGS (Hahn et al. 2022): four NMF bases for the star-formation history, two for the metallicity
history, and one burst, in 42 bins of lookback time from the observed epoch, cut at the age of the
universe. Needs only the small `PopulationTables`, no SSP spectra and no cosmology package.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from sedflow_core.dust import attenuation_curve
from sedflow_core.interpolate import Position, interpolate, locate
from sedflow_core.prior import column, columns
from sedflow_core.units import POGSON

Z_RANGE = (4.49e-5, 4.49e-2)
LG_SSFR_FLOOR = -14.0
"""log10 of the specific rate [1/yr, per mass formed] stated for a window without star formation."""
BIN_EDGES_GYR: tuple[float, ...] = (0.0, *(10.0 ** (6.05 + 0.1 * k - 9.0) for k in range(41)), 13.8)
N_BIN = len(BIN_EDGES_GYR) - 1


class Derived(NamedTuple):
    """One derived quantity: name, unit, meaning and label."""

    name: str
    unit: str
    meaning: str
    label: str


DERIVED: tuple[Derived, ...] = (
    Derived(
        "log_mstar_surviving",
        "log10(Msun)",
        "mass in living stars and remnants",
        r"$\log M_{\ast,\rm surv}$",
    ),
    Derived(
        "log_sfr_1gyr",
        "log10(Msun/yr)",
        "mass formed in the last 1 Gyr / 1 Gyr, burst included",
        r"$\log {\rm SFR}_{1\,\rm Gyr}$",
    ),
    Derived(
        "log_sfr_100myr",
        "log10(Msun/yr)",
        "mass formed in the last 100 Myr / 100 Myr, burst included",
        r"$\log {\rm SFR}_{100\,\rm Myr}$",
    ),
    Derived(
        "log_ssfr_1gyr",
        "log10(1/yr)",
        "log_sfr_1gyr minus log_mstar_surviving",
        r"$\log {\rm sSFR}_{1\,\rm Gyr}$",
    ),
    Derived("z_mw", "mass fraction", "metallicity weighted by mass formed", r"$Z_{\rm MW}$"),
    Derived("t_age_mw", "Gyr", "lookback age weighted by mass formed", r"$t_{\rm age,MW}$"),
    Derived("t50", "Gyr", "lookback time by which half the mass had formed", r"$t_{50}$"),
    Derived("a_v", "mag", "diffuse-dust attenuation at 5500 A", r"$A_V$"),
)
DERIVED_NAMES: tuple[str, ...] = tuple(d.name for d in DERIVED)


class PopulationTables(NamedTuple):
    """Small tables that replace cosmology, NMF files and SSP grid when serving.

    Attributes:
        redshift: (n_z,) ascending from 0.
        t_age_gyr, luminosity_distance_mpc: (n_z,) age of the universe and luminosity distance.
        lookback_gyr: (n_t,) ascending from 0.
        sfh_cumulative: (4, n_t) integral of each SFH basis from 0 to lookback_gyr.
        zh: (2, n_t) metallicity-history bases.
        ssp_lg_age_gyr: (n_age,), ssp_lgmet: (n_met,) log10 age and log10 Z of the SSP grid.
        surviving: (n_met, n_age) mass in stars and remnants per mass formed.
    """

    redshift: Tensor
    t_age_gyr: Tensor
    luminosity_distance_mpc: Tensor
    lookback_gyr: Tensor
    sfh_cumulative: Tensor
    zh: Tensor
    ssp_lg_age_gyr: Tensor
    ssp_lgmet: Tensor
    surviving: Tensor


class TimeBins(NamedTuple):
    """Lookback-time bins of n galaxies, cut at the age of the universe.

    Attributes:
        t_age: (n,) age of the universe [Gyr].
        low, high, center: (n, n_bin) [Gyr]; bins beyond t_age have zero width.
        basis_mass: (n, 4, n_bin) integral of each SFH basis over the bin.
        zh: (n, 2, n_bin) metallicity bases at the bin centres.
        surviving: (n, n_met, n_bin) surviving mass fraction at the bin centres.
    """

    t_age: Tensor
    low: Tensor
    high: Tensor
    center: Tensor
    basis_mass: Tensor
    zh: Tensor
    surviving: Tensor


class History(NamedTuple):
    """Mass and metallicity against lookback time, of samples (n, n_sample).

    Attributes:
        mass: (n, n_sample, n_bin) mass formed per bin by the NMF part, sums to 1 - burst.
        met: (n, n_sample, n_bin) metallicity Z of the bins, mass fraction.
        burst, burst_age, burst_met: (n, n_sample) mass fraction, age [Gyr] and Z of the burst; the
            fraction is 0 where the burst would precede the universe.
    """

    mass: Tensor
    met: Tensor
    burst: Tensor
    burst_age: Tensor
    burst_met: Tensor


def calc_time_bins(redshift: Tensor, tables: PopulationTables) -> TimeBins:
    """The lookback-time bins at redshift (n,)."""
    t_age = interpolate(redshift.to(tables.redshift.dtype), tables.redshift, tables.t_age_gyr)
    edges = t_age.new_tensor(BIN_EDGES_GYR)
    cut = torch.minimum(edges, t_age[:, None])
    low, high = cut[:, :-1], cut[:, 1:]
    center = 0.5 * (low + high)
    cumulative = interpolate(cut, tables.lookback_gyr, tables.sfh_cumulative)
    zh = interpolate(center, tables.lookback_gyr, tables.zh)
    surviving = interpolate(center.log10(), tables.ssp_lg_age_gyr, tables.surviving)
    return TimeBins(
        t_age=t_age.float(),
        low=low.float(),
        high=high.float(),
        center=center.float(),
        basis_mass=cumulative.diff(dim=-1).movedim(0, 1).float(),
        zh=zh.movedim(0, 1).float(),
        surviving=surviving.movedim(0, 1).float(),
    )


def calc_history(theta: Tensor, bins: TimeBins, tables: PopulationTables) -> History:
    """Histories of parameters theta (n, n_sample, n_theta), per unit mass formed."""
    beta = columns(theta, "beta1", "beta2", "beta3", "beta4")
    gamma = columns(theta, "gamma1", "gamma2")
    burst_age = column(theta, "tburst")
    burst = torch.where(
        burst_age > bins.t_age[:, None], torch.zeros_like(burst_age), column(theta, "fburst")
    )
    mass = beta @ bins.basis_mass
    mass = mass * ((1.0 - burst) / mass.sum(dim=-1)).unsqueeze(-1)
    burst_zh = interpolate(burst_age, tables.lookback_gyr.float(), tables.zh.float())
    burst_met = (gamma * burst_zh.movedim(0, -1)).sum(dim=-1)
    return History(
        mass=mass,
        met=(gamma @ bins.zh).clamp(*Z_RANGE),
        burst=burst,
        burst_age=burst_age,
        burst_met=burst_met.clamp(*Z_RANGE),
    )


def locate_met(met: Tensor, tables: PopulationTables) -> Position:
    """Position of metallicity Z (...) among the SSP grid's log10 Z."""
    return locate(met.log10(), tables.ssp_lgmet.to(met.dtype))


def surviving_mass(history: History, bins: TimeBins, tables: PopulationTables) -> Tensor:
    """Mass in stars and remnants per mass formed; (n, n_sample)."""
    index, fraction = locate_met(history.met, tables)
    n_bin = bins.surviving.shape[-1]
    flat = bins.surviving.flatten(1)
    offset = index * n_bin + torch.arange(n_bin, device=index.device)
    low = flat.gather(1, offset.flatten(1)).view_as(history.met)
    high = flat.gather(1, (offset + n_bin).flatten(1)).view_as(history.met)
    of_bins = (history.mass * torch.lerp(low, high, fraction)).sum(dim=-1)
    return of_bins + history.burst * _surviving_burst(history, tables)


def _surviving_burst(history: History, tables: PopulationTables) -> Tensor:
    met = locate_met(history.burst_met, tables)
    age = locate(history.burst_age.log10(), tables.ssp_lg_age_gyr.float())
    surviving = tables.surviving.float()
    young = torch.lerp(surviving[met.low, age.low], surviving[met.low + 1, age.low], met.fraction)
    old = torch.lerp(
        surviving[met.low, age.low + 1], surviving[met.low + 1, age.low + 1], met.fraction
    )
    return torch.lerp(young, old, age.fraction)


def younger_fraction(bins: TimeBins, window_gyr: float) -> Tensor:
    """Fraction of each bin (n, n_bin) younger than the window; straddling bins are split."""
    width = (bins.high - bins.low).clamp_min(torch.finfo(bins.low.dtype).tiny)
    return ((window_gyr - bins.low) / width).clamp(0.0, 1.0)


def recent_mass(history: History, bins: TimeBins, window_gyr: float) -> Tensor:
    """Fraction of the mass formed within the last window [Gyr]; (n, n_sample)."""
    of_bins = history.mass @ younger_fraction(bins, window_gyr).unsqueeze(-1)
    return of_bins.squeeze(-1) + history.burst * (history.burst_age <= window_gyr)


def half_mass_time(history: History, bins: TimeBins) -> Tensor:
    """Lookback time t50 [Gyr] by which half the mass had formed; (n, n_sample).

    Mass is uniform within a bin; the burst is a step at its age.
    """
    burst_age, high = history.burst_age.unsqueeze(-1), bins.high.unsqueeze(1)
    formed_since = history.mass.cumsum(dim=-1)
    with_burst = formed_since + history.burst.unsqueeze(-1) * (burst_age <= high)
    index = (with_burst < 0.5).sum(dim=-1, keepdim=True).clamp_max(N_BIN - 1)
    low = bins.low.unsqueeze(1).expand_as(with_burst).gather(-1, index).squeeze(-1)
    width = (high - bins.low.unsqueeze(1)).expand_as(with_burst).gather(-1, index).squeeze(-1)
    mass = history.mass.gather(-1, index).squeeze(-1)
    before = formed_since.gather(-1, index).squeeze(-1) - mass
    earlier_burst = history.burst * (history.burst_age <= low)
    rate = mass.clamp_min(torch.finfo(mass.dtype).tiny) / width
    without = low + (0.5 - before - earlier_burst) / rate
    after = low + (0.5 - before - history.burst) / rate
    in_bin = (history.burst_age > low) & (history.burst_age <= low + width)
    after_burst = torch.maximum(after, history.burst_age)
    return torch.where(in_bin & (without > history.burst_age), after_burst, without)


def calc_derived(
    theta: Tensor, redshift: Tensor, tables: PopulationTables, names: tuple[str, ...]
) -> Tensor:
    """Derived quantities (n, n_sample, len(names)) of theta (n, n_sample, n_theta).

    Args:
        theta: physical parameters, float32.
        redshift: (n,).
        tables: see `PopulationTables`.
        names: which of `DERIVED_NAMES`, in the order wanted.

    A window in which nothing formed has log10 (SFR / mass formed) = `LG_SSFR_FLOOR`.
    """
    bins = calc_time_bins(redshift, tables)
    history = calc_history(theta, bins, tables)
    log_mstar = column(theta, "log_mstar")
    log_surviving = log_mstar + surviving_mass(history, bins, tables).log10()
    log_sfr_1gyr = log_mstar + _log_rate(history, bins, 1.0)
    values = {
        "log_mstar_surviving": log_surviving,
        "log_sfr_1gyr": log_sfr_1gyr,
        "log_sfr_100myr": log_mstar + _log_rate(history, bins, 0.1),
        "log_ssfr_1gyr": log_sfr_1gyr - log_surviving,
        "z_mw": (history.mass * history.met).sum(dim=-1) + history.burst * history.burst_met,
        "t_age_mw": (history.mass @ bins.center.unsqueeze(-1)).squeeze(-1)
        + history.burst * history.burst_age,
        "t50": half_mass_time(history, bins),
        "a_v": _a_v(theta),
    }
    return torch.stack([values[name] for name in names], dim=-1)


def _log_rate(history: History, bins: TimeBins, window_gyr: float) -> Tensor:
    """log10 of the mean rate per mass formed over the window [1/yr]."""
    rate = recent_mass(history, bins, window_gyr) / (window_gyr * 1e9)
    return rate.clamp_min(10.0**LG_SSFR_FLOOR).log10()


def _a_v(theta: Tensor) -> Tensor:
    wave_v = theta.new_tensor([5500.0])
    curve = attenuation_curve(wave_v, column(theta, "n_dust").unsqueeze(-1)).squeeze(-1)
    a_v: Tensor = POGSON * column(theta, "tau_ism") * curve
    return a_v

"""Star-formation and metallicity histories, and the quantities derived from them.

PROVABGS (Hahn et al. 2022): four NMF bases for the star-formation history, two for the metallicity
history, and one burst, in 42 bins of lookback time from the observed epoch, cut at the age of the
universe. Needs only the small `PopulationTables`, no SSP spectra and no cosmology package.
"""

from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from sedflow_core.dust import curve_at_v
from sedflow_core.interpolate import (
    Position,
    interpolate,
    locate,
    locate_even,
    look_up,
    ramp_factors,
)
from sedflow_core.prior import column, columns
from sedflow_core.units import POGSON

Z_RANGE = (4.49e-5, 4.49e-2)
LG_SSFR_FLOOR = -14.0
"""log10 of the specific rate [1/yr, per mass formed] stated for a window without star formation."""
BIN_EDGES_GYR: tuple[float, ...] = (0.0, *(10.0 ** (6.05 + 0.1 * k - 9.0) for k in range(41)), 13.8)
N_BIN = len(BIN_EDGES_GYR) - 1


class Derived(NamedTuple):
    """One derived quantity."""

    name: str
    unit: str
    meaning: str


DERIVED: tuple[Derived, ...] = (
    Derived("log_mstar_surviving", "log10(Msun)", "mass in living stars and remnants"),
    Derived(
        "log_sfr_1gyr", "log10(Msun/yr)", "mass formed in the last 1 Gyr / 1 Gyr, burst included"
    ),
    Derived(
        "log_sfr_100myr",
        "log10(Msun/yr)",
        "mass formed in the last 100 Myr / 100 Myr, burst included",
    ),
    Derived("log_ssfr_1gyr", "log10(1/yr)", "log_sfr_1gyr minus log_mstar_surviving"),
    Derived("z_mw", "mass fraction", "metallicity weighted by mass formed"),
    Derived("t_age_mw", "Gyr", "lookback age weighted by mass formed"),
    Derived("t50", "Gyr", "lookback time by which half the mass had formed"),
    Derived("a_v", "mag", "diffuse-dust attenuation at 5500 A"),
)
DERIVED_NAMES: tuple[str, ...] = tuple(d.name for d in DERIVED)


class PopulationTables(NamedTuple):
    """Small tables that replace cosmology, NMF files and SSP grid when serving.

    Attributes:
        redshift: (n_z,) ascending from 0.
        t_age_gyr, luminosity_distance_mpc: (n_z,) age of the universe and luminosity distance.
        lookback_gyr: (n_t,) evenly spaced from 0.
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
        basis_formed: (n, 4, n_bin + 1) integral of each SFH basis from 0 to the bins' edges.
        basis_mass: (n, 4, n_bin) integral of each SFH basis over the bin.
        zh: (n, 2, n_bin) metallicity bases at the bin centres.
        surviving: (n, n_met, n_bin) surviving mass fraction at the bin centres.
    """

    t_age: Tensor
    low: Tensor
    high: Tensor
    center: Tensor
    basis_formed: Tensor
    basis_mass: Tensor
    zh: Tensor
    surviving: Tensor


class History(NamedTuple):
    """Mass and metallicity against lookback time, of samples (n, n_sample).

    In memory the samples of a bin lie side by side, so that sums over bins are fast.

    Attributes:
        basis: (n, n_sample, 4) factor of each SFH basis.
        mass: (n, n_sample, n_bin) mass formed per bin by the NMF part, sums to 1 - burst.
        met: (n, n_sample, n_bin) metallicity Z of the bins, mass fraction.
        burst, burst_age, burst_met: (n, n_sample) mass fraction, age [Gyr] and Z of the burst; the
            fraction is 0 where the burst would precede the universe.
        bins: the bins of lookback time.
    """

    basis: Tensor
    mass: Tensor
    met: Tensor
    burst: Tensor
    burst_age: Tensor
    burst_met: Tensor
    bins: TimeBins

    def first(self, n_sample: int) -> "History":
        """The history of the first samples."""
        return History(
            basis=self.basis[:, :n_sample],
            mass=self.mass[:, :n_sample],
            met=self.met[:, :n_sample],
            burst=self.burst[:, :n_sample],
            burst_age=self.burst_age[:, :n_sample],
            burst_met=self.burst_met[:, :n_sample],
            bins=self.bins,
        )


def calc_time_bins(redshift: Tensor, tables: PopulationTables) -> TimeBins:
    """The lookback-time bins at redshift (n,)."""
    t_age = interpolate(redshift.to(tables.redshift.dtype), tables.redshift, tables.t_age_gyr)
    edges = t_age.new_tensor(BIN_EDGES_GYR)
    cut = torch.minimum(edges, t_age[:, None])
    low, high = cut[:, :-1], cut[:, 1:]
    center = 0.5 * (low + high)
    formed = interpolate(cut, tables.lookback_gyr, tables.sfh_cumulative).movedim(0, 1)
    zh = interpolate(center, tables.lookback_gyr, tables.zh)
    surviving = interpolate(center.log10(), tables.ssp_lg_age_gyr, tables.surviving)
    return TimeBins(
        t_age=t_age.float(),
        low=low.float(),
        high=high.float(),
        center=center.float(),
        basis_formed=formed.float(),
        basis_mass=formed.diff(dim=-1).float(),
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
    total = beta @ bins.basis_formed[..., -1:]
    basis = beta * ((1.0 - burst).unsqueeze(-1) / total)
    at_burst = locate_even(burst_age, tables.lookback_gyr.float())
    burst_zh = look_up(tables.zh.float(), at_burst)
    burst_met = (gamma * burst_zh.movedim(0, -1)).sum(dim=-1)
    return History(
        basis=basis,
        mass=(bins.basis_mass.mT @ basis.mT).mT,
        met=(bins.zh.mT @ gamma.mT).clamp_(*Z_RANGE).mT,
        burst=burst,
        burst_age=burst_age,
        burst_met=burst_met.clamp(*Z_RANGE),
        bins=bins,
    )


def locate_met(met: Tensor, tables: PopulationTables) -> Position:
    """Position of metallicity Z (...) among the SSP grid's log10 Z."""
    return locate(met.log10(), tables.ssp_lgmet.to(met.dtype))


def surviving_mass(history: History, tables: PopulationTables) -> Tensor:
    """Mass in stars and remnants per mass formed; (n, n_sample)."""
    of_bins = _surviving_fraction(history, tables).mul_(history.mass).sum(dim=-1)
    return of_bins + history.burst * _surviving_burst(history, tables)


def _surviving_fraction(history: History, tables: PopulationTables) -> Tensor:
    """Surviving fraction in the bins (n, n_sample, n_bin), linear in log10 Z between the grid's."""
    nodes = tables.ssp_lgmet.float()
    factors = ramp_factors(history.bins.surviving, nodes)
    lgmet = history.met.log10()
    fraction, ramp = torch.empty_like(lgmet).copy_(factors[:, :1]), torch.empty_like(lgmet)
    for k, (low, high) in enumerate(pairwise(nodes.tolist()), start=1):
        fraction.addcmul_(torch.clamp(lgmet, low, high, out=ramp), factors[:, k : k + 1])
    return fraction


def _surviving_burst(history: History, tables: PopulationTables) -> Tensor:
    met = locate_met(history.burst_met, tables)
    age = locate(history.burst_age.log10(), tables.ssp_lg_age_gyr.float())
    surviving = tables.surviving.float()
    index = met.low * surviving.shape[1] + age.low
    poor = torch.lerp(surviving.take(index), surviving.take(index + 1), age.fraction)
    index += surviving.shape[1]
    rich = torch.lerp(surviving.take(index), surviving.take(index + 1), age.fraction)
    return torch.lerp(poor, rich, met.fraction)


def younger_fraction(bins: TimeBins, window_gyr: float) -> Tensor:
    """Fraction of each bin (n, n_bin) younger than the window; straddling bins are split."""
    width = (bins.high - bins.low).clamp_min(torch.finfo(bins.low.dtype).tiny)
    return ((window_gyr - bins.low) / width).clamp(0.0, 1.0)


def recent_mass(history: History, window_gyr: float) -> Tensor:
    """Fraction of the mass formed within the last window [Gyr]; (n, n_sample)."""
    bins = history.bins
    of_basis = bins.basis_mass @ younger_fraction(bins, window_gyr).unsqueeze(-1)
    of_bins = (history.basis @ of_basis).squeeze(-1)
    return of_bins + history.burst * (history.burst_age <= window_gyr)


def mean_age(history: History) -> Tensor:
    """Lookback age [Gyr] weighted by mass formed; (n, n_sample)."""
    of_basis = history.bins.basis_mass @ history.bins.center.unsqueeze(-1)
    return (history.basis @ of_basis).squeeze(-1) + history.burst * history.burst_age


def half_mass_time(history: History) -> Tensor:
    """Lookback time t50 [Gyr] by which half the mass had formed; (n, n_sample).

    Mass is uniform within a bin; the burst is a step at its age.
    """
    half = torch.full_like(history.burst, 0.5)
    wanted = torch.stack([half, half - history.burst], dim=-1)
    without, after = _formation_time(wanted, history).unbind(dim=-1)
    return torch.where(without < history.burst_age, without, after.maximum(history.burst_age))


def _formation_time(wanted: Tensor, history: History) -> Tensor:
    """Lookback time since which the NMF part formed the mass wanted; both (n, n_sample, k)."""
    formed = history.basis @ history.bins.basis_formed
    index = torch.searchsorted(formed, wanted).clamp_(1, N_BIN)
    before = formed.gather(-1, index - 1)
    in_bin = (formed.gather(-1, index) - before).clamp_min(torch.finfo(formed.dtype).tiny)
    of_galaxy = (index - 1).flatten(1)
    edges = history.bins.low, history.bins.high
    low, high = (edge.gather(1, of_galaxy).view_as(wanted) for edge in edges)
    return low + (high - low) * ((wanted - before) / in_bin)


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
    return derive(theta, calc_history(theta, bins, tables), tables, names)


def derive(
    theta: Tensor, history: History, tables: PopulationTables, names: tuple[str, ...]
) -> Tensor:
    """`calc_derived` where the history (n, n_sample) is known."""
    log_mstar = column(theta, "log_mstar")
    log_surviving = log_mstar + surviving_mass(history, tables).log10()
    log_sfr_1gyr = log_mstar + _log_rate(history, 1.0)
    values = {
        "log_mstar_surviving": log_surviving,
        "log_sfr_1gyr": log_sfr_1gyr,
        "log_sfr_100myr": log_mstar + _log_rate(history, 0.1),
        "log_ssfr_1gyr": log_sfr_1gyr - log_surviving,
        "z_mw": (history.mass * history.met).sum(dim=-1) + history.burst * history.burst_met,
        "t_age_mw": mean_age(history),
        "t50": half_mass_time(history),
        "a_v": _a_v(theta),
    }
    return torch.stack([values[name] for name in names]).movedim(0, -1)


def _log_rate(history: History, window_gyr: float) -> Tensor:
    """log10 of the mean rate per mass formed over the window [1/yr]."""
    rate = recent_mass(history, window_gyr) / (window_gyr * 1e9)
    return rate.clamp_min(10.0**LG_SSFR_FLOOR).log10()


def _a_v(theta: Tensor) -> Tensor:
    flat, slope = curve_at_v()
    a_v: Tensor = POGSON * column(theta, "tau_ism") * (flat + slope * column(theta, "n_dust"))
    return a_v

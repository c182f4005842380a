"""Figures of the validation report, beside those of `sedflow_core.figures`. Needs extra `plot`."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from sedflow_core.figures import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    KS_95,
    ORANGE,
    VERMILION,
    empty_figure,
    label_of,
    panels,
    symbol_of,
)
from sedflow_core.units import Array

_N_BIN = 20


def rank_histograms(
    ranks: ArrayLike, names: Sequence[str], reference: Mapping[str, Array] | None = None
) -> Figure:
    """SBC: histogram of the truth's ranks (n, n_name) per quantity; grey: 99 % of uniform ones.

    `reference`: method -> ranks (m, n_name) of fewer galaxies, in half as many bins, scaled to n.
    """
    values = np.asarray(ranks, dtype=np.float64)
    expected = len(values) / _N_BIN
    band = 2.576 * np.sqrt(expected * (1.0 - 1.0 / _N_BIN))
    figure, grid = panels(len(names), 1.9, shared=True)
    for axes, name, column in zip(grid, names, values.T, strict=True):
        axes.axhspan(expected - band, expected + band, color=GREY, alpha=0.35, lw=0)
        axes.hist(column, bins=_N_BIN, range=(0, 1), histtype="step", color=BLUE, lw=1.3)
        _reference_histograms(axes, reference or {}, list(names).index(name), expected)
        axes.set_title(symbol_of(name), fontsize=11)
    tallest = max(2.0 * expected, *(axes.dataLim.y1 for axes in grid))
    grid[0].set(xlim=(0, 1), ylim=(0, 1.05 * tallest))
    figure.supxlabel("rank of the truth in its posterior", fontsize=11)
    figure.supylabel("simulations per bin", fontsize=11)
    if reference:
        handles, labels = grid[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=3, fontsize=10)
    return figure


def _reference_histograms(
    axes: Axes, reference: Mapping[str, Array], column: int, expected: float
) -> None:
    n_bin = _N_BIN // 2
    for (method, ranks), color in zip(reference.items(), (GREY, BLACK), strict=False):
        height, edges = np.histogram(ranks[:, column], bins=n_bin, range=(0, 1))
        scaled = height * expected * n_bin / len(ranks)
        label = f"{method}, {len(ranks):,} simulations"
        axes.stairs(scaled, edges, color=color, ls=":", lw=1.1, label=label)


def coverage_curves(levels: Mapping[str, Array]) -> Figure:
    """Fraction of truths inside regions of each credibility, per test; levels (n,) in [0, 1]."""
    figure = empty_figure(6.0, 5.4)
    axes = figure.add_subplot()
    grid = np.linspace(0, 1, 201)
    n_least = min(len(values) for values in levels.values())
    band = KS_95 / np.sqrt(n_least)
    axes.fill_between(grid, grid - band, grid + band, color=GREY, alpha=0.35, lw=0)
    styles = zip((BLUE, VERMILION, ORANGE), ("-", "--", ":"), strict=True)
    for (name, values), (color, line) in zip(levels.items(), styles, strict=False):
        inside = np.searchsorted(np.sort(values), grid, side="right") / len(values)
        axes.plot(grid, inside, color=color, ls=line, label=f"{name}, {len(values):,} simulations")
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="credibility", ylabel="fraction of truths inside")
    axes.set_title(f"Coverage; grey: 95 % band of {n_least:,}", fontsize=12)
    axes.legend(loc="upper left")
    return figure


def flow_against_exact(
    samples: Array,
    weights: Array,
    names: Sequence[str],
    *,
    truth: Array | None = None,
    mcmc: Array | None = None,
) -> Figure:
    """Marginals of one galaxy: the flow's samples, the same weighted to be exact, and MCMC's.

    Args:
        samples: (n_sample, n_name); weights: (n_sample,) that sum to 1.
        names: of the quantities.
        truth: (n_name,) where it is known; mcmc: (n, n_name) where it was run.
    """
    figure, grid = panels(len(names), 2.3)
    for i, (axes, name, column) in enumerate(zip(grid, names, samples.T, strict=True)):
        shown = [column] if mcmc is None else [column, mcmc[:, i]]
        edges = [np.quantile(values, [0.002, 0.998]) for values in shown]
        low, high = np.min(edges), np.max(edges)
        bins = np.linspace(low, high, 31) if high > low else 10
        style: dict[str, Any] = {"bins": bins, "density": True, "histtype": "step", "lw": 1.4}
        axes.hist(column, color=BLUE, label="flow", **style)
        label = "exact, by weights"
        axes.hist(column, weights=weights, color=VERMILION, ls="--", label=label, **style)
        if mcmc is not None:
            axes.hist(mcmc[:, i], color=BLACK, label="exact, by MCMC", **style | {"lw": 1.0})
        if truth is not None:
            axes.axvline(truth[i], color=GREEN, lw=1.2, label="truth")
        axes.set(yticks=[], xlabel=label_of(name))
    handles, labels = grid[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=4, fontsize=11)
    return figure


def best_fit(
    photometry: tuple[Array, Array, Array],
    wave: Array,
    spectra: Mapping[str, Array],
    chi_square: Mapping[str, float],
    bands: Sequence[str],
) -> Figure:
    """Photometry of one galaxy, and the spectra of the parameters that fit it best.

    Args:
        photometry: mean wavelengths [Angstrom], AB magnitudes and their errors, (n_band,) each.
        wave: (n_wave,) observed wavelengths [Angstrom].
        spectra: method -> AB magnitude (n_wave,); chi_square: method -> of the photometry.
        bands: names.
    """
    at, mag, mag_err = photometry
    figure = empty_figure(9.0, 4.6)
    axes = figure.add_subplot()
    styles = ((BLUE, "-"), (BLACK, ":"))
    for (method, spectrum), (color, line) in zip(spectra.items(), styles, strict=False):
        label = rf"best of {method}, $\chi^2$ = {chi_square[method]:.2f}"
        axes.plot(wave, spectrum, color=color, ls=line, lw=0.9, label=label)
    axes.errorbar(at, mag, mag_err, fmt="o", color=VERMILION, ms=6, label="observed", zorder=3)
    _name_bands(axes, at, bands)
    margin = 0.15 * float(np.ptp(mag)) + 0.4
    axes.set(xlim=(at.min() - 700, at.max() + 1500), ylim=(mag.max() + margin, mag.min() - margin))
    axes.set(xlabel=r"observed wavelength [$\rm\AA$]", ylabel="AB magnitude")
    axes.legend(loc="lower right")
    return figure


def sed_fit(
    photometry: tuple[Array, Array, Array],
    model_mag: Array,
    spectrum: tuple[Array, Array],
    bands: Sequence[str],
    *,
    title: str = "",
) -> Figure:
    """Photometry of one galaxy against what its posterior predicts, and the residuals.

    Args:
        photometry: mean wavelengths [Angstrom], AB magnitudes and their errors, (n_band,) each;
            NaN where the flux is not positive.
        model_mag: (n_sample, n_band) predicted by samples.
        spectrum: observed wavelengths [Angstrom] and AB magnitudes, (n_wave,), of the best sample.
        bands: names.
        title: above the figure.
    """
    at, mag, mag_err = photometry
    low, median, high = np.quantile(model_mag, [0.025, 0.5, 0.975], axis=0)
    figure = empty_figure(8.0, 6.0)
    axes, residual = figure.subplots(2, 1, sharex=True, height_ratios=(2.0, 1.0))
    axes.plot(*spectrum, "-", color=GREY, lw=0.8, label="spectrum of the best sample")
    label = "predicted by the posterior, 95 %"
    bars = {"fmt": "none", "ecolor": BLUE, "elinewidth": 9, "alpha": 0.4}
    for panel, zero in ((axes, 0.0), (residual, mag)):
        panel.errorbar(at, median - zero, [median - low, high - median], label=label, **bars)
    axes.errorbar(at, mag, mag_err, fmt="o", color=BLACK, ms=4, label="observed", zorder=3)
    residual.errorbar(at, np.zeros_like(mag), mag_err, fmt="o", color=BLACK, ms=4, zorder=3)
    residual.axhline(0.0, color=GREY, lw=0.8)
    height = np.where(np.isfinite(mag), mag, median)
    _name_bands(axes, at, bands)
    margin = 0.15 * float(np.ptp(height)) + 0.4
    axes.set_xlim(at.min() - 700, at.max() + 700)
    axes.set_ylim(height.max() + margin, height.min() - margin)
    axes.set(ylabel="AB magnitude")
    axes.legend(loc="lower right")
    axes.set_title(title, fontsize=12)
    residual.set(xlabel=r"observed wavelength [$\rm\AA$]", ylabel="predicted -\nobserved [mag]")
    return figure


def _name_bands(axes: Axes, at: Array, bands: Sequence[str]) -> None:
    """Write the bands' names along the upper edge, clear of the spectra; at (n_band,)."""
    where = axes.get_xaxis_transform()
    for x, band in zip(at, bands, strict=True):
        axes.text(x, 0.97, band, transform=where, ha="center", va="top", fontsize=12)

"""Figures of posteriors, support flags, calibration and training.

Each function takes arrays and returns a `matplotlib.figure.Figure`; none touches pyplot's state, so
they work in a server or a worker thread. Save with `figure.savefig(path)`. Needs the extra `plot`.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from sedflow_core.units import Array

# Okabe & Ito (2008): told apart with any colour vision, and in grey by the line styles.
BLUE, VERMILION, GREEN, ORANGE = "#0072B2", "#D55E00", "#009E73", "#E69F00"
SKY, PURPLE, BLACK, GREY = "#56B4E9", "#CC79A7", "#000000", "#8A8A8A"
COLORS = (BLUE, VERMILION, GREEN, ORANGE, SKY, PURPLE, BLACK)

SYMBOLS: dict[str, tuple[str, str]] = {
    "log_mstar": (r"$\log\,M_{\rm formed}$", r"$\rm M_\odot$"),
    "beta1": (r"$\beta_1$", ""),
    "beta2": (r"$\beta_2$", ""),
    "beta3": (r"$\beta_3$", ""),
    "beta4": (r"$\beta_4$", ""),
    "fburst": (r"$f_{\rm burst}$", ""),
    "tburst": (r"$t_{\rm burst}$", "Gyr"),
    "gamma1": (r"$\gamma_1$", ""),
    "gamma2": (r"$\gamma_2$", ""),
    "tau_bc": (r"$\tau_{\rm BC}$", ""),
    "tau_ism": (r"$\tau_{\rm ISM}$", ""),
    "n_dust": (r"$n_{\rm dust}$", ""),
    "log_mstar_surviving": (r"$\log\,M_{\ast}$", r"$\rm M_\odot$"),
    "log_sfr_1gyr": (r"$\log\,{\rm SFR}_{\rm 1\,Gyr}$", r"$\rm M_\odot\,yr^{-1}$"),
    "log_sfr_100myr": (r"$\log\,{\rm SFR}_{\rm 100\,Myr}$", r"$\rm M_\odot\,yr^{-1}$"),
    "log_ssfr_1gyr": (r"$\log\,{\rm sSFR}_{\rm 1\,Gyr}$", r"$\rm yr^{-1}$"),
    "z_mw": (r"$Z_{\rm MW}$", ""),
    "t_age_mw": (r"$t_{\rm age,MW}$", "Gyr"),
    "t50": (r"$t_{50}$", "Gyr"),
    "a_v": (r"$A_V$", "mag"),
}
"""Symbol and unit of a parameter or derived quantity; a name that is not here labels itself."""

KS_95 = 1.358
"""sqrt(n) times the largest distance that 95 % of uniform samples stay within (n large)."""

SMOOTHING = (0.06, 0.24, 0.40, 0.24, 0.06)
ENCLOSED = (0.865, 0.393)
"""Fraction of samples inside the contours of 2 and 1 sigma in two dimensions."""


def mass_sfr(
    log_mass: ArrayLike, log_sfr: ArrayLike, *, n_error_bars: int = 30, seed: int = 0
) -> Figure:
    """Surviving mass against SFR: medians of all galaxies as a density, 68 % bars of some.

    `log_mass` [Msun] and `log_sfr` [Msun/yr] are (n, 3): the 16, 50 and 84 % quantiles.
    """
    mass, sfr = np.asarray(log_mass, dtype=np.float64), np.asarray(log_sfr, dtype=np.float64)
    figure, axes = _figure(7.5, 5.6)
    scale = LogNorm(vmin=0.4)  # below 1, so that a cell of one galaxy shows
    cells = axes.hexbin(mass[:, 1], sfr[:, 1], gridsize=40, norm=scale, mincnt=1, cmap="Blues")
    figure.colorbar(cells, ax=axes, label="galaxies per cell (medians)")
    few = np.random.default_rng(seed).permutation(len(mass))[:n_error_bars]
    axes.errorbar(
        mass[few, 1],
        sfr[few, 1],
        xerr=_error_bars(mass[few]),
        yerr=_error_bars(sfr[few]),
        fmt="o",
        markersize=3.5,
        color=VERMILION,
        elinewidth=0.8,
        label=f"median and 68 % interval, {len(few)} of them",
    )
    _lines_of_constant_ssfr(axes)
    axes.set_xlabel("surviving stellar mass  " + label_of("log_mstar_surviving"))
    axes.set_ylabel("star formation rate  " + label_of("log_sfr_1gyr"))
    axes.set_title(f"{len(mass):,} galaxies inside the support", fontsize=12)
    axes.legend(loc="upper left", framealpha=0.95)
    return figure


def corner_plot(samples: ArrayLike, names: Sequence[str], *, title: str = "") -> Figure:
    """Corner plot of one galaxy's posterior `samples` (n_samples, n_name).

    Contours hold 39 and 86 % of the samples (1 and 2 sigma in two dimensions); dashed lines and
    titles give the 16, 50 and 84 % quantiles.
    """
    values = np.asarray(samples, dtype=np.float64)
    ranges = [_plot_range(column) for column in values.T]
    n = len(names)
    figure = empty_figure(1.75 * n + 1.0, 1.75 * n + 1.0)
    grid = figure.subplots(n, n, sharex="col", squeeze=False)
    for row, col in product(range(n), range(n)):
        axes = grid[row, col]
        if col > row:
            axes.remove()
            continue
        if col == row:
            _diagonal(axes, values[:, row], ranges[row], symbol_of(names[row]))
        else:
            _off_diagonal(axes, values[:, col], values[:, row], ranges[col], ranges[row])
        _corner_ticks(axes, first=col == 0 and row > 0, last=row == n - 1)
        if row == n - 1:
            axes.set_xlabel(label_of(names[col], "\n"), fontsize=13)
        if col == 0 and row > 0:
            axes.set_ylabel(label_of(names[row], "\n"), fontsize=13)
    figure.align_labels()
    figure.text(0.98, 0.98, title, ha="right", va="top", fontsize=16)
    return figure


def flags_by_reason(counts: Mapping[str, int], n_galaxies: int) -> Figure:
    """Bar per reason with how many of `n_galaxies` carry it, most frequent first.

    A galaxy may carry several reasons, so the bars do not add up to the flagged fraction.
    """
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    positions, numbers = range(len(ordered)), [count for _, count in ordered]
    figure, axes = _figure(8.5, 1.6 + 0.34 * max(len(ordered), 2))
    bars = axes.barh(positions, numbers, color=BLUE, height=0.7)
    texts = [f"{count:,}  ({100 * count / n_galaxies:.2f} %)" for count in numbers]
    axes.bar_label(bars, labels=texts, padding=4)
    axes.set_yticks(positions, [name for name, _ in ordered])
    axes.invert_yaxis()
    axes.set_xlim(0, 1.25 * max(numbers, default=1))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    axes.set_xlabel("galaxies with this reason (one galaxy may have several)")
    axes.set_title(f"Not fitted, by reason, among {n_galaxies:,} galaxies", fontsize=12)
    if not ordered:
        axes.text(0.5, 0.5, "no galaxy is flagged", transform=axes.transAxes, ha="center")
    return figure


def pp_plot(
    ranks: ArrayLike, names: Sequence[str], reference: Mapping[str, Array] | None = None
) -> Figure:
    """P-P plot of the truth's `ranks` (n, n_name) in [0, 1], one line per quantity.

    The lower panel shows the distance from the diagonal. Grey: where the whole line of a perfectly
    calibrated quantity stays in 95 % of cases (Kolmogorov-Smirnov, for this n). `reference`: method
    -> ranks (m, n_name) in its posteriors of fewer galaxies, dotted.
    """
    ordered = np.sort(np.asarray(ranks, dtype=np.float64), axis=0)
    n = len(ordered)
    figure = empty_figure(9.0, 8.0)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(2.0, 1.0))
    diagonal, band = np.array([0.0, 1.0]), KS_95 / np.sqrt(n)
    upper.fill_between(diagonal, diagonal - band, diagonal + band, color=GREY, alpha=0.35, lw=0)
    lower.fill_between(diagonal, [-band] * 2, [band] * 2, color=GREY, alpha=0.35, lw=0)
    grid = np.linspace(0.0, 1.0, 501)
    cumulative = np.arange(1, n + 1) / n
    for name, column, style in zip(names, ordered.T, _line_styles(), strict=False):
        distance = max(np.max(cumulative - column), np.max(column - cumulative + 1.0 / n))
        below = np.searchsorted(column, grid, side="right") / n
        upper.plot(grid, below, label=f"{distance:.3f}  {symbol_of(name)}", **style)
        lower.plot(grid, below - grid, **style)
    for (method, other), color in zip((reference or {}).items(), (GREY, BLACK), strict=False):
        label = f"{method}, {len(other):,}"
        for column in np.sort(other, axis=0).T:
            below = np.searchsorted(column, grid, side="right") / len(other)
            upper.plot(grid, below, ":", color=color, lw=0.8, zorder=0, label=label)
            label = "_"
    upper.set(xlim=(0, 1), ylim=(0, 1), ylabel="fraction of galaxies with a lower rank")
    lower.set(xlabel="rank of the truth in its posterior", ylabel="distance from the diagonal")
    upper.set_title(f"Calibration on {n:,} simulations; grey: 95 % band", fontsize=12)
    figure.legend(loc="outside right upper", title="KS distance", fontsize=10)
    return figure


def loss_curve(train_loss: ArrayLike, validation_loss: ArrayLike) -> Figure:
    """Mean -log q of training and validation per epoch, both (n_epoch,); the lowest is marked."""
    figure, axes = _figure(7.0, 4.6)
    train, validation = np.asarray(train_loss), np.asarray(validation_loss)
    epochs = np.arange(1, len(train) + 1)
    axes.plot(epochs, train, "--", color=BLUE, label="training")
    axes.plot(epochs, validation, "-", color=VERMILION, label="validation")
    best = int(np.nanargmin(validation))
    label = f"lowest validation loss: {validation[best]:.3f}, epoch {epochs[best]}"
    axes.plot(epochs[best], validation[best], "o", color=BLACK, label=label)
    axes.set_xlabel("epoch")
    axes.set_ylabel(r"mean $-\log\,q(u\,|\,\rm context)$")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend()
    return figure


def empty_figure(width: float, height: float) -> Figure:
    """A figure of this size [inch] that belongs to no window."""
    figure = Figure(figsize=(width, height), layout="constrained", dpi=120)
    FigureCanvasAgg(figure)
    return figure


def panels(n: int, row_height: float, *, shared: bool = False) -> tuple[Figure, list[Axes]]:
    """A figure of n panels, four in a row of this height [inch], and room for a legend above.

    `shared`: all with the same axes.
    """
    n_row = -(-n // 4)
    figure = empty_figure(11.0, row_height * n_row + 0.6)
    axes = list(figure.subplots(n_row, 4, squeeze=False, sharex=shared, sharey=shared).flat)
    for unused in axes[n:]:
        unused.remove()
    return figure, axes[:n]


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    figure = empty_figure(width, height)
    return figure, figure.add_subplot()


def symbol_of(name: str) -> str:
    """Symbol of a quantity, or its name."""
    return SYMBOLS.get(name, (name, ""))[0]


def label_of(name: str, separator: str = " ") -> str:
    """Symbol and unit of a quantity."""
    symbol, unit = SYMBOLS.get(name, (name, ""))
    return f"{symbol}{separator}[{unit}]" if unit else symbol


def _error_bars(quantiles: Array) -> Array:
    return np.stack([quantiles[:, 1] - quantiles[:, 0], quantiles[:, 2] - quantiles[:, 1]])


def _lines_of_constant_ssfr(axes: Axes) -> None:
    """Dotted lines, each labelled where it leaves the axes."""
    left, right = axes.get_xlim()
    bottom, top = axes.get_ylim()
    axes.set(xlim=(left, right), ylim=(bottom, top))
    box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1.0}
    for log_ssfr in (-9, -10, -11, -12):
        axes.plot((left, right), (left + log_ssfr, right + log_ssfr), ":", color=BLACK, lw=0.9)
        x = min(right - 0.02 * (right - left), top - 0.06 * (top - bottom) - log_ssfr)
        if x > left + 0.75 * (right - left) and x + log_ssfr > bottom:
            label = rf"$10^{{{log_ssfr}}}\,\rm yr^{{-1}}$"
            axes.text(x, x + log_ssfr, label, ha="right", va="bottom", bbox=box)


def _plot_range(values: Array) -> tuple[float, float]:
    low, high = np.quantile(values, [0.001, 0.999])
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _diagonal(axes: Axes, values: Array, limits: tuple[float, float], symbol: str) -> None:
    low, median, high = np.quantile(values, [0.16, 0.5, 0.84])
    axes.hist(values, bins=30, range=limits, histtype="step", color=BLUE, lw=1.4)
    for quantile in (low, median, high):
        axes.axvline(quantile, color=BLACK, ls="--", lw=0.9)
    digits = max(0, 1 - int(np.floor(np.log10(max(high - low, 1e-12)))))
    upper, lower = f"{high - median:.{digits}f}", f"{median - low:.{digits}f}"
    value = rf"${median:.{digits}f}^{{+{upper}}}_{{-{lower}}}$"
    axes.set_title(f"{symbol} = {value}", fontsize=11)
    axes.set(xlim=limits, yticks=[])


def _off_diagonal(
    axes: Axes, x: Array, y: Array, x_range: tuple[float, float], y_range: tuple[float, float]
) -> None:
    counts, x_edges, y_edges = np.histogram2d(x, y, bins=28, range=[x_range, y_range])
    density = _smooth(counts).T
    axes.pcolormesh(x_edges, y_edges, density, cmap="Blues", rasterized=True)
    centers = [0.5 * (edges[1:] + edges[:-1]) for edges in (x_edges, y_edges)]
    levels = np.unique([_level_enclosing(density, fraction) for fraction in ENCLOSED])
    axes.contour(*centers, density, levels=levels, colors=BLACK, linewidths=0.8)
    axes.set(xlim=x_range, ylim=y_range)


def _smooth(counts: Array) -> Array:
    """Counts averaged over neighbouring cells, without loss at the edges."""
    weight = np.ones_like(counts)
    for axis in (0, 1):
        counts, weight = (
            np.apply_along_axis(np.convolve, axis, values, SMOOTHING, mode="same")
            for values in (counts, weight)
        )
    return counts / weight


def _level_enclosing(density: Array, fraction: float) -> float:
    descending = np.sort(density, axis=None)[::-1]
    enclosed = np.cumsum(descending) / density.sum()
    return float(descending[np.searchsorted(enclosed, fraction)])


def _corner_ticks(axes: Axes, *, first: bool, last: bool) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(nbins=3, prune="both"))
    if axes.get_yticks().size:
        axes.yaxis.set_major_locator(MaxNLocator(nbins=3, prune="both"))
    axes.tick_params(labelleft=first, labelbottom=last, labelsize=9)
    axes.tick_params(axis="x", labelrotation=45)


def _line_styles() -> Iterator[dict[str, Any]]:
    for style, color in product(("-", "--", ":", "-."), COLORS):
        yield {"linestyle": style, "color": color, "linewidth": 1.2}

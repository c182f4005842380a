"""Figures of an artifact's model: what it was trained on, supports, implies and learns.

Figures 1 and 5 of Hahn & Melchior (2022), the prior on derived quantities (their Sec. 6.2), slices
and the learning curve (Sec. 6.1). Needs the extra `plot`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from sedflow_core.figures import (
    BLACK,
    BLUE,
    GREY,
    ORANGE,
    VERMILION,
    empty_figure,
    label_of,
    panels,
    symbol_of,
)
from sedflow_core.units import Array

_N_BIN = 40
_TAIL = 0.002


def training_against_real(
    simulated: Mapping[str, Array], real: Mapping[str, Array], highlight: int | None = None
) -> Figure:
    """Corner plot of simulations (grey) with real galaxies (blue) where both have a quantity.

    Args:
        simulated: label -> (n,) values of simulations.
        real: label -> (m,) values of galaxies, for some of the labels; may be empty.
        highlight: row of the real galaxy to mark.
    """
    names = list(simulated)
    n = len(names)
    limits = {name: _limits(simulated[name], real.get(name)) for name in names}
    figure = empty_figure(1.9 * n, 1.9 * n)
    grid = figure.subplots(n, n, squeeze=False)
    for row in range(n):
        for col in range(n):
            axes, x, y = grid[row, col], names[col], names[row]
            if col > row:
                axes.remove()
                continue
            if col == row:
                _histograms(axes, simulated[x], real.get(x), limits[x])
            else:
                _plane(axes, simulated, real, (x, y), limits)
                if highlight is not None and x in real and y in real:
                    axes.plot(real[x][highlight], real[y][highlight], "*", color=VERMILION, ms=9)
            axes.tick_params(labelleft=col == 0 and row > 0, labelbottom=row == n - 1, labelsize=8)
            axes.locator_params(nbins=4)
            if row == n - 1:
                axes.set_xlabel(x)
            if col == 0 and row > 0:
                axes.set_ylabel(y)
    figure.align_labels()
    _explain(figure, len(next(iter(simulated.values()))), real, highlight)
    return figure


def _explain(
    figure: Figure, n_simulated: int, real: Mapping[str, Array], highlight: int | None
) -> None:
    figure.text(0.97, 0.95, f"{n_simulated:,} simulations", ha="right", fontsize=14, color="0.35")
    if real:
        n_real = len(next(iter(real.values())))
        figure.text(0.97, 0.915, f"{n_real:,} real galaxies", ha="right", fontsize=14, color=BLUE)
    if highlight is not None:
        text = "★ the galaxy of the posterior below"
        figure.text(0.97, 0.88, text, ha="right", fontsize=14, color=VERMILION)


def _limits(*values: Array | None) -> tuple[float, float]:
    ends = [np.nanquantile(v, [_TAIL, 1 - _TAIL]) for v in values if v is not None]
    low, high = min(e[0] for e in ends), max(e[1] for e in ends)
    margin = 0.03 * (high - low)
    return low - margin, high + margin


def _histograms(
    axes: Axes, simulated: Array, real: Array | None, limits: tuple[float, float]
) -> None:
    style: dict[str, Any] = {
        "bins": _N_BIN,
        "range": limits,
        "density": True,
        "histtype": "step",
        "lw": 1.3,
    }
    axes.hist(simulated, color="0.35", **style)
    if real is not None:
        axes.hist(real, color=BLUE, **style)
    axes.set(xlim=limits, yticks=[])


def _plane(
    axes: Axes,
    simulated: Mapping[str, Array],
    real: Mapping[str, Array],
    pair: tuple[str, str],
    limits: Mapping[str, tuple[float, float]],
) -> None:
    x, y = pair
    edges = [np.linspace(*limits[name], _N_BIN + 1) for name in pair]
    counts, *_ = np.histogram2d(simulated[x], simulated[y], bins=edges)
    counts[counts == 0] = np.nan
    # Far below the darkest grey, so that marks stand out.
    norm = LogNorm(vmin=0.3, vmax=30.0 * np.nanmax(counts))
    axes.pcolormesh(*edges, counts.T, cmap="Greys", norm=norm, rasterized=True)
    if x in real and y in real:
        axes.plot(real[x], real[y], ".", ms=2.5, color=BLUE, alpha=0.5, mew=0, rasterized=True)
    axes.set(xlim=limits[x], ylim=limits[y])


def support_planes(
    planes: Sequence[tuple[str, str]],
    simulated: Mapping[str, Array],
    galaxies: Mapping[str, Array],
    flagged: Mapping[str, NDArray[np.bool_]],
) -> Figure:
    """Galaxies outside the support against the simulations, by rule.

    Args:
        planes: pairs of labels, x and y.
        simulated: label -> (n,) of simulations; galaxies: label -> (m,).
        flagged: rule -> (m,) which galaxies it flags, at most three rules.
    """
    n_col = 3
    n_row = -(-len(planes) // n_col)
    figure = empty_figure(4.2 * n_col, 3.9 * n_row + 0.5)
    grid = figure.subplots(n_row, n_col, squeeze=False)
    marks = ((ORANGE, "o"), (BLUE, "x"), (VERMILION, "+"))
    for axes, pair in zip(grid.flat, planes, strict=False):
        limits = {name: _limits(simulated[name], galaxies[name]) for name in pair}
        _plane(axes, simulated, {}, pair, limits)
        x, y = (galaxies[name] for name in pair)
        for (rule, rows), (color, mark) in zip(flagged.items(), marks, strict=False):
            label = f"{rule}: {rows.sum():,} of {len(rows):,} ({rows.mean():.2%})"
            axes.plot(x[rows], y[rows], mark, ms=4, color=color, mfc="none", mew=0.9, label=label)
        axes.set(xlabel=pair[0], ylabel=pair[1])
    handles, labels = grid.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3, fontsize=11)
    return figure


def induced_prior(
    prior: Mapping[str, Array], accepted: Mapping[str, Array], wanted: Sequence[str] = ()
) -> Figure:
    """The prior that the model implies for each quantity, and what the magnitude cuts leave of it.

    Args:
        prior: name -> (n,) draws from the prior; accepted: the same of those within the cuts.
        wanted: quantities whose distribution a new prior asks for.
    """
    names = list(prior)
    figure, grid = panels(len(names), 2.3)
    for axes, name in zip(grid, names, strict=True):
        style: dict[str, Any] = {
            "bins": 50,
            "range": _limits(prior[name]),
            "density": True,
            "histtype": "step",
        }
        axes.hist(prior[name], color=BLACK, lw=1.3, **style)
        axes.hist(accepted[name], color=BLUE, lw=1.3, ls="--", **style)
        axes.set(yticks=[], xlabel=label_of(name))
        if name in wanted:
            axes.set_title("set by the new prior", fontsize=9)
    handles = [
        Line2D([], [], color=BLACK, label="prior"),
        Line2D([], [], color=BLUE, ls="--", label="inside the magnitude cuts"),
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=2, fontsize=11)
    return figure


def slice_map(slices: Mapping[str, Sequence[Mapping[str, Any]]]) -> Figure:
    """KS distance of every quantity in every slice, over what 1 % of perfect ones exceed."""
    parts = [(quantity, part) for quantity, group in slices.items() for part in group]
    names = list(parts[0][1]["ks_distance"])
    values = np.array([[p["ks_distance"][n] / p["noise"] for n in names] for _, p in parts])
    figure = empty_figure(12.0, 0.42 * len(parts) + 2.2)
    axes = figure.add_subplot()
    image = axes.imshow(values, cmap="Blues", vmin=0.0, vmax=max(2.0, values.max()), aspect="auto")
    for (row, col), value in np.ndenumerate(values):
        color = "white" if value > 0.6 * image.get_clim()[1] else "black"
        weight = "bold" if value > 1.0 else "normal"
        axes.text(col, row, f"{value:.1f}", ha="center", va="center", color=color, weight=weight)
    labels = [f"{_slice_name(q)}  {p['range'][0]:.3g} to {p['range'][1]:.3g}" for q, p in parts]
    axes.set_yticks(range(len(parts)), labels, fontsize=9)
    axes.set_xticks(range(len(names)), [symbol_of(n) for n in names], rotation=60, ha="right")
    figure.colorbar(image, label=r"KS distance / (1.63 / $\sqrt{n}$)", fraction=0.03)
    return figure


def _slice_name(quantity: str) -> str:
    """`signal_to_noise_r` -> S/N in r, `color_g-r` -> g-r."""
    return quantity.replace("signal_to_noise_", "S/N in ").removeprefix("color_")


def p_value_figure(sets: Array, perfect: Sequence[float]) -> Figure:
    """Pooled KS p-values of disjoint test sets, beside the range of a perfect posterior."""
    figure = empty_figure(7.0, 3.0)
    axes = figure.add_subplot()
    shown = np.maximum(sets, 1e-12)
    axes.axvspan(*np.maximum(perfect, 1e-12), color=GREY, alpha=0.35, lw=0)
    axes.plot(shown, np.arange(1, len(shown) + 1), "o", color=BLUE, label="one test set")
    axes.axvline(float(np.median(shown)), color=BLUE, lw=1.2, label="their median")
    paper = (0.0005, 2e-8, 0.073, 0.019)
    axes.plot(
        paper,
        np.full(len(paper), 0.2),
        "^",
        color=ORANGE,
        label="the authors' four restarts",
    )
    axes.set(xscale="log", xlabel="p-value of all ranks pooled", yticks=[], xlim=(None, 1.5))
    axes.set_title("grey: 68 % of the sets of a perfect posterior", fontsize=11)
    axes.legend(fontsize=9, loc="upper left")
    return figure


def learning_figure(document: Mapping[str, Any]) -> Figure:
    """Loss against the number of simulations, of a `sedflow learning-curve` document."""
    points = document["points"]
    rows = np.array([p["n_rows"] for p in points])
    loss = np.array([p["test_loss"] for p in points])
    train = np.array([p["train_loss"] for p in points])
    error = [p["test_loss_error"] for p in points]
    figure = empty_figure(7.0, 4.6)
    axes = figure.add_subplot()
    axes.errorbar(rows, loss, error, fmt="o-", color=VERMILION, label="rows that no run has seen")
    axes.plot(rows, train, "s--", color=BLUE, label="rows it was trained on, with fresh noise")
    axes.set(xscale="log", xlabel="simulations in the training set")
    axes.set_ylabel(r"mean $-\log\,q(u\,|\,\rm context)$")
    axes.set_xticks(rows, [_thousands(n) for n in rows])
    axes.minorticks_off()
    for n, value, point in zip(rows, loss, points, strict=True):
        text = f"{value:.3f}\n{point['epochs']} x seen"
        axes.annotate(text, (n, value), xytext=(0, 24), textcoords="offset points", ha="center")
    axes.margins(x=0.08, y=0.35)
    axes.legend(loc="best", fontsize=10)
    return figure


def _thousands(n: int) -> str:
    return f"{n / 1e6:g} M" if n >= 1_000_000 else f"{n // 1_000}k"

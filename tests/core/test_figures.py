import io
import subprocess
import sys

import numpy as np
import pytest
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.text import Text

from sedflow_core import figures


def draw(figure: Figure) -> bytes:
    """The figure as PNG bytes: layout and every artist are exercised."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=40)
    return stream.getvalue()


def texts(figure: Figure) -> str:
    return "\n".join(text.get_text() for text in figure.findobj(Text))


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


def test_mass_sfr_counts_every_galaxy_once_and_bars_span_the_quantiles(rng):
    median = rng.normal([10.5, 0.0], 0.5, size=(300, 2))
    mass = median[:, :1] + np.array([-0.1, 0.0, 0.2])
    sfr = median[:, 1:] + np.array([-0.4, 0.0, 0.3])
    figure = figures.mass_sfr(mass, sfr, n_error_bars=10)
    axes = figure.axes[0]
    cells = next(item for item in axes.collections if isinstance(item, PolyCollection))
    assert cells.get_array().sum() == 300
    bars = axes.containers[0]
    horizontal, vertical = bars.lines[2]
    assert len(bars.lines[0].get_xdata()) == 10
    assert all(np.isclose(np.ptp(s[:, 0]), 0.3) for s in horizontal.get_segments())
    assert all(np.isclose(np.ptp(s[:, 1]), 0.7) for s in vertical.get_segments())
    assert draw(figure).startswith(b"\x89PNG")


def test_constant_ssfr_lines_have_slope_one(rng):
    median = rng.normal([10.5, 0.0], 0.5, size=(50, 2))
    figure = figures.mass_sfr(np.repeat(median[:, :1], 3, 1), np.repeat(median[:, 1:], 3, 1))
    dotted = [line for line in figure.axes[0].lines if line.get_linestyle() == ":"]
    assert len(dotted) == 4
    for line in dotted:
        (x0, x1), (y0, y1) = line.get_data()
        assert np.isclose((y1 - y0) / (x1 - x0), 1.0)
        assert y0 - x0 in (-9, -10, -11, -12)


def test_corner_plot_titles_give_the_quantiles(rng):
    samples = np.stack([rng.normal(10.3, 0.1, 4000), rng.uniform(0, 3, 4000)], axis=1)
    figure = figures.corner_plot(samples, ["log_mstar_surviving", "tau_ism"], title="galaxy 1")
    assert len(figure.axes) == 3
    assert r"$10.30^{+0.10}_{-0.10}$" in texts(figure)
    assert "galaxy 1" in texts(figure)
    assert draw(figure)


def test_contour_level_encloses_its_fraction_of_a_gaussian():
    x = np.linspace(-5, 5, 401)
    density = np.exp(-0.5 * (x[:, None] ** 2 + x**2))
    for n_sigma, fraction in ((1.0, 0.393469), (2.0, 0.864665)):
        level = figures._level_enclosing(density, fraction)
        assert np.isclose(level, np.exp(-0.5 * n_sigma**2), atol=2e-3)


def test_corner_plot_of_a_constant_quantity_can_be_drawn(rng):
    samples = np.stack([np.full(500, -4.0), rng.normal(size=500)], axis=1)
    assert draw(figures.corner_plot(samples, ["log_sfr_1gyr", "beta1"]))


def test_flags_are_sorted_and_labelled_with_count_and_percent():
    figure = figures.flags_by_reason({"color_blue_u-g": 2, "sigma_high_u": 1250}, 10_000)
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert names == ["sigma_high_u", "color_blue_u-g"]
    assert "1,250  (12.50 %)" in texts(figure)
    assert "2  (0.02 %)" in texts(figure)
    assert draw(figure)


def test_flags_of_a_clean_sample_say_so():
    assert "no galaxy is flagged" in texts(figures.flags_by_reason({}, 5))


def test_pp_plot_states_the_ks_distance(rng):
    n = 400
    perfect = (np.arange(n) + 0.5) / n
    figure = figures.pp_plot(np.stack([perfect, perfect**2], axis=1), ["beta1", "a_v"])
    legend = figure.legends[0]
    shown = [text.get_text() for text in legend.get_texts()]
    assert shown[0].startswith("0.001")
    assert shown[1].startswith("0.25")  # the largest distance of sqrt(x) from x is 1/4
    assert draw(figure)


def test_ks_band_holds_95_percent_of_uniform_samples(rng):
    n = 500
    ordered = np.sort(rng.random((4000, n)), axis=1)
    cumulative = np.arange(1, n + 1) / n
    distance = np.maximum(cumulative - ordered, ordered - cumulative + 1 / n).max(axis=1)
    assert np.isclose(np.mean(distance < figures.KS_95 / np.sqrt(n)), 0.95, atol=0.012)


def test_loss_curve_marks_the_lowest_validation_loss():
    figure = figures.loss_curve([9.0, 8.0, 7.0], [9.5, 8.25, 8.5])
    assert "8.250, epoch 2" in texts(figure)
    assert draw(figure)


def test_figures_do_not_touch_pyplot():
    script = (
        "import io, sys; from sedflow_core.figures import loss_curve; "
        "loss_curve([2, 1], [2, 1]).savefig(io.BytesIO()); "
        "sys.exit('matplotlib.pyplot' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0

"""The NMF bases of the star-formation and metallicity histories (PROVABGS, Hahn et al. 2023).

The package ships its own compact fit of the six curves, within 0.5 % of each curve's peak; the
originals can be read instead from a folder that holds the three files of the PROVABGS repository.
Needs numpy only.
"""

import json
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sedflow_core.errors import GridError
from sedflow_core.units import Array

N_SFH, N_ZH, N_TIME = 4, 2, 50
LOOKBACK_GYR = np.round(np.linspace(0.0, 13.8, 691), 2)
SFH_FILE = "NMF_2basis_SFH_components_nowgt_lin_Nc4.txt"
ZH_FILE = "NMF_2basis_Z_components_nowgt_lin_Nc2.txt"
TIME_FILE = "sfh_t_int.txt"
SFH_ORDER = [2, 0, 1, 3]  # by lookback time of the peak, recent first


class NMFBases(NamedTuple):
    """The six basis curves on one grid of lookback time, not negative, linear in between.

    lookback_gyr: (n_knot,) ascending, Gyr before the observed epoch.
    sfh: (4, n_knot) star-formation rate, arbitrary unit, peaks at 1.17, 5.60, 8.37, 11.14 Gyr.
    zh: (2, n_knot) metallicity per unit coefficient; Z(t) = gamma1 zh[0] + gamma2 zh[1].
    """

    lookback_gyr: Array
    sfh: Array
    zh: Array


def load_nmf(folder: str | Path | None = None) -> NMFBases:
    """Return the shipped fit, or the original curves when `folder` holds their three files.

    Both are evaluated at 0, 0.02, ..., 13.8 Gyr. Originals are interpolated linearly, extrapolated
    linearly outside 0.067..13.63 Gyr and floored at zero. Raises GridError naming the file that is
    missing, unreadable or of the wrong shape.
    """
    if folder is None:
        return _shipped_bases()
    lookback = _read_table(Path(folder) / TIME_FILE, (N_TIME,))[::-1]
    sfh = _read_table(Path(folder) / SFH_FILE, (N_SFH, N_TIME))[SFH_ORDER, ::-1]
    zh = _read_table(Path(folder) / ZH_FILE, (N_ZH, N_TIME))[:, ::-1]
    if not (np.diff(lookback) > 0).all():
        raise GridError(f"expected descending lookback times in {Path(folder) / TIME_FILE}")
    return NMFBases(LOOKBACK_GYR, _extrapolated(lookback, sfh), _extrapolated(lookback, zh))


def _shipped_bases() -> NMFBases:
    text = files("sedflow_core").joinpath("data/nmf_bases.json").read_text(encoding="utf-8")
    fit = json.loads(text)
    return NMFBases(LOOKBACK_GYR, _piecewise(fit["sfh"]), _piecewise(fit["zh"]))


def _piecewise(curves: list[dict[str, Any]]) -> Array:
    values = [np.interp(LOOKBACK_GYR, curve["lookback_gyr"], curve["value"]) for curve in curves]
    floored: Array = np.maximum(np.stack(values), 0.0)
    return floored


def _extrapolated(lookback: Array, curves: Array) -> Array:
    """Evaluate (n_curve, n) values at ascending `lookback` on LOOKBACK_GYR, end slopes kept."""
    segment = np.clip(np.searchsorted(lookback, LOOKBACK_GYR) - 1, 0, lookback.size - 2)
    step = (LOOKBACK_GYR - lookback[segment]) / (lookback[segment + 1] - lookback[segment])
    values: Array = curves[:, segment] * (1 - step) + curves[:, segment + 1] * step
    return np.maximum(values, 0.0)


def _read_table(path: Path, shape: tuple[int, ...]) -> Array:
    try:
        table = np.loadtxt(path, dtype=np.float64)
    except (OSError, ValueError) as error:
        raise GridError(f"expected a text table of shape {shape} in {path}, got {error}") from error
    if table.shape != shape or not np.isfinite(table).all():
        raise GridError(f"expected finite numbers of shape {shape} in {path}, got {table.shape}")
    return table

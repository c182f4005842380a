"""Band sets by name, and their curves against speclite."""

import numpy as np
import pytest
from speclite.filters import load_filter

from sedflow_core.bands import BandSet, load_transmission, parse_band_set, rest_wave_range
from sedflow_core.errors import BandError


@pytest.mark.parametrize(
    ("name", "system", "n_color"),
    [
        ("sdss2010-ugriz", "SDSS", 10),
        ("lsst2023-ugrizy", "LSST", 15),
        ("decam2014-griz", "DECam", 6),
    ],
)
def test_a_band_set_is_its_name(name: str, system: str, n_color: int) -> None:
    bands = parse_band_set(name)
    assert bands.name == name
    assert bands.system == system
    assert len(bands.colors) == n_color
    assert bands.filter_ids[0] == f"{bands.group}-{bands.names[0]}"


def test_colors_pair_every_band_with_every_redder_one() -> None:
    bands = parse_band_set("sdss2010-ugriz")
    named = [f"{bands.names[i]}-{bands.names[j]}" for i, j in bands.colors]
    assert named == ["u-g", "u-r", "u-i", "u-z", "g-r", "g-i", "g-z", "r-i", "r-z", "i-z"]


@pytest.mark.parametrize("name", ["sdss-ugriz", "sdss2010", "sdss2010-", "", "ugriz"])
def test_unknown_groups_are_named(name: str) -> None:
    with pytest.raises(BandError, match=rf"expected '<group>-<bands>'.*got '{name}'"):
        parse_band_set(name)


@pytest.mark.parametrize("bands", ["gr", "zirgu", "ugg", "ugq"])
def test_bands_are_three_or_more_from_blue_to_red(bands: str) -> None:
    with pytest.raises(BandError, match=f"expected 3 or more of ugrizy.*got '{bands}'"):
        parse_band_set(f"sdss2010-{bands}")


def test_unknown_filters_are_named() -> None:
    with pytest.raises(BandError, match="got 'sdss2010-q'"):
        load_transmission(BandSet("sdss2010", ("r", "q")))


@pytest.mark.parametrize("name", ["sdss2010-ugriz", "lsst2023-ugrizy", "decam2014-griz"])
def test_curves_run_from_blue_to_red_and_are_speclites(name: str) -> None:
    bands = parse_band_set(name)
    curves = load_transmission(bands)
    effective = [np.average(c.wave, weights=c.response) for c in curves]
    assert np.all(np.diff(effective) > 0)
    for filter_id, curve in zip(bands.filter_ids, curves, strict=True):
        middle = 0.5 * (curve.wave[1:] + curve.wave[:-1])
        ours = np.interp(middle, curve.wave, curve.response)
        np.testing.assert_allclose(ours, load_filter(filter_id)(middle), atol=1e-12)


def test_rest_range_covers_every_curve_at_every_redshift_in_whole_steps() -> None:
    curves = load_transmission(parse_band_set("sdss2010-ugriz"))
    low, high = rest_wave_range(curves, 0.2, 20.0)
    assert low <= min(c.wave[0] for c in curves) / 1.2 < low + 20.0
    assert high - 20.0 < max(c.wave[-1] for c in curves) <= high
    assert low % 20.0 == high % 20.0 == 0.0

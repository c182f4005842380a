"""The status ladder, and corrections against numbers worked out by hand."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from consumer.alerts import adapt
from consumer.avro import Decoded
from consumer.photometry import Photometry, measure
from consumer.sections import CorrectionSettings
from sedflow_core import Artifact

Record = dict[str, Any]
Measure = Callable[..., Photometry]
READY = {"dereddened": True, "abCorrected": True, "errorFloorIncluded": True}
NJY = 3631.0


@pytest.fixture
def photometry(make_alert: Callable[..., Record], tiny: Artifact) -> Measure:
    """Return what `measure` says of the sample alert with changes to its host and the settings."""

    def of(settings: Record | None = None, **host: Any) -> Photometry:
        alert = adapt(Decoded(make_alert(1, **host), "sedflow.v1_0.hostAlert"))
        return measure(alert, tiny, CorrectionSettings.model_validate(settings or {}))

    return of


@pytest.mark.parametrize(
    ("host", "status", "reasons"),
    [
        ({}, "OK", ()),
        ({"u_flux": -5.0}, "OK", ()),
        ({"y_flux": math.nan}, "OK", ()),
        ({"u_flux": None}, "MISSING_BANDS", ("missing_band_u",)),
        (
            {"g_fluxErr": None, "z_flux": None},
            "MISSING_BANDS",
            ("missing_band_g", "missing_band_z"),
        ),
        ({"filterSystem": "PS1"}, "WRONG_FILTERS", ("filter_system_PS1",)),
        ({"redshift": None}, "NO_REDSHIFT", ("no_redshift",)),
        ({"redshiftType": "none"}, "NO_REDSHIFT", ("no_redshift",)),
        ({"redshiftType": "phot"}, "NO_REDSHIFT", ("photometric_redshift",)),
        ({"redshiftType": "guess"}, "INVALID_INPUT", ("unknown_redshift_type",)),
        ({"redshift": math.inf}, "INVALID_INPUT", ("non_finite_redshift",)),
        ({"r_flux": math.nan}, "INVALID_INPUT", ("non_finite_flux_r",)),
        ({"r_fluxErr": math.inf}, "INVALID_INPUT", ("non_finite_error_r",)),
        ({"i_fluxErr": 0.0}, "INVALID_INPUT", ("non_positive_error_i",)),
        ({"i_fluxErr": -1.0}, "INVALID_INPUT", ("non_positive_error_i",)),
        ({"ebv": None}, "INVALID_INPUT", ("no_ebv_to_deredden_with",)),
        ({"ebv": -0.1}, "INVALID_INPUT", ("invalid_ebv",)),
        ({"ebv": 1e4}, "INVALID_INPUT", ("non_finite_after_corrections",)),
        ({"luminosityDistance": 0.0}, "INVALID_INPUT", ("invalid_luminosity_distance",)),
    ],
)
def test_status(photometry: Measure, host: Record, status: str, reasons: tuple[str, ...]) -> None:
    measured = photometry(**host)
    assert (measured.status, measured.reasons) == (status, reasons)


LADDER: list[tuple[str, Record]] = [
    ("MISSING_BANDS", {"u_flux": None}),
    ("WRONG_FILTERS", {"filterSystem": "DECam"}),
    ("NO_REDSHIFT", {"redshift": None}),
    ("INVALID_INPUT", {"z_fluxErr": math.nan}),
]


@pytest.mark.parametrize("top", range(1, len(LADDER) + 1))
def test_the_first_status_from_the_right_is_given(photometry: Measure, top: int) -> None:
    host: Record = {}
    for _, change in LADDER[:top]:
        host |= change
    assert photometry(**host).status == LADDER[top - 1][0]


def test_no_host(make_alert: Callable[..., Record], tiny: Artifact) -> None:
    alert = adapt(Decoded(make_alert() | {"host": None}, "sedflow.v1_0.hostAlert"))
    measured = measure(alert, tiny, CorrectionSettings())
    assert (measured.status, measured.reasons) == ("NO_HOST", ("no_host",))
    assert np.isnan(measured.flux).all()


def test_ready_photometry_is_only_converted(photometry: Measure, sample_alert: Record) -> None:
    measured = photometry(**READY)
    expected = [sample_alert["host"][f"{band}_flux"] / NJY for band in "ugriz"]
    np.testing.assert_allclose(measured.flux, expected, rtol=1e-12)
    assert (measured.applied, measured.missing) == ((), ())


def test_what_is_not_tried_is_not_corrected_and_says_so(
    photometry: Measure, sample_alert: Record
) -> None:
    due = {"dereddened": False, "errorFloorIncluded": False, "redshift": None}
    measured = photometry(**READY | due)
    assert measured.status == "NO_REDSHIFT"
    assert (measured.applied, measured.missing) == ((), ("dereddened", "error_floor"))
    assert measured.flux[2] * NJY == pytest.approx(sample_alert["host"]["r_flux"])


def test_dereddening(photometry: Measure) -> None:
    """A_u = 4.239 E(B-V) and A_z = 1.263 E(B-V), Schlafly & Finkbeiner (2011)."""
    raw, measured = photometry(**READY), photometry(**READY | {"dereddened": False, "ebv": 0.1})
    ratio = measured.flux / raw.flux
    assert ratio[0] == pytest.approx(10 ** (0.4 * 0.4239))
    assert ratio[4] == pytest.approx(10 ** (0.4 * 0.1263))
    np.testing.assert_allclose(measured.flux_err / raw.flux_err, ratio)
    assert measured.applied == ("dereddened",)


def test_ab_factors(photometry: Measure) -> None:
    raw, measured = photometry(**READY), photometry(**READY | {"abCorrected": False})
    expected = [1.0337, 0.9890, 0.9908, 0.9745, 0.9638]
    np.testing.assert_allclose(measured.flux / raw.flux, expected)
    np.testing.assert_allclose(measured.flux_err / raw.flux_err, expected)
    assert measured.applied == ("ab_factors",)


def test_error_floor(photometry: Measure) -> None:
    raw, measured = photometry(**READY), photometry(**READY | {"errorFloorIncluded": False})
    floor = np.array([0.05, 0.02, 0.02, 0.02, 0.03]) * raw.flux * math.log(10) / 2.5
    np.testing.assert_allclose(measured.flux_err, np.sqrt(raw.flux_err**2 + floor**2))
    np.testing.assert_array_equal(measured.flux, raw.flux)
    assert measured.applied == ("error_floor",)


def test_distance_moves_the_galaxy_to_its_redshift(
    photometry: Measure, tiny: Artifact, sample_alert: Record
) -> None:
    redshift = sample_alert["host"]["redshift"]
    (distance,) = tiny.luminosity_distance_mpc(np.array([redshift]))
    raw = photometry(**READY)
    measured = photometry(**READY, luminosityDistance=2.0 * distance)
    np.testing.assert_allclose(measured.flux, 4.0 * raw.flux)
    np.testing.assert_allclose(measured.flux_err, 4.0 * raw.flux_err)
    assert measured.applied == ("luminosity_distance",)
    far = photometry(**READY, luminosityDistance=2.0 * distance, redshift=0.3)
    np.testing.assert_array_equal(far.flux, raw.flux)
    assert far.missing == ("luminosity_distance",)


def test_all_corrections_are_told_in_order(photometry: Measure) -> None:
    assert photometry().applied == ("dereddened", "ab_factors", "error_floor")


def test_corrections_can_be_switched_off(photometry: Measure) -> None:
    off = {"deredden": False, "ab_factors": False, "error_floor": False}
    measured, raw = photometry(off, ebv=None), photometry(**READY)
    assert measured.status == "OK"
    np.testing.assert_array_equal(measured.flux, raw.flux)
    assert measured.missing == ("dereddened", "ab_factors", "error_floor")


def test_accepted_photometric_redshift_is_flagged(photometry: Measure) -> None:
    measured = photometry({"accept_photometric_redshift": True}, redshiftType="phot")
    assert (measured.status, measured.reasons) == ("OK", ("accepted_photometric_redshift",))


def test_accepted_filters_are_flagged(photometry: Measure) -> None:
    """PS1 has no table of corrections here: none is made, and that is told."""
    measured = photometry({"accept_other_filters": True}, filterSystem="PS1")
    assert (measured.status, measured.reasons) == ("OK", ("accepted_filter_system_PS1",))
    assert measured.missing == ("dereddened", "ab_factors", "error_floor")

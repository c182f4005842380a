"""Each survey's records become a HostAlert; what is no alert becomes an AdaptError."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from consumer.alerts import HostAlert, adapt
from consumer.avro import Decoded, Decoder
from consumer.errors import AdaptError
from consumer.files import ArchiveSource

Record = dict[str, Any]
NAME = "sedflow.v1_0.hostAlert"


def adapt_file(path: Path) -> HostAlert:
    return adapt(Decoder().decode(path.read_bytes()))


def elasticc(**fields: Any) -> Decoded:
    """An ELAsTiCC record whose host is complete but for `fields`."""
    host: Record = {"hostgal_snsep": 0.5, "hostgal_z": 0.1, "hostgal_z_err": 0.001, "mwebv": 0.02}
    for band in "ugrizY":
        host |= {f"hostgal_mag_{band}": 20.0, f"hostgal_magerr_{band}": 0.1}
    source = {"diaSourceId": 5, "diaObjectId": 7, "ra": 1.0, "decl": 2.0, "midPointTai": 6e4}
    record = {"alertId": 3, "diaSource": source, "diaObject": host | fields}
    return Decoded(record, "elasticc.v0_9.alert")


def test_host_alert(make_alert: Callable[..., Record]) -> None:
    record = make_alert(7, redshift=0.125)
    alert = adapt(Decoded(record, NAME))
    assert (alert.alert_id, alert.object_id, alert.survey) == (7, "object-7", "ZTF")
    assert alert.host is not None
    assert alert.host.redshift == 0.125
    assert alert.host.flux == {band: record["host"][f"{band}_flux"] for band in "ugrizy"}
    assert alert.host.flux_err["u"] == record["host"]["u_fluxErr"]
    assert (alert.host.dereddened, alert.host.ebv) == (False, record["host"]["ebv"])


def test_later_minor_versions_are_read(make_alert: Callable[..., Record]) -> None:
    record = make_alert() | {"newField": None}
    assert adapt(Decoded(record, "sedflow.v1_7.hostAlert")).host is not None


def test_negative_flux_is_no_sentinel(make_alert: Callable[..., Record]) -> None:
    alert = adapt(Decoded(make_alert(u_flux=-999.0, g_flux=-9.0), NAME))
    assert alert.host is not None
    assert (alert.host.flux["u"], alert.host.flux["g"]) == (-999.0, -9.0)


@pytest.mark.parametrize(
    ("schema_name", "message"),
    [
        ("sedflow.v2_0.hostAlert", "got 'sedflow.v2_0.hostAlert'"),
        ("topLevelRecord.x", "got 'topLevelRecord.x'"),
    ],
)
def test_unknown_schema(schema_name: str, message: str) -> None:
    with pytest.raises(AdaptError, match=message):
        adapt(Decoded({}, schema_name))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"alertId": "x"}, "alert_id: expected int, got 'x'"),
        ({"alertId": None}, "alert_id: expected int, got None"),
        ({"alertId": True}, "alert_id: expected int, got True"),
        ({"host": 3}, "host.catalog: expected in the record"),
        ({"ra": [1]}, r"ra: expected float, got \[1\]"),
    ],
)
def test_wrong_types(change: Record, message: str, make_alert: Callable[..., Record]) -> None:
    with pytest.raises(AdaptError, match=message):
        adapt(Decoded(make_alert() | change, NAME))


def test_missing_field(make_alert: Callable[..., Record]) -> None:
    record = make_alert()
    del record["host"]["redshiftType"]
    with pytest.raises(AdaptError, match=r"host.redshiftType: expected in the record, got none"):
        adapt(Decoded(record, NAME))


@pytest.mark.parametrize("record", [None, 3, "text", [], b"bytes"])
def test_record_is_no_record(record: Any) -> None:
    with pytest.raises(AdaptError, match="expected"):
        adapt(Decoded(record, NAME))


def test_elasticc_magnitudes_become_fluxes() -> None:
    host = adapt(elasticc(hostgal_mag_g=21.4, hostgal_magerr_g=0.2)).host
    assert host is not None
    flux, flux_err = host.flux["g"], host.flux_err["g"]
    assert flux is not None
    assert flux_err is not None
    # AB magnitudes have a zero point of 31.4 in nJy, to the 1e-3 that 31.4 is rounded by
    assert flux == pytest.approx(10 ** (0.4 * (31.4 - 21.4)), rel=2e-4)
    assert flux_err / flux == pytest.approx(0.2 * math.log(10) / 2.5, rel=1e-12)
    assert (host.filter_system, host.redshift_type) == ("LSST", "spec")


@pytest.mark.parametrize("missing", [None, math.nan, 999.0, -999.0, -9.0])
def test_elasticc_sentinels_are_missing(missing: float | None) -> None:
    host = adapt(elasticc(hostgal_mag_u=missing, hostgal_magerr_r=missing, hostgal_z=missing)).host
    assert host is not None
    assert host.flux["u"] is host.flux_err["u"] is host.flux_err["r"] is host.redshift is None
    assert host.flux["r"] is not None


@pytest.mark.parametrize("separation", [None, math.nan, -9.0])
def test_elasticc_without_a_host(separation: float | None) -> None:
    assert adapt(elasticc(hostgal_snsep=separation)).host is None


def test_real_elasticc(shared_data: Path) -> None:
    alert = adapt_file(shared_data / "alerts" / "alerce_elasticc_obj1131.avro")
    assert (alert.survey, alert.object_id) == ("ELAsTiCC", "1131")
    assert alert.host is not None
    assert alert.host.redshift == pytest.approx(1.1370378)
    assert alert.host.flux["r"] == pytest.approx(10 ** (0.4 * (31.4 - 26.9384823)), rel=2e-4)
    assert all(flux is not None and flux > 0 for flux in alert.host.flux.values())


@pytest.mark.parametrize(
    ("name", "survey", "object_id"),
    [
        ("ztf_v4_02_ZTF17aaarzyp.avro", "ZTF", "ZTF17aaarzyp"),
        ("lsst_v11_1_fakeAlert.avro", "LSST", "281323062375219200"),
    ],
)
def test_real_alerts_without_host_photometry(
    shared_data: Path, name: str, survey: str, object_id: str
) -> None:
    """PSF magnitudes of nearest sources and difference fluxes are nobody's host."""
    alert = adapt_file(shared_data / "alerts" / name)
    assert (alert.survey, alert.object_id, alert.host) == (survey, object_id, None)
    assert alert.ra is not None


def test_real_fink_alerts(shared_data: Path) -> None:
    """Spark names every record alike: the fields tell, and an id of 0 is none."""
    (archive,) = (shared_data / "alerts").glob("fink_lsst_*.avro")
    messages = ArchiveSource([str(archive)]).poll(10, 0.0)
    alerts = [adapt(Decoder().decode(message.value, message.key)) for message in messages]
    assert {(alert.survey, alert.host) for alert in alerts} == {("LSST", None)}
    assert len({alert.object_id for alert in alerts} - {"0"}) == len(alerts) == 7


def test_a_record_of_another_survey_by_way_of_spark() -> None:
    with pytest.raises(AdaptError, match=r"diaSource\.diaSourceId: expected in the record"):
        adapt(Decoded({"candid": 1, "objectId": "ZTF1"}, "topLevelRecord"))

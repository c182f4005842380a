from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from astropy import units as u
from astropy.coordinates import SkyCoord

from consumer import demo
from consumer.alerts import adapt
from consumer.avro import Decoder
from consumer.files import ArchiveSource
from sedflow_core import Artifact

N = 60


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory, tiny_path: Path) -> Path:
    out = tmp_path_factory.mktemp("demo") / "output"
    assert demo.main(["--out", str(out), "--limit", str(N), "--artifact", str(tiny_path)]) == 0
    return out


def test_it_leaves_what_it_promises(output):
    names = sorted(path.name for path in output.iterdir())
    assert names == [
        "alerts.avro",
        "corner.png",
        "flags_by_reason.png",
        "mass_sfr.png",
        "summaries.avro",
        "summaries.parquet",
    ]
    assert all(name in demo.WHAT_TO_LOOK_AT for name in names)


def test_every_galaxy_comes_out_once_and_in_order(output):
    table = pq.read_table(output / "summaries.parquet")
    assert table["alertId"].to_pylist() == list(range(N))
    records = demo.read_summaries(output / "summaries.avro")
    assert [record["alertId"] for record in records] == list(range(N))
    medians = [
        record["posterior"] and record["posterior"]["derived"]["log_sfr_1gyr"]["q50"]
        for record in records
    ]
    assert table["log_sfr_1gyr_q50"].to_pylist() == medians


def test_alerts_carry_the_catalogue_photometry(output, tiny: Artifact):
    galaxies = demo.load_galaxies(tiny, N)
    decoder = Decoder()
    source = ArchiveSource([str(output / "alerts.avro")])
    for i, message in enumerate(source.poll(N + 1, 0.0)):
        host = adapt(decoder.decode(message.value, message.key)).host
        assert host is not None
        assert (host.dereddened, host.ab_corrected, host.error_floor_included) == (True,) * 3
        flux = (np.array([host.flux[band] for band in "ugriz"]) * u.nJy).to_value(3631 * u.nJy)
        np.testing.assert_allclose(flux, galaxies.catalog.observation.flux[i], rtol=1e-6)
    assert i == N - 1


def test_table_has_a_line_per_galaxy_with_redshift_and_errors(output, capsys):
    records = demo.read_summaries(output / "summaries.avro")
    demo.print_table(records)
    lines = capsys.readouterr().out.strip().splitlines()
    fitted = [record for record in records if record["posterior"]]
    assert len(lines) == 1 + min(len(fitted), demo.TABLE_ROWS) + min(N - len(fitted), 2)
    assert f"{fitted[0]['inputs']['redshift']:.4f}" in lines[1]
    mass = fitted[0]["posterior"]["derived"]["log_mstar_surviving"]
    assert f"{mass['q50']:.2f} +{mass['q84'] - mass['q50']:.2f}" in lines[1]
    assert lines[1].endswith("OK")


@pytest.mark.parametrize(
    ("ra", "dec"), [(122.0866621, 36.1968539), (0.0003, -0.0004), (359.9999, -89.5)]
)
def test_names_follow_the_position(ra, dec):
    name = demo.sdss_name(ra, dec).removeprefix("SDSS J")
    sign = max(name.find("+"), name.find("-"))
    hms = [name[:2], name[2:4], name[4:sign]]
    dms = [name[sign : sign + 3], name[sign + 3 : sign + 5], name[sign + 5 :]]
    parsed = SkyCoord("{}h{}m{}s".format(*hms), "{}d{}m{}s".format(*dms))
    assert parsed.separation(SkyCoord(ra, dec, unit="deg")) < 0.2 * u.arcsec


def test_missing_artifact_ends_with_a_message(tmp_path, capsys):
    assert demo.main(["--out", str(tmp_path), "--artifact", str(tmp_path / "none")]) == 2
    assert "demo: artifact: expected" in capsys.readouterr().err

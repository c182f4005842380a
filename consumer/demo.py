"""The demo: real SDSS galaxies as alerts, through the consumer, to summaries and figures.

The galaxies are the sample of 10,000 that the package kcorrect carries (SDSS main galaxies, with
Petrosian fluxes and redshifts). They become an archive of hostAlert messages, which is replayed
through the daemon's own step: no network, no broker. With `--kafka` the same messages go through
topics of a real broker and a daemon in its own process.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch

from consumer.avro import Decoder, Record, encode, encode_body, schema_text
from consumer.container import make_block, make_header
from consumer.errors import exit_code
from consumer.files import ArchiveSource
from consumer.replay import replay
from consumer.sections import ArtifactSettings
from consumer.settings import Settings
from consumer.summaries import observation_of
from consumer.writers import ParquetWriter
from sedflow_core import Artifact, load_artifact, sample
from sedflow_core.catalog import Catalog, read_catalog, sdss_columns
from sedflow_core.errors import MissingExtraError, SedflowError
from sedflow_core.quantities import calc_quantities
from sedflow_core.tables import open_table
from sedflow_core.units import Array, njy_from_nanomaggy

BLOCK_RECORDS = 256
CORNER_NAMES = (
    "log_mstar_surviving",
    "log_sfr_1gyr",
    "z_mw",
    "t_age_mw",
    "a_v",
    "fburst",
    "tburst",
    "tau_bc",
    "n_dust",
)
CORNER_SAMPLES = 8192
TABLE_ROWS = 10
MAX_GALAXIES = 10_000
TABLE_NAMES = ("log_mstar_surviving", "log_sfr_1gyr")
WHAT_TO_LOOK_AT = """
in {out}/
  alerts.avro           the alerts that went in: sedflow.v1_2.hostAlert
  summaries.avro        what came out: sedflow.v1_2.posteriorSummary
  summaries.parquet     the same as a flat table, with columns such as log_sfr_1gyr_q50
  mass_sfr.png          look here first: mass against star formation rate, with uncertainties
  corner.png            one galaxy's posterior: what five bands tell, and what they do not
  flags_by_reason.png   why some galaxies got no answer: most are beyond the redshift range or
                        noisier than the galaxies the artifact was trained for"""


@dataclass(frozen=True, slots=True)
class Galaxies:
    """The sample: names, positions [deg] and corrected photometry."""

    names: tuple[str, ...]
    ra: Sequence[float]
    dec: Sequence[float]
    catalog: Catalog


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo and return the exit code."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.limit < 1:
        parser.error(f"--limit: expected at least 1, got {options.limit}")
    torch.set_num_threads(1)
    try:
        options.out.mkdir(parents=True, exist_ok=True)
        _run_demo(options)
    except SedflowError as error:
        print(f"demo: {error}", file=sys.stderr)
        return exit_code(error)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m consumer.demo", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("demo-output"), help="folder to fill")
    parser.add_argument("--limit", type=int, default=2000, help="galaxies, of 10,000")
    parser.add_argument("--artifact", default="sdss-ugriz")
    parser.add_argument("--kafka", action="store_true", help="through a real broker")
    return parser


def _run_demo(options: argparse.Namespace) -> None:
    out: Path = options.out
    settings = Settings(artifact=ArtifactSettings(name=options.artifact))
    artifact = load_artifact(options.artifact)
    galaxies = load_galaxies(artifact, options.limit)
    alerts = [describe_galaxy(galaxies, artifact, i) for i in range(len(galaxies.names))]
    write_archive(out / "alerts.avro", alerts)
    print(
        f"{len(alerts):,} SDSS galaxies as alerts, for {artifact.name} {artifact.version} ...",
        flush=True,
    )
    if options.kafka:
        from consumer.demo_kafka import pass_through_kafka

        pass_through_kafka(options.artifact, alerts, out)
    else:
        print(replay(settings, [str(out / "alerts.avro")], out=out / "summaries.avro"))
    records = read_summaries(out / "summaries.avro")
    write_parquet(out / "summaries.parquet", records, artifact)
    print_table(records)
    write_figures(records, artifact, out)
    print(WHAT_TO_LOOK_AT.format(out=out))


def load_galaxies(artifact: Artifact, limit: int) -> Galaxies:
    """The first `limit` galaxies, dereddened, in AB and with the error floor."""
    package = find_spec("kcorrect")
    if package is None or not package.submodule_search_locations:
        raise MissingExtraError("kcorrect", "demo")
    path = Path(package.submodule_search_locations[0]) / "data" / "test" / "gst_tests_small.fits"
    catalog = read_catalog(path, sdss_columns(), artifact.bands)
    with open_table(path) as table:
        ra, dec = table.numbers("RA")[:limit].tolist(), table.numbers("DEC")[:limit].tolist()
    return Galaxies(tuple(map(sdss_name, ra, dec)), ra, dec, catalog)


def sdss_name(ra: float, dec: float) -> str:
    """Name by position, truncated as SDSS names are: SDSS J081220.79+361148.7."""
    hours = int(ra / 15.0 * 3600.0 * 100.0)
    arcsec = int(abs(dec) * 3600.0 * 10.0)
    h, m, s = hours // 360_000, hours // 6_000 % 60, hours % 6_000 / 100.0
    d, minute, second = arcsec // 36_000, arcsec // 600 % 60, arcsec % 600 / 10.0
    return f"SDSS J{h:02}{m:02}{s:05.2f}{'-' if dec < 0 else '+'}{d:02}{minute:02}{second:04.1f}"


def describe_galaxy(galaxies: Galaxies, artifact: Artifact, i: int) -> Record:
    """hostAlert record of galaxy i: a made-up alert at the centre of a real host."""
    observation = galaxies.catalog.observation
    position = {"ra": galaxies.ra[i], "dec": galaxies.dec[i]}
    flux, flux_err = (
        dict(zip(artifact.bands.names, njy_from_nanomaggy(values[i]).tolist(), strict=True))
        for values in (observation.flux, observation.flux_err)
    )
    host = {
        **dict.fromkeys(_NULL_IN_HOST),
        **{f"{band}_flux": flux.get(band) for band in "ugrizy"},
        **{f"{band}_fluxErr": flux_err.get(band) for band in "ugrizy"},
        **position,
        "catalog": "SDSS, by way of kcorrect",
        "hostId": str(i),
        "separation": 0.0,
        "associationMethod": "demo",
        "fluxType": "petro",
        "filterSystem": artifact.bands.system,
        "dereddened": True,
        "abCorrected": True,
        "errorFloorIncluded": True,
        "redshift": float(observation.redshift[i]),
        "redshiftType": "spec",
        "redshiftSource": "SDSS",
    }
    alert = {"alertId": i, "objectId": galaxies.names[i], "survey": "SDSS", **position}
    return {**dict.fromkeys(_NULL_IN_ALERT), **alert, "host": host}


_NULL_IN_HOST = ("associationProb", "ebv", "photFlags", "redshiftErr", "luminosityDistance")
_NULL_IN_ALERT = (
    *("diaSourceId", "diaObjectId"),
    *("midpointMjdTai", "alertPublishTimestamp", "brokerIngestTimestamp"),
)


def write_archive(path: Path, alerts: Sequence[Record]) -> None:
    """Write hostAlert records as one Avro container."""
    header, sync = make_header(schema_text("hostAlert"))
    bodies = [encode_body(alert, "hostAlert") for alert in alerts]
    with path.open("wb") as stream:
        stream.write(header)
        for start in range(0, len(bodies), BLOCK_RECORDS):
            stream.write(make_block(bodies[start : start + BLOCK_RECORDS], sync))


def read_summaries(path: Path) -> list[Record]:
    """The posteriorSummary records of an Avro container."""
    with closing(ArchiveSource([str(path)])) as source:
        messages = source.poll(MAX_GALAXIES, 0.0)
    decoder = Decoder()
    return [decoder.decode(message.value, message.key).record for message in messages]


def write_parquet(path: Path, records: Sequence[Record], artifact: Artifact) -> None:
    """Write posteriorSummary records as a flat table, a row each."""
    writer = ParquetWriter(path, artifact)
    writer.write([encode(record, "posteriorSummary") for record in records])
    writer.finish()


def print_table(records: Sequence[Record]) -> None:
    """A few galaxies: those first in the sample, and the first that were not fitted."""
    fitted = [record for record in records if record["posterior"]]
    others = [record for record in records if not record["posterior"]]
    print(f"\n{'galaxy':<27}{'z':>8}  {'log M* [Msun]':<20}{'log SFR [Msun/yr]':<20}status")
    for record in (*fitted[:TABLE_ROWS], *others[:2]):
        mass, sfr = (_value_with_errors(record, name) for name in TABLE_NAMES)
        reasons = ", ".join(record["statusReasons"])
        status = record["status"] + (f": {reasons}" if reasons else "")
        redshift = record["inputs"]["redshift"]
        print(f"{record['objectId']:<27}{redshift:>8.4f}  {mass:<20}{sfr:<20}{status}")


def _value_with_errors(record: Record, name: str) -> str:
    if not record["posterior"]:
        return "-"
    low, median, high = _quantiles(record, name)
    return f"{median:6.2f} +{high - median:.2f} -{median - low:.2f}"


def _quantiles(record: Record, name: str) -> tuple[float, float, float]:
    marginal = record["posterior"]["derived"][name]
    return marginal["q16"], marginal["q50"], marginal["q84"]


def write_figures(records: Sequence[Record], artifact: Artifact, out: Path) -> None:
    """Save mass against SFR, one corner plot, and the flags by reason."""
    from sedflow_core.figures import corner_plot, flags_by_reason, mass_sfr

    fitted = [record for record in records if record["posterior"]]
    if fitted:
        mass, sfr = ([_quantiles(record, name) for record in fitted] for name in TABLE_NAMES)
        mass_sfr(mass, sfr).savefig(out / "mass_sfr.png")
        samples, title = _sample_corner(fitted[0], artifact)
        corner_plot(samples, CORNER_NAMES, title=title).savefig(out / "corner.png")
    reasons = Counter(
        reason
        for record in records
        if not record["posterior"]
        for reason in record["statusReasons"]
    )
    flags_by_reason(reasons, len(records)).savefig(out / "flags_by_reason.png")


def _sample_corner(record: Record, artifact: Artifact) -> tuple[Array, str]:
    """Samples (n_sample, n_name) of `CORNER_NAMES`, and what to call the galaxy."""
    inputs = record["inputs"]
    observation = observation_of(inputs)
    theta = torch.from_numpy(sample(artifact, observation, CORNER_SAMPLES)[:, 0])
    redshift = torch.from_numpy(observation.redshift)
    samples: Array = calc_quantities(theta, redshift, artifact.tables, CORNER_NAMES).numpy()
    return samples, f"{record['objectId']}\nz = {inputs['redshift']:.4f}"


if __name__ == "__main__":
    sys.exit(main())

"""Which columns of a catalogue hold what, as the arguments of a command say."""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from sedflow_core.bands import BandSet
from sedflow_core.catalog import (
    UNITS,
    Catalog,
    ColumnMap,
    nsa_columns,
    read_catalog,
    sdss_columns,
)
from sedflow_core.errors import CatalogError
from sedflow_core.observation import Observation
from sedflow_core.support import can_encode
from sedflow_core.tables import open_table

_COLUMNS_HELP = """\
nsa: NASA-Sloan Atlas. sdss: SDSS array columns. Both know their columns and corrections.
columns: say them here. A name that stands for all bands is 'u=COL1,g=COL2,...', a pattern
such as 'flux_{band}', or an array column that ends in u g r i z."""


def add_column_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments that say which columns of a catalogue hold what."""
    add = parser.add_argument_group("columns", _COLUMNS_HELP).add_argument
    add("--layout", choices=("columns", "nsa", "sdss"), default="columns")
    add("--flux-columns", help="fluxes or magnitudes; with nsa or sdss: which of theirs")
    add("--err-columns", help="their errors")
    add("--ivar-columns", help="their inverse variances, instead of errors")
    add("--unit", choices=UNITS, help="default: nanomaggy")
    add("--redshift-column")
    add("--extinction-columns", help="Galactic extinction [mag] to correct for")
    add("--ebv-column", help="E(B-V) [mag] to correct for, instead")
    add("--ab-factors", action="store_true", help="bring catalogue fluxes to the AB system")
    add("--error-floor", action="store_true", help="add the calibration error in quadrature")
    add("--quality-columns", help="SDSS photo flags: one 64-bit column, or 'FLAGS,FLAGS2'")


def read_galaxies(args: argparse.Namespace, path: Path | None, bands: BandSet) -> Catalog | None:
    """The catalogue at a path, by the columns that the arguments name; None where there is no path.

    Raises:
        CatalogError: columns are named but no catalogue, or it cannot be read.
    """
    if path is not None:
        return read_catalog(path, column_map(args, path), bands)
    parser = argparse.ArgumentParser()
    add_column_arguments(parser)
    for name, default in vars(parser.parse_args([])).items():
        if (value := getattr(args, name)) != default:
            option = name.replace("_", "-")
            raise CatalogError(f"--{option}: expected a catalogue to read, got {value} alone")
    return None


def read_usable(args: argparse.Namespace, path: Path | None, bands: BandSet) -> Observation | None:
    """Those of the galaxies of `read_galaxies` that the network can be asked about.

    Raises CatalogError where there are none.
    """
    catalog = read_galaxies(args, path, bands)
    if catalog is None:
        return None
    observation = catalog.observation
    usable = can_encode(*observation.tensors()).numpy() & (catalog.quality == 0)
    if not usable.any():
        raise CatalogError(
            f"{path}: expected a galaxy with finite photometry, got none of {len(usable)}"
        )
    return observation.rows(usable)


def column_map(args: argparse.Namespace, path: Path) -> ColumnMap:
    """The columns of the catalogue at a path that the arguments of a command name."""
    said = {
        "flux_err": args.err_columns,
        "ivar": args.ivar_columns,
        "unit": args.unit,
        "redshift": args.redshift_column,
        "row_id": vars(args).get("id_column"),
        "extinction": args.extinction_columns,
        "ebv": args.ebv_column,
        "ab_factors": args.ab_factors or None,
        "error_floor": args.error_floor or None,
        "quality": tuple(args.quality_columns.split(",")) if args.quality_columns else None,
    }
    said = {name: value for name, value in said.items() if value is not None}
    for name, other in (("flux_err", "ivar"), ("ebv", "extinction")):
        _drop_other(said, name, other)
    if args.layout == "sdss":
        return replace(sdss_columns(args.flux_columns), **said)
    if args.layout == "nsa":
        with open_table(path) as table:
            return replace(nsa_columns(table.names, args.flux_columns), **said)
    for option in ("flux_columns", "redshift_column"):
        if getattr(args, option) is None:
            name = option.replace("_", "-")
            raise CatalogError(f"--{name}: expected a column name with --layout columns, got none")
    return ColumnMap(flux=args.flux_columns, **said)


def _drop_other(said: dict[str, Any], name: str, other: str) -> None:
    """Where one of two was said, a layout's default of the other does not hold."""
    if name in said and other not in said:
        said[other] = None
    elif other in said and name not in said:
        said[name] = None

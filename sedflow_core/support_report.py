"""`sedflow support-table`: the command, and what it measured as Markdown."""

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from sedflow_core.argument_types import non_negative_int, positive_int
from sedflow_core.artifact import Artifact
from sedflow_core.columns import add_column_arguments, read_galaxies
from sedflow_core.corruptions import corrupted_simulations
from sedflow_core.errors import CatalogError
from sedflow_core.estimation import load_artifact
from sedflow_core.observation import Observation
from sedflow_core.progress import progress_bar
from sedflow_core.support_table import SEED, measure_support
from sedflow_core.tables import open_table

_TESTS = {
    "sigma_high": "`sigma_high`",
    "color_blue": "`color_blue`",
    "mag_range": "`mag_range`",
    "redshift_range": "`redshift_range`",
    "sigma_low": "`sigma_low`",
    "density_low": "`density_low`",
    "flags": "any flag",
    "verdict": "verdict",
    "whole": "flag or verdict",
}
_SHOWN = ("sigma_high", "color_blue", "sigma_low", "density_low", "flags", "verdict", "whole")


def add_support_table_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `sedflow support-table`."""
    add = parser.add_argument
    add("artifact", help="name of a shipped artifact, or a folder")
    add("--out", type=Path, required=True, help="folder for support.json and support.md")
    add("--n", type=positive_int, default=100, help="galaxies of each kind")
    add("--n-clean", type=positive_int, default=2_000, help="simulations behind the false alarms")
    add("--catalog", type=Path, help="real galaxies as well: FITS, Parquet or CSV")
    add("--group-column", help="of the catalogue: one kind of galaxy for each of its values")
    add("--seed", type=non_negative_int, default=SEED)
    add_column_arguments(parser)


def run_support_table(args: argparse.Namespace) -> int:
    """`sedflow support-table`."""
    artifact = load_artifact(args.artifact)
    real = _read_real(args, artifact)
    populations = corrupted_simulations(artifact, args.n, args.seed)
    for name in real.keys() & populations.keys():
        raise CatalogError(f"--group-column: expected a group that is no corruption, got {name!r}")
    args.out.mkdir(parents=True, exist_ok=True)
    total = sum(map(len, {**populations, **real}.values()))
    with progress_bar(total, "galaxies") as bar:
        document = measure_support(
            artifact,
            populations,
            real=real,
            n_clean=args.n_clean,
            seed=args.seed,
            progress=bar.update,
        )
    (args.out / "support.json").write_text(json.dumps(document, indent=2) + "\n")
    markdown = render_markdown(document)
    (args.out / "support.md").write_text(markdown)
    print(markdown)
    return 0


def _read_real(args: argparse.Namespace, artifact: Artifact) -> dict[str, Observation]:
    """Up to args.n galaxies of each group of a catalogue, chosen by the seed; none without one."""
    catalog = read_galaxies(args, args.catalog, artifact.bands)
    if catalog is None:
        if args.group_column is not None:
            raise CatalogError(f"--group-column: expected --catalog, got {args.group_column} alone")
        return {}
    label = np.full(len(catalog), args.catalog.stem, dtype=object)
    if args.group_column is not None:
        with open_table(args.catalog) as table:
            label = table.labels(args.group_column).astype(str)
    usable = np.flatnonzero(catalog.quality == 0)
    order = np.random.default_rng(args.seed).permutation(usable)
    return {
        str(name): catalog.observation.rows(np.sort(order[label[order] == name][: args.n]))
        for name in np.unique(label.astype(str))
    }


def render_markdown(document: dict[str, Any]) -> str:
    """Four tables: what is found where, precision and recall, false alarms, rank correlations."""
    populations = document["populations"]
    parts = [
        "# Support rules and verdict against the exact posterior",
        _introduction(document),
        "Share of galaxies that each test objects to; of the failing ones, the share that flag or "
        "verdict find (recall), and of those they object to, the share that fails (precision):",
        _table(
            ["galaxies", "n", "fail", *(_TESTS[t] for t in _SHOWN), "recall", "precision"],
            [_population_row(name, rates) for name, rates in populations.items()],
        ),
    ]
    for group in ("every simulation", "every real galaxy"):
        if group in populations:
            parts += [f"Precision and recall, {group}:", _precision_table(populations[group])]
    parts += [
        f"False alarms on {document['false_alarms']['n']:,} simulations as in training:",
        _table(
            ["test", "rate"],
            [[k, _percent(v)] for k, v in document["false_alarms"].items() if k != "n"],
        ),
        "Rank correlation of importance efficiencies, galaxies inside the support:",
        _correlation_table(document["rank_correlation"]),
    ]
    return "\n\n".join(parts) + "\n"


def _introduction(document: dict[str, Any]) -> str:
    artifact, criterion, verdict = (document[k] for k in ("artifact", "criterion", "verdict"))
    return (
        f"{artifact['name']} {artifact['version']}. A posterior fails where the importance "
        f"efficiency of {criterion['n_draws']:,} draws is below {criterion['min_efficiency']:g} "
        f"or the exact posterior-predictive p-value below {criterion['min_p_value']:g}. The "
        f"verdict has {verdict['n_draws']} draws, all where those find less than "
        f"{verdict['all_draws_below']:g}, and asks for {verdict['min_efficiency']:g} and "
        f"{verdict['min_p_value']:g}."
    )


def _population_row(name: str, rates: dict[str, Any]) -> list[str]:
    tests = rates["tests"]
    objects = [_percent(tests[test]["objects"]) for test in _SHOWN]
    measures = [_percent(tests["whole"][measure]) for measure in ("recall", "precision")]
    return [name, str(rates["n"]), _percent(rates["fails"]), *objects, *measures]


def _precision_table(rates: dict[str, Any]) -> str:
    measures = ("objects", "precision", "recall", "false_alarms")
    header = ["test", "objects", "precision", "recall", "objects to good ones"]
    rows = [
        [label, *(_percent(rates["tests"][test][m]) for m in measures)]
        for test, label in _TESTS.items()
    ]
    found = _percent(rates["inefficient_found"])
    return _table(header, rows) + f"\n\nFound of those with too low an efficiency: {found}."


def _correlation_table(correlations: dict[str, dict[str, Any]]) -> str:
    header = [
        "galaxies",
        "n",
        "online, exact",
        "exact, exact again",
        "online, exact without smoothing",
        "exact without smoothing, again",
    ]
    keys = (
        "online_with_smoothed",
        "smoothed_with_itself",
        "online_with_plain",
        "plain_with_itself",
    )
    rows = [
        [name, str(values["n"]), *(_number(values[key]) for key in keys)]
        for name, values in correlations.items()
    ]
    return _table(header, rows)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100.0 * share:.1f} %"


def _table(header: list[str], rows: Iterable[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)

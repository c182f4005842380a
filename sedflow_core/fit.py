"""`sedflow fit`: a catalogue of galaxies in, a table of posterior summaries out, row for row.

Every input row gives one output row, in order. A row that cannot be fitted holds NaN (null in
Parquet, an empty field in CSV), a status and its reasons.
"""

import argparse
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sedflow_core.argument_types import non_negative_int, positive_int
from sedflow_core.artifact import Artifact
from sedflow_core.catalog import CUT_NAMES, Catalog, read_catalog
from sedflow_core.columns import add_column_arguments, column_map
from sedflow_core.errors import CatalogError, MissingExtraError
from sedflow_core.estimation import estimate, find_flags, load_artifact, sample
from sedflow_core.memory import keep_freed_memory
from sedflow_core.observation import Observation
from sedflow_core.progress import progress_bar
from sedflow_core.summary import LEVEL_NAMES, Summary
from sedflow_core.support import reasons_of
from sedflow_core.tables import check_folder, table_writer, write_table
from sedflow_core.threads import torch_threads
from sedflow_core.trust import is_trusted
from sedflow_core.whole_file import written_whole

CHUNK_ROWS = 128


@dataclass(frozen=True, slots=True)
class Fit:
    """Posterior summaries of a catalogue's n rows; rows without one are NaN.

    Attributes:
        names: the 12 parameters, then the derived quantities.
        status: (n,) "OK", "OUT_OF_SUPPORT", "INVALID_INPUT", "NO_REDSHIFT", "MISSING_BANDS" or
            "QUALITY_CUT".
        reasons: (n,) names of what stands against the row, joined by ";"; empty when OK.
        flags: (n,) support flags, bit i as the artifact's flag i.
        quantiles: (n, n_name, 5) at the levels of `LEVEL_NAMES`; mean, std: (n, n_name).
        probabilities: event name -> (n,).
        trust: judgement -> (n,), see `sedflow_core.trust.Trust`; empty where the artifact cannot
            judge.
    """

    names: tuple[str, ...]
    status: NDArray[np.str_]
    reasons: NDArray[np.str_]
    flags: NDArray[np.int64]
    quantiles: NDArray[np.float32]
    mean: NDArray[np.float32]
    std: NDArray[np.float32]
    probabilities: dict[str, NDArray[np.float32]]
    trust: dict[str, NDArray[np.float32]]

    def trusted(self) -> NDArray[np.bool_]:
        """The verdict on each row (n,); False where there is no posterior."""
        of_rows = zip(self.trust["p_value"], self.trust["efficiency"], strict=True)
        return np.array([is_trusted(*values) for values in of_rows], dtype=bool)


def fit_catalog(
    artifact: Artifact,
    catalog: Catalog,
    *,
    n_samples: int | None = None,
    seed: int = 0,
    samples_path: Path | None = None,
) -> Fit:
    """Summarise the posterior of every row, with a progress bar.

    `samples_path`: HDF5 file for the samples, dataset "samples" (n, n_samples, 12) float32, NaN
    where there is no posterior.
    """
    n, names = len(catalog), (*artifact.param_names, *artifact.derived_names)
    n_samples = n_samples or artifact.n_samples
    flags, cut = np.zeros(n, dtype=np.int64), np.flatnonzero(catalog.quality)
    flags[cut] = find_flags(artifact, catalog.observation.rows(cut))
    quantiles = np.full((n, len(names), len(LEVEL_NAMES)), np.nan, dtype=np.float32)
    mean, std = np.full((2, n, len(names)), np.nan, dtype=np.float32)
    blank = estimate(artifact, catalog.observation.rows(slice(0, 0)))
    probabilities, trust = (
        {name: np.full(n, np.nan, dtype=np.float32) for name in columns}
        for columns in (blank.probabilities, blank.trust)
    )
    with _sample_file(samples_path, artifact, n, n_samples) as file:
        summarise = partial(estimate, artifact, n_samples=n_samples, seed=seed)
        n_thread = 1 if artifact.device == "cuda" else torch.get_num_threads()
        for rows, summary in _summaries(summarise, catalog, n_thread):
            flags[rows], quantiles[rows] = summary.flags, summary.quantiles
            mean[rows], std[rows] = summary.mean, summary.std
            for of_all, of_some in (
                (probabilities, summary.probabilities),
                (trust, summary.trust),
            ):
                for name, values in of_some.items():
                    of_all[name][rows] = values
            if file is not None:
                inside = catalog.observation.rows(rows[summary.flags == 0])
                theta = sample(artifact, inside, n_samples=n_samples, seed=seed)
                file["samples"][rows[summary.flags == 0]] = np.swapaxes(theta, 0, 1)
        if file is not None:
            file["flags"] = flags
    reasons = _reasons(artifact, flags, catalog.quality)
    status = np.array([row_status(row) for row in reasons], dtype="U16")
    joined = np.array([";".join(row) for row in reasons], dtype=np.str_)
    return Fit(names, status, joined, flags, quantiles, mean, std, probabilities, trust)


def row_status(reasons: Sequence[str]) -> str:
    """Status of a row with these reasons; the worst one wins."""
    for status, prefixes in _STATUS_OF_REASON:
        if any(reason.startswith(prefixes) for reason in reasons):
            return status
    return "OUT_OF_SUPPORT" if reasons else "OK"


def output_columns(fit: Fit, catalog: Catalog) -> dict[str, NDArray[Any]]:
    """The output table: row, id, status, reasons, flags, trust, `<name>_<statistic>`, `p_<event>`.

    Trust is `trusted`, the verdict, and the numbers of `sedflow_core.trust.Trust`.
    """
    columns: dict[str, NDArray[Any]] = {"row": np.arange(len(fit.status))}
    if catalog.row_id is not None:
        columns["id"] = catalog.row_id
    columns |= {"status": fit.status, "reasons": fit.reasons, "flags": fit.flags}
    if fit.trust:
        columns |= {"trusted": fit.trusted(), **fit.trust}
    for i, name in enumerate(fit.names):
        for j, level in enumerate(LEVEL_NAMES):
            columns[f"{name}_{level}"] = fit.quantiles[:, i, j]
        columns[f"{name}_mean"] = fit.mean[:, i]
        columns[f"{name}_std"] = fit.std[:, i]
    return columns | {f"p_{event}": values for event, values in fit.probabilities.items()}


def add_fit_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `sedflow fit`."""
    add = parser.add_argument
    add("catalog", type=Path, help="FITS, Parquet or CSV table, one galaxy per row")
    add("--out", type=Path, required=True, help="table to write: .fits, .parquet or .csv")
    add("--artifact", default="sdss-ugriz", help="name of a shipped artifact, or a folder")
    add(
        "--n-samples",
        type=positive_int,
        help="posterior samples per galaxy (default: the artifact's)",
    )
    add("--seed", type=non_negative_int, default=0)
    add("--samples", type=Path, metavar="FILE.h5", help="also write the samples to this HDF5 file")
    add("--id-column", help="identifier to carry to the output")
    add_column_arguments(parser)


def run_fit(args: argparse.Namespace) -> int:
    """Do what `sedflow fit` was asked for; raises SedflowError where that is not possible."""
    table_writer(args.out)
    check_folder(args.out)
    if args.samples is not None:
        check_folder(args.samples, "--samples")
    keep_freed_memory()
    artifact = load_artifact(args.artifact)
    catalog = read_catalog(args.catalog, column_map(args, args.catalog), artifact.bands)
    _check_ids(args.out, catalog.row_id)
    fit = fit_catalog(
        artifact,
        catalog,
        n_samples=args.n_samples,
        seed=args.seed,
        samples_path=args.samples,
    )
    meta = _meta(artifact, catalog, args)
    write_table(args.out, output_columns(fit, catalog), meta)
    print(_report(fit), f"corrections applied: {meta['correct']}", f"wrote {args.out}", sep="\n")
    return 0


_STATUS_OF_REASON = (
    ("QUALITY_CUT", ("quality_",)),
    ("INVALID_INPUT", ("non_positive_error_",)),
    ("NO_REDSHIFT", ("non_finite_redshift",)),
    ("MISSING_BANDS", ("non_finite_",)),
)


def _reasons(
    artifact: Artifact, flags: NDArray[np.int64], quality: NDArray[np.int64]
) -> list[list[str]]:
    return [
        reasons_of(flag, artifact.flag_names) + reasons_of(cut, CUT_NAMES)
        for flag, cut in zip(flags.tolist(), quality.tolist(), strict=True)
    ]


def _summaries(
    summarise: Callable[[Observation], Summary], catalog: Catalog, n_thread: int
) -> Iterator[tuple[NDArray[np.int64], Summary]]:
    """Row numbers and their summaries, `CHUNK_ROWS` to a thread; low quality is left out."""
    rows = np.flatnonzero(catalog.quality == 0)
    chunks = [rows[start : start + CHUNK_ROWS] for start in range(0, len(rows), CHUNK_ROWS)]
    bar = progress_bar(len(rows), "galaxies", extra="tables")
    with bar, torch_threads(1), ThreadPoolExecutor(n_thread) as pool:
        for first in range(0, len(chunks), n_thread):
            some = chunks[first : first + n_thread]
            for chunk, summary in zip(
                some, pool.map(summarise, map(catalog.observation.rows, some)), strict=True
            ):
                yield chunk, summary
                bar.update(len(chunk))


@contextmanager
def _sample_file(path: Path | None, artifact: Artifact, n: int, n_samples: int) -> Iterator[Any]:
    """An open HDF5 file with the empty dataset "samples", or None without a path."""
    if path is None:
        yield None
        return
    try:
        import h5py
    except ImportError:
        raise MissingExtraError("h5py", "tables") from None
    shape = (n, n_samples, len(artifact.param_names))
    with written_whole(path) as partial, h5py.File(partial, "w") as file:
        chunks = (1, *shape[1:]) if n else None
        samples = file.create_dataset("samples", shape, np.float32, chunks=chunks, fillvalue=np.nan)
        samples.attrs["names"] = list(artifact.param_names)
        file.attrs["artifact"] = artifact.name
        file.attrs["artifact_sha256"] = artifact.sha256
        yield file


def _check_ids(path: Path, row_id: NDArray[Any] | None) -> None:
    """Raise CatalogError for identifiers that the table at `path` could not hold."""
    if row_id is None:
        return
    if row_id.ndim != 1:
        raise CatalogError(f"--id-column: expected one value a row, got {row_id.shape[1:]}")
    strange = [text for text in map(str, row_id) if not text.isascii()]
    if path.suffix.lower() in (".fits", ".fit") and strange:
        raise CatalogError(f"--id-column: expected ASCII text for FITS, got {strange[0]!r}")


def _meta(artifact: Artifact, catalog: Catalog, args: argparse.Namespace) -> dict[str, str | int]:
    return {
        "artifact": artifact.name,
        "version": artifact.version,
        "sha256": artifact.sha256,
        "nsamples": args.n_samples or artifact.n_samples,
        "seed": args.seed,
        "catalog": args.catalog.name,
        "flux": catalog.columns.flux,
        "correct": ",".join(catalog.columns.corrections) or "none",
    }


def _report(fit: Fit) -> str:
    n = len(fit.status)
    statuses = Counter(fit.status.tolist()).most_common()
    reasons = Counter(name for row in fit.reasons.tolist() for name in row.split(";") if name)
    lines = [f"{n:,} galaxies"]
    lines += [f"  {status:<16}{count:>8,}  {100 * count / n:6.2f} %" for status, count in statuses]
    if reasons:
        lines.append("reasons (a galaxy may have several)")
    lines += [f"  {name:<24}{count:>8,}" for name, count in reasons.most_common(10)]
    return "\n".join(lines)

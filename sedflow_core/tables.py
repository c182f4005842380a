"""Tables on disk: one column of a FITS, Parquet or CSV file as an array, and back.

The suffix names the format. Missing values are NaN in an array and null, where the format has it,
in a file. Needs the extra `tables`.
"""

import json
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from sedflow_core.errors import CatalogError, MissingExtraError
from sedflow_core.units import Array
from sedflow_core.whole_file import written_whole

T = TypeVar("T")
Columns = Mapping[str, NDArray[Any]]
Meta = Mapping[str, str | int]
Writer = Callable[[Path, Columns, Meta], None]


class Table(NamedTuple):
    """An open table: its column names and a reader of one column by exact name and dtype."""

    names: tuple[str, ...]
    reader: Callable[[str, str | None], NDArray[Any]]

    def read(self, name: str, dtype: str | None = None) -> NDArray[Any]:
        """One column, (n,) or (n, width), whose name may differ in case.

        Raises CatalogError when it is not there or does not hold values of `dtype`.
        """
        column = self._resolve(name)
        try:
            return self.reader(column, dtype)
        except (ValueError, TypeError, OSError, EOFError) as error:
            raise CatalogError(
                f"column {column!r}: expected {dtype or 'readable'} values, got: {error}"
            ) from None

    def numbers(self, name: str) -> Array:
        """One column as float64; missing values are NaN."""
        return self.read(name, "float64")

    def labels(self, name: str) -> NDArray[Any]:
        """One column as integers where each value is one, else as text; None where it is missing.

        Never by way of floats, which do not hold identifiers of 18 digits.
        """
        texts = self.read(name, "str")
        try:
            numbers = np.array([int(text) for text in texts], np.int64)
        except (ValueError, TypeError, OverflowError):
            return texts
        return numbers if [str(n) for n in numbers] == texts.tolist() else texts

    def _resolve(self, name: str) -> str:
        if name in self.names:
            return name
        alike = [other for other in self.names if other.casefold() == name.casefold()]
        if len(alike) == 1:
            return alike[0]
        nearest = alike or get_close_matches(name, self.names, n=3, cutoff=0.5)
        hint = f"; nearest: {', '.join(nearest)}" if nearest else ""
        raise CatalogError(
            f"expected a column {name!r}, got {len(self.names)} columns without it{hint}"
        )


@contextmanager
def open_table(path: Path) -> Iterator[Table]:
    """Open a table to read: .fits, .fit, .parquet or .csv; FITS and CSV also as .gz.

    Raises CatalogError when the file cannot be read as what its name says.
    """
    opener = _by_suffix(_OPENERS, Path(path.name.removesuffix(".gz")))
    if not path.is_file():
        raise CatalogError(f"expected a readable file, got {path}")
    with opener(path) as table:
        yield table


def write_table(path: Path, columns: Columns, meta: Meta) -> None:
    """Write columns (n,) as FITS, Parquet or CSV, replacing `path` only once complete.

    `meta` goes to the FITS header (names of up to 8 letters), to the Parquet schema's metadata
    or, for CSV, to a file beside it named `<path>.json`.
    """
    writer = table_writer(path)
    with written_whole(path) as partial:
        writer(partial, columns, meta)
    if writer is _write_csv:
        path.with_name(path.name + ".json").write_text(json.dumps(dict(meta), indent=1) + "\n")


def table_writer(path: Path) -> Writer:
    """The writer of the format that `path` names; CatalogError when it names none."""
    return _by_suffix(_WRITERS, path)


def check_folder(out: Path, option: str = "--out") -> None:
    """Raise CatalogError unless the folder is there in which `out` shall be written."""
    if not out.parent.is_dir():
        raise CatalogError(f"{option}: expected an existing folder, got {out.parent}")


def _by_suffix(choices: Mapping[str, T], path: Path) -> T:
    choice = choices.get(path.suffix.lower())
    if choice is None:
        raise CatalogError(f"expected a file named {', '.join(choices)}, got {path}")
    return choice


@contextmanager
def _readable(path: Path, kind: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, TypeError, EOFError, UserWarning) as error:
        raise CatalogError(f"expected a {kind} file, got {path}: {error}") from None


def _astropy() -> tuple[Any, Any]:
    try:
        from astropy.io import fits
        from astropy.table import Table as AstropyTable
    except ImportError:
        raise MissingExtraError("astropy", "tables") from None
    return fits, AstropyTable


def _pyarrow() -> tuple[Any, Any, Any]:
    try:
        import pyarrow
        from pyarrow import csv, parquet
    except ImportError:
        raise MissingExtraError("pyarrow", "tables") from None
    return pyarrow, parquet, csv


@contextmanager
def _open_fits(path: Path) -> Iterator[Table]:
    fits, _ = _astropy()
    with _readable(path, "FITS"), warnings.catch_warnings():
        warnings.filterwarnings("error", message="File may have been truncated")
        file = fits.open(path)
    with file:
        with _readable(path, "FITS"):
            tables = [unit for unit in file if isinstance(unit, fits.BinTableHDU)]
            data = tables[0].data if tables else None
        if data is None:
            raise CatalogError(f"expected a binary table, got none in {path}")

        def read(name: str, dtype: str | None) -> NDArray[Any]:
            values = np.asarray(data[name])
            found = np.array(values, dtype or values.dtype.newbyteorder("="))
            missing = _find_null(values, data.columns[name])
            if not missing.any():
                return found
            found = found.astype(object if dtype == "str" else np.float64)
            found[missing] = None if dtype == "str" else np.nan
            return found

        yield Table(tuple(data.names), read)


def _find_null(values: NDArray[Any], column: Any) -> NDArray[np.bool_]:
    """Where the integer stands that means none, which a header tells of columns without scale."""
    is_scaled = column.bscale not in (None, "", 1) or column.bzero not in (None, "", 0)
    if column.null in (None, "") or is_scaled:
        return np.zeros(values.shape, dtype=bool)
    return np.asarray(values == column.null)


@contextmanager
def _open_parquet(path: Path) -> Iterator[Table]:
    _, parquet, _ = _pyarrow()
    with _readable(path, "Parquet"):
        file = parquet.ParquetFile(path)
    with file:
        yield Table(
            tuple(file.schema_arrow.names),
            lambda name, dtype: _from_arrow(file.read(columns=[name]).column(0), dtype),
        )


@contextmanager
def _open_csv(path: Path) -> Iterator[Table]:
    _, _, csv = _pyarrow()

    def read(name: str, dtype: str | None) -> NDArray[Any]:
        types = {name: "string" if dtype == "str" else dtype} if dtype else {}
        options = csv.ConvertOptions(include_columns=[name], column_types=types)
        return _from_arrow(csv.read_csv(path, convert_options=options).column(0), dtype)

    with _readable(path, "CSV"), csv.open_csv(path) as reader:
        names = tuple(reader.schema.names)
    yield Table(names, read)


def _from_arrow(column: Any, dtype: str | None) -> NDArray[Any]:
    """Arrow column -> (n,) or, for lists of one length, (n, width)."""
    if hasattr(column.type, "index_type"):  # categories
        column = column.cast(column.type.value_type)
    if hasattr(column.type, "value_type"):
        rows = column.to_pylist()
        width = max((len(row) for row in rows if row is not None), default=0)
        return np.array([[np.nan] * width if row is None else row for row in rows], dtype)
    if dtype == "str":
        return np.asarray(column.cast("string").to_numpy())
    return np.asarray(column.to_numpy(), dtype)


def _write_fits(path: Path, columns: Columns, meta: Meta) -> None:
    _, astropy_table = _astropy()
    header = {key.upper(): value for key, value in meta.items()}
    plain = {name: _without_objects(values) for name, values in columns.items()}
    astropy_table(plain, meta=header).write(path, format="fits", overwrite=True)


def _without_objects(values: NDArray[Any]) -> NDArray[Any]:
    """Text as FITS can hold it, nothing as an empty string."""
    if values.dtype != object:
        return values
    return np.array(["" if value is None else str(value) for value in values], dtype=np.str_)


def _write_parquet(path: Path, columns: Columns, meta: Meta) -> None:
    _, parquet, _ = _pyarrow()
    parquet.write_table(_to_arrow(columns, meta), path)


def _write_csv(path: Path, columns: Columns, meta: Meta) -> None:
    _, _, csv = _pyarrow()
    csv.write_csv(_to_arrow(columns, meta), path)


def _to_arrow(columns: Columns, meta: Meta) -> Any:
    pyarrow, _, _ = _pyarrow()
    arrays = {name: pyarrow.array(values, from_pandas=True) for name, values in columns.items()}
    return pyarrow.table(arrays, metadata={key: str(value) for key, value in meta.items()})


_OPENERS = {
    ".fits": _open_fits,
    ".fit": _open_fits,
    ".parquet": _open_parquet,
    ".csv": _open_csv,
}
_WRITERS = {
    ".fits": _write_fits,
    ".fit": _write_fits,
    ".parquet": _write_parquet,
    ".csv": _write_csv,
}

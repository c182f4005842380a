"""Progress of long commands, on stderr."""

from typing import Any

from sedflow_core.errors import MissingExtraError


def progress_bar(total: int | None, unit: str, *, extra: str = "train") -> Any:
    """A tqdm progress bar where stderr is a terminal; `extra` installs tqdm for the command.

    Raises:
        MissingExtraError: tqdm is not installed.
    """
    try:
        from tqdm import tqdm
    except ImportError as error:
        raise MissingExtraError("tqdm", extra) from error
    return tqdm(total=total, unit=f" {unit}", unit_scale=True, disable=None)

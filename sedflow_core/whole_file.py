"""Files that are there whole or not at all, however the process that writes them ends."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yield another path to write to, which becomes `path` once that is done.

    Of a body that fails it stays, until the next one writes to it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    yield partial
    partial.replace(path)

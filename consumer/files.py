"""Archives as a source, files as a sink: what replay reads and writes.

Read: an Avro container of any number of records; a folder or glob of `.avro` and `.avro.gz`; a
nightly `.tar`, `.tar.gz` or `.tgz` of them, streamed and never unpacked to disk. Written: one Avro
container or Parquet file of summaries, and the dead letters as JSON lines beside it. A file has its
name only once it is complete.
"""

import base64
import glob
import gzip
import io
import json
import tarfile
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from itertools import chain, islice
from math import floor
from pathlib import Path
from typing import Any, BinaryIO, Self

from consumer.avro import holds_one_record
from consumer.container import MAGIC, MAX_BYTES
from consumer.errors import ArchiveError
from consumer.message import DeadLetter, Message, Window, is_full, take_window
from consumer.records import split_container
from consumer.writers import SummaryWriter
from sedflow_core.errors import SedflowError

GZIP_MAGIC = b"\x1f\x8b"
PARTIAL = ".partial"
"""Ends the name of what is being written, or was left so."""
_TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz")
_ALERT_SUFFIXES = (".avro", ".avro.gz")
IDLE_S = 0.5
"""How long a rate keeps the loop waiting at once, so that it hears a stop."""

Part = tuple[bytes, bytes | None]
"""Value and key of a message."""


class ArchiveSource:
    """The messages of some archives, one after the other.

    The topic of a message is its archive's name, the offset its place in the archive. `rate` is the
    most messages handed out per second; `files` are those that are read. Raises ArchiveError where
    an archive is missing.
    """

    def __init__(
        self, archives: Sequence[str], *, limit: int | None = None, rate: float | None = None
    ) -> None:
        found = [(Path(archive).name, _find_files(archive)) for archive in archives]
        self.files = frozenset(path.resolve() for _, paths in found for path in paths)
        self._messages: Iterator[Message] = islice(_read_archives(found), limit)
        self._interval_s = 1.0 / rate if rate else 0.0
        self._next_s = time.monotonic()
        self._exhausted = False

    @property
    def exhausted(self) -> bool:
        """True once every message was handed out."""
        return self._exhausted

    def poll(self, max_messages: int, max_delay_s: float) -> Sequence[Message]:  # noqa: ARG002
        """Return the next messages; waits only for `rate`."""
        if self._interval_s:
            max_messages = min(max_messages, self._wait_for_turn())
        messages = take_window(self._messages, max_messages)
        self._exhausted = len(messages) < max_messages and not is_full(messages)
        return messages

    def rewind(self, messages: Sequence[Message]) -> None:
        """Hand these messages, the last that were polled, out again."""
        self._messages = chain(messages, self._messages)
        self._exhausted = False

    def _wait_for_turn(self) -> int:
        time.sleep(max(0.0, min(IDLE_S, self._next_s - time.monotonic())))
        due = floor((time.monotonic() - self._next_s) / self._interval_s) + 1
        self._next_s += max(0, due) * self._interval_s
        return max(0, due)

    def close(self) -> None:
        """Close the archive being read."""
        self._messages = iter(())


def _find_files(archive: str) -> list[Path]:
    path = Path(archive)
    if path.is_dir():
        found = [p for p in path.rglob("*") if p.name.endswith(_ALERT_SUFFIXES)]
    elif path.exists():
        found = [path]
    else:
        named = (Path(name) for name in glob.glob(archive, recursive=True))
        found = [path for path in named if path.suffix != PARTIAL]
    files = sorted(p for p in found if p.is_file())  # devices and pipes may never end
    if not files:
        raise ArchiveError(f"archive: expected a file, folder or glob with alerts, got {archive}")
    return files


def _read_archives(archives: Iterable[tuple[str, Sequence[Path]]]) -> Iterator[Message]:
    for name, paths in archives:
        parts = (part for path in paths for part in _read_file(path))
        for place, (value, key) in enumerate(parts):
            yield Message(value=value, key=key, topic=name, offset=place)


def _read_file(path: Path) -> Iterator[Part]:
    try:
        with path.open("rb") as stream:
            if path.name.endswith(_TAR_SUFFIXES):
                yield from _read_tar(stream, path)
            elif path.stat().st_size > MAX_BYTES:
                yield from _read_large(stream, path)
            else:
                yield from _read_alerts(path.name, stream.read())
    except SedflowError:
        raise
    except Exception as error:  # tarfile raises much that its documentation does not tell
        raise ArchiveError(f"{path}: expected a readable archive, got {error}") from None


def _read_large(file: BinaryIO, path: Path) -> Iterator[Part]:
    packed = file.read(2) == GZIP_MAGIC
    file.seek(0)
    with io.BufferedReader(gzip.GzipFile(fileobj=file)) if packed else nullcontext(file) as stream:
        if stream.read(len(MAGIC)) != MAGIC:
            raise ArchiveError(f"{path}: expected a container, or at most {MAX_BYTES} bytes")
        stream.seek(0)
        yield from split_container(stream)


def _read_alerts(name: str, data: bytes) -> Iterator[Part]:
    """Yield the alerts in the bytes of one file; bytes that cannot be unpacked as they are."""
    if name.endswith(".gz"):
        packed, data = data, _gunzip(data)
        if len(data) > MAX_BYTES and data.startswith(MAGIC):
            with io.BufferedReader(gzip.GzipFile(fileobj=io.BytesIO(packed))) as stream:
                yield from split_container(stream)
            return
        data = data if len(data) <= MAX_BYTES else packed
    if not data.startswith(MAGIC) or holds_one_record(data):
        yield data, None
    else:
        yield from split_container(io.BytesIO(data))


def _gunzip(data: bytes) -> bytes:
    """Return what is packed, no more than one byte too many of it; what cannot be as it is."""
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as stream:
            return stream.read(MAX_BYTES + 1)
    except (OSError, EOFError, zlib.error):
        return data


class _Member(tarfile.TarInfo):
    """A tar member; what is read at its header, long names for one, is bounded before.

    An archive ends with a block of zeros: tarfile takes a missing or broken header for an end too.
    """

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        try:
            member = super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            if buf and not any(buf):
                raise
            raise tarfile.ReadError(str(error)) from None
        if not member.isfile() or member.type == tarfile.GNUTYPE_SPARSE:
            _check_size(member)
        return member


def _check_size(member: tarfile.TarInfo) -> None:
    if member.size > MAX_BYTES or member.issparse():
        raise ArchiveError(
            f"{member.name}: expected a member of at most {MAX_BYTES} bytes, got {member.size}"
        )


def _read_tar(stream: BinaryIO, path: Path) -> Iterator[Part]:
    # gzip, unlike tarfile, raises where its stream is cut off
    packed = not path.name.endswith(".tar")
    unpacked = gzip.GzipFile(fileobj=stream) if packed else stream
    with tarfile.open(fileobj=unpacked, mode="r|", tarinfo=_Member) as archive:
        while (member := archive.next()) is not None:
            archive.members = []  # type: ignore[attr-defined]  # else a night of them piles up
            if not member.isfile() or not member.name.endswith(_ALERT_SUFFIXES):
                continue
            _check_size(member)
            content = archive.extractfile(member)
            if content is None:
                raise ArchiveError(f"{path}: expected a file, got the member {member.name}")
            yield from _read_alerts(member.name, content.read())
        _check_end(archive.fileobj, path)


def _check_end(stream: Any, path: Path) -> None:
    """Read what follows the end that tarfile saw: zeros. By its own end gzip knows its checksum."""
    while rest := stream.read(64 * 1024):
        if any(rest):
            raise ArchiveError(f"{path}: expected the archive's end, got more behind it")


class NoSink:
    """Keeps nothing: where a dry run publishes to."""

    def publish(self, window: Window) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


class FileSink:
    """Summaries into one file, dead letters as JSON lines into the file `dead_letter_path` of it.

    Both are written as `<file>.partial` and get their names in `close`: what an error leaves behind
    is never taken for a complete file. Raises ArchiveError when one cannot be written.
    """

    def __init__(self, path: Path, make_writer: Callable[[Path], SummaryWriter]) -> None:
        self._path = path
        with _writing(path):
            self._writer = make_writer(_partial(path))
            self._dead = _partial(dead_letter_path(path)).open("w")

    def publish(self, window: Window) -> None:
        """Append the window's summaries and dead letters."""
        with _writing(self._path):
            if window.results:
                self._writer.write([result.value for result in window.results])
            for letter in window.rejected:
                self._dead.write(json.dumps(_describe_letter(letter)) + "\n")

    def close(self) -> None:
        """Complete the files; without dead letters there is no file of them."""
        with _writing(self._path):
            self._writer.finish()
            self._dead.close()
            dead_path = dead_letter_path(self._path)
            partial = _partial(dead_path)
            if partial.stat().st_size:
                partial.replace(dead_path)
            else:
                partial.unlink()
                dead_path.unlink(missing_ok=True)  # of an earlier run
            _partial(self._path).replace(self._path)


def dead_letter_path(path: Path) -> Path:
    """Return the file of the dead letters that belongs to the file of summaries `path`."""
    return path.with_name(f"{path.name}.dead.jsonl")


def _partial(path: Path) -> Path:
    return path.with_name(f"{path.name}{PARTIAL}")


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ArchiveError(f"{path}: expected a writable file, got {error}") from None


def _describe_letter(letter: DeadLetter) -> dict[str, Any]:
    return describe_message(letter.message) | {
        "stage": letter.stage,
        "class": letter.error_class,
        "error": letter.error,
        "failedAt": letter.failed_at.isoformat(timespec="milliseconds"),
    }


def describe_message(message: Message) -> dict[str, Any]:
    """Return a message as plain values, its bytes as base 64."""
    return {
        "topic": message.topic,
        "partition": message.partition,
        "offset": message.offset,
        "timestampMs": message.timestamp_ms,
        "key": _base64(message.key),
        "value": _base64(message.value),
        "headers": [[name, _base64(value)] for name, value in message.headers],
    }


def _base64(data: bytes | None) -> str | None:
    return None if data is None else base64.b64encode(data).decode()

"""Archives of alerts in, one file of summaries out: the daemon's loop without a broker."""

from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from time import perf_counter

import torch
from prometheus_client import CollectorRegistry

from consumer.daemon import run
from consumer.files import ArchiveSource, CountingSink, FileSink
from consumer.health import Health
from consumer.metrics import Metrics
from consumer.settings import Settings
from consumer.step import Step
from consumer.writers import AvroWriter, FileFormat, ParquetWriter
from sedflow_core import Artifact, load_artifact


@dataclass(frozen=True, slots=True)
class Report:
    """What came of a replay; as text, what the command prints at its end."""

    messages: int
    duration_s: float
    statuses: Counter[str]
    """Summaries by status."""
    stages: Counter[str]
    """Dead letters by stage."""
    written: tuple[Path, ...]

    def __str__(self) -> str:
        rate = self.messages / self.duration_s
        lines = [f"{self.messages} messages in {self.duration_s:.1f} s, {rate:.0f} per second"]
        lines += [f"  {status}: {count}" for status, count in self.statuses.most_common()]
        lines += [f"  dead letters, {stage}: {count}" for stage, count in self.stages.most_common()]
        lines += [f"wrote {path}" for path in self.written]
        return "\n".join(lines)


def replay(
    settings: Settings,
    archives: Sequence[str],
    *,
    out: Path | None,
    file_format: FileFormat | None = None,
    limit: int | None = None,
    rate: float | None = None,
) -> Report:
    """Summarise the alerts of `archives` into the file `out`, or into none.

    The format follows from the name of `out` unless given. At most `limit` alerts, `rate` per
    second. Raises ArchiveError, ArtifactError, SettingsError or MissingExtraError; what was written
    until then keeps the name `<out>.partial`.
    """
    torch.set_num_threads(1)
    artifact = load_artifact(settings.artifact.name)
    step = Step(artifact, settings)
    sink = _make_sink(out, file_format, artifact)
    start = perf_counter()
    with closing(ArchiveSource(archives, limit=limit, rate=rate)) as source:
        messages = run(
            source,
            sink,
            step,
            Event(),
            max_batch=settings.batch.max_size,
            max_delay_s=settings.batch.max_delay_s,
            metrics=Metrics(CollectorRegistry()),
            health=Health(),
            replay=True,
        )
    sink.close()
    return Report(messages, perf_counter() - start, sink.statuses, sink.stages, sink.written)


def _make_sink(
    out: Path | None, file_format: FileFormat | None, artifact: Artifact
) -> CountingSink:
    if out is None:
        return CountingSink()
    if file_format == "parquet" or (file_format is None and out.suffix == ".parquet"):
        return FileSink(out, lambda path: ParquetWriter(path, artifact))
    return FileSink(out, AvroWriter)

"""Archives of alerts in, summaries out to a file or to Kafka: the daemon's loop over files.

Summaries in Kafka go to topics of their own, in transactions of their own: a replay neither mixes
with what the daemon publishes nor fences a live worker.
"""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from time import perf_counter
from typing import Literal

import torch
from prometheus_client import CollectorRegistry

from consumer.daemon import Tally, run
from consumer.errors import SettingsError
from consumer.files import ArchiveSource, FileSink, NoSink, dead_letter_path
from consumer.gallery import Gallery
from consumer.health import Health
from consumer.kafka_sink import KafkaSink
from consumer.message import Sink
from consumer.metrics import Metrics
from consumer.registry import register_summaries
from consumer.settings import Settings
from consumer.start_checks import check_output
from consumer.step import Step
from consumer.summaries import SummaryForm
from consumer.writers import AvroWriter, FileFormat, ParquetWriter
from sedflow_core import Artifact, load_artifact
from sedflow_core.memory import keep_freed_memory


@dataclass(frozen=True, slots=True)
class Report:
    """What came of a replay; as text, what the command prints at its end."""

    tally: Tally
    duration_s: float
    outputs: Sequence[str]
    """Where the summaries went, and the dead letters if there are any."""

    def __str__(self) -> str:
        n = self.tally.messages
        rate = n / self.duration_s
        lines = [f"{n} messages in {self.duration_s:.1f} s, {rate:.0f} per second"]
        lines += [f"  {status}: {count}" for status, count in self.tally.statuses.most_common()]
        stages = self.tally.stages.most_common()
        lines += [f"  dead letters, {stage}: {count}" for stage, count in stages]
        lines += [f"wrote {output}" for output in self.outputs[: 2 if stages else 1]]
        return "\n".join(lines)


def replay(
    settings: Settings,
    archives: Sequence[str],
    *,
    out: Path | Literal["kafka"] | None,
    file_format: FileFormat | None = None,
    limit: int | None = None,
    rate: float | None = None,
    metrics: Metrics | None = None,
    gallery: Gallery | None = None,
) -> Report:
    """Summarise the alerts of `archives` into the file `out`, into Kafka, or into nothing.

    The format follows from the name of `out` unless given. At most `limit` alerts, `rate` per
    second. What passes is counted in `metrics` and kept in `gallery` for a page. Raises
    ArchiveError, ArtifactError, BrokerError, SettingsError, also for `out` among the archives, or
    MissingExtraError; what was written until then is a file `<out>.partial`, or committed windows
    in Kafka.
    """
    torch.set_num_threads(1)
    keep_freed_memory()
    artifact = load_artifact(settings.artifact.name, settings.artifact.device)
    step = Step(artifact, settings)
    metrics = metrics or Metrics(CollectorRegistry())
    metrics.set_artifact(artifact)
    with closing(ArchiveSource(archives, limit=limit, rate=rate)) as source:
        if isinstance(out, Path) and out.resolve() in source.files:
            raise SettingsError(f"--out: expected a file that is no archive to read, got {out}")
        sink, outputs = _open_sink(settings, out, file_format, artifact, metrics)
        if isinstance(sink, KafkaSink):
            schema_id = register_summaries(derive_replay_settings(settings))
            step.form = SummaryForm(schema_id, sink.limits.summary)
        start = perf_counter()
        tally = run(
            source,
            sink,
            step,
            Event(),
            max_batch=settings.batch.max_size,
            max_delay_s=settings.batch.max_delay_s,
            metrics=metrics,
            health=Health(),
            at_once=step.at_once,
            replay=True,
            note=gallery.add if gallery else lambda _: None,
        )
        sink.close()
    return Report(tally, perf_counter() - start, outputs)


def derive_replay_settings(settings: Settings) -> Settings:
    """Return the settings with the topics of a replay, and with a group of its own.

    The group is part of the transactional id.
    """
    topic = settings.replay.topic or f"{settings.output.topic}.replay"
    dead_letter_topic = settings.replay.dead_letter_topic or f"{topic}.sedflow.dlq"
    group = f"{settings.input.group}.replay"
    topics = {"topic": topic, "dead_letter_topic": dead_letter_topic}
    return settings.model_copy(
        update={
            "input": settings.input.model_copy(update={"group": group}),
            "output": settings.output.model_copy(update=topics),
        }
    )


def _open_sink(
    settings: Settings,
    out: Path | Literal["kafka"] | None,
    file_format: FileFormat | None,
    artifact: Artifact,
    metrics: Metrics,
) -> tuple[Sink, Sequence[str]]:
    """Return the sink, and where it puts summaries and dead letters."""
    if out is None:
        return NoSink(), ()
    if out == "kafka":
        return _open_kafka(derive_replay_settings(settings), metrics)
    outputs = str(out), str(dead_letter_path(out))
    if file_format == "parquet" or (file_format is None and out.suffix == ".parquet"):
        return FileSink(out, lambda path: ParquetWriter(path, artifact)), outputs
    return FileSink(out, AvroWriter), outputs


def _open_kafka(settings: Settings, metrics: Metrics) -> tuple[Sink, Sequence[str]]:
    output = settings.output
    topics = output.topic, output.dead_letter_topic_of("")
    check_output(output, topics)
    return KafkaSink(settings, metrics), [f"topic {topic}" for topic in topics]

"""The sections of the settings: every key, its default and what it means."""

import re
from datetime import date, timedelta
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, model_validator

from consumer.errors import SettingsError

ClientOption = str | int | float | bool

DATE = "{date}"
"""What stands for the day in the name of a dated topic."""


def _split(names: object) -> object:
    return names.split(",") if isinstance(names, str) else names


Names = Annotated[tuple[str, ...], BeforeValidator(_split)]
"""A list of names; one string, as in the environment, is split at its commas."""


class Section(BaseModel):
    """A section of the settings: frozen, no unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ArtifactSettings(Section):
    """Which trained network answers, and how many samples each answer holds."""

    name: str = "sdss-ugriz"
    """Name of a shipped artifact, or the path of an artifact folder."""
    sha256: str | None = Field(default=None, pattern="^[0-9a-f]{64}$")
    """Digest the artifact must have. `run` requires it."""
    allow_unpinned: bool = False
    """Serve with `run` whatever artifact the name leads to, without a digest."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where the network runs."""
    n_samples: int | None = Field(default=None, ge=2, le=1_048_576)
    """Samples per galaxy; the artifact's own number when absent."""
    seed: int = Field(default=0, ge=0, lt=2**57)
    allow_unvalidated: bool = False
    """Serve with `run` an artifact whose validation is missing or failed."""
    shadow: str | None = None
    """Another artifact that answers too, unpublished; the differences are counted."""


class ClusterSettings(Section):
    """How to reach one Kafka cluster. `kafka` goes to librdkafka as it is."""

    section: ClassVar[str]
    """Its name among the settings."""
    bootstrap: str = "localhost:9092"
    username: str | None = None
    password: SecretStr | None = None
    password_file: Path | None = None
    ssl_key_password: SecretStr | None = None
    ssl_key_password_file: Path | None = None
    kafka: dict[str, ClientOption] = {}

    @model_validator(mode="after")
    def _one_source_per_secret(self) -> Self:
        for name in ("password", "ssl_key_password"):
            if getattr(self, name) and getattr(self, f"{name}_file"):
                raise ValueError(f"expected {name} or {name}_file, got both")
        return self

    def client_config(self) -> dict[str, ClientOption]:
        """Return the librdkafka configuration, secrets in clear: never print it.

        Raises SettingsError when a secret's file cannot be read.
        """
        named = {
            "bootstrap.servers": self.bootstrap,
            "sasl.username": self.username,
            "sasl.password": _read_secret(
                f"{self.section}.password_file", self.password, self.password_file
            ),
            "ssl.key.password": _read_secret(
                f"{self.section}.ssl_key_password_file",
                self.ssl_key_password,
                self.ssl_key_password_file,
            ),
        }
        return {key: value for key, value in named.items() if value is not None} | self.kafka


class InputSettings(ClusterSettings):
    """The broker the alerts come from."""

    section = "input"
    topics: Names = ()
    """Names; `{date}` in one stands for each of the last days, see `days`."""
    days: int = Field(default=2, ge=1, le=366)
    """How many days of a dated topic are read, today (UTC) included; earlier ones that were begun
    are read to their ends.
    """
    date_format: str = "%Y%m%d"
    group: str = "sedflow"
    start: Literal["earliest", "latest"] = "earliest"
    """Where a group begins that has never read the topic: at its beginning or, `latest`, at the end
    that it has then. Afterwards no message is ever skipped: partitions that are added later, and
    topics that come later, as those of the next days do, are read from their beginning.
    """
    accept_gap: bool = False
    """Go on behind messages that the broker deleted before they were read."""
    group_protocol: Literal["classic", "consumer"] = "classic"
    """How the group shares its partitions; `consumer` is KIP-848, from Kafka 4.0 on."""
    assignor: Literal["range", "roundrobin", "cooperative-sticky"] = "range"
    """Who gets which partition under the classic protocol."""
    static_membership: bool = False
    """Whether a worker that comes back in its slot within the session keeps its partitions."""
    schema_file: Path | None = None
    """Writer schema (.avsc) of messages that are bare Avro bodies."""
    schema_folder: Path | None = None
    """Further writer schemas by Confluent id: `<id>.json` or `<id>.avsc`."""

    @model_validator(mode="after")
    def _topics_are_names(self) -> Self:
        for topic in self.topics:
            if topic.startswith("^") or not topic:
                raise ValueError(f"topics: expected names, got the pattern {topic!r}")
        return self

    @property
    def cooperative(self) -> bool:
        """Whether partitions come and go one by one, not all at once."""
        return self.group_protocol == "consumer" or self.assignor == "cooperative-sticky"

    def topics_on(self, day: date) -> tuple[str, ...]:
        """Return the topics to read on `day` (UTC)."""
        dates = [(day - timedelta(n)).strftime(self.date_format) for n in range(self.days)]
        names = [t.replace(DATE, d) for t in self.topics for d in dates]
        return tuple(dict.fromkeys(names))

    def entry_of(self, topic: str) -> str:
        """Return the entry of `topics` that stands for a topic; the topic where none does."""
        if topic in self.topics:
            return topic
        patterns = {t: ".+".join(map(re.escape, t.split(DATE))) for t in self.topics}
        return next((t for t in self.topics if re.fullmatch(patterns[t], topic)), topic)

    @property
    def dated(self) -> bool:
        """Whether the topics to read change from day to day."""
        return any(DATE in topic for topic in self.topics)


class OutputSettings(ClusterSettings):
    """The cluster that summaries and dead letters go to; it may be another than the input's."""

    section = "output"
    topic: str = "sedflow.v1_0.posteriorSummary"
    dead_letter_topic: str | None = None
    """`<input topic>.sedflow.dlq` when absent, and for the slow lane always."""
    offsets_topic: str | None = None
    """Where positions in the input are kept if it is another cluster, and remembered if it is the
    same; `<topic>.sedflow.offsets` when absent.
    """
    delivery: Literal["exactly-once", "at-least-once"] = "exactly-once"
    """At least once: for readers that cannot read committed; a crash repeats the last window."""
    slot: str = "0"
    """Stable name of this worker in its group, part of its transactional id. Two live workers never
    share one; a restarted worker keeps its own.
    """

    @property
    def offsets_topic_name(self) -> str:
        """`offsets_topic`, or its default."""
        return self.offsets_topic or f"{self.topic}.sedflow.offsets"

    def dead_letter_topic_of(self, input_topic: str) -> str:
        """Return where the dead letters of `input_topic` go."""
        return self.dead_letter_topic or f"{input_topic}.sedflow.dlq"


class ReplaySettings(Section):
    """What `replay --to-kafka` writes to on the cluster of [output], apart from the live topics."""

    topic: str | None = None
    """`<topic of [output]>.replay` when absent."""
    dead_letter_topic: str | None = None
    """`<topic of the replay>.sedflow.dlq` when absent."""


class CorrectionSettings(Section):
    """What to do with photometry that is not ready to use; each use is told in the output."""

    deredden: bool = True
    """Deredden by `ebv` where the alert says `dereddened = false`."""
    ab_factors: bool = True
    """Take the filter system's zero points to AB where `abCorrected = false`."""
    error_floor: bool = True
    """Add the error floor in quadrature where `errorFloorIncluded = false`."""
    accept_photometric_redshift: bool = False
    """Answer for a photometric redshift as if it were exact, and flag it."""
    accept_other_filters: bool = False
    """Answer for another filter system as if it were the artifact's, and flag it."""
    publish_unsupported: bool = False
    """Publish the posterior of a galaxy outside the support, within the artifact's redshifts."""


class BatchSettings(Section):
    """How many messages go through the network together."""

    max_size: int = Field(default=256, ge=1, le=65_536)
    max_delay_s: float = Field(default=0.1, ge=0, le=30)
    """How long the first message of a window waits for others."""


class BreakerSettings(Section):
    """When to halt because the stream is wrong, before any of its window is committed."""

    window: int = Field(default=1000, ge=1)
    """How many of the latest messages are judged together."""
    min_messages: int = Field(default=200, ge=1)
    """Fewer are not judged."""
    max_bad_fraction: float = Field(default=0.5, gt=0, le=1)
    """Halt when more than this fraction became dead letters; 1: never."""

    @model_validator(mode="after")
    def _can_trip(self) -> Self:
        if self.min_messages > self.window:
            raise ValueError(
                f"min_messages: expected at most window, {self.window}, got {self.min_messages}"
            )
        return self


class RegistrySettings(Section):
    """The Confluent schema registry that knows the input's schemas; none when `url` is absent."""

    url: str | None = Field(default=None, pattern="^https?://[^/@]+(/.*)?$")
    username: str | None = None
    password: SecretStr | None = None
    password_file: Path | None = None
    register_output: bool = False
    """Register the schema of the summaries under `<output topic>-value`, and write its id."""
    timeout_s: float = Field(default=5.0, gt=0, le=30)
    forget_unknown_s: float = Field(default=600.0, gt=0)
    """How long an id that the registry does not know is not asked for again."""

    @model_validator(mode="after")
    def _is_complete(self) -> Self:
        if self.password and self.password_file:
            raise ValueError("expected password or password_file, got both")
        if self.register_output and self.url is None:
            raise ValueError("url: expected an address to register at, got none")
        return self

    def read_password(self) -> str | None:
        """Return the password in clear: never print it. Raises SettingsError."""
        return _read_secret("registry.password_file", self.password, self.password_file)


class StateSettings(Section):
    """What a worker leaves for its successor."""

    folder: Path | None = None
    """Where the messages in hand are noted, so that one that kills the process is found. When
    absent, `--workers` uses a folder for temporary files, the same one after it was killed, and a
    single process notes nothing.
    """


class HttpSettings(Section):
    """Where /metrics, /livez and /readyz answer. Port 0: any free port."""

    host: str = "127.0.0.1"
    port: int = Field(default=9108, ge=0, le=65_535)


class PageSettings(Section):
    """Where the live page answers; nowhere without a port. Port 0: any free port."""

    host: str = "127.0.0.1"
    port: int | None = Field(default=None, ge=0, le=65_535)


class RefitSettings(Section):
    """The slow lane: galaxies that the fast one cannot answer for get a second opinion."""

    topic: str | None = None
    """Where second opinions go; `<topic of [output]>.refit` when absent."""
    group: str | None = None
    """Its own consumer group; `<group of [input]>.refit` when absent."""
    max_seconds: float = Field(default=30.0, ge=1.0, le=45.0)
    """The sampler's time for one galaxy. It also holds up a stop for so long."""
    max_per_hour: int = Field(default=240, ge=1)
    """Galaxies sampled per hour, also at once after a quiet hour; what is above is dropped."""
    max_age_s: float = Field(default=86_400.0, gt=0)
    """Older summaries are not worth a second opinion any more."""
    window: int = Field(default=64, ge=1, le=64)
    """Summaries read at once: among them the most promising galaxies take the quota."""
    niceness: int = Field(default=10, ge=0, le=19)
    """How far the process gives way to others."""
    http_port: int = Field(default=9118, ge=0, le=65_535)
    """Where its own /metrics, /livez and /readyz answer, at the host of [http]."""


class TracingSettings(Section):
    """Where OpenTelemetry traces go; there are none when `endpoint` is absent."""

    endpoint: str | None = Field(default=None, pattern="^https?://[^/@]+/.*$")
    """Of a collector that takes OTLP over HTTP, such as http://localhost:4318/v1/traces."""


class LogSettings(Section):
    """How the daemon logs."""

    level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    format: Literal["json", "text"] = "json"


def _read_secret(key: str, value: SecretStr | None, path: Path | None) -> str | None:
    if path is None:
        return value.get_secret_value() if value else None
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{key}: expected a readable file, got {path}: {error}") from None

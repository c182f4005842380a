"""One frozen Settings, read once at start: a TOML file, overridden by the environment.

A key `[section] key` is overridden by `SEDFLOW_SECTION__KEY`. Unknown keys are errors. Secrets come
from the environment or from a file named by the key `<secret>_file`, and are masked when printed.
"""

import hashlib
import json
import os
import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from consumer.errors import SettingsError

ENV_PREFIX = "SEDFLOW_"
MASK = "**********"
_SECRET_KEY = re.compile(r"password|secret|token|\.pem$|oauthbearer\.config", re.IGNORECASE)

ClientOption = str | int | float | bool


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
    """Digest the artifact must have; not checked when absent."""
    n_samples: int | None = Field(default=None, ge=2, le=1_048_576)
    """Samples per galaxy; the artifact's own number when absent."""
    seed: int = Field(default=0, ge=0)


class ClusterSettings(Section):
    """How to reach one Kafka cluster. `kafka` goes to librdkafka as it is."""

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
            "sasl.password": _read_secret(self.password, self.password_file),
            "ssl.key.password": _read_secret(self.ssl_key_password, self.ssl_key_password_file),
        }
        return {key: value for key, value in named.items() if value is not None} | self.kafka


class InputSettings(ClusterSettings):
    """The broker the alerts come from."""

    topics: Names = ()
    group: str = "sedflow"
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


class OutputSettings(ClusterSettings):
    """The cluster that summaries and dead letters go to; for now the same as the input's."""

    topic: str = "sedflow.v1_0.posteriorSummary"
    dead_letter_topic: str | None = None
    """`<input topic>.sedflow.dlq` when absent."""
    slot: str = "0"
    """Stable name of this worker in its group, part of its transactional id. Two live workers never
    share one; a restarted worker keeps its own.
    """

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
    """Publish the posterior of a galaxy outside the support."""


class BatchSettings(Section):
    """How many messages go through the network together."""

    max_size: int = Field(default=256, ge=1, le=65_536)
    max_delay_s: float = Field(default=0.5, ge=0)


class HttpSettings(Section):
    """Where /metrics, /livez and /readyz answer. Port 0: any free port."""

    host: str = "127.0.0.1"
    port: int = Field(default=9108, ge=0, le=65_535)


class LogSettings(Section):
    """How the daemon logs."""

    level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    format: Literal["json", "text"] = "json"


class _Environment(EnvSettingsSource):
    """The environment; what is no JSON goes on as text, so that validation names its key."""

    def decode_complex_value(self, field_name: str, field: FieldInfo, value: Any) -> Any:
        try:
            return super().decode_complex_value(field_name, field, value)
        except ValueError:
            return value


class Settings(BaseSettings):
    """Everything the consumer can be told."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        env_prefix=ENV_PREFIX,
        env_nested_delimiter="__",
    )

    artifact: ArtifactSettings = ArtifactSettings()
    input: InputSettings = InputSettings()
    output: OutputSettings = OutputSettings()
    replay: ReplaySettings = ReplaySettings()
    corrections: CorrectionSettings = CorrectionSettings()
    batch: BatchSettings = BatchSettings()
    http: HttpSettings = HttpSettings()
    log: LogSettings = LogSettings()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Let the environment win over what the TOML file says."""
        return _Environment(settings_cls), init_settings

    def config_hash(self) -> str:
        """Return the sha256 of the settings that shape a summary.

        These are the sampling and the corrections. Where messages come from and go to, secrets and
        batch sizes leave no trace in a summary, so they leave none in its hash.
        """
        shaping = {
            "artifact": self.artifact.model_dump(include={"n_samples", "seed"}),
            "corrections": self.corrections.model_dump(),
        }
        return hashlib.sha256(json.dumps(shaping, sort_keys=True).encode()).hexdigest()

    def masked(self) -> dict[str, Any]:
        """Return the settings as plain values, every secret masked."""
        return {
            name: _mask(section) if isinstance(section, dict) else section
            for name, section in self.model_dump(mode="json").items()
        }


def load_settings(path: Path | str | None = None) -> Settings:
    """Read the TOML file `path` (optional) and the environment.

    Raises SettingsError, naming the key and what is wrong with its value.
    """
    _check_environment()
    try:
        return Settings(**_read_toml(Path(path)) if path else {})
    except ValidationError as error:
        raise SettingsError(_explain(error)) from None


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except OSError as error:
        raise SettingsError(
            f"settings file: expected a readable file, got {path}: {error}"
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"settings file: expected TOML, got {path}: {error}") from None


def _check_environment() -> None:
    sections = {name.upper() for name in Settings.model_fields}
    for name in os.environ:
        section, separator, _ = name.removeprefix(ENV_PREFIX).partition("__")
        if name.startswith(ENV_PREFIX) and separator and section.upper() not in sections:
            raise SettingsError(f"environment {name}: expected a section of {sorted(sections)}")


def _read_secret(value: SecretStr | None, path: Path | None) -> str | None:
    if path is None:
        return value.get_secret_value() if value else None
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"secret file: expected a readable file, got {path}: {error}") from None


def _mask(section: dict[str, Any]) -> dict[str, Any]:
    masked: dict[str, Any] = {}
    for key, value in section.items():
        if isinstance(value, dict):
            masked[key] = _mask(value)
        elif value is not None and _SECRET_KEY.search(key) and not key.endswith("_file"):
            masked[key] = MASK
        else:
            masked[key] = value
    return masked


def _explain(error: ValidationError) -> str:
    return "; ".join(_explain_one(detail) for detail in error.errors(include_url=False))


def _explain_one(detail: Any) -> str:
    key = ".".join(str(part) for part in detail["loc"]) or "settings"
    if detail["type"] == "extra_forbidden":
        return f"{key}: unknown key"
    if isinstance(detail["input"], dict):
        return f"{key}: {detail['msg']}"
    secret = _SECRET_KEY.search(key) or key.endswith(".kafka")
    shown = MASK if secret else repr(detail["input"])
    return f"{key}: {detail['msg']}, got {shown}"

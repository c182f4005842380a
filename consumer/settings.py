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
from typing import Any, Self

from pydantic import ValidationError, model_validator
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from consumer.errors import SettingsError
from consumer.sections import (
    ArtifactSettings,
    BatchSettings,
    BreakerSettings,
    CorrectionSettings,
    HttpSettings,
    InputSettings,
    LogSettings,
    OutputSettings,
    PageSettings,
    RefitSettings,
    RegistrySettings,
    ReplaySettings,
    StateSettings,
    TracingSettings,
)

ENV_PREFIX = "SEDFLOW_"
MASK = "**********"
_SECRET_KEY = re.compile(
    r"password|passphrase|secret|token|\.pem$|oauthbearer\.config", re.IGNORECASE
)


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
    breaker: BreakerSettings = BreakerSettings()
    refit: RefitSettings = RefitSettings()
    registry: RegistrySettings = RegistrySettings()
    state: StateSettings = StateSettings()
    http: HttpSettings = HttpSettings()
    page: PageSettings = PageSettings()
    log: LogSettings = LogSettings()
    tracing: TracingSettings = TracingSettings()

    @model_validator(mode="after")
    def _dated_topics_share_dead_letters(self) -> Self:
        if self.input.dated and self.output.dead_letter_topic is None:
            raise ValueError("output.dead_letter_topic: expected a name for dated topics, got none")
        return self

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

        These are the sampling and the corrections. Secrets, addresses and batch sizes shape no
        answer, so they leave no trace in its hash.
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
    for name in (name for name in os.environ if name.startswith(ENV_PREFIX)):
        section, separator, _ = name.removeprefix(ENV_PREFIX).partition("__")
        if separator and section.upper() not in sections:
            raise SettingsError(f"environment {name}: expected a section of {sorted(sections)}")
        if not separator and section.partition("_")[0].upper() in sections:
            raise SettingsError(f"environment {name}: expected two underscores after the section")


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
    return f"{key}: {detail['msg']}, got {_show(key, repr(detail['input']))}"


def _show(key: str, value: str) -> str:
    """Return a value, or the mask where it is or may hold a secret: whole sections, addresses."""
    whole = key in Settings.model_fields or key.endswith(".kafka")
    return MASK if whole or _SECRET_KEY.search(key) or "@" in value else value

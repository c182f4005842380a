"""The section [refit] of the settings."""

from pydantic import Field

from consumer.sections import Section


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

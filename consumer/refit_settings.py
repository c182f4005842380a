"""The settings of the slow lane, which follow from all others."""

from consumer.sections import ClusterSettings, InputSettings, RegistrySettings
from consumer.settings import Settings

GATHER_S = 1.0
"""How long the first summary of a window waits for others to be weighed against."""


class SummariesInput(InputSettings):
    """The cluster of the output as an input: its secrets are named where they were set."""

    section = "output"


def derive_refit_settings(settings: Settings) -> Settings:
    """Return the settings of the slow lane: the fast lane's output is its input."""
    output, refit = settings.output, settings.refit
    batch = settings.batch.model_copy(update={"max_size": refit.window, "max_delay_s": GATHER_S})
    topic = refit.topic or f"{output.topic}.refit"
    own = {"topic": topic, "dead_letter_topic": None, "offsets_topic": None}
    return settings.model_copy(
        update={
            "input": _read_summaries(settings),
            "output": output.model_copy(update=own),
            "batch": batch,
            "registry": _registry_of_summaries(settings.registry),
            "http": settings.http.model_copy(update={"port": refit.http_port}),
        }
    )


def _read_summaries(settings: Settings) -> InputSettings:
    """The topic of summaries as input, read as a group of its own."""
    source, output = settings.input, settings.output
    cluster = {name: getattr(output, name) for name in ClusterSettings.model_fields}
    group = settings.refit.group or f"{source.group}.refit"
    own = {"topics": (output.topic,), "group": group, "schema_file": None, "schema_folder": None}
    return SummariesInput.model_validate(dict(source) | cluster | own)


def _registry_of_summaries(registry: RegistrySettings) -> RegistrySettings:
    """The registry, if it gave summaries their ids; else it may hold other schemas under ours."""
    return registry if registry.register_output else RegistrySettings()

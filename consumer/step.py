"""The pure step: a batch of messages in, their results and dead letters out.

Decode all, adapt all, infer those with usable photometry in ONE call, encode. n messages in, n
outcomes out, in order. The same alert and artifact give the same bytes, timestamps aside, whatever
else is in the batch. No clock (`now` is passed in), no logging; nothing is asked but the registry,
for schemas not seen yet.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

import numpy as np

from consumer.alerts import HostAlert, adapt, find_alert_id
from consumer.avro import Decoder
from consumer.errors import EncodeError, MessageError, SettingsError
from consumer.message import (
    STEP_AT_ONCE,
    DeadLetter,
    Galaxy,
    Message,
    Result,
    Stage,
    Window,
)
from consumer.photometry import Photometry, measure
from consumer.registry import open_registry
from consumer.settings import Settings
from consumer.summaries import (
    Posterior,
    Record,
    SummaryForm,
    describe_alert,
    describe_inputs,
    describe_provenance,
    split_summary,
)
from sedflow_core import Artifact, Observation, estimate
from sedflow_core.estimation import MOST_TOGETHER, galaxies_at_once

KNOWN_SURVEYS = frozenset(("ZTF", "LSST", "ELAsTiCC", "DES", "ATLAS", "PS1", "SDSS"))
"""Surveys counted by name; an alert may name any, and metrics need a bounded set."""
N_WARM_UP = 3
"""TorchScript looks at two calls before it settles."""
MOST_AT_ONCE = 1024
"""Messages, however few samples a GPU is asked for: between two batches the loop beats."""
Watch = Callable[[str], AbstractContextManager[object]]
"""Is entered while the part of the work with this name is done."""


@dataclass(frozen=True, slots=True)
class _Read:
    """A message that was understood."""

    message: Message
    alert: HostAlert
    photometry: Photometry


class Judgement(NamedTuple):
    """What is said of one galaxy, before it is written down."""

    status: str
    reasons: tuple[str, ...]
    posterior: Posterior | None
    """As inferred, inside the support or not."""
    record: Record | None
    """The posterior as published."""

    @property
    def publishable(self) -> bool:
        """Whether there is a posterior where there should be: not if it holds no number."""
        return self.status != "OK" or self.record is not None


class Step:
    """Turns messages into posterior summaries with one artifact and one set of settings.

    Raises SettingsError when the artifact is not the one that the settings pin, or a writer schema
    they name cannot be used.
    """

    def __init__(self, artifact: Artifact, settings: Settings, watch: Watch = nullcontext) -> None:
        check_digest(artifact, settings)
        self._artifact = artifact
        self._watch = watch
        self._settings = settings
        self._decoder = Decoder(
            schema_file=settings.input.schema_file,
            schema_folder=settings.input.schema_folder,
            registry=open_registry(settings.registry),
        )
        self.form = SummaryForm()
        self._n_samples = settings.artifact.n_samples or artifact.n_samples
        self._assumptions = artifact.assumptions
        self._provenance = describe_provenance(artifact, settings)

    def __call__(
        self, messages: Sequence[Message], *, replay: bool, now: Callable[[], datetime]
    ) -> Window:
        """Return one Result or DeadLetter for each message, each kind in the order of messages.

        Raises BrokerError where the registry does not answer, and what the inference raises: a
        galaxy cannot make it fail, so neither is a message's fault.
        """
        started = now()
        with self._watch("decode"):
            read = [self._read(message, started) for message in messages]
        understood = [item.photometry for item in read if isinstance(item, _Read)]
        judgements = iter(self._judge_all(understood))
        times: Record = {"startTimestamp": started, "endTimestamp": now(), "replay": replay}
        with self._watch("encode"):
            outcomes = [
                item
                if isinstance(item, DeadLetter)
                else self._answer(item, next(judgements), times)
                for item in read
            ]
        return Window.of(messages, outcomes)

    @property
    def at_once(self) -> int:
        """How many messages to step at once: on a GPU as many as it samples together."""
        together = galaxies_at_once(self._artifact, self._n_samples)
        return min(max(STEP_AT_ONCE, together), MOST_AT_ONCE)

    def judge(self, alerts: Sequence[HostAlert]) -> list[Judgement]:
        """Return what would be said of each alert; nothing is encoded."""
        corrections = self._settings.corrections
        return self._judge_all([measure(alert, self._artifact, corrections) for alert in alerts])

    def warm_up(self, beat: Callable[[], None] = lambda: None) -> None:
        """Infer a few times in groups of every size, so that no alert waits for compilation.

        `beat` is called after each of them.
        """
        golden = self._artifact.golden
        flux, flux_err, redshift = (
            golden[name].numpy() for name in ("flux", "flux_err", "redshift")
        )
        photometry = Photometry("OK", (), flux[0], flux_err[0], float(redshift[0]))
        sizes = [1 << bit for bit in reversed(range(MOST_TOGETHER.bit_length()))]
        for size in N_WARM_UP * sizes:
            self._infer([photometry] * size)
            beat()

    def _read(self, message: Message, now: datetime) -> _Read | DeadLetter:
        stage: Stage = "decode"
        decoded = None
        try:
            decoded = self._decoder.decode(message.value, message.key)
            stage = "adapt"
            alert = adapt(decoded)
            photometry = measure(alert, self._artifact, self._settings.corrections)
        except MessageError as error:
            alert_id = None if decoded is None else find_alert_id(decoded)
            return DeadLetter.of(message, stage, error, now, alert_id)
        return _Read(message, alert, photometry)

    def _infer(self, photometries: Sequence[Photometry]) -> list[Posterior | None]:
        """Return a posterior for each photometry with status OK, None for the others."""
        usable = [photometry for photometry in photometries if photometry.status == "OK"]
        if not usable:
            return [None] * len(photometries)
        observation = Observation(
            np.stack([photometry.flux for photometry in usable]),
            np.stack([photometry.flux_err for photometry in usable]),
            np.array([photometry.redshift for photometry in usable]),
        )
        summary = estimate(
            self._artifact,
            observation,
            n_samples=self._n_samples,
            seed=self._settings.artifact.seed,
            include_unsupported=self._settings.corrections.publish_unsupported,
        )
        rows = iter(split_summary(summary, len(self._artifact.param_names)))
        return [next(rows) if item.status == "OK" else None for item in photometries]

    def _judge_all(self, photometries: Sequence[Photometry]) -> list[Judgement]:
        with self._watch("infer"):
            posteriors = self._infer(photometries)
            return [self._judge(*each) for each in zip(photometries, posteriors, strict=True)]

    def _judge(self, photometry: Photometry, posterior: Posterior | None) -> Judgement:
        status, reasons = photometry.status, photometry.reasons
        if posterior is not None and posterior.flags:
            status, reasons = "OUT_OF_SUPPORT", posterior.reasons + reasons
        wanted = status == "OK" or self._settings.corrections.publish_unsupported
        record = posterior.record if posterior is not None and wanted else None
        return Judgement(status, reasons, posterior, record)

    def _answer(self, read: _Read, judgement: Judgement, times: Record) -> Result | DeadLetter:
        status, reasons, posterior, record = judgement
        flags = posterior.flags if posterior is not None else 0
        key = read.alert.object_id.encode()
        try:
            if not judgement.publishable:
                raise EncodeError("posterior: expected finite numbers, got NaN or infinity")
            value = self.form.encode(
                self._describe(read, times)
                | {
                    "status": status,
                    "statusReasons": list(reasons),
                    "supportFlags": flags,
                    "posterior": record,
                    "trust": posterior.trust if posterior is not None and record else None,
                },
                key,
            )
        except MessageError as error:
            when, alert_id = times["endTimestamp"], read.alert.alert_id
            return DeadLetter.of(read.message, "encode", error, when, alert_id)
        flag_names = posterior.reasons if posterior is not None and flags else ()
        return Result(
            key=key,
            value=value,
            headers=(),
            status=status,
            survey=counted_survey(read.alert.survey),
            flags=flag_names,
            missing_bands=_find_missing(reasons),
            galaxy=_galaxy(read.photometry.redshift, record, posterior),
            derived=record and record["derived"],
            alert=read.alert,
        )

    def _describe(self, read: _Read, times: Record) -> Record:
        artifact, message = self._artifact, read.message
        return {
            **describe_alert(read.alert),
            **times,
            "inputs": describe_inputs(read.alert.host, read.photometry, artifact.bands.names),
            "nSamples": self._n_samples,
            "seed": self._settings.artifact.seed,
            "assumptions": self._assumptions,
            "provenance": {
                **self._provenance,
                "inputTopic": message.topic,
                "inputPartition": message.partition,
                "inputOffset": message.offset,
                "sourceSchema": read.alert.source_schema,
            },
        }


def counted_survey(survey: str) -> str:
    """Return the name that a survey is counted by."""
    return survey if survey in KNOWN_SURVEYS else "other"


def check_digest(artifact: Artifact, settings: Settings) -> None:
    """Raise SettingsError when the artifact is not the one that the settings pin."""
    pinned = settings.artifact.sha256
    if pinned is not None and pinned != artifact.sha256:
        raise SettingsError(f"artifact.sha256: expected {pinned}, got {artifact.sha256}")


def _galaxy(redshift: float, record: Record | None, posterior: Posterior | None) -> Galaxy | None:
    mass = record and record["derived"].get("log_mstar_surviving")
    if not mass:
        return None
    trust = posterior.trust if posterior is not None else None
    trusted = None if trust is None else bool(trust["trusted"])
    return Galaxy(redshift, mass["q50"], mass["std"], trusted)


def _find_missing(reasons: Sequence[str]) -> tuple[str, ...]:
    prefix = "missing_band_"
    return tuple(item.removeprefix(prefix) for item in reasons if item.startswith(prefix))

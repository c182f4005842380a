"""The slow lane's step: summaries in, second opinions out.

Asked for are galaxies outside the support, and posteriors that are not trusted; other summaries
lead to nothing. Every galaxy that asks gets an answer, if only that it was dropped and why:

1. `UNUSABLE`: its photometry holds no flux, error or redshift that a sampler could use; a redshift
   beyond the artifact's tables is none.
2. `EXPIRED`: its summary is older than `refit.max_age_s`.
3. Of the rest of the window the most promising take from the hour's quota first: those that break
   the fewest rules, for many broken rules mean broken photometry; among equals the newest.
4. `OVER_QUOTA`: nothing of it was left. To wait instead would only make the next ones expire.
5. `CONVERGED` or `NOT_CONVERGED`: sampled, in the order of the messages, so that what a stop leaves
   begins behind the last answer.

The same photometry again, as alerts of one transient bring it, gets the same answer for nothing.
What a window that was rolled back took from the quota, it does not take again.
"""

import re
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from threading import Event
from time import monotonic
from typing import Any, Literal, get_args

from prometheus_client import CollectorRegistry, Counter, Histogram

from consumer.avro import Decoder
from consumer.errors import AdaptError, MessageError
from consumer.message import DeadLetter, Message, Result, Stage, Window
from consumer.registry import open_registry
from consumer.sections import RefitSettings
from consumer.settings import Settings
from consumer.step import check_digest, counted_survey
from consumer.summaries import (
    Record,
    SummaryForm,
    describe_provenance,
    finite,
    observation_of,
    split_summary,
)
from sedflow_core import Artifact, Observation
from sedflow_core.second_opinion import SecondOpinion, give_second_opinion
from sedflow_core.simulation import ForwardModel
from sedflow_core.support import can_encode

Outcome = Literal["CONVERGED", "NOT_CONVERGED", "EXPIRED", "OVER_QUOTA", "UNUSABLE"]
METHOD = "emcee: differential evolution, cooled from the prior; the flow's proposals where taken"
SUMMARY = re.compile(r"sedflow\.v1_\d+\.posteriorSummary")
"""The schemas that are understood."""
MAX_KNOWN = 1_000
SECONDS = (1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 45.0, 60.0)

Known = OrderedDict[bytes, SecondOpinion | None]
"""Opinions by photometry; None where the quota is taken and nothing is sampled yet."""


@dataclass(frozen=True, slots=True)
class Request:
    """A summary whose galaxy needs a second opinion."""

    message: Message
    record: Record
    asked: str
    observation: Observation | None
    """None where the photometry is not usable."""

    def promise(self) -> tuple[int, int]:
        """Sort key: few broken rules first, then new before old."""
        return self.record["supportFlags"].bit_count(), -(self.message.timestamp_ms or 0)

    def cache_key(self) -> bytes:
        """What two requests share that get the same answer."""
        seen = self.observation
        columns = () if seen is None else (seen.flux, seen.flux_err, seen.redshift)
        return b"".join(values.tobytes() for values in columns)


class Quota:
    """How many galaxies may still be sampled: refills evenly, up to an hour's worth."""

    def __init__(self, per_hour: int, clock: Callable[[], float] = monotonic) -> None:
        self._per_hour, self._clock = per_hour, clock
        self._left, self._at = float(per_hour), clock()

    def take(self) -> bool:
        """Take one if there is one."""
        now = self._clock()
        refill = (now - self._at) / 3600.0 * self._per_hour
        self._left, self._at = min(self._per_hour, self._left + refill), now
        if self._left < 1.0:
            return False
        self._left -= 1.0
        return True


class RefitMetrics:
    """What the slow lane counts beside what every worker does."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.outcomes = Counter(
            "sedflow_refits_total", "Second opinions by outcome", ("outcome",), registry=registry
        )
        self.seconds = Histogram(
            "sedflow_refit_seconds", "Time the sampler took", buckets=SECONDS, registry=registry
        )
        for outcome in get_args(Outcome):
            self.outcomes.labels(outcome)

    def count(self, window: Window) -> None:
        """Count the second opinions of a published window."""
        for result in window.results:
            self.outcomes.labels(result.refit).inc()


class RefitStep:
    """Turns summaries into second opinions.

    Raises SettingsError when the artifact is not the one that the settings pin.

    Args:
        artifact: whose emulator and support are used.
        model: the simulator that corrects the emulator; None where it is not installed.
        settings: of the slow lane, see `refit_settings.py`.
        metrics: counted in.
        stop: set when the process shall end.
        keep_alive: called between two galaxies.
    """

    def __init__(
        self,
        artifact: Artifact,
        model: ForwardModel | None,
        settings: Settings,
        metrics: RefitMetrics,
        stop: Event,
        *,
        keep_alive: Callable[[], None] = lambda: None,
    ) -> None:
        check_digest(artifact, settings)
        self._artifact, self._model = artifact, model
        self._settings: RefitSettings = settings.refit
        self._metrics, self._stop, self._keep_alive = metrics, stop, keep_alive
        self._seed, self._n_samples = settings.artifact.seed, settings.artifact.n_samples
        self._quota = Quota(self._settings.max_per_hour)
        self._known: Known = OrderedDict()
        self._decoder = Decoder(
            record="posteriorSummary", resolved=True, registry=open_registry(settings.registry)
        )
        self.form = SummaryForm()
        self._assumptions = artifact.assumptions
        self._provenance = describe_provenance(artifact, settings)

    def __call__(
        self, messages: Sequence[Message], *, replay: bool, now: Callable[[], datetime]
    ) -> Window:
        """Return the answers to those that ask, and dead letters for what is no summary.

        Messages that ask for nothing lead to nothing. When `stop` is set the window ends before the
        first message that was not answered by then.
        """
        read = [self._read(message, now()) for message in messages]
        requests = {i: item for i, item in enumerate(read) if isinstance(item, Request)}
        ranked = sorted(requests, key=lambda i: requests[i].promise())
        refusals = {i: self._find_refusal(requests[i], now()) for i in ranked}
        outcomes: list[Result | DeadLetter | None] = []
        for i, item in enumerate(read):
            if not isinstance(item, Request):
                outcomes.append(item)
                continue
            if self._stop.is_set():
                break
            self._keep_alive()
            outcomes.append(self._answer(item, refusals[i], replay, now))
        return Window.of(messages[: len(outcomes)], outcomes)

    def _read(self, message: Message, now: datetime) -> Request | DeadLetter | None:
        stage: Stage = "decode"
        try:
            decoded = self._decoder.decode(message.value)
            stage = "adapt"
            if not SUMMARY.fullmatch(decoded.schema_name):
                raise AdaptError(f"schema: expected a summary, got {decoded.schema_name!r}")
        except MessageError as error:
            return DeadLetter.of(message, stage, error, now)
        record: Record = decoded.record
        asked = why_asked(record)
        if asked is None:
            return None
        return Request(message, record, asked, photometry_of(record, self._artifact))

    def _find_refusal(self, request: Request, now: datetime) -> Outcome | None:
        """Return why a request is not sampled; None where it is, and has taken of the quota."""
        stamp, cache_key = request.message.timestamp_ms, request.cache_key()
        if request.observation is None:
            return "UNUSABLE"
        if cache_key in self._known:
            return None
        if stamp is not None and now.timestamp() - stamp / 1e3 > self._settings.max_age_s:
            return "EXPIRED"
        if not self._quota.take():
            return "OVER_QUOTA"
        self._keep(cache_key, None)
        return None

    def _answer(
        self,
        request: Request,
        refusal: Outcome | None,
        replay: bool,
        now: Callable[[], datetime],
    ) -> Result | DeadLetter:
        started = now()
        outcome, opinion = self._decide(request, refusal)
        times = {"startTimestamp": started, "endTimestamp": now()}
        message, record = request.message, request.record
        changed: Record = {
            **record,
            **times,
            "replay": replay or record["replay"],
            "provenance": record["provenance"] | self._provenance,
            "seed": self._seed,
            "assumptions": self._assumptions,
            "posterior": None,
            "trust": None,
            "refit": describe_refit(request, outcome, opinion),
        }
        if opinion is not None:
            changed |= describe_opinion(opinion, len(self._artifact.param_names))
        try:
            value = self.form.encode(changed, message.key)
        except MessageError as error:
            return DeadLetter.of(message, "encode", error, now())
        survey = counted_survey(record["survey"])
        return Result(message.key, value, (), record["status"], survey, refit=outcome)

    def _decide(
        self, request: Request, refusal: Outcome | None
    ) -> tuple[Outcome, SecondOpinion | None]:
        observation, cache_key = request.observation, request.cache_key()
        if refusal is not None or observation is None:
            return refusal or "UNUSABLE", None
        opinion = self._known.get(cache_key) or self._sample(observation)
        self._keep(cache_key, opinion)
        return ("CONVERGED" if opinion.converged else "NOT_CONVERGED"), opinion

    def _keep(self, cache_key: bytes, opinion: SecondOpinion | None) -> None:
        self._known[cache_key] = opinion
        self._known.move_to_end(cache_key)
        if len(self._known) > MAX_KNOWN:
            self._known.popitem(last=False)

    def _sample(self, observation: Observation) -> SecondOpinion:
        with self._metrics.seconds.time():
            return give_second_opinion(
                self._artifact,
                observation,
                model=self._model,
                n_samples=self._n_samples,
                max_seconds=self._settings.max_seconds,
                seed=self._seed,
            )


def why_asked(record: Record) -> str | None:
    """Return why a summary asks for a second opinion, None where it does not."""
    if record.get("refit") is not None:
        return None
    if record["status"] == "OUT_OF_SUPPORT":
        return "OUT_OF_SUPPORT"
    trust = record.get("trust")
    return "NOT_TRUSTED" if trust is not None and not trust["trusted"] else None


def photometry_of(record: Record, artifact: Artifact) -> Observation | None:
    """Return the photometry that a summary was made from; None where it is not usable."""
    inputs: Any = record["inputs"]
    if inputs is None or inputs["redshift"] is None:
        return None
    if tuple(inputs["bands"]) != artifact.bands.names:
        return None
    found = observation_of(inputs)
    usable = can_encode(*found.tensors()).all() and (found.flux > 0).any()
    return found if usable and found.redshift[0] <= artifact.redshift_max else None


def describe_refit(request: Request, outcome: Outcome, opinion: SecondOpinion | None) -> Record:
    """Return the record `refit`."""
    message = request.message
    chains = None if opinion is None else opinion.chains
    return {
        "status": outcome,
        "asked": request.asked,
        "method": None if opinion is None else METHOD,
        "likelihood": None if opinion is None else opinion.likelihood,
        "rHat": None if chains is None else finite(float(chains.r_hat.max())),
        "ess": None if chains is None else finite(float(chains.ess.min())),
        "evaluations": None if chains is None else chains.n_calls,
        "seconds": None if chains is None else chains.seconds,
        "summaryTopic": message.topic,
        "summaryPartition": message.partition,
        "summaryOffset": message.offset,
    }


def describe_opinion(opinion: SecondOpinion, n_param: int) -> Record:
    """Return posterior and trust of the second opinion."""
    (posterior,) = split_summary(opinion.summary, n_param)
    trust = posterior.trust
    if trust is not None:
        trust = trust | {"trusted": opinion.is_trusted()}
    return {
        "posterior": posterior.record,
        "trust": None if posterior.record is None else trust,
        "nSamples": opinion.summary.n_samples,
    }

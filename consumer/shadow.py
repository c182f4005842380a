"""A second artifact that sees the live stream and publishes nothing: what would it change?

Before an artifact is swapped, run the new one as the shadow of the old one. Both judge each
alert; the old one's answer is published, the difference is counted, and logged at the end. A shadow
judges what was read already and writes no summaries, so it costs its own inference.
"""

import collections
import logging
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from datetime import datetime

from prometheus_client import CollectorRegistry, Counter, Histogram

from consumer.alerts import HostAlert
from consumer.daemon import StepFunction
from consumer.message import Difference, Message, Result, Window
from consumer.settings import Settings
from consumer.step import Judgement, Step, Watch
from sedflow_core import load_artifact

LOG = logging.getLogger("sedflow.shadow")
QUANTITIES = ("log_mstar_surviving", "log_sfr_1gyr", "a_v")
BUCKETS = (-3.0, -1.0, -0.3, -0.1, 0.0, 0.1, 0.3, 1.0, 3.0)


Report = dict[str, object]
Judge = Callable[[Sequence[HostAlert]], Sequence[Judgement]]
"""Says what would be said of each alert."""


class Shadowed:
    """A step whose alerts are judged by a shadow too; its results say what that says otherwise."""

    def __init__(
        self,
        step: StepFunction,
        shadow: Judge,
        registry: CollectorRegistry,
        watch: Watch = nullcontext,
    ) -> None:
        self._watch = watch
        self._step = step
        self._shadow = shadow
        self._tally: collections.Counter[str] = collections.Counter()
        self._largest: dict[str, float] = {}
        self.statuses = Counter(
            "sedflow_shadow_status_total",
            "Galaxies by published status and the shadow's",
            ("status", "shadow"),
            registry=registry,
        )
        self.failures = Counter(
            "sedflow_shadow_failures_total",
            "Batches that the shadow failed to judge",
            registry=registry,
        )
        self.shifts = Histogram(
            "sedflow_shadow_shift_sigma",
            "Shadow's median less the published one, in published standard deviations",
            ("quantity",),
            buckets=BUCKETS,
            registry=registry,
        )

    def __call__(
        self, messages: Sequence[Message], *, replay: bool, now: Callable[[], datetime]
    ) -> Window:
        """Return the step's window, after the shadow judged as well; if it fails, without that."""
        window = self._step(messages, replay=replay, now=now)
        try:
            with self._watch("shadow"):
                return replace(window, results=compare(window.results, self._shadow))
        except Exception:
            LOG.exception("the shadow failed")
            self.failures.inc()
            return window

    def count(self, window: Window) -> None:
        """Count the differences of a published window."""
        for result in window.results:
            if result.shadow is not None:
                self._note(result.shadow)

    def report(self) -> Report:
        """Return the galaxies compared, those with another status, and the largest shifts."""
        return {
            "shadow_compared": self._tally["compared"],
            "shadow_other_status": self._tally["other_status"],
            "shadow_largest_shift_sigma": dict(self._largest),
        }

    def _note(self, difference: Difference) -> None:
        published, shadow = difference.statuses
        self.statuses.labels(published, shadow).inc()
        self._tally.update(compared=1, other_status=int(published != shadow))
        for quantity, shift in difference.shifts.items():
            self.shifts.labels(quantity).observe(shift)
            if abs(shift) >= abs(self._largest.get(quantity, 0.0)):
                self._largest[quantity] = shift


def with_shadow(
    step: Step,
    settings: Settings,
    registry: CollectorRegistry,
    watch: Watch = nullcontext,
    beat: Callable[[], None] = lambda: None,
) -> Step | Shadowed:
    """Return the step, with the shadow that the settings name, if any.

    `beat` is called now and then meanwhile. Raises ArtifactError when that artifact cannot be used.
    """
    name = settings.artifact.shadow
    if name is None:
        return step
    artifact = settings.artifact.model_copy(update={"name": name, "sha256": None})
    loaded = load_artifact(name, artifact.device)
    beat()
    shadow = Step(loaded, settings.model_copy(update={"artifact": artifact}))
    shadow.warm_up(beat)
    return Shadowed(step, shadow.judge, registry, watch)


def compare(results: Sequence[Result], shadow: Judge) -> tuple[Result, ...]:
    """Return the results with the difference for each alert that both answer."""
    judgements = iter(shadow([result.alert for result in results if result.alert is not None]))
    return tuple(r if r.alert is None else _compare(r, next(judgements)) for r in results)


def _compare(ours: Result, theirs: Judgement) -> Result:
    if not theirs.publishable:
        return ours
    shifts = {}
    if ours.derived and theirs.record:
        for name in QUANTITIES:
            a, b = ours.derived.get(name), theirs.record["derived"].get(name)
            if a and b and a["std"] > 0:
                shifts[name] = (b["q50"] - a["q50"]) / a["std"]
    return replace(ours, shadow=Difference((ours.status, theirs.status), shifts))

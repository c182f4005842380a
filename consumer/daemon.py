"""The loop of the consumer: poll, step, publish."""

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import chain
from threading import Event
from typing import Protocol

from consumer.backoff import wait_or_give_up
from consumer.breaker import Breaker
from consumer.errors import BrokerError, HaltedError, WindowAbortedError
from consumer.health import Health
from consumer.in_hand import MAX_DEATHS, InHand
from consumer.message import STEP_AT_ONCE, DeadLetter, Message, Sink, Source, Window
from consumer.metrics import Metrics
from consumer.sections import BreakerSettings

LOG = logging.getLogger("sedflow.daemon")

NEVER = BreakerSettings(max_bad_fraction=1.0)


@dataclass(frozen=True, slots=True)
class Tally:
    """What was published."""

    statuses: Counter[str] = field(default_factory=Counter)
    """Summaries by status."""
    stages: Counter[str] = field(default_factory=Counter)
    """Dead letters by stage."""

    @property
    def messages(self) -> int:
        """Number of messages that led to a summary or to a dead letter."""
        return self.statuses.total() + self.stages.total()

    def add(self, window: Window) -> None:
        """Count a window."""
        self.statuses.update(result.status for result in window.results)
        self.stages.update(letter.stage for letter in window.rejected)


@dataclass(frozen=True, slots=True)
class Guard:
    """Safeguards of the loop; the defaults do nothing."""

    breaker: Breaker = field(default_factory=lambda: Breaker(NEVER))
    in_hand: InHand = field(default_factory=lambda: InHand(None))
    keep_alive: Callable[[], None] = lambda: None
    """Called while the window in hand takes long."""


class StepFunction(Protocol):
    """What turns a batch of messages into the window to publish."""

    def __call__(
        self, messages: Sequence[Message], *, replay: bool, now: Callable[[], datetime]
    ) -> Window:
        """Return one result or dead letter for each message."""


def run(
    source: Source,
    sink: Sink,
    step: StepFunction,
    stop: Event,
    *,
    max_batch: int,
    max_delay_s: float,
    metrics: Metrics,
    health: Health,
    at_once: int = STEP_AT_ONCE,
    replay: bool = False,
    guard: Guard | None = None,
    note: Callable[[Window], None] = lambda _: None,
) -> Tally:
    """Poll up to `max_batch` messages or `max_delay_s`, step, publish; return what was published.

    A window is stepped in batches of at most `at_once` messages; `note` is called with each window
    that was published.

    Ends when `stop` is set or the source is exhausted, in this order: what was stepped of the
    window in hand is published; then the caller closes the sink, then the source. An input position
    moves behind a message only inside `sink.publish`.

    Raises BrokerError when a window was rolled back time and again, what `guard` raises, and
    whatever else source, step or sink raise: the window is then not published, and is read again at
    the next start.
    """
    tally, aborts, guard = Tally(), 0, guard or Guard()
    while not (stop.is_set() or source.exhausted):
        health.beat()
        with metrics.time("poll"):
            messages = source.poll(max_batch, max_delay_s)
        if not messages:
            continue
        try:
            with metrics.time("step"):
                window = _step_all(
                    messages, step, stop, guard, health, at_once=at_once, replay=replay
                )
            guard.breaker.check(window)
            if window.consumed:  # none where it was told to stop before the first answer
                with metrics.time("publish"):
                    sink.publish(window)
        except WindowAbortedError as error:
            aborts += 1
            wait_or_give_up(aborts, error, metrics)
            source.rewind(messages)
            continue
        aborts = 0
        guard.breaker.note(window)
        tally.add(window)
        metrics.count_window(window, _utc_now())
        note(window)
        _log_letters(window.rejected)
        rest = messages[len(window.consumed) :]
        if rest and not stop.is_set():
            source.rewind(rest)
    return tally


def _step_all(
    messages: Sequence[Message],
    step: StepFunction,
    stop: Event,
    guard: Guard,
    health: Health,
    *,
    at_once: int,
    replay: bool,
) -> Window:
    """Step the messages in batches that a membership and a death can wait for.

    When `stop` is set meanwhile the window holds what was stepped until then, and where a deadly
    message is buried it ends with that one; the rest is read again.
    """
    parts: list[Window] = []
    for batch in guard.in_hand.batches(messages, at_once):
        if parts:
            if stop.is_set():
                break
            health.beat()
            guard.in_hand.clear()
            guard.keep_alive()
        if guard.in_hand.is_poison(batch[0]):
            parts.append(_dead_letter_of_poison(batch[0]))
            break  # to be committed before the note of another death takes the place of its own
        guard.in_hand.note(batch)
        try:
            parts.append(step(batch, replay=replay, now=_utc_now))
        except (BrokerError, HaltedError):  # no death, and no fault of the messages
            guard.in_hand.clear()
            raise
    guard.in_hand.clear()
    return _join(parts)


def _join(parts: Sequence[Window]) -> Window:
    return Window(
        tuple(chain.from_iterable(part.consumed for part in parts)),
        tuple(chain.from_iterable(part.results for part in parts)),
        tuple(chain.from_iterable(part.rejected for part in parts)),
    )


def _dead_letter_of_poison(message: Message) -> Window:
    """Return the window of a message that kills the process that steps it."""
    error = f"expected an answer, got {MAX_DEATHS} dead processes"
    letter = DeadLetter(message, "crash", "ProcessDied", error, _utc_now())
    fields = {"topic": message.topic, "partition": message.partition, "offset": message.offset}
    LOG.error("a message kills its process", extra={"fields": fields})
    return Window((message,), (), (letter,))


def _log_letters(letters: Sequence[DeadLetter]) -> None:
    """A line for each; alerts that were answered have none."""
    for letter in letters:
        message = letter.message
        fields = {
            "topic": message.topic,
            "partition": message.partition,
            "offset": message.offset,
            "alertId": letter.alert_id,
            "stage": letter.stage,
            "error": letter.error,
        }
        LOG.warning("dead letter", extra={"fields": fields})


def _utc_now() -> datetime:
    return datetime.now(UTC)

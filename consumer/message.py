"""The records that travel between a source, the step and a sink.

All are immutable. A `Message` keeps the exact bytes that were read: whatever happens to it later,
its dead letter carries those bytes unchanged.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Literal, NamedTuple, Protocol

from consumer.alerts import HostAlert
from sedflow_core.version import __version__

Header = tuple[str, bytes | None]
Headers = tuple[Header, ...]
Stage = Literal["decode", "adapt", "encode", "crash"]

Place = tuple[str, int]
"""A topic and a partition."""

ERROR_HEADER_PREFIX = "__sedflow.errors."
MAX_DIGITS = 18
"""Of a number that somebody else wrote: more would not fit into 64 bits."""
STEP_AT_ONCE = 64
"""Messages that are stepped before the membership is looked after again."""
MAX_WINDOW_BYTES = 64 * 1024 * 1024
"""A window takes no more messages once it holds so many bytes."""
FRAMING_BYTES = 128
"""Upper bound of what a batch of one message holds beside key, value and headers."""


@dataclass(frozen=True, slots=True)
class Message:
    """One message as read: its bytes and where they came from."""

    value: bytes | None
    key: bytes | None = None
    headers: Headers = ()
    topic: str = ""
    partition: int = 0
    offset: int = 0
    timestamp_ms: int | None = None

    @property
    def place(self) -> Place:
        """Topic and partition."""
        return self.topic, self.partition


class Galaxy(NamedTuple):
    """What the metrics count of a galaxy with a posterior."""

    redshift: float
    log_mass: float
    """Median of log10 surviving mass [Msun]."""
    log_mass_width: float
    """Its standard deviation [dex]."""
    trusted: bool | None = None
    """The verdict on its posterior; None where the artifact cannot judge."""


class Difference(NamedTuple):
    """What a shadow says otherwise about one galaxy."""

    statuses: tuple[str, str]
    shifts: dict[str, float]
    """Shadow's median less the published one, in published standard deviations, by quantity."""


@dataclass(frozen=True, slots=True)
class Result:
    """One encoded posteriorSummary, with what metrics and a shadow need of it."""

    key: bytes | None
    value: bytes
    headers: Headers
    status: str
    survey: str
    flags: tuple[str, ...] = ()
    missing_bands: tuple[str, ...] = ()
    galaxy: Galaxy | None = None
    derived: Mapping[str, Any] | None = None
    """Marginals of the derived quantities, as encoded; None without a posterior."""
    alert: HostAlert | None = None
    """What was read; None where it was not read from an alert."""
    shadow: Difference | None = None
    """What a shadow says otherwise; None without its answer."""
    refit: str | None = None
    """Outcome of a second opinion; None where this is a first one."""


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A message that could not be processed: the original bytes, the stage and the error."""

    message: Message
    stage: Stage
    error_class: str
    error: str
    failed_at: datetime
    left_out: tuple[int, str] | None = None
    """Size and sha256 of the value where it is too large for the dead-letter topic."""
    alert_id: int | None = None
    """The alert's, where the message was read so far."""

    @classmethod
    def of(
        cls,
        message: Message,
        stage: Stage,
        error: Exception,
        failed_at: datetime,
        alert_id: int | None = None,
    ) -> "DeadLetter":
        """Return the letter of a message that an error stopped."""
        kind = type(error).__name__
        return cls(message, stage, kind, str(error), failed_at, alert_id=alert_id)

    def fit(self, limit: int) -> "DeadLetter":
        """Return the letter, or a stub of it, as a message of at most `limit` bytes.

        A stub has neither value nor original headers; its size and sha256 tell what it stands for.
        """
        original = self.message
        if count_bytes(original.key, original.value, self.headers()) <= limit:
            return self
        value = original.value or b""
        digest = hashlib.sha256(value).hexdigest()
        key = original.key if count_bytes(original.key, None, ()) <= limit // 2 else None
        stub = replace(original, key=key, value=None, headers=())
        error = self.error[: limit // 4]
        return replace(self, message=stub, error=error, left_out=(len(value), digest))

    def headers(self) -> Headers:
        """Return the original headers followed by the `__sedflow.errors.*` ones."""
        size, digest = self.left_out or (None, None)
        stub = {} if self.left_out is None else {"size": str(size), "sha256": str(digest)}
        added = stub | {
            "topic": self.message.topic,
            "partition": str(self.message.partition),
            "offset": str(self.message.offset),
            "stage": self.stage,
            "class": self.error_class,
            "message": self.error,
            "version": __version__,
            "failed.at": self.failed_at.isoformat(timespec="milliseconds"),
        }
        errors = tuple(
            (ERROR_HEADER_PREFIX + name, text.encode(errors="backslashreplace"))
            for name, text in added.items()
        )
        return self.message.headers + errors


def count_bytes(key: bytes | None, value: bytes | None, headers: Headers) -> int:
    """Bytes that a message takes in a batch of its own, framing included."""
    fields = [key, value, *(text for name, value in headers for text in (name.encode(), value))]
    return FRAMING_BYTES + sum(len(text or b"") + 8 for text in fields)


@dataclass(frozen=True, slots=True)
class Window:
    """Everything one batch of messages leads to; published as one unit.

    In the order of `consumed`. Of alerts, each leads to one result or one dead letter; of summaries
    in the slow lane, those that ask for nothing lead to nothing.
    """

    consumed: tuple[Message, ...]
    results: tuple[Result, ...]
    rejected: tuple[DeadLetter, ...]

    @classmethod
    def of(
        cls, consumed: Sequence[Message], outcomes: Sequence["Result | DeadLetter | None"]
    ) -> "Window":
        """Return the window of what became of messages, in their order; None: nothing."""
        return cls(
            tuple(consumed),
            tuple(item for item in outcomes if isinstance(item, Result)),
            tuple(item for item in outcomes if isinstance(item, DeadLetter)),
        )

    def outcomes(self) -> Iterator[tuple[Message, Result | DeadLetter]]:
        """Yield each message of a window of alerts with what became of it."""
        results, letters = iter(self.results), iter(self.rejected)
        letter = next(letters, None)
        for message in self.consumed:
            if letter is not None and letter.message is message:
                yield message, letter
                letter = next(letters, None)
            else:
                yield message, next(results)


class Source(Protocol):
    """Where messages come from."""

    @property
    def exhausted(self) -> bool:
        """True when no message will ever follow: archives end, Kafka never does."""

    def poll(self, max_messages: int, max_delay_s: float) -> Sequence[Message]:
        """Return at most `max_messages`; the first of them waits at most `max_delay_s` for others.

        For a first one each source waits as long as suits it, and returns nothing without one.
        """

    def rewind(self, messages: Sequence[Message]) -> None:
        """Hand these messages, the last that were polled, out again."""

    def close(self) -> None:
        """Release what the source holds."""


class Sink(Protocol):
    """Where a window goes."""

    def publish(self, window: Window) -> None:
        """Make outputs, dead letters and input positions durable; raise where that failed.

        `KafkaSink` all or none, `TwoClusterSink` so for each partition; others may repeat some.
        After a WindowAbortedError the same messages may be tried again.
        """

    def close(self) -> None:
        """Finish the output."""


def number_of(text: str) -> int | None:
    """Return the number that a text of others is; None where it is none of `MAX_DIGITS` at most."""
    return int(text) if text.isdecimal() and len(text) <= MAX_DIGITS else None


def is_full(messages: Iterable[Message]) -> bool:
    """Whether a window of these messages takes no more of them."""
    return sum(len(m.value or b"") for m in messages) > MAX_WINDOW_BYTES


def take_window(messages: Iterator[Message], max_size: int) -> list[Message]:
    """Take the messages of one window: `max_size` or those that fill it; none at the end."""
    taken: list[Message] = []
    n_bytes = 0
    while len(taken) < max_size and n_bytes <= MAX_WINDOW_BYTES:
        message = next(messages, None)
        if message is None:
            break
        taken.append(message)
        n_bytes += len(message.value or b"")
    return taken


def next_offsets(messages: Iterable[Message]) -> dict[Place, int]:
    """Return for each partition the offset behind its last message."""
    return {m.place: m.offset + 1 for m in messages}

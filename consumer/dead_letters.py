"""`sedflow-consumer dlq list | show | replay`: what became of dead letters, and a second chance.

A replay goes once over what arrived since the last one: each letter's original message is processed
as if it came now. What succeeds goes to the output topic, marked as a replay; what fails again goes
back as a new letter that counts its attempts, up to a cap. Results, letters and the positions of
the replay commit together, so that a replay that is cut off loses and repeats nothing.

Letters named by their places are tried whatever became of them before; no position moves, so that a
command given again tries all of them again.
"""

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import torch
from confluent_kafka import TopicPartition
from prometheus_client import CollectorRegistry

from consumer.daemon import Tally
from consumer.errors import SettingsError
from consumer.files import describe_message
from consumer.kafka_client import find_limits
from consumer.kafka_sink import Transactions
from consumer.letter_box import Letter, LetterBox, letter_group
from consumer.message import Message, Window, next_offsets, take_window
from consumer.metrics import Metrics
from consumer.process import printable
from consumer.registry import register_summaries
from consumer.sections import InputSettings
from consumer.settings import Settings
from consumer.step import Step
from consumer.summaries import SummaryForm
from consumer.worker import load_served


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a replay; as text, what the command prints."""

    tally: Tally = field(default_factory=Tally)
    left: Counter[str] = field(default_factory=Counter)
    """Letters that were not tried, by reason."""

    def __str__(self) -> str:
        lines = [f"{self.tally.messages} dead letters replayed"]
        lines += [f"  {status}: {n}" for status, n in self.tally.statuses.most_common()]
        lines += [f"  dead again, {stage}: {n}" for stage, n in self.tally.stages.most_common()]
        lines += [f"  not tried, {reason}: {n}" for reason, n in self.left.most_common()]
        return "\n".join(lines)


def list_letters(settings: Settings, *, stage: str | None, limit: int | None) -> Iterator[str]:
    """Yield a line for each dead letter of a stage, or of any. Raises BrokerError.

    Its columns: place, time, stage, class, attempts, message, and place of the original message.
    """
    n = 0
    with closing(LetterBox(settings, from_beginning=True)) as box:
        for letter in box:
            errors = letter.errors
            if stage is not None and errors.get("stage") != stage:
                continue
            yield "\t".join(
                (
                    letter.place,
                    *(printable(errors.get(name, "?")) for name in ("failed.at", "stage", "class")),
                    str(letter.attempts),
                    printable(errors.get("message", "?")),
                    printable("/".join(map(str, letter.origin or "?"))),
                )
            )
            n += 1
            if n == limit:
                return


def show_letter(settings: Settings, place: str) -> dict[str, Any]:
    """Return the dead letter at a place, `<topic>/<partition>/<offset>`, its bytes as base 64.

    Raises SettingsError when no letter lies there, BrokerError.
    """
    with closing(LetterBox(settings, from_beginning=True)) as box:
        for letter in box:
            if letter.place == place:
                return {"place": place, "errors": letter.errors, **describe_message(letter.message)}
        raise SettingsError(_no_letter(box, place))


def _no_letter(box: LetterBox, place: str) -> str:
    return (
        f"place: expected <topic>/<partition>/<offset> of a dead letter in {box.topics}, "
        f"got {place}"
    )


def replay_letters(settings: Settings, *, max_attempts: int) -> Outcome:
    """Process the dead letters that no replay has gone over yet.

    It answers as the daemon does: with the pinned, validated artifact, under the same schema id.
    Raises ArtifactError, SettingsError or BrokerError; what was committed until then stays.
    """
    outcome = Outcome()
    step, transactions = _start(settings)
    with closing(LetterBox(settings, from_beginning=False)) as box:
        while letters := box.read(settings.batch.max_size):
            messages = list(_choose(letters, settings.input, max_attempts, outcome.left))
            window = step(messages, replay=True, now=lambda: datetime.now(UTC))
            transactions.publish_again(window, _Positions(box, letters))
            outcome.tally.add(window)
    return outcome


def replay_places(settings: Settings, places: Collection[str]) -> Outcome:
    """Process the dead letters at these places, `<topic>/<partition>/<offset>`, once more.

    Raises as `replay_letters` does, and SettingsError where no letter lies at one of them.
    """
    outcome = Outcome()
    step, transactions = _start(settings)
    with closing(LetterBox(settings, from_beginning=True)) as box:
        found = {letter.place: letter for letter in box if letter.place in places}
        for place in sorted(set(places) - found.keys()):
            raise SettingsError(_no_letter(box, place))
    chosen = _choose(list(found.values()), settings.input, None, outcome.left)
    while messages := take_window(chosen, settings.batch.max_size):
        window = step(messages, replay=True, now=lambda: datetime.now(UTC))
        transactions.publish_again(window, lambda *_: None)
        outcome.tally.add(window)
    return outcome


def _start(settings: Settings) -> tuple[Step, Transactions]:
    """Return what answers and what publishes.

    What another replay has under way ends here; only then do the positions stand still.
    """
    torch.set_num_threads(1)
    step = Step(load_served(settings.artifact), settings)
    metrics, limits = Metrics(CollectorRegistry()), find_limits(settings)
    step.form = SummaryForm(register_summaries(settings), limits.summary)
    return step, Transactions(settings, metrics, letter_group(settings), limits)


class _Positions:
    """Moves the replay's positions behind `letters`, those that were not tried included."""

    def __init__(self, box: LetterBox, letters: Sequence[Letter]) -> None:
        self._group_metadata = box.group_metadata
        self._next = next_offsets(letter.message for letter in letters)

    def __call__(self, transactions: Transactions, _: Window) -> None:
        positions = [TopicPartition(*place, offset) for place, offset in self._next.items()]
        transactions.send_offsets(positions, self._group_metadata)


def _choose(
    letters: Sequence[Letter], source: InputSettings, max_attempts: int | None, left: Counter[str]
) -> Iterator[Message]:
    """Yield the original messages of the letters to try; count the others by reason.

    Without `max_attempts` all that can be tried are.
    """
    for letter in letters:
        reason = _reason_to_leave(letter, source, max_attempts)
        if reason is None:
            yield letter.restore()
        else:
            left[reason] += 1


def _reason_to_leave(letter: Letter, source: InputSettings, max_attempts: int | None) -> str | None:
    errors = letter.errors
    if max_attempts is not None:
        if letter.attempts >= max_attempts:
            return f"after {max_attempts} attempts"
        if errors.get("stage") == "crash":
            return "it kills the process"
    if letter.is_stub:
        return "a stub without its bytes"
    if letter.origin is None:
        return "not ours"
    if source.entry_of(letter.origin[0]) not in source.topics:
        return "its topic is none of input.topics"
    return None

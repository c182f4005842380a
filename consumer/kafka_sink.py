"""Sinks over Kafka: each window is one transaction, or one for each partition it was read from.

The order of a publication (`Transactions.publish`), which nothing else repeats:

1. begin a transaction;
2. produce the summaries to the output topic and the dead letters to the dead-letter topic;
3. put the input positions behind the window into the same transaction; a replay has none;
4. commit. Only now have the positions moved, together with what they led to.

What can go wrong, each decided here:

- An error that can be tried again (time-out, coordinator moving) is tried again for a while.
- An error that ends the transaction, such as an assignment that changed meanwhile: abort, raise
  `WindowAbortedError`.
- Such an error because the broker did not answer, in a transaction that moves positions of a group:
  raise `BrokerError`, so that the clients are made anew: this producer may never come back from
  the next time it sends positions (librdkafka issue 5456).
- A fatal error, such as another process with the same transactional id, or a call that does not
  come back: raise `WorkerLostError`. The process must end; at its restart the same transactional id
  finishes or rolls back what is open.

One cluster (`KafkaSink`): the positions go to the group, under the membership the window was read
with, so partitions that were lost to another worker meanwhile cannot be committed; the loop rewinds
an aborted window. The transactional id is that of the worker's slot. The topic of
`position_log.py`, where there is one, is told the positions too.

Two clusters: see `two_cluster_sink.py`.

At least once (`PlainSink`): produce, wait for every confirmation, then commit the positions to the
group on the input's cluster, then tell them to the topic that remembers. A crash in between repeats
the window, and so does a group that is rebalanced meanwhile.
"""

import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from itertools import count
from threading import Thread
from typing import Any, NoReturn

from confluent_kafka import KafkaError, KafkaException, TopicPartition

from consumer.backoff import wait_or_give_up
from consumer.errors import BrokerError, WindowAbortedError, WorkerLostError
from consumer.kafka import KafkaSource
from consumer.kafka_client import (
    CALL_TIMEOUT_S,
    LOG,
    Limits,
    find_limits,
    foreign_errors,
)
from consumer.message import Window, next_offsets
from consumer.metrics import Metrics
from consumer.outlet import Outlet
from consumer.position_log import produce_positions
from consumer.sections import ClientOption
from consumer.settings import Settings

HANGS_AFTER_S = CALL_TIMEOUT_S + 2.0
"""What has not come back by then, although its time-out is over, never will."""
RETRY_FOR_S = 15.0
"""How long a call is made again, the last one started by then. A transaction has timed out sooner;
and nothing beats while a window is committed and then aborted, which may take so long each.
"""
RETRY_PAUSE_S = 0.1
PLAIN: Mapping[str, ClientOption] = {"enable.idempotence": True}
TRANSACTION_TIMEOUT_MS = 9_000
"""How long the open transaction of a worker that died delays readers of committed data; the broker
looks for such transactions every 10 s, which adds to it.
"""

AddPositions = Callable[["Transactions", Window], None]
"""Puts the positions behind a window into the open transaction."""


class Transactions(Outlet):
    """Publishes windows under one transactional id."""

    def __init__(
        self, settings: Settings, metrics: Metrics, transactional_id: str, limits: Limits
    ) -> None:
        super().__init__(settings, transactional(transactional_id), limits)
        self._metrics = metrics
        with foreign_errors("output: start transactions"):
            self.patiently(self._producer.init_transactions)

    def publish(self, window: Window, add_positions: AddPositions) -> None:
        """Commit summaries, dead letters and positions as one.

        Raises WindowAbortedError when it was rolled back, BrokerError when that failed too,
        WorkerLostError when the process must end.
        """
        try:
            self._producer.begin_transaction()
            self.produce_window(window)
            add_positions(self, window)
            self.patiently(self._producer.commit_transaction)
        except (KafkaException, BufferError) as error:
            try:
                self._roll_back(error)
            finally:  # by then every message has told what became of it
                self.fall_back(window, error.args[0])
        self.restore_bytes()

    def publish_again(
        self,
        window: Window,
        add_positions: AddPositions,
        beat: Callable[[], None] = lambda: None,
    ) -> None:
        """Publish a window, again where it was rolled back. Raises BrokerError at last."""
        for aborts in count(1):
            beat()
            try:
                self.publish(window, add_positions)
                return
            except WindowAbortedError as error:
                wait_or_give_up(aborts, error, self._metrics)

    def send_offsets(self, positions: list[TopicPartition], group_metadata: object) -> None:
        """Put positions of the group into the open transaction."""
        self.patiently(self._producer.send_offsets_to_transaction, positions, group_metadata)

    def patiently(self, call: Callable[..., Any], *arguments: object) -> None:
        """Make a call of the transactional interface, again while its error says so."""
        deadline = time.monotonic() + RETRY_FOR_S
        while True:
            try:
                call_within(HANGS_AFTER_S, call, *arguments, CALL_TIMEOUT_S)
                return
            except KafkaException as error:
                if not error.args[0].retriable() or time.monotonic() > deadline:
                    raise
            self._metrics.retries.labels("broker").inc()
            time.sleep(RETRY_PAUSE_S)

    def count_failure(self) -> None:
        """Count a window that is not tried again under this producer."""
        self._metrics.commit_failures.inc()

    def _roll_back(self, cause: Exception) -> NoReturn:
        _raise_if_fatal(cause)
        try:
            self.patiently(self._producer.abort_transaction)
        except KafkaException as error:
            _raise_if_fatal(error)
            self.count_failure()
            raise BrokerError(f"output: abort: {error.args[0].str()}") from cause
        raise WindowAbortedError(f"output: {cause}") from cause


class KafkaSink:
    """Publishes windows in transactions, each of which moves the positions of `source`.

    Without a source, in a replay, there are no positions to move.
    """

    def __init__(
        self, settings: Settings, metrics: Metrics, source: KafkaSource | None = None
    ) -> None:
        name = f"{settings.input.group}-{settings.output.slot}"
        self.limits = find_limits(settings)
        self._transactions = Transactions(settings, metrics, name, self.limits)
        self._source = source

    def publish(self, window: Window) -> None:
        """Commit the window's summaries, dead letters and input positions as one.

        Raises WindowAbortedError when it was rolled back, BrokerError when it was because the
        broker did not answer, WorkerLostError when the process must end.
        """
        try:
            self._transactions.publish(window, self._add_positions)
        except WindowAbortedError as error:
            if self._source is not None and timed_out(error.__cause__):
                self._transactions.count_failure()
                raise BrokerError(str(error)) from error
            raise
        if self._source is not None:
            self._source.advance(window)

    def close(self) -> None:
        """Do nothing: no message is in flight between windows."""

    def _add_positions(self, transactions: Transactions, window: Window) -> None:
        if self._source is not None:
            note_positions(transactions, window, self._source)
            positions = self._source.positions_behind(window)
            transactions.send_offsets(positions, self._source.group_metadata)
            self._source.beat()  # the commit may take as long again, and then its abort


class PlainSink(Outlet):
    """Publishes at least once: positions move after every message was confirmed."""

    def __init__(self, settings: Settings, source: KafkaSource) -> None:
        self.limits = find_limits(settings)
        super().__init__(settings, PLAIN, self.limits)
        self._source = source

    def publish(self, window: Window) -> None:
        """Produce, wait for all confirmations, then move the positions.

        Raises WindowAbortedError when a message was not confirmed, or the group is rebalanced.
        """
        self._await_positions()
        try:
            self.produce_window(window)
        except (KafkaException, BufferError) as error:
            self.fall_back(window, error.args[0])
            raise WindowAbortedError(f"output: {error}") from error
        if missing := self.count_unconfirmed(2 * CALL_TIMEOUT_S):
            told = f"output: expected every message confirmed, got {self.refused or missing}"
            self.fall_back(window)
            raise WindowAbortedError(told)
        self.restore_bytes()
        self._source.commit(window)
        # Not before: a group without a position takes what is remembered for what was published.
        with foreign_errors("output: positions"):
            try:
                note_positions(self, window, self._source)
            except BufferError as error:
                _tell_forgotten(error)

    def close(self) -> None:
        """Wait for the last positions to be remembered."""
        self._await_positions()

    def _await_positions(self) -> None:
        """What is still under way of the window before is no fault of the next: wait a while."""
        if self.count_unconfirmed(CALL_TIMEOUT_S):
            _tell_forgotten(self.refused[0] if self.refused else "no answer")
            self.refused.clear()


def transactional(transactional_id: str) -> Mapping[str, ClientOption]:
    """Return what makes a producer transactional."""
    return {
        "transactional.id": transactional_id,
        "transaction.timeout.ms": TRANSACTION_TIMEOUT_MS,
        "enable.idempotence": True,
    }


def call_within(limit_s: float, call: Callable[..., Any], *arguments: object) -> None:
    """Make a call that librdkafka may never return from although it was given a time-out.

    send_offsets_to_transaction does so when its coordinator goes away (librdkafka issue 5456).
    Raises WorkerLostError after `limit_s`: the process must end then, for the call goes on.
    """
    outcome: Future[object] = Future()

    def make_call() -> None:
        try:
            outcome.set_result(call(*arguments))
        except Exception as error:
            outcome.set_exception(error)

    Thread(target=make_call, daemon=True).start()
    try:
        outcome.result(limit_s)
    except TimeoutError:
        what = f"{getattr(call, '__name__', 'call')}: expected an answer within {limit_s:.0f} s"
        raise WorkerLostError(f"{what}, got none") from None


def note_positions(outlet: Outlet, window: Window, source: KafkaSource) -> None:
    """Produce the positions behind a window to the topic that remembers them, if there is one."""
    if source.log is not None:
        offsets = next_offsets(window.consumed)
        produce_positions(outlet, source.log, offsets, source.starts.topic_id)


def _tell_forgotten(error: object) -> None:
    LOG.warning("positions not remembered", extra={"fields": {"error": str(error)}})


def timed_out(cause: BaseException | None) -> bool:
    """Whether this is an error of librdkafka that says that no answer came."""
    error = cause.args[0] if isinstance(cause, KafkaException) else None
    return isinstance(error, KafkaError) and error.code() == KafkaError._TIMED_OUT


def _raise_if_fatal(cause: Exception) -> None:
    error = cause.args[0]
    if isinstance(error, KafkaError) and error.fatal():
        raise WorkerLostError(f"output: {error.str()}") from cause

"""What every Kafka client here shares: its configuration, start-up checks, and its errors.

An exception of librdkafka ends here, or in `kafka.py`, as `BrokerError`.
"""

import logging
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from threading import Thread
from typing import Any

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from consumer.errors import BrokerError, SettingsError
from consumer.sections import ClientOption, ClusterSettings, OutputSettings
from consumer.settings import Settings

LOG = logging.getLogger("sedflow.kafka")

CALL_TIMEOUT_S = 10.0


def client_config(
    section: str,
    cluster: ClusterSettings,
    defaults: Mapping[str, ClientOption],
    forced: Mapping[str, ClientOption],
) -> dict[str, ClientOption]:
    """Return the librdkafka configuration of one client.

    Raises SettingsError when the pass-through options touch what delivery depends on.
    """
    for key in forced.keys() & cluster.kafka.keys():
        raise SettingsError(
            f"{section}.kafka.{key}: expected it left to the daemon, got {cluster.kafka[key]!r}"
        )
    return {**defaults, **cluster.client_config(), **forced}


def check_topics(settings: Settings) -> None:
    """Check at start that one cluster holds every topic that is read or written.

    Raises SettingsError for no topics or two clusters, BrokerError for a missing topic or a cluster
    that does not answer.
    """
    inputs = settings.input.topics
    if not inputs:
        raise SettingsError("input.topics: expected at least one topic, got none")
    source = _describe_cluster("input", settings.input)
    sink = _describe_cluster("output", settings.output)
    if source.cluster_id != sink.cluster_id:
        raise SettingsError(
            f"output.bootstrap: expected the cluster of input.bootstrap, {source.cluster_id}, got "
            f"{sink.cluster_id}: exactly-once across clusters is not supported yet"
        )
    _require("input", source, inputs)
    dead_letters = map(settings.output.dead_letter_topic_of, inputs)
    _require("output", sink, {settings.output.topic, *dead_letters})


def check_output(output: OutputSettings, topics: Collection[str]) -> None:
    """Check before a replay that the output's cluster holds `topics`. Raises BrokerError."""
    _require("output", _describe_cluster("output", output), topics)


def _require(section: str, cluster: Any, topics: Collection[str]) -> None:
    if missing := sorted(set(topics) - cluster.topics.keys()):
        raise BrokerError(f"{section}: expected the topics {missing}, got none of these names")


def _describe_cluster(section: str, cluster: ClusterSettings) -> Any:
    with foreign_errors(f"{section}: cluster at {cluster.bootstrap}"):
        client = AdminClient({**cluster.client_config(), "log_level": 3}, logger=LOG)
        return client.list_topics(timeout=CALL_TIMEOUT_S)


def call_within(limit_s: float, call: Callable[..., Any], *arguments: object) -> None:
    """Make a call that librdkafka may never return from although it was given a time-out.

    send_offsets_to_transaction does so when its coordinator goes away (librdkafka issue 5456).
    Raises BrokerError after `limit_s`; the process must end then, for the call goes on.
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
        raise BrokerError(f"expected an answer within {limit_s:.0f} s, got none") from None


@contextmanager
def foreign_errors(what: str) -> Iterator[None]:
    """Turn librdkafka's exceptions into ours."""
    try:
        yield
    except KafkaException as error:
        raise BrokerError(f"{what}: {error.args[0].str()}") from error

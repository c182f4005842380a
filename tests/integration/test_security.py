"""Who may come in: every way to log in works, and what is wrong or missing is named.

Against a real broker with TLS, client certificates, SCRAM, OAuth tokens and access control lists.
"""

import json
import re
import shlex
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import astuple
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from confluent_kafka import Producer
from prometheus_client import CollectorRegistry

from consumer import connection
from consumer.dead_letters import list_letters, replay_letters
from consumer.errors import BrokerError
from consumer.gaps import Position
from consumer.health import Health
from consumer.kafka import KafkaSource
from consumer.kafka_sink import KafkaSink
from consumer.message import Message, Result, Window
from consumer.metrics import Metrics
from consumer.position_log import PositionLog
from consumer.replay import derive_replay_settings
from consumer.settings import Settings
from consumer.start_checks import check_output, check_topics
from consumer.topics import check, plan, plan_replay
from tests.services import clean_environment, service

from .broker import create_topics, free_ports
from .conftest import Topics
from .secure_broker import PASSWORD, USERS, SecureBroker, secure_broker
from .test_topics import create_as_planned
from .token_server import CLIENT, SECRET, token_server
from .traffic import Sent, make_good, produce, read_committed

Options = dict[str, Any]
USER, WRITER = USERS
WRONG = "wrong-horse-battery"
N_GOOD = 40
SHORT_S = 3.0
"""How long to wait for a broker that does not serve."""


@pytest.fixture(scope="module")
def broker() -> Iterator[SecureBroker]:
    with service(secure_broker()) as running:
        yield running


def create_allowed(broker: SecureBroker) -> list[str]:
    """Make topics for alerts, summaries and dead letters on which the user may do everything."""
    names = list(astuple(Topics.fresh()))
    create_topics(broker.open, names)
    allow_all(broker, names, names[0])
    return names


@pytest.fixture(scope="module")
def topics(broker: SecureBroker) -> list[str]:
    """Topics on which the user has every right that the daemon needs."""
    return create_allowed(broker)


def allow_all(broker: SecureBroker, names: list[str], group: str) -> None:
    alerts, *written = names
    broker.allow(USER, "TOPIC", alerts, "READ", "DESCRIBE")
    for name in written:
        broker.allow(USER, "TOPIC", name, "WRITE", "DESCRIBE", "DESCRIBE_CONFIGS")
    broker.allow(USER, "GROUP", group, "READ", "DESCRIBE")
    broker.allow(USER, "TRANSACTIONAL_ID", f"{group}-0", "WRITE", "DESCRIBE")


def scram(broker: SecureBroker, **changes: Any) -> Options:
    options = {
        "bootstrap": broker.sasl,
        "username": USER,
        "password": PASSWORD,
        "kafka": {
            "security.protocol": "SASL_SSL",
            "sasl.mechanism": "SCRAM-SHA-512",
            "ssl.ca.location": str(broker.folder / "ca.pem"),
        },
    }
    return merge(options, changes)


def mutual_tls(broker: SecureBroker, **changes: Any) -> Options:
    pair = str(broker.folder / "client.pem")
    options = {
        "bootstrap": broker.tls,
        "kafka": {
            "security.protocol": "SSL",
            "ssl.ca.location": str(broker.folder / "ca.pem"),
            "ssl.certificate.location": pair,
            "ssl.key.location": pair,
        },
    }
    return merge(options, changes)


def token(broker: SecureBroker, principal: str = USER) -> Options:
    return {
        "bootstrap": broker.sasl,
        "kafka": {
            "security.protocol": "SASL_SSL",
            "sasl.mechanism": "OAUTHBEARER",
            "sasl.oauthbearer.config": f"principal={principal}",
            "enable.sasl.oauthbearer.unsecure.jwt": True,
            "ssl.ca.location": str(broker.folder / "ca.pem"),
        },
    }


def merge(options: Options, changes: Options) -> Options:
    return options | changes | {"kafka": options["kafka"] | changes.get("kafka", {})}


def as_settings(cluster: Options, topics: list[str], **more: Any) -> Settings:
    return Settings.model_validate(
        {
            "input": cluster | {"topics": [topics[0]], "group": topics[0]},
            "output": cluster | {"topic": topics[1]},
            **more,
        }
    )


LOGINS: dict[str, Callable[[SecureBroker], Options]] = {
    "SCRAM-SHA-512": scram,
    "mutual TLS": mutual_tls,
    "OAUTHBEARER": token,
}


@pytest.mark.parametrize("login", LOGINS)
def test_each_login_passes_every_check(broker: SecureBroker, topics: list[str], login: str) -> None:
    settings = as_settings(LOGINS[login](broker), topics)
    check_topics(settings)
    KafkaSink(settings, Metrics(CollectorRegistry()))


SERVERS: dict[str, tuple[Callable[[SecureBroker, Options], Options], str]] = {
    "another authority": (
        lambda b, o: merge(o, {"kafka": {"ssl.ca.location": str(b.folder / "other-ca.pem")}}),
        "certificate verify failed.*check the certificates",
    ),
    "another host name": (
        lambda _, o: o | {"bootstrap": o["bootstrap"].replace("127.0.0.1", "localhost")},
        "certificate verify failed.*host name in bootstrap",
    ),
}
"""A client that trusts another authority, or talks to the broker by another name."""


@pytest.mark.parametrize("case", SERVERS)
@pytest.mark.parametrize("login", LOGINS)
def test_a_server_that_is_not_trusted_is_named(
    broker: SecureBroker,
    topics: list[str],
    login: str,
    case: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connection, "ANSWER_WITHIN_S", SHORT_S)
    change, message = SERVERS[case]
    with pytest.raises(BrokerError, match=message):
        check_topics(as_settings(change(broker, LOGINS[login](broker)), topics))


def stranger(broker: SecureBroker) -> Options:
    pair = str(broker.folder / "stranger.pem")
    options = {"ssl.certificate.location": pair, "ssl.key.location": pair}
    return mutual_tls(broker, kafka=options)


def without_certificate(broker: SecureBroker) -> Options:
    return {"bootstrap": broker.tls, "kafka": scram(broker)["kafka"] | {"security.protocol": "SSL"}}


REFUSED: dict[str, tuple[Callable[[SecureBroker], Options], str]] = {
    "wrong password": (lambda b: scram(b, password=WRONG), "invalid credentials.*check username"),
    "unknown user": (lambda b: scram(b, username="x"), "invalid credentials.*check username"),
    "wrong mechanism": (
        lambda b: scram(b, kafka={"sasl.mechanism": "PLAIN"}),
        "PLAIN.*check username, password or token, and sasl.mechanism",
    ),
    "certificate of a stranger": (stranger, "certificate"),
    "no certificate": (without_certificate, "certificate"),
    "no file of the authority": (
        lambda b: scram(b, kafka={"ssl.ca.location": "/none.pem"}),
        "ssl.ca.location",
    ),
    "unknown token": (lambda b: token(b, "nobody"), "none of these names that this user may"),
    "no TLS": (lambda b: {"bootstrap": b.sasl, "kafka": {}}, "input: expected the cluster"),
    "unknown host": (
        lambda b: scram(b, bootstrap="no-such-host.invalid:9092"),
        "no-such-host.*check the host name",
    ),
    "nothing there": (lambda b: scram(b, bootstrap="127.0.0.1:1"), "Connection refused"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_wrong_is_named(
    broker: SecureBroker, topics: list[str], case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "ANSWER_WITHIN_S", SHORT_S)
    login, message = REFUSED[case]
    with pytest.raises(BrokerError, match=message) as caught:
        check_topics(as_settings(login(broker), topics))
    assert PASSWORD not in str(caught.value)
    assert WRONG not in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "place", "operation", "message"),
    [
        ("TOPIC", 0, "READ", r"input: expected the right READ on topic {}, got \['DESCRIBE"),
        ("TOPIC", 1, "WRITE", "output: expected the right WRITE on topic {}, got"),
        ("TOPIC", 2, "WRITE", "output: expected the right WRITE on topic {}, got"),
        ("TOPIC", 1, "DESCRIBE", r"output: expected the topics \['{}'\], got none.*may DESCRIBE"),
        ("GROUP", 0, "READ", "input: (group|expected the right READ on group) {}"),
    ],
)
def test_a_missing_right_is_named(
    broker: SecureBroker, kind: str, place: int, operation: str, message: str
) -> None:
    names = create_allowed(broker)
    settings = as_settings(scram(broker), names)
    check_topics(settings)
    broker.deny(USER, kind, names[place], operation)
    with pytest.raises(BrokerError, match=message.format(re.escape(names[place]))):
        check_until_refused(settings)


@pytest.mark.parametrize("login", LOGINS)
def test_each_login_is_told_the_right_it_lacks(broker: SecureBroker, login: str) -> None:
    names = create_allowed(broker)
    broker.deny(USER, "TOPIC", names[1], "WRITE")
    with pytest.raises(BrokerError, match=f"expected the right WRITE on topic {names[1]}, got"):
        check_until_refused(as_settings(LOGINS[login](broker), names))


def oidc(broker: SecureBroker, endpoint: str, secret: str) -> Options:
    method = {
        "sasl.oauthbearer.method": "oidc",
        "sasl.oauthbearer.client.id": CLIENT,
        "sasl.oauthbearer.client.secret": secret,
        "sasl.oauthbearer.token.endpoint.url": endpoint,
    }
    return scram(broker, kafka={"sasl.mechanism": "OAUTHBEARER", **method})


def test_tokens_come_from_where_the_settings_say(broker: SecureBroker, topics: list[str]) -> None:
    """Every option of OAUTHBEARER goes to librdkafka, which fetches and renews the tokens."""
    with token_server(USER) as endpoint:
        settings = as_settings(oidc(broker, endpoint, SECRET), topics)
        check_topics(settings)
        KafkaSink(settings, Metrics(CollectorRegistry()))
        assert SECRET not in json.dumps(settings.masked())
        with pytest.raises(BrokerError, match="Failed to acquire SASL OAUTHBEARER token") as caught:
            check_topics(as_settings(oidc(broker, endpoint, WRONG), topics))
    assert WRONG not in str(caught.value)


def check_until_refused(settings: Settings) -> None:
    """Brokers apply new rules a moment after they took them."""
    for _ in range(50):
        check_topics(settings)


def test_topics_check_names_what_is_missing(broker: SecureBroker, topics: list[str]) -> None:
    """Topic, group and transactional id, all at once."""
    settings = as_settings(scram(broker), [topics[0], topics[1]])
    source = settings.input.model_copy(update={"group": "of-another"})
    errors, _ = check(settings.model_copy(update={"input": source}))
    told = "\n".join(errors)
    assert re.search("input: (group|expected the right READ on group) of-another.*ask for", told)
    assert "ids that begin with of-another-" in told
    assert "ask for the right WRITE on the transactional id" in told


def follow(broker: SecureBroker, commands: list[str]) -> None:
    """Do what a plan says, as an administrator does with Kafka's own tools."""
    for command in commands:
        if command.startswith("kafka-topics.sh"):
            create_as_planned(broker.open, command)
            continue
        words = shlex.split(command)
        operations = [
            re.sub("(?<!^)(?=[A-Z])", "_", words[i + 1]).upper()
            for i, word in enumerate(words)
            if word == "--operation"
        ]
        user = words[words.index("--allow-principal") + 1].removeprefix("User:")
        kind, name = words[-2].removeprefix("--").replace("-", "_").upper(), words[-1]
        broker.allow(user, kind, name, *operations, prefixed="prefixed" in words)


def test_what_is_planned_is_all_that_is_needed(broker: SecureBroker, tiny_path: Path) -> None:
    """By the daemon, `dlq` and `replay --to-kafka`."""
    name = f"alerts-{uuid4().hex[:8]}"
    settings = as_settings(scram(broker), [name, f"{name}.summaries"])
    artifact = settings.artifact.model_copy(
        update={"name": str(tiny_path), "allow_unvalidated": True, "allow_unpinned": True}
    )
    settings = settings.model_copy(update={"artifact": artifact})
    follow(broker, plan(settings))
    wait_until(lambda: check(settings)[0] == [])
    assert check(settings) == ([], [])
    KafkaSink(settings, Metrics(CollectorRegistry()))
    assert_positions_are_recalled(broker, settings)
    assert list(list_letters(settings, stage=None, limit=None)) == []
    assert replay_letters(settings, max_attempts=3).tally.messages == 0
    apart = derive_replay_settings(settings)
    follow(broker, plan_replay(apart))
    check_output(apart.output, [apart.output.topic, apart.output.dead_letter_topic_of("")])
    KafkaSink(apart, Metrics(CollectorRegistry()))


def assert_positions_are_recalled(broker: SecureBroker, settings: Settings) -> None:
    place = ("hosts", 1)
    with closing(PositionLog(settings, "cluster")) as log:
        key, value = log.record(place, 7, None)
        produce(broker.open, log.topic, [Sent(key, value, [], int(time.time() * 1e3))])
        assert log.recall([place]) == {place: Position(7)}


def test_what_is_planned_for_two_users_is_all_that_is_needed(broker: SecureBroker) -> None:
    """One reads the input, the other moves the positions in it."""
    name = f"alerts-{uuid4().hex[:8]}"
    settings = as_settings(scram(broker), [name, f"{name}.summaries"])
    output = settings.output.model_copy(update={"username": WRITER})
    settings = settings.model_copy(update={"output": output})
    follow(broker, plan(settings))
    wait_until(lambda: check(settings)[0] == [])
    check_topics(settings)
    produce(broker.open, name, list(make_good(1)))
    publish_one(settings)
    broker.deny(WRITER, "TOPIC", name, "READ")
    told = f"output: expected the right READ on topic {name}, got "
    wait_until(lambda: any(text.startswith(told) for text in check(settings)[0]))
    with pytest.raises(BrokerError, match=told):
        check_until_refused(settings)


def publish_one(settings: Settings) -> None:
    """Publish a message, as the daemon does."""
    metrics, taken = Metrics(CollectorRegistry()), list[Message]()
    with closing(KafkaSource(settings, metrics, Health())) as source:
        sink = KafkaSink(settings, metrics, source)
        source.subscribe()
        wait_until(lambda: taken.extend(source.poll(1, 1.0)) or bool(taken))
        results = tuple(Result(None, m.value or b"", (), "OK", "ZTF") for m in taken)
        sink.publish(Window(tuple(taken), results, ()))


def test_topics_check_warns_of_settings_that_it_may_not_see(broker: SecureBroker) -> None:
    names = create_allowed(broker)
    broker.deny(USER, "TOPIC", names[2], "DESCRIBE_CONFIGS")
    told = f"output: {names[2]}: expected the right DESCRIBE_CONFIGS, got none: "
    settings = as_settings(scram(broker), names)
    wait_until(lambda: any(text.startswith(told) for text in check(settings)[1]))


def test_a_missing_right_on_the_transactional_id_is_named(
    broker: SecureBroker, topics: list[str]
) -> None:
    settings = as_settings(scram(broker), topics)
    other = settings.output.model_copy(update={"slot": "7"})
    with pytest.raises(BrokerError, match="ask for the right WRITE on the transactional id"):
        KafkaSink(settings.model_copy(update={"output": other}), Metrics(CollectorRegistry()))


def write_config(path: Path, cluster: Options, topics: list[str], artifact: Path) -> Path:
    """Settings without the password, which comes from a file or from the environment."""
    flat = {k: v for k, v in cluster.items() if k not in ("kafka", "password")}
    common = "".join(f"{k} = {json.dumps(v)}\n" for k, v in flat.items())
    kafka = "".join(f"{json.dumps(k)} = {json.dumps(v)}\n" for k, v in cluster["kafka"].items())
    path.write_text(
        "[artifact]\nallow_unvalidated = true\nallow_unpinned = true\n"
        f'name = "{artifact}"\nn_samples = 32\n'
        f'[input]\ntopics = ["{topics[0]}"]\ngroup = "{topics[0]}"\n{common}[input.kafka]\n{kafka}'
        f'[output]\ntopic = "{topics[1]}"\n{common}[output.kafka]\n{kafka}'
        "[http]\nport = 0\n"
    )
    return path


def command(name: str, config: Path, password: str) -> tuple[list[str], dict[str, str]]:
    secrets = {f"SEDFLOW_{section}__PASSWORD": password for section in ("INPUT", "OUTPUT")}
    line = [sys.executable, "-m", "consumer.cli", *name.split(), "--config", str(config)]
    return line, clean_environment() | secrets


PLANTED = {
    "SEDFLOW_INPUT__SSL_KEY_PASSWORD": "planted-input-key",
    "SEDFLOW_OUTPUT__SSL_KEY_PASSWORD": "planted-output-key",
    "SEDFLOW_REGISTRY__PASSWORD": "planted-registry",
    "SEDFLOW_INPUT__KAFKA": '{"ssl.keystore.password": "planted-keystore"}',
    "SEDFLOW_OUTPUT__KAFKA": '{"sasl.oauthbearer.client.secret": "planted-client"}',
}
"""Secrets wherever the settings take any, besides the passwords that open the door."""


def test_no_secret_is_ever_told(
    broker: SecureBroker, topics: list[str], tiny_path: Path, tmp_path: Path
) -> None:
    """Neither in logs, those of librdkafka at their most talkative included, nor elsewhere."""
    (port,) = free_ports(1)
    cluster = scram(broker, kafka={"debug": "all"})
    config = write_config(tmp_path / "sedflow.toml", cluster, topics, tiny_path)
    down = '[registry]\nurl = "http://127.0.0.1:1"\nusername = "reader"\n'
    text = config.read_text().replace("port = 0\n", f"port = {port}\n")
    config.write_text(f'{text}[log]\nlevel = "DEBUG"\n{down}')
    produce(broker.open, topics[0], [m for m in make_good(10 * N_GOOD) if m.value[:1] == b"O"])
    told = [tell(config, PLANTED, name) for name in ("check-config", "topics plan", "topics check")]
    line, environment = command("run", config, PASSWORD)
    log = tmp_path / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            line, env=environment | PLANTED, stdout=output, stderr=subprocess.STDOUT
        )
    try:
        read_committed(broker.open, topics[1], at_least=N_GOOD)
        produce(broker.open, topics[0], list(make_good(2)))  # ids that the registry is asked for
        wait_until(lambda: "registry: expected an answer" in log.read_text())
        for path in ("metrics", "readyz", "livez"):
            told.append(get(f"http://127.0.0.1:{port}/{path}"))
        process.terminate()
        assert process.wait(timeout=120) == 0
    finally:
        process.kill()
        process.wait()
    told.append(log.read_text())
    assert len(told[-1].splitlines()) > 500
    assert "sedflow_alerts_processed_total" in told[3]
    for secret in (PASSWORD, "planted-"):
        assert not any(secret in text for text in told)


def tell(config: Path, more: dict[str, str], name: str) -> str:
    """What a command prints."""
    line, environment = command(name, config, PASSWORD)
    done = subprocess.run(line, env=environment | more, capture_output=True, text=True, check=False)
    assert done.stdout
    return done.stdout + done.stderr


def get(address: str) -> str:
    try:
        with urllib.request.urlopen(address, timeout=10) as answer:
            return answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.read().decode()


def status(address: str) -> int | None:
    """The status of an answer; None while nothing listens."""
    try:
        with urllib.request.urlopen(address, timeout=10) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        with error:
            return error.code
    except OSError:
        return None


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_a_refused_daemon_is_not_ready_and_tells_why(
    broker: SecureBroker, topics: list[str], tiny_path: Path, tmp_path: Path
) -> None:
    (port,) = free_ports(1)
    config = write_config(tmp_path / "sedflow.toml", scram(broker), topics, tiny_path)
    line, environment = command("run", config, WRONG)
    environment["SEDFLOW_HTTP__PORT"] = str(port)
    log, answers = tmp_path / "log", set()
    with log.open("wb") as output:
        process = subprocess.Popen(line, env=environment, stdout=output, stderr=output)
    try:
        deadline = time.monotonic() + 120
        while process.poll() is None and "invalid credentials" not in log.read_text():
            assert time.monotonic() < deadline
            answers.add(status(f"http://127.0.0.1:{port}/readyz"))
            time.sleep(0.1)
        assert process.returncode != 0  # None while it tries again
        assert 503 in answers <= {None, 503}
        text = log.read_text()
        assert "invalid credentials" in text
        assert WRONG not in text
    finally:
        process.kill()
        process.wait()


def test_a_stranger_can_write_nothing(broker: SecureBroker, topics: list[str]) -> None:
    """The truth behind the checks: the broker itself refuses."""
    refused: list[str] = []
    options = scram(broker)["kafka"] | {"sasl.username": USER, "sasl.password": PASSWORD}
    producer = Producer({"bootstrap.servers": broker.sasl, **options})
    producer.produce(topics[0], b"x", on_delivery=lambda error, _: refused.append(error.name()))
    producer.flush(30)
    assert refused == ["TOPIC_AUTHORIZATION_FAILED"]

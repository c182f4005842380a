"""A registry that answers badly: trouble like a broker's, never the fault of a message."""

import json
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from socket import create_server
from threading import Thread

import pytest

from consumer.avro import Decoder, encode
from consumer.errors import DecodeError, SettingsError
from consumer.registry import MAX_ANSWER_BYTES, Registry, RegistryError, SilentRegistryError
from consumer.sections import RegistrySettings

Record = dict[str, object]

OK = b"HTTP/1.1 200 OK\r\nConnection: close\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
FAILED = b"HTTP/1.1 500 Oh\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
BAD_ANSWERS = {
    "no HTTP": b"what?\r\n\r\n",
    "no answer": b"",
    "broken off": CHUNKED + b'ff\r\n{"schema": ',
    "an error broken off": FAILED + b"ff\r\nout of",
    "no record": OK + b"\r\nnull",
    "a list": OK + b"\r\n[1, 2]",
    "no schema": OK + b"\r\n{}",
}


@pytest.fixture
def serve() -> Iterator[Callable[[bytes], tuple[str, list[bytes]]]]:
    """Return a function: every request gets these bytes; returns address and requests so far."""
    servers = []

    def start(answer: bytes) -> tuple[str, list[bytes]]:
        server = create_server(("127.0.0.1", 0))
        servers.append(server)
        requests: list[bytes] = []

        def answer_all() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:  # closed
                    return
                with closing(connection):
                    requests.append(connection.recv(65_536))
                    connection.sendall(answer)

        Thread(target=answer_all, daemon=True).start()
        return f"http://127.0.0.1:{server.getsockname()[1]}", requests

    yield start
    for server in servers:
        server.close()


def connect(url: str) -> Registry:
    return Registry(RegistrySettings(url=url), url)


def test_credentials_do_not_follow_to_another_address(
    serve: Callable[[bytes], tuple[str, list[bytes]]],
) -> None:
    login, asked = serve(OK + b"\r\n{}")
    moved = f"HTTP/1.1 302 Found\r\nConnection: close\r\nLocation: {login}/login\r\n\r\n"
    url, sent = serve(moved.encode())
    settings = RegistrySettings(url=url, username="me", password="secret")  # noqa: S106
    with pytest.raises(RegistryError):
        Registry(settings, url).schema(1)
    assert b"Authorization: Basic " in sent[0]
    assert asked
    assert b"Authorization" not in asked[0]


@pytest.mark.parametrize("kind", BAD_ANSWERS)
def test_an_answer_that_is_none_is_trouble(
    serve: Callable[[bytes], tuple[str, list[bytes]]], sample_alert: Record, kind: str
) -> None:
    url, _ = serve(BAD_ANSWERS[kind])
    decoder = Decoder(registry=connect(url))
    with pytest.raises(RegistryError, match=f"expected an answer of {url}, got"):
        decoder.decode(encode(sample_alert, "hostAlert", 4242))


REFUSED = b"HTTP/1.1 401 Who?\r\nConnection: close\r\n\r\n"


@pytest.mark.parametrize(
    ("answer", "may_pass"),
    [
        (BAD_ANSWERS["no answer"], True),
        (FAILED + b"0\r\n\r\n", True),
        (REFUSED.replace(b"401", b"429"), True),
        (REFUSED, False),
    ],
)
def test_only_a_refusal_is_not_waited_for(
    serve: Callable[[bytes], tuple[str, list[bytes]]], answer: bytes, may_pass: bool
) -> None:
    url, _ = serve(answer)
    with pytest.raises(RegistryError) as caught:
        connect(url).register("summaries", b"{}")
    assert isinstance(caught.value, SilentRegistryError) == may_pass


UNKNOWN = b"HTTP/1.1 404 Not Found\r\nConnection: close\r\n\r\n"


@pytest.mark.parametrize("body", [b"", b"<html>no backend</html>", b"[40403]", b'{"detail": "?"}'])
def test_an_ingress_without_a_registry_is_waited_for(
    serve: Callable[[bytes], tuple[str, list[bytes]]], sample_alert: Record, body: bytes
) -> None:
    url, _ = serve(UNKNOWN + body)
    decoder = Decoder(registry=connect(url))
    with pytest.raises(SilentRegistryError, match=f"expected an answer of {url}, got 404"):
        decoder.decode(encode(sample_alert, "hostAlert", 4242))
    with pytest.raises(SilentRegistryError):
        connect(url).register("summaries", b"{}")


def test_an_id_that_the_registry_does_not_know_is_undecodable(
    serve: Callable[[bytes], tuple[str, list[bytes]]], sample_alert: Record
) -> None:
    url, requests = serve(UNKNOWN + b'{"error_code": 40403, "message": "Schema not found"}')
    decoder = Decoder(registry=connect(url))
    for _ in range(2):
        with pytest.raises(DecodeError, match=r"schema id: expected one of .*got 4242"):
            decoder.decode(encode(sample_alert, "hostAlert", 4242))
    assert len(requests) == 1


def test_a_silent_registry_does_not_stop_what_it_never_knew(
    monkeypatch: pytest.MonkeyPatch, sample_alert: Record
) -> None:
    """Alerts under our own id, and one under an id that only the registry could know."""
    now_s, asked, is_silent = [0.0], [], [False]

    def ask(_: Registry, path: str) -> None:
        asked.append(path)
        if is_silent[0]:
            raise SilentRegistryError("registry: no answer")

    monkeypatch.setattr(Registry, "_ask", ask)
    settings = RegistrySettings(url="http://r", forget_unknown_s=600.0)
    decoder = Decoder(registry=Registry(settings, "http://r", lambda: now_s[0]))
    ours, theirs = encode(sample_alert, "hostAlert"), encode(sample_alert, "hostAlert", 4242)
    assert decoder.decode(ours)
    is_silent[0] = True
    for now_s[0] in (601.0, 700.0):
        assert decoder.decode(ours)
    assert len(asked) == 2
    with pytest.raises(SilentRegistryError):
        decoder.decode(theirs)


def test_an_id_beyond_all_registries_is_not_asked_for(
    serve: Callable[[bytes], tuple[str, list[bytes]]], sample_alert: Record
) -> None:
    """A registry may answer to it as if it were broken, and the message would come for ever."""
    url, requests = serve(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    with pytest.raises(DecodeError, match=r"schema id: expected one of .*got 4294967295"):
        Decoder(registry=connect(url)).decode(encode(sample_alert, "hostAlert", 2**32 - 1))
    assert requests == []


def test_a_host_that_no_name_server_knows_is_waited_for() -> None:
    """The name server itself may be away."""
    with pytest.raises(SilentRegistryError, match=r"an answer of http://nowhere\.invalid, got"):
        connect("http://nowhere.invalid").register("summaries", b"{}")


def test_an_address_that_is_none_is_not_waited_for() -> None:
    url = "http://127.0.0.1:port"
    with pytest.raises(RegistryError, match=f"expected an answer of {url}, got") as caught:
        connect(url).register("summaries", b"{}")
    assert not isinstance(caught.value, SilentRegistryError)


@pytest.mark.parametrize("status", [b"409 Conflict", b"422 Unprocessable"])
def test_a_subject_that_takes_no_other_compatibility_is_named(
    serve: Callable[[bytes], tuple[str, list[bytes]]], status: bytes
) -> None:
    url, _ = serve(REFUSED.replace(b"401 Who?", status))
    with pytest.raises(SettingsError, match=r"register_output: .*summaries-value"):
        connect(url).register("summaries", b"{}")


def test_a_secret_that_cannot_be_read_is_no_fault_of_the_message(
    tmp_path: Path, sample_alert: Record
) -> None:
    settings = RegistrySettings(username="u", password_file=tmp_path / "none")
    decoder = Decoder(registry=Registry(settings, "http://127.0.0.1:1"))
    with pytest.raises(RegistryError, match=r"registry\.password_file: expected a readable file"):
        decoder.decode(encode(sample_alert, "hostAlert", 4242))


@pytest.mark.parametrize("kind", ["no record", "no schema"])
def test_a_registration_without_an_id_is_trouble(
    serve: Callable[[bytes], tuple[str, list[bytes]]], kind: str
) -> None:
    url, _ = serve(BAD_ANSWERS[kind])
    with pytest.raises(RegistryError, match=f"expected an answer of {url}, got"):
        connect(url).register("summaries", b"{}")


def test_what_is_no_avro_is_asked_for_once(
    serve: Callable[[bytes], tuple[str, list[bytes]]],
) -> None:
    answer = json.dumps({"schemaType": "JSON", "schema": "{}"}).encode()
    url, requests = serve(OK + b"\r\n" + answer)
    registry = connect(url)
    for _ in range(3):
        with pytest.raises(DecodeError, match="schema id 7: expected Avro in one piece"):
            registry.schema(7)
    assert len(requests) == 1


def test_a_schema_of_no_size_for_one_is_asked_for_once(
    serve: Callable[[bytes], tuple[str, list[bytes]]],
) -> None:
    answer = json.dumps({"schema": " " * MAX_ANSWER_BYTES}).encode()
    url, requests = serve(OK + b"\r\n" + answer)
    registry = connect(url)
    for _ in range(2):
        with pytest.raises(DecodeError, match=f"more than {MAX_ANSWER_BYTES} bytes"):
            registry.schema(7)
    assert len(requests) == 1

"""Schemas of a Confluent registry: writer schemas by id, and our own registered if asked to.

What can go wrong, each decided here: an id that the registry does not know (its own 404) makes its
message undecodable and is remembered for a while, so that a stream of them asks once; so does a
schema that is no Avro in one piece, remembered for good; a registry that does not answer, or
refuses, or breaks off, or that an ingress does not find, is trouble like a broker's: nothing is
skipped, reading stops until it answers. Ids that it told before go on being read, and so does one
that it did not know when it last answered and that has a schema here.
"""

import base64
import json
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from http.client import HTTPException, InvalidURL
from typing import Any

from consumer.avro import WIRE_ID, schema_text
from consumer.errors import BrokerError, DecodeError, NoAnswerError, SettingsError
from consumer.schema_limits import MAX_SCHEMA_BYTES
from consumer.sections import RegistrySettings
from consumer.settings import Settings

MAX_ID = 2**31 - 1
"""Ids are signed: of any other a registry may answer as if it were broken."""
MAX_UNKNOWN = 10_000
CONTENT = "application/vnd.schemaregistry.v1+json"
HEADERS = {"Content-Type": CONTENT, "Accept": CONTENT}
COMPATIBILITY = "FORWARD_TRANSITIVE"
MAX_ERROR_BYTES = 65_536
MAX_ANSWER_BYTES = 2 * MAX_SCHEMA_BYTES
"""A schema in JSON may take twice its own bytes."""
PASSING = frozenset({404, 408, 429})
"""Of a registry that is not there yet or has too much to do; so are all from 500 on."""


class RegistryError(BrokerError):
    """The registry cannot be used; nothing may be committed."""


class SilentRegistryError(RegistryError, NoAnswerError):
    """The registry does not answer or fails, which may pass; nothing says that it refuses."""


class _TooLongError(RegistryError):
    """An answer of more bytes than any usable schema takes."""


class Registry:
    """One registry; schemas are kept by id for good, unknown ids for `forget_unknown_s`."""

    def __init__(
        self, settings: RegistrySettings, url: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._settings = settings
        self._url = url.rstrip("/")
        self._clock = clock
        self._schemas: dict[int, bytes] = {}
        self._refused: dict[int, str] = {}
        self._unknown: dict[int, float] = {}

    def schema(self, schema_id: int, *, has_other: bool = False) -> bytes | None:
        """Return the Avro schema with an id as JSON, None where there is none.

        `has_other`: there is a schema for this id elsewhere, so that where the registry did not
        know it and does not answer now, the answer is None again.

        Raises DecodeError when it is no Avro schema, RegistryError when the registry does not
        answer.
        """
        if schema_id > MAX_ID:
            return None
        if schema_id in self._schemas:
            return self._schemas[schema_id]
        if schema_id in self._refused:
            raise DecodeError(self._refused[schema_id])
        if self._clock() < self._unknown.get(schema_id, 0.0):
            return None
        try:
            answer = self._ask(f"/schemas/ids/{schema_id}")
        except _TooLongError as error:
            raise self._refuse(schema_id, str(error)) from None
        except SilentRegistryError:
            if not (has_other and schema_id in self._unknown):
                raise
            answer = None
        if answer is None:
            if len(self._unknown) >= MAX_UNKNOWN:
                self._unknown.clear()
            self._unknown[schema_id] = self._clock() + self._settings.forget_unknown_s
            return None
        if answer.get("schemaType", "AVRO") != "AVRO" or answer.get("references"):
            raise self._refuse(schema_id, f"expected Avro in one piece, got {answer!r:.80}")
        if "schema" not in answer:
            raise RegistryError(self._trouble(f"no schema with id {schema_id}: {answer!r:.80}"))
        text = str(answer["schema"]).encode()
        self._schemas[schema_id] = text
        return text

    def _refuse(self, schema_id: int, why: str) -> DecodeError:
        """Remember what is no usable schema."""
        self._refused[schema_id] = f"schema id {schema_id}: {why}"
        return DecodeError(self._refused[schema_id])

    def register(self, topic: str, schema: bytes) -> int:
        """Register the schema of a topic's values; return its id.

        The subject is kept FORWARD_TRANSITIVE: older readers read what newer writers wrote. Raises
        SettingsError when the schema breaks that, RegistryError.
        """
        subject = f"{topic}-value"
        try:
            self._ask(f"/config/{subject}", "PUT", {"compatibility": COMPATIBILITY})
            answer = self._ask(f"/subjects/{subject}/versions", "POST", {"schema": schema.decode()})
        except urllib.error.HTTPError as error:
            raise SettingsError(
                f"registry.register_output: expected a schema that {subject} takes as "
                f"{COMPATIBILITY}, got {_explain(error, _read(error))}"
            ) from None
        if answer is None:
            raise RegistryError(self._trouble("404 for a registration"))
        if "id" not in answer:
            raise RegistryError(self._trouble(f"a registration without an id: {answer!r:.80}"))
        return int(answer["id"])

    def _ask(
        self, path: str, method: str = "GET", body: Mapping[str, str] | None = None
    ) -> dict[str, Any] | None:
        """Return the registry's answer, None for a 404 of its own.

        Raises HTTPError for 409, 422 to a body, RegistryError.
        """
        content = None if body is None else json.dumps(body).encode()
        try:
            request = urllib.request.Request(  # noqa: S310  # the settings allow http and https alone
                self._url + path, content, HEADERS, method=method
            )
            if (credentials := self._credentials()) is not None:
                request.add_unredirected_header("Authorization", credentials)
            with urllib.request.urlopen(request, timeout=self._settings.timeout_s) as answer:  # noqa: S310
                text = answer.read(MAX_ANSWER_BYTES + 1)
            if len(text) > MAX_ANSWER_BYTES:
                raise _TooLongError(self._trouble(f"more than {MAX_ANSWER_BYTES} bytes"))
            return dict(json.loads(text))
        except urllib.error.HTTPError as error:
            if body is not None and error.code in (409, 422):
                raise
            text = _read(error)
            if error.code == 404 and _is_of_registry(text):
                return None
            passing = error.code >= 500 or error.code in PASSING
            failed = SilentRegistryError if passing else RegistryError
            raise failed(self._trouble(_explain(error, text))) from None
        except (OSError, HTTPException) as error:
            failed = RegistryError if _is_decisive(error) else SilentRegistryError
            raise failed(self._trouble(str(error))) from None
        except (SettingsError, ValueError, TypeError) as error:
            raise RegistryError(self._trouble(str(error))) from None

    def _credentials(self) -> str | None:
        username, password = self._settings.username, self._settings.read_password()
        if username is None:
            return None
        pair = base64.b64encode(f"{username}:{password or ''}".encode()).decode()
        return f"Basic {pair}"

    def _trouble(self, got: str) -> str:
        return f"registry: expected an answer of {self._url}, got {got}"


def open_registry(settings: RegistrySettings) -> Registry | None:
    """Return the registry that the settings name, if any."""
    return None if settings.url is None else Registry(settings, settings.url)


def register_summaries(settings: Settings) -> int:
    """Return the schema id of summaries, registered for their topic where the settings ask for it.

    Raises as `Registry.register` does.
    """
    registry = open_registry(settings.registry)
    if registry is None or not settings.registry.register_output:
        return WIRE_ID
    return registry.register(settings.output.topic, schema_text("posteriorSummary"))


def _is_decisive(error: OSError | HTTPException) -> bool:
    """Whether waiting does not mend it: a certificate, an address that is none."""
    reason = getattr(error, "reason", error)
    return isinstance(reason, ssl.SSLCertVerificationError | InvalidURL)


def _is_of_registry(text: str) -> bool:
    """Whether the registry itself gave this error: an ingress in its place has no such code."""
    try:
        answer = json.loads(text)
    except ValueError:
        return False
    return isinstance(answer, dict) and isinstance(answer.get("error_code"), int)


def _read(error: urllib.error.HTTPError) -> str:
    with error:
        try:
            return error.read(MAX_ERROR_BYTES).decode(errors="replace")
        except (OSError, HTTPException) as broken:
            return str(broken)


def _explain(error: urllib.error.HTTPError, text: str) -> str:
    return f"{error.code} {error.reason}: {text:.500}"

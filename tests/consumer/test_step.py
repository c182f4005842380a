"""The step: n in, n out, in order, and the same bytes whatever the batch."""

import io
import json
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fastavro
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumer.avro import (
    MAX_ENCODED_BYTES,
    decode_summary,
    encode,
    encode_body,
    schema_text,
    schemas_path,
)
from consumer.errors import SettingsError
from consumer.message import (
    ERROR_HEADER_PREFIX,
    STEP_AT_ONCE,
    DeadLetter,
    Message,
    Result,
    Window,
)
from consumer.settings import Settings
from consumer.step import MOST_AT_ONCE, Step
from consumer.summaries import SummaryForm
from sedflow_core import Artifact, Observation, estimate
from sedflow_core.units import nanomaggy_from_njy

Record = dict[str, Any]
Clock = Callable[[], datetime]
MakeMessage = Callable[..., Message]

KINDS: list[Record] = [
    {},
    {"redshift": 0.05, "u_flux": 90_000.0},
    {"redshift": 5.0},
    {"u_flux": None},
    {"filterSystem": "PS1"},
    {"redshift": None},
    {"g_fluxErr": 0.0},
]
MALFORMED = [
    None,
    b"",
    b"rubbish",
    b"\x00\x00\x00\x03\x84abc",
    b"Obj\x01",
    b"\x00\x00\x00\x00\x64\x02",
]


def outcomes(window: Window) -> Iterator[Result | DeadLetter]:
    """Yield what became of each message of the window, in order."""
    results, rejected = iter(window.results), iter(window.rejected)
    dead = {id(letter.message) for letter in window.rejected}
    for message in window.consumed:
        yield next(rejected) if id(message) in dead else next(results)


def without_times(value: bytes) -> str:
    record = decode_summary(value)
    del record["startTimestamp"], record["endTimestamp"]
    return repr(record)


def walk_numbers(node: Any) -> Iterator[float]:
    if isinstance(node, float):
        yield node
    elif isinstance(node, dict | list):
        for child in node.values() if isinstance(node, dict) else node:
            yield from walk_numbers(child)


@pytest.fixture
def ask(step: Step, make_message: MakeMessage, now: Clock) -> Callable[..., Record]:
    """Return the summary of one alert with changes to its host."""

    def answer(**host: Any) -> Record:
        window = step([make_message(1, **host)], replay=False, now=now)
        assert not window.rejected
        return decode_summary(window.results[0].value)

    return answer


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ({}, "OK"),
        ({"redshift": 5.0}, "OUT_OF_SUPPORT"),
        ({"r_flux": -3.0}, "OUT_OF_SUPPORT"),
        ({"u_flux": None}, "MISSING_BANDS"),
        ({"filterSystem": "LSST"}, "WRONG_FILTERS"),
        ({"redshift": None}, "NO_REDSHIFT"),
        ({"i_flux": math.nan}, "INVALID_INPUT"),
    ],
)
def test_status(ask: Callable[..., Record], host: Record, status: str) -> None:
    summary = ask(**host)
    assert summary["status"] == status
    assert (summary["posterior"] is not None) == (status == "OK")
    assert (summary["supportFlags"] != 0) == (status == "OUT_OF_SUPPORT")
    assert bool(summary["statusReasons"]) == (status != "OK")
    assert summary["inputs"] is not None


def test_no_host(step: Step, make_alert: Callable[..., Record], now: Clock) -> None:
    value = encode(make_alert(1) | {"host": None}, "hostAlert")
    (result,) = step([Message(value)], replay=False, now=now).results
    summary = decode_summary(result.value)
    assert (summary["status"], summary["host"], summary["inputs"]) == ("NO_HOST", None, None)


def test_support_flags_are_named(ask: Callable[..., Record], tiny: Artifact) -> None:
    summary = ask(redshift=5.0, r_flux=-3.0)
    assert {"redshift_range", "non_positive_flux_r"} <= set(summary["statusReasons"])
    bits = [i for i in range(63) if summary["supportFlags"] >> i & 1]
    assert [tiny.flag_names[bit] for bit in bits] == summary["statusReasons"]


def test_numbers_are_those_of_estimate(ask: Callable[..., Record], tiny: Artifact) -> None:
    summary = ask()
    flux, flux_err = (nanomaggy_from_njy([summary["inputs"][name]]) for name in ("flux", "fluxErr"))
    observation = Observation(flux, flux_err, np.array([summary["inputs"]["redshift"]]))
    truth = estimate(tiny, observation, n_samples=64, seed=0)
    marginals = summary["posterior"]["parameters"] | summary["posterior"]["derived"]
    assert tuple(marginals) == truth.names
    for column, marginal in enumerate(marginals.values()):
        expected = [truth.mean[0, column], truth.std[0, column], *truth.quantiles[0, column]]
        np.testing.assert_allclose(list(marginal.values()), expected, rtol=1e-4)
    upper = np.zeros((12, 12))
    upper[np.triu_indices(12)] = summary["posterior"]["covariance"]
    symmetric = upper + upper.T - np.diag(np.diag(upper))
    np.testing.assert_allclose(symmetric, truth.covariance[0], rtol=1e-3, atol=1e-6)
    assert summary["posterior"]["paramOrder"] == list(tiny.param_names)
    for name, probability in summary["posterior"]["probabilities"].items():
        assert probability == pytest.approx(truth.probabilities[name][0])


def test_provenance(
    step: Step, make_message: MakeMessage, tiny: Artifact, settings: Settings, now: Clock
) -> None:
    (result,) = step([make_message(41)], replay=True, now=now).results
    summary = decode_summary(result.value)
    provenance = summary["provenance"]
    assert provenance["artifactSha256"] == tiny.sha256
    assert provenance["configHash"] == settings.config_hash()
    assert (provenance["inputTopic"], provenance["inputOffset"]) == ("hosts", 41)
    assert provenance["sourceSchema"] == "sedflow.v1_2.hostAlert"
    assert summary["assumptions"] == tiny.assumptions
    assert (summary["nSamples"], summary["seed"], summary["replay"]) == (64, 0, True)
    assert summary["startTimestamp"] == summary["endTimestamp"] == now()
    assert result.key == summary["objectId"].encode()


@pytest.fixture
def mixed(make_message: MakeMessage) -> list[Message]:
    """600 messages of every kind, good and bad, in an order of no pattern."""
    rng = random.Random(3)
    good = [make_message(i, **rng.choice(KINDS)) for i in range(540)]
    bad = [Message(rng.choice(MALFORMED), b"key", (("h", None),), "hosts", 1, i) for i in range(60)]
    return rng.sample([*good, *bad], 600)


def run(step: Step, messages: Sequence[Message], size: int, now: Clock) -> list[Window]:
    batches = (messages[i : i + size] for i in range(0, len(messages), size))
    return [step(batch, replay=True, now=now) for batch in batches]


def test_batch_sizes_give_the_same_bytes(step: Step, mixed: list[Message], now: Clock) -> None:
    of_size = {
        size: [result.value for window in run(step, mixed, size, now) for result in window.results]
        for size in (1, 7, 256)
    }
    assert len(of_size[1]) == 540
    assert of_size[1] == of_size[7] == of_size[256]


def test_a_second_run_differs_in_timestamps_alone(
    tiny: Artifact, settings: Settings, mixed: list[Message], now: Clock
) -> None:
    later = now() + timedelta(days=1)
    first = Step(tiny, settings)(mixed[:50], replay=True, now=now)
    second = Step(tiny, settings)(mixed[:50], replay=True, now=lambda: later)
    for one, other in zip(first.results, second.results, strict=True):
        assert one.value != other.value
        assert without_times(one.value) == without_times(other.value)


def test_malformed_messages_keep_their_bytes(step: Step, mixed: list[Message], now: Clock) -> None:
    (window,) = run(step, mixed, 600, now)
    malformed = [message for message in mixed if message.partition == 1]
    assert [letter.message for letter in window.rejected] == malformed
    for letter, message in zip(window.rejected, malformed, strict=True):
        assert letter.message is message
        assert (letter.stage, letter.error_class) == ("decode", "DecodeError")
        assert letter.headers()[: len(message.headers)] == message.headers


def test_every_kind_gets_the_status_it_deserves(
    step: Step, make_message: MakeMessage, now: Clock
) -> None:
    (window,) = run(step, [make_message(i, **kind) for i, kind in enumerate(KINDS)], 100, now)
    assert [result.status for result in window.results] == [
        *("OK", "OK", "OUT_OF_SUPPORT", "MISSING_BANDS", "WRONG_FILTERS", "NO_REDSHIFT"),
        "INVALID_INPUT",
    ]


@given(order=st.lists(st.integers(0, len(KINDS) + len(MALFORMED) - 1), max_size=12))
def test_n_in_n_out_in_order(
    step: Step, make_message: MakeMessage, now: Clock, order: list[int]
) -> None:
    messages = [
        make_message(place, **KINDS[kind])
        if kind < len(KINDS)
        else Message(MALFORMED[kind - len(KINDS)], offset=place)
        for place, kind in enumerate(order)
    ]
    window = step(messages, replay=False, now=now)
    assert window.consumed == tuple(messages)
    assert len(window.results) + len(window.rejected) == len(messages)
    for place, outcome in enumerate(outcomes(window)):
        if isinstance(outcome, DeadLetter):
            assert outcome.message.offset == place
        else:
            assert decode_summary(outcome.value)["provenance"]["inputOffset"] == place


FLOATS = st.floats(width=32) | st.none() | st.floats(1.0, 1e7, width=32)


@given(
    values=st.fixed_dictionaries(
        dict.fromkeys(("u_flux", "r_flux", "i_fluxErr", "redshift", "redshiftErr"), FLOATS)
        | dict.fromkeys(("ebv", "luminosityDistance", "separation", "ra"), FLOATS)
    ),
    flags=st.fixed_dictionaries({"dereddened": st.booleans(), "abCorrected": st.booleans()}),
)
def test_no_summary_holds_a_number_that_is_not_finite(
    step: Step, make_message: MakeMessage, now: Clock, values: Record, flags: Record
) -> None:
    window = step([make_message(1, **values, **flags)], replay=False, now=now)
    (result,) = window.results
    assert all(map(math.isfinite, walk_numbers(decode_summary(result.value))))


def test_an_empty_batch(step: Step, now: Clock) -> None:
    assert step([], replay=False, now=now) == Window((), (), ())


def test_another_record_is_rejected_while_adapting(step: Step, now: Clock) -> None:
    schema = {"type": "record", "name": "Other", "fields": [{"name": "x", "type": "int"}]}
    message = Message(b"\x02", json.dumps(schema).encode())
    (letter,) = step([message], replay=False, now=now).rejected
    assert (letter.stage, letter.error_class) == ("adapt", "AdaptError")
    assert "got 'Other'" in letter.error


def test_dead_letter_headers(step: Step, now: Clock) -> None:
    message = Message(b"rubbish", b"k", (("trace", b"1"), ("empty", None)), "hosts", 2, 9, 5)
    (letter,) = step([message], replay=False, now=now).rejected
    headers = dict(letter.headers())
    assert (headers["trace"], headers["empty"]) == (b"1", None)
    added = {
        name.removeprefix(ERROR_HEADER_PREFIX): value
        for name, value in headers.items()
        if name.startswith(ERROR_HEADER_PREFIX)
    }
    assert added.keys() == {
        *("topic", "partition", "offset", "stage", "class", "message", "version", "failed.at")
    }
    assert (added["topic"], added["partition"], added["offset"]) == (b"hosts", b"2", b"9")
    assert added["failed.at"] == b"2026-01-02T03:04:05.678+00:00"


def test_a_number_beyond_the_output_type_is_null(
    step: Step, make_alert: Callable[..., Record], now: Clock
) -> None:
    """The separation of a writer whose schema has doubles where ours has floats."""
    text = schema_text("hostAlert").decode().replace('"float"', '"double"')
    body = io.BytesIO()
    fastavro.schemaless_writer(
        body, fastavro.parse_schema(json.loads(text)), make_alert(1, separation=1e300)
    )
    (result,) = step([Message(body.getvalue(), text.encode())], replay=False, now=now).results
    assert decode_summary(result.value)["host"]["separation"] is None


def test_what_does_not_fit_the_output_is_rejected_while_encoding(
    step: Step, make_message: MakeMessage, now: Clock
) -> None:
    message = replace(make_message(1), offset=2**70)
    window = step([message, make_message(2)], replay=False, now=now)
    (letter,) = window.rejected
    assert (letter.stage, letter.error_class) == ("encode", "EncodeError")
    assert letter.message is message
    assert len(window.results) == 1


def test_a_summary_that_no_topic_would_take_is_rejected_while_encoding(
    step: Step, make_alert: Callable[..., Record], make_message: MakeMessage, now: Clock
) -> None:
    """It and its key take the texts of its alert over."""
    body = encode_body(make_alert(1) | {"objectId": "x" * 550_000}, "hostAlert")
    long = Message((make_message(1).value or b"")[:5] + body)
    window = step([long, make_message(2)], replay=False, now=now)
    (letter,) = window.rejected
    assert (letter.message, letter.stage, letter.error_class) == (long, "encode", "EncodeError")
    assert f"posteriorSummary of at most {MAX_ENCODED_BYTES} bytes, got 55" in letter.error
    assert len(window.results) == 1


def test_a_summary_that_its_topic_does_not_take_is_rejected_while_encoding(
    step: Step, make_alert: Callable[..., Record], make_message: MakeMessage, now: Clock
) -> None:
    step.form = SummaryForm(max_bytes=5_000)
    body = encode_body(make_alert(1) | {"objectId": "x" * 2_500}, "hostAlert")
    long = Message((make_message(1).value or b"")[:5] + body)
    window = step([long, make_message(2)], replay=False, now=now)
    (letter,) = window.rejected
    assert (letter.message, letter.stage) == (long, "encode")
    assert "at most 5000 bytes" in letter.error
    assert len(window.results) == 1


@pytest.mark.parametrize(
    ("name", "status", "reasons"),
    [
        ("ztf_v4_02_ZTF17aaarzyp", "NO_HOST", ["no_host"]),
        ("lsst_v11_1_fakeAlert", "NO_HOST", ["no_host"]),
        ("alerce_elasticc_obj1131", "WRONG_FILTERS", ["filter_system_LSST"]),
    ],
)
def test_real_packets(
    step: Step, now: Clock, shared_data: Path, name: str, status: str, reasons: list[str]
) -> None:
    message = Message((shared_data / "alerts" / f"{name}.avro").read_bytes())
    (result,) = step([message], replay=False, now=now).results
    summary = decode_summary(result.value)
    assert (summary["status"], summary["statusReasons"]) == (status, reasons)


@pytest.mark.parametrize("name", ["boom_lsst_7912941781254298", "pg_lsst.v11_1"])
def test_real_packets_of_unknown_schema(
    step: Step, now: Clock, shared_data: Path, name: str
) -> None:
    message = Message((shared_data / "alerts" / f"{name}.avro").read_bytes())
    (letter,) = step([message], replay=False, now=now).rejected
    assert letter.stage == "decode"
    assert "schema id: expected one of [100, 101, 102]" in letter.error


def test_unsupported_posteriors_on_request(
    tiny: Artifact, make_message: MakeMessage, now: Clock
) -> None:
    settings = Settings.model_validate({"corrections": {"publish_unsupported": True}})
    step = Step(tiny, settings)
    hosts: list[Record] = [{"r_flux": -3.0}, {"redshift": 0.3}, {"redshift": None}]
    messages = [make_message(i, **host) for i, host in enumerate(hosts, 1)]
    outside, too_far, unusable = (
        decode_summary(result.value) for result in step(messages, replay=False, now=now).results
    )
    assert (outside["status"], outside["posterior"] is None) == ("OUT_OF_SUPPORT", False)
    assert (too_far["status"], too_far["posterior"]) == ("OUT_OF_SUPPORT", None)
    assert (unusable["status"], unusable["posterior"]) == ("NO_REDSHIFT", None)


def test_accepted_photometric_redshift_is_told(
    tiny: Artifact, make_message: MakeMessage, now: Clock
) -> None:
    settings = Settings.model_validate({"corrections": {"accept_photometric_redshift": True}})
    messages = [make_message(1, redshiftType="phot")]
    (result,) = Step(tiny, settings)(messages, replay=False, now=now).results
    summary = decode_summary(result.value)
    assert summary["statusReasons"] == ["accepted_photometric_redshift"]
    assert (summary["status"], summary["inputs"]["redshiftType"]) == ("OK", "phot")


def test_the_schema_may_be_in_the_key(step: Step, make_message: MakeMessage, now: Clock) -> None:
    wire = make_message(1)
    assert wire.value is not None
    bare = Message(wire.value[5:], schema_text("hostAlert"), topic="hosts", offset=1)
    first, second = step([wire, bare], replay=False, now=now).results
    assert first == second


def test_survey_labels_are_bounded(
    step: Step, make_alert: Callable[..., Record], now: Clock
) -> None:
    value = encode(make_alert(1) | {"survey": "x" * 1000}, "hostAlert")
    (result,) = step([Message(value)], replay=False, now=now).results
    assert result.survey == "other"
    assert decode_summary(result.value)["survey"] == "x" * 1000


def test_pinned_artifact(tiny: Artifact) -> None:
    with pytest.raises(SettingsError, match=r"artifact\.sha256: expected 0000"):
        Step(tiny, Settings.model_validate({"artifact": {"sha256": "0" * 64}}))
    Step(tiny, Settings.model_validate({"artifact": {"sha256": tiny.sha256}})).warm_up()


@pytest.mark.parametrize(
    ("n_samples", "at_once"), [(1024, 256), (2048, 128), (1 << 20, STEP_AT_ONCE), (2, MOST_AT_ONCE)]
)
def test_a_gpu_gets_as_many_as_it_samples_together(
    tiny: Artifact, n_samples: int, at_once: int
) -> None:
    step = Step(tiny, Settings.model_validate({"artifact": {"n_samples": n_samples}}))
    assert step.at_once == STEP_AT_ONCE
    step._artifact = SimpleNamespace(device="cuda")  # type: ignore[assignment]
    assert step.at_once == at_once


def test_times_span_the_batch(step: Step, make_message: MakeMessage) -> None:
    ticks = iter(datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=i) for i in range(9))
    window = step([make_message(1)], replay=False, now=lambda: next(ticks))
    summary = decode_summary(window.results[0].value)
    assert summary["endTimestamp"] - summary["startTimestamp"] == timedelta(seconds=1)


def test_the_answer_that_is_shown_is_that_of_the_shipped_artifact(
    shipped: Artifact, now: Clock
) -> None:
    samples = schemas_path() / "1" / "2" / "sample_data"
    alert = json.loads((samples / "hostAlert.json").read_text())
    shown = json.loads((samples / "posteriorSummary.ok.json").read_text())
    step = Step(shipped, Settings.model_validate({"artifact": {"sha256": shipped.sha256}}))
    message = Message(encode(alert, "hostAlert"), topic="sedflow.v1_0.hostAlert", offset=0)
    (result,) = step([message], replay=False, now=now).results
    found = decode_summary(result.value)
    assert found.keys() == shown.keys()
    for name in ("status", "statusReasons", "assumptions", "provenance"):
        assert found[name] == shown[name], name
    numbers = [list(walk_numbers(record["posterior"])) for record in (found, shown)]
    np.testing.assert_allclose(*numbers, rtol=0.01, atol=0.003)

"""The slow lane's step: who asks, who comes first, and what becomes of the others."""

import io
import itertools
import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Event
from types import SimpleNamespace
from typing import Any

import fastavro
import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from consumer.avro import decode_summary, encode, schema_text, schemas_path
from consumer.errors import SettingsError, WindowAbortedError
from consumer.message import Message, Window
from consumer.refit import Quota, RefitMetrics, RefitStep
from consumer.refit_settings import derive_refit_settings
from consumer.registry import Registry
from consumer.settings import Settings
from consumer.summaries import SummaryForm
from sedflow_core import Artifact
from sedflow_core.second_opinion import SecondOpinion
from sedflow_core.trust import MIN_P_VALUE

Record = dict[str, Any]

NOW = datetime(2026, 3, 1, tzinfo=UTC)
FEW, MANY = ["color_blue_u-g"], ["color_blue_u-g", "color_blue_u-r", "sigma_high_u"]


def summary(alert_id: int, reasons: Sequence[str] = FEW, **changes: Any) -> Record:
    """A summary without a second opinion; each alert has its own photometry."""
    path = schemas_path() / "1" / "2" / "sample_data" / "posteriorSummary.json"
    record: Record = json.loads(path.read_text())
    flux = [value * (1.0 + alert_id / 100.0) for value in record["inputs"]["flux"]]
    inputs = record["inputs"] | {"flux": flux}
    own = {"alertId": alert_id, "status": "OUT_OF_SUPPORT", "statusReasons": list(reasons)}
    own["supportFlags"] = 2 ** len(reasons) - 1
    return record | own | {"inputs": inputs, "refit": None, "trust": None} | changes


_offsets = itertools.count()


def message(record: Record, age: timedelta = timedelta(0)) -> Message:
    stamp = int((NOW - age).timestamp() * 1e3)
    value, key = encode(record, "posteriorSummary"), record["objectId"].encode()
    return Message(value, key, topic="summaries", offset=next(_offsets), timestamp_ms=stamp)


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def metrics(registry: CollectorRegistry) -> RefitMetrics:
    return RefitMetrics(registry)


MakeStep = Callable[..., RefitStep]


@pytest.fixture
def make_step(tiny: Artifact, metrics: RefitMetrics) -> MakeStep:
    def make(
        stop: Event | None = None,
        registry: Record | None = None,
        keep_alive: Callable[[], None] = lambda: None,
        **refit: Any,
    ) -> RefitStep:
        refit = {"max_seconds": 1.0, **refit}
        settings = Settings.model_validate({"refit": refit, "registry": registry or {}})
        return RefitStep(tiny, None, settings, metrics, stop or Event(), keep_alive=keep_alive)

    return make


def answer(step: RefitStep, *messages: Message) -> Window:
    return step(messages, replay=False, now=lambda: NOW)


def records(window: Window) -> dict[int, Record]:
    every = [decode_summary(result.value) for result in window.results]
    return {record["alertId"]: record for record in every}


def test_flagged_galaxies_ask_and_no_others(make_step: MakeStep) -> None:
    trust = json.loads(
        (schemas_path() / "1" / "2" / "sample_data" / "posteriorSummary.json").read_text()
    )["trust"]
    messages = [
        message(summary(1, (), status="OK", trust=trust)),
        message(summary(2, (), status="OK", trust=trust | {"trusted": False})),
        message(summary(3, (), status="NO_HOST", inputs=None)),
        message(summary(4)),
        Message(b"no summary", topic="summaries"),
        message(summary(5) | {"refit": records_of_refit()}),
        message(summary(6, (), status="OK")),
    ]
    window = answer(make_step(max_age_s=1e-9, max_per_hour=1), *messages)
    assert window.consumed == tuple(messages)
    assert {i: r["refit"]["asked"] for i, r in records(window).items()} == {
        2: "NOT_TRUSTED",
        4: "OUT_OF_SUPPORT",
    }
    (letter,) = window.rejected
    assert (letter.message, letter.stage) == (messages[4], "decode")


def test_a_record_of_another_kind_is_a_dead_letter(make_step: MakeStep) -> None:
    container = io.BytesIO()
    schema = {"type": "record", "name": "ztf.alert", "fields": [{"name": "id", "type": "long"}]}
    fastavro.writer(container, schema, [{"id": 1}])
    foreign = Message(container.getvalue(), topic="summaries")
    window = answer(make_step(max_age_s=1e-9), foreign, message(summary(1)))
    (letter,) = window.rejected
    assert (letter.message, letter.stage, letter.error_class) == (foreign, "adapt", "AdaptError")
    assert list(records(window)) == [1]


def test_surveys_are_counted_by_known_names(make_step: MakeStep) -> None:
    named = [message(summary(i, survey=name)) for i, name in enumerate(("ZTF", "My own"), 1)]
    window = answer(make_step(max_age_s=1e-9), *named)
    assert [result.survey for result in window.results] == ["ZTF", "other"]
    assert records(window)[2]["survey"] == "My own"


def records_of_refit() -> Record:
    path = schemas_path() / "1" / "2" / "sample_data" / "posteriorSummary.json"
    refit: Record = json.loads(path.read_text())["refit"]
    return refit


@pytest.mark.parametrize(
    ("converged", "p_value", "trusted"),
    [
        (True, MIN_P_VALUE, True),
        (True, 0.5 * MIN_P_VALUE, False),
        (False, 0.9, False),
        (True, np.nan, False),
    ],
)
def test_a_second_opinion_is_trusted_where_it_converged_and_fits(
    *, converged: bool, p_value: float, trusted: bool
) -> None:
    judged = SimpleNamespace(trust={"p_value": [p_value]})
    opinion = SecondOpinion(judged, "generative", converged, None)  # type: ignore[arg-type]
    assert opinion.is_trusted() is trusted


def test_an_answer_that_its_topic_does_not_take_is_a_dead_letter(make_step: MakeStep) -> None:
    step = make_step(max_age_s=1e-9)
    step.form = SummaryForm(max_bytes=2_000)
    (letter,) = answer(step, message(summary(1))).rejected
    assert letter.stage == "encode"
    assert "at most 2000 bytes" in letter.error


def test_a_second_opinion_has_as_many_samples_as_the_settings_say(
    tiny: Artifact, metrics: RefitMetrics
) -> None:
    settings = Settings.model_validate(
        {"artifact": {"n_samples": 200}, "refit": {"max_seconds": 1.0}}
    )
    step = RefitStep(tiny, None, derive_refit_settings(settings), metrics, Event())
    (result,) = answer(step, message(summary(1))).results
    assert decode_summary(result.value)["nSamples"] == 200


def test_a_second_opinion_has_posterior_verdict_and_diagnostics(
    make_step: MakeStep, tiny: Artifact
) -> None:
    asking = message(summary(1))
    (result,) = answer(make_step(), asking).results
    record, original = decode_summary(result.value), decode_summary(asking.value or b"")
    assert result.key == asking.key
    refit = record["refit"]
    assert refit["status"] in ("CONVERGED", "NOT_CONVERGED")
    assert refit["likelihood"] == "generative"
    assert refit["rHat"] >= 0.99
    assert refit["ess"] > 0
    assert refit["evaluations"] > 10_000
    assert refit["summaryOffset"] == asking.offset
    assert record["posterior"]["parameters"].keys() == set(tiny.param_names)
    assert 0 <= record["trust"]["pValue"] <= 1
    assert record["trust"]["trusted"] <= (refit["status"] == "CONVERGED")
    assert record["provenance"]["artifactSha256"] == tiny.sha256
    own = {"posterior", "trust", "refit", "provenance", "nSamples", "startTimestamp"}
    own |= {"endTimestamp", "seed", "assumptions"}
    assert record["assumptions"] == tiny.assumptions
    assert {k: v for k, v in record.items() if k not in own} == {
        k: v for k, v in original.items() if k not in own
    }


def test_errors_that_are_none_of_the_noise_model_are_taken_as_given(make_step: MakeStep) -> None:
    inputs = summary(1)["inputs"]
    inputs["fluxErr"] = [10.0 * error for error in inputs["fluxErr"]]
    (record,) = records(answer(make_step(), message(summary(1, inputs=inputs)))).values()
    assert record["refit"]["likelihood"] == "gaussian"


def test_few_broken_rules_come_first_then_the_newest(make_step: MakeStep) -> None:
    ages = (timedelta(0), timedelta(hours=2), timedelta(hours=1))
    rules = (MANY, FEW, FEW)
    messages = [
        message(summary(i, reasons), age)
        for i, (reasons, age) in enumerate(zip(rules, ages, strict=True), 1)
    ]
    found = records(answer(make_step(max_per_hour=1), *messages))
    assert list(found) == [1, 2, 3]
    statuses = {i: record["refit"]["status"] for i, record in found.items()}
    assert statuses[3] in ("CONVERGED", "NOT_CONVERGED")
    assert statuses[1] == statuses[2] == "OVER_QUOTA"
    assert found[2]["posterior"] is found[2]["trust"] is found[2]["refit"]["method"] is None


def test_the_old_and_the_unusable_cost_nothing(make_step: MakeStep) -> None:
    inputs = summary(1)["inputs"]
    broken = inputs | {"flux": [None, *inputs["flux"][1:]]}
    messages = [
        message(summary(1), timedelta(days=2)),
        message(summary(2, inputs=broken)),
        message(summary(3, inputs=inputs | {"bands": ["g", "r"]})),
        message(summary(4, inputs=inputs | {"redshift": None})),
        message(summary(5, inputs=inputs | {"redshift": 0.3})),
    ]
    found = records(answer(make_step(max_age_s=86_400.0), *messages))
    statuses = [record["refit"]["status"] for record in found.values()]
    assert statuses == ["EXPIRED", *4 * ["UNUSABLE"]]


def test_the_same_photometry_is_sampled_once(make_step: MakeStep) -> None:
    first = summary(1)
    again = first | {"alertId": 2}
    found = records(answer(make_step(max_per_hour=1), message(first), message(again)))
    assert found[1]["posterior"] == found[2]["posterior"] != None  # noqa: E711


def test_a_stop_leaves_what_was_not_answered(make_step: MakeStep) -> None:
    """However promising: what is left begins behind the last answer."""
    stop = Event()
    step = make_step(stop, keep_alive=stop.set)
    old, new = message(summary(1, MANY), timedelta(hours=1)), message(summary(2))
    nothing = message(summary(3, (), status="OK"))
    window = answer(step, nothing, old, nothing, new)
    assert window.consumed == (nothing, old, nothing)
    assert list(records(window)) == [1]
    assert answer(step, new).consumed == ()


def test_a_window_that_is_rolled_back_has_paid(make_step: MakeStep) -> None:
    messages = [message(summary(i)) for i in (1, 2)]
    calls = iter([None, WindowAbortedError("input: a partition was revoked")])

    def lose_a_partition() -> None:
        if (error := next(calls, None)) is not None:
            raise error

    step = make_step(keep_alive=lose_a_partition, max_per_hour=2)
    with pytest.raises(WindowAbortedError):
        answer(step, *messages)
    found = records(answer(step, *messages, message(summary(3))))
    assert [i for i, r in found.items() if r["refit"]["status"] == "OVER_QUOTA"] == [3]


def test_outcomes_are_counted_where_they_are_published(
    make_step: MakeStep, metrics: RefitMetrics, registry: CollectorRegistry
) -> None:
    def count(outcome: str) -> float | None:
        return registry.get_sample_value("sedflow_refits_total", {"outcome": outcome})

    good = message(summary(3, (), status="OK"))
    window = answer(make_step(), message(summary(1), timedelta(days=2)), good)
    assert count("EXPIRED") == 0
    metrics.count(window)
    assert (count("EXPIRED"), count("OVER_QUOTA")) == (1, 0)


@pytest.mark.parametrize("minor", [0, 1])
def test_summaries_of_older_workers_are_understood(make_step: MakeStep, minor: int) -> None:
    schema = fastavro.parse_schema(json.loads(schema_text("posteriorSummary", minor)))
    record = {k: v for k, v in summary(1).items() if k not in ("refit", "trust")}
    body = io.BytesIO()
    fastavro.schemaless_writer(body, schema, record)
    old = Message(bytes([0, 0, 0, 0, 100 + minor]) + body.getvalue(), topic="s", timestamp_ms=0)
    (found,) = records(answer(make_step(), old)).values()
    assert found["refit"]["status"] == "EXPIRED"


def newer(text: bytes) -> bytes:
    """The schema of the next minor version: a field more, also in the record `provenance`."""
    schema: Record = json.loads(text.replace(b"v1_2", b"v1_3"))
    (provenance,) = (f["type"] for f in schema["fields"] if f["name"] == "provenance")
    for node in (schema, provenance):
        node["fields"].append({"name": "more", "type": ["null", "long"], "default": None})
    return json.dumps(schema).encode()


def test_summaries_of_newer_workers_are_understood(
    make_step: MakeStep, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What this version does not know of them is left out."""
    text = newer(schema_text("posteriorSummary"))
    monkeypatch.setattr(Registry, "schema", lambda *_, **__: text)
    body = io.BytesIO()
    fastavro.schemaless_writer(body, fastavro.parse_schema(json.loads(text)), summary(1, more=7))
    new = Message(b"\x00\x00\x00\x12\x67" + body.getvalue(), topic="s", timestamp_ms=0)
    window = answer(make_step(registry={"url": "http://127.0.0.1:1"}), new)
    assert window.rejected == ()
    assert records(window)[1]["refit"]["status"] == "EXPIRED"


def test_a_quota_refills_evenly_up_to_an_hour() -> None:
    now = [0.0]
    quota = Quota(2, clock=lambda: now[0])
    assert [quota.take() for _ in range(3)] == [True, True, False]
    now[0] = 1_800.0
    assert [quota.take() for _ in range(2)] == [True, False]
    now[0] = 1e6
    assert [quota.take() for _ in range(3)] == [True, True, False]


def test_the_slow_lane_reads_what_the_fast_one_writes() -> None:
    settings = Settings.model_validate(
        {
            "input": {"bootstrap": "in:9092", "topics": ["hosts"], "group": "night"},
            "output": {
                "bootstrap": "out:9092",
                "topic": "summaries",
                "username": "me",
                "dead_letter_topic": "letters",  # of alerts, which `dlq replay` reads
            },
        }
    )
    slow = derive_refit_settings(settings)
    assert (slow.input.bootstrap, slow.input.username) == ("out:9092", "me")
    assert slow.input.topics == ("summaries",)
    assert (slow.input.group, slow.output.topic) == ("night.refit", "summaries.refit")
    assert slow.output.dead_letter_topic_of("summaries") == "summaries.sedflow.dlq"
    assert slow.http.port != settings.http.port
    named = settings.model_copy(
        update={"refit": settings.refit.model_copy(update={"topic": "t", "group": "g"})}
    )
    assert (
        derive_refit_settings(named).input.group,
        derive_refit_settings(named).output.topic,
    ) == ("g", "t")


def test_a_secret_of_the_slow_lanes_input_is_named_where_it_was_set(tmp_path: Path) -> None:
    missing = {"password_file": tmp_path / "none"}
    slow = derive_refit_settings(Settings.model_validate({"output": missing}))
    with pytest.raises(SettingsError, match=r"^output\.password_file: expected a readable file"):
        slow.input.client_config()


@pytest.mark.parametrize("registered", [False, True])
def test_the_slow_lane_asks_a_registry_that_gave_summaries_their_ids(registered: bool) -> None:
    settings = Settings.model_validate(
        {"registry": {"url": "http://registry:8081", "register_output": registered}}
    )
    assert derive_refit_settings(settings).registry.url == (
        settings.registry.url if registered else None
    )

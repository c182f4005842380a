"""Metrics count what was published, with bounded labels."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from consumer.message import DeadLetter, Galaxy, Message, Result, Window
from consumer.metrics import Metrics
from consumer.sections import InputSettings
from sedflow_core import Artifact

NOW = datetime(2026, 1, 1, tzinfo=UTC)
NOW_MS = int(NOW.timestamp() * 1e3)


def make_window() -> Window:
    messages = tuple(
        Message(value=b"%d" % i, topic="hosts", offset=i, timestamp_ms=NOW_MS - 2000)
        for i in range(4)
    )
    results = (
        Result(b"a", b"", (), "OK", "ZTF", galaxy=Galaxy(0.04, 10.2, 0.11, trusted=False)),
        Result(b"b", b"", (), "OUT_OF_SUPPORT", "ZTF", flags=("sigma_high_u", "redshift_range")),
        Result(b"c", b"", (), "MISSING_BANDS", "LSST", missing_bands=("u",)),
    )
    rejected = (DeadLetter(messages[3], "decode", "DecodeError", "bad", NOW),)
    return Window(messages, results, rejected)


def counted(metrics: Metrics) -> dict[tuple[str, tuple[str, ...]], float]:
    """Every sample by its name and its label values, in the order of the labels' names."""
    text = generate_latest(metrics.registry).decode()
    return {
        (sample.name, tuple(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_a_window_is_counted() -> None:
    metrics = Metrics(CollectorRegistry())
    metrics.count_window(make_window(), NOW)
    values = counted(metrics)
    assert values["sedflow_alerts_consumed_total", ("hosts",)] == 4
    assert values["sedflow_alerts_processed_total", ("OK", "ZTF")] == 1
    assert values["sedflow_alerts_processed_total", ("MISSING_BANDS", "LSST")] == 1
    assert values["sedflow_summaries_published_total", ()] == 3
    assert values["sedflow_dead_letters_total", ("decode",)] == 1
    assert values["sedflow_support_flags_total", ("sigma_high_u",)] == 1
    assert values["sedflow_missing_band_total", ("u",)] == 1
    assert values["sedflow_batch_size_sum", ()] == 4
    assert values["sedflow_end_to_end_latency_seconds_sum", ()] == 8.0
    assert values["sedflow_last_message_timestamp_seconds", ()] == NOW.timestamp() - 2


def test_a_backlog_does_not_age_the_newest_message() -> None:
    metrics, old = Metrics(CollectorRegistry()), Message(b"", timestamp_ms=NOW_MS - 3_600_000)
    metrics.count_window(make_window(), NOW)
    metrics.count_window(Window((old,), (), ()), NOW)
    values = counted(metrics)
    assert values["sedflow_last_message_timestamp_seconds", ()] == NOW.timestamp() - 2


def test_verdicts_are_counted() -> None:
    metrics = Metrics(CollectorRegistry())
    metrics.count_window(make_window(), NOW)
    values = counted(metrics)
    assert values["sedflow_trust_verdicts_total", ("doubted",)] == 1
    assert values["sedflow_trust_verdicts_total", ("trusted",)] == 0


def test_an_artifact_need_not_know_the_surviving_mass(tiny: Artifact) -> None:
    derived = [d for d in tiny.manifest["derived"] if d["name"] != "log_mstar_surviving"]
    metrics = Metrics(CollectorRegistry())
    metrics.set_artifact(replace(tiny, manifest={**tiny.manifest, "derived": derived}))
    assert counted(metrics)["sedflow_artifact_info", ("tiny", tiny.sha256, "0")] == 1


def test_every_name_has_the_prefix(tiny: Artifact) -> None:
    metrics = Metrics(CollectorRegistry())
    metrics.count_window(make_window(), NOW)
    metrics.set_artifact(tiny)
    with metrics.time("step"):
        pass
    assert all(name.startswith("sedflow_") for name, _ in counted(metrics))


def test_lag_follows_the_assignment() -> None:
    metrics = Metrics(CollectorRegistry())
    metrics.count_window(make_window(), NOW)
    metrics.set_lag({("hosts", 0): 5, ("hosts", 1): 0}, NOW)
    values = counted(metrics)
    assert values["sedflow_consumer_lag_messages", ("0", "hosts")] == 5
    assert values["sedflow_consumer_lag_seconds", ()] == 2.0
    metrics.set_lag({("hosts", 1): 0}, NOW)
    values = counted(metrics)
    assert ("sedflow_consumer_lag_messages", ("0", "hosts")) not in values
    assert values["sedflow_consumer_lag_seconds", ()] == 0.0


def test_the_topics_of_all_days_are_counted_as_one() -> None:
    source = InputSettings(topics=("ztf_{date}_p1", "fixed"))
    metrics = Metrics(CollectorRegistry(), source.entry_of)
    for day in range(1, 29):
        messages = Message(b"", topic=f"ztf_202602{day:02}_p1"), Message(b"", topic="fixed")
        metrics.set_lag({(message.topic, 0): 1 for message in messages}, NOW)
        metrics.count_window(Window(messages, (), ()), NOW)
    values = counted(metrics)
    totals = {labels: n for (name, labels), n in values.items() if "consumed" in name}
    assert totals == {("ztf_{date}_p1",): 28, ("fixed",): 28}
    lags = [labels for name, labels in values if name == "sedflow_consumer_lag_messages"]
    assert sorted(lags) == [("0", "fixed"), ("0", "ztf_20260228_p1")]


def test_messages_without_a_timestamp_have_no_latency() -> None:
    metrics = Metrics(CollectorRegistry())
    metrics.count_window(
        Window((Message(value=b""),), (Result(None, b"", (), "OK", "x"),), ()), NOW
    )
    assert counted(metrics)["sedflow_end_to_end_latency_seconds_count", ()] == 0


def test_a_clock_that_is_ahead_hides_no_lag() -> None:
    metrics, place = Metrics(CollectorRegistry()), ("hosts", 0)
    ahead = Message(b"", topic="hosts", partition=0, timestamp_ms=NOW_MS + 3_600_000)
    metrics.set_lag({place: 1}, NOW)
    metrics.count_window(Window((ahead,), (), ()), NOW)
    metrics.set_lag({place: 5}, NOW + timedelta(seconds=60))
    values = counted(metrics)
    assert values["sedflow_consumer_lag_seconds", ()] == 60.0
    assert values["sedflow_last_message_timestamp_seconds", ()] == NOW.timestamp()


def test_what_came_out_is_counted() -> None:
    metrics = Metrics(CollectorRegistry())
    metrics.count_window(make_window(), NOW)
    values = counted(metrics)
    assert values["sedflow_result_redshift_sum", ()] == pytest.approx(0.04)
    assert values["sedflow_result_log_mass_dex_bucket", ("10.0",)] == 0
    assert values["sedflow_result_log_mass_dex_bucket", ("10.5",)] == 1
    assert values["sedflow_result_log_mass_width_dex_sum", ()] == pytest.approx(0.11)


def test_a_stage_tells_since_when_it_is_under_way() -> None:
    metrics = Metrics(CollectorRegistry())
    started = "sedflow_stage_started_timestamp_seconds", ("publish",)
    publish = metrics.time("publish")
    publish.__enter__()
    assert counted(metrics)[started] > 1.7e9
    error = ZeroDivisionError()
    assert not publish.__exit__(ZeroDivisionError, error, None)  # the error goes on
    assert counted(metrics)[started] == 0
    assert counted(metrics).get(("sedflow_stage_duration_seconds_count", ("publish",)), 0) == 0


def test_labels_known_beforehand_start_at_zero() -> None:
    values = counted(Metrics(CollectorRegistry()))
    assert values["sedflow_dead_letters_total", ("crash",)] == 0
    assert values["sedflow_retries_total", ("broker",)] == 0
    assert values["sedflow_retries_total", ("registry",)] == 0
    assert values["sedflow_offsets_lost_total", ()] == 0


def test_the_golden_width_is_that_of_a_summary(tiny: Artifact) -> None:
    metrics = Metrics(CollectorRegistry())
    metrics.set_artifact(tiny)
    values = counted(metrics)
    golden = tiny.golden["quantiles"][:, len(tiny.param_names)]
    widths = sorted(((golden[:, 3] - golden[:, 1]) / 2.0).tolist())
    assert widths[0] < values["sedflow_reference_log_mass_width_dex", ()] < widths[-1]
    assert values["sedflow_missing_band_total", ("u",)] == 0
    assert values["sedflow_support_flags_total", (tiny.flag_names[0],)] == 0


def test_the_reference_width_is_the_validations(shipped: Artifact) -> None:
    metrics = Metrics(CollectorRegistry())
    metrics.set_artifact(shipped)
    recorded = shipped.manifest["validation"]["bias_and_width"]["log_mstar_surviving"]
    width = counted(metrics)["sedflow_reference_log_mass_width_dex", ()]
    assert width == recorded["median_half_width"] > 0.05

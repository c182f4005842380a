"""Settings come from TOML under the environment; errors name the key, secrets stay secret."""

import json
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from consumer.errors import SettingsError
from consumer.settings import MASK, Settings, load_settings


@pytest.fixture
def toml(tmp_path: Path) -> Path:
    path = tmp_path / "sedflow.toml"
    path.write_text(
        """
        [input]
        bootstrap = "broker:9092"
        topics = ["hosts"]
        username = "reader"

        [input.kafka]
        "security.protocol" = "SASL_SSL"
        "fetch.max.bytes" = 1000

        [batch]
        max_size = 100
        """
    )
    return path


def test_defaults() -> None:
    settings = load_settings()
    assert settings.artifact.name == "sdss-ugriz"
    assert (settings.batch.max_size, settings.http.host) == (256, "127.0.0.1")
    assert settings.output.dead_letter_topic_of("hosts") == "hosts.sedflow.dlq"


def test_dated_topics() -> None:
    source = {"topics": ["ztf_{date}_p1", "fixed"], "days": 3}
    output = {"dead_letter_topic": "letters"}
    settings = Settings.model_validate({"input": source, "output": output})
    assert settings.input.topics_on(date(2026, 3, 1)) == (
        "ztf_20260301_p1",
        "ztf_20260228_p1",
        "ztf_20260227_p1",
        "fixed",
    )
    assert Settings.model_validate({"input": {"topics": ["a"]}}).input.topics_on(
        date(2026, 3, 1)
    ) == ("a",)


def test_a_breaker_that_could_never_trip() -> None:
    with pytest.raises(ValidationError, match="min_messages: expected at most window, 100, got"):
        Settings.model_validate({"breaker": {"window": 100}})


def test_a_section_and_its_key_are_two_underscores_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEDFLOW_OUTPUT_SLOT", "1")
    with pytest.raises(SettingsError, match="SEDFLOW_OUTPUT_SLOT: expected two underscores"):
        load_settings()


def test_dated_topics_need_one_topic_of_dead_letters() -> None:
    with pytest.raises(ValidationError, match="expected a name for dated topics"):
        Settings.model_validate({"input": {"topics": ["ztf_{date}"]}})


def test_file(toml: Path) -> None:
    settings = load_settings(toml)
    assert settings.input.topics == ("hosts",)
    assert settings.input.client_config() == {
        "bootstrap.servers": "broker:9092",
        "sasl.username": "reader",
        "security.protocol": "SASL_SSL",
        "fetch.max.bytes": 1000,
    }


def test_environment_wins_key_by_key(toml: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEDFLOW_BATCH__MAX_SIZE", "7")
    monkeypatch.setenv("SEDFLOW_INPUT__TOPICS", "a,b")
    monkeypatch.setenv("SEDFLOW_INPUT__KAFKA", '{"fetch.max.bytes": 5}')
    settings = load_settings(toml)
    assert settings.batch.max_size == 7
    assert settings.input.topics == ("a", "b")
    assert settings.input.kafka == {"security.protocol": "SASL_SSL", "fetch.max.bytes": 5}
    assert settings.input.bootstrap == "broker:9092"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[batch]\nmax_size = 0", r"batch\.max_size: .*greater than or equal to 1, got 0"),
        ("[batch]\nsize = 3", r"batch\.size: unknown key"),
        ("[bath]\nmax_size = 3", r"bath: unknown key"),
        ('[input]\ntopics = ["^ztf.*"]', r"input: .*expected names, got the pattern '\^ztf"),
        ('[artifact]\nsha256 = "abc"', r"artifact\.sha256: .*got 'abc'"),
        ('[log]\nlevel = "LOUD"', r"log\.level: .*got 'LOUD'"),
        ("[batch", r"expected TOML"),
    ],
)
def test_errors_name_key_and_value(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(text)
    with pytest.raises(SettingsError, match=message):
        load_settings(path)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("SEDFLOW_BATCH__MAX_SIZE", "many", r"batch\.max_size: .*got 'many'"),
        ("SEDFLOW_BATCH__SIZE", "1", r"batch\.size: unknown key"),
        ("SEDFLOW_BATSH__SIZE", "1", r"SEDFLOW_BATSH__SIZE: expected a section"),
        ("SEDFLOW_INPUT__KAFKA", "{secret", r"input\.kafka: .*got \*"),
    ],
)
def test_errors_in_the_environment(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, message: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=message):
        load_settings()


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="expected a readable file"):
        load_settings(tmp_path / "no.toml")


def test_secret_from_the_environment_is_masked(toml: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEDFLOW_INPUT__PASSWORD", "hunter2")
    monkeypatch.setenv("SEDFLOW_OUTPUT__KAFKA", '{"ssl.keystore.password": "hunter2"}')
    settings = load_settings(toml)
    assert settings.input.client_config()["sasl.password"] == "hunter2"
    shown = json.dumps(settings.masked()) + repr(settings.input)
    assert "hunter2" not in shown
    assert settings.masked()["input"]["password"] == MASK
    assert settings.masked()["output"]["kafka"] == {"ssl.keystore.password": MASK}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SEDFLOW_INPUT", '{"password": "hunter2"'),
        ("SEDFLOW_INPUT", '{"password": ["hunter2"]}'),
        ("SEDFLOW_INPUT__KAFKA", '{"sasl.password": ["hunter2"]}'),
        ("SEDFLOW_INPUT__KAFKA", '{"sasl.password": "hunter2"'),
        ("SEDFLOW_REGISTRY__URL", "https://me:hunter2@registry"),
        ("SEDFLOW_TRACING__ENDPOINT", "https://me:hunter2@collector/v1"),
        ("SEDFLOW_OUTPUT__SSL_KEY_PASSWORD", '{"is": "hunter2"}'),
    ],
)
def test_errors_tell_no_secrets(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    try:
        shown = json.dumps(load_settings().masked())
    except SettingsError as error:
        shown = str(error)
    assert "hunter2" not in shown


def test_secret_from_a_file(toml: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "password").write_text("hunter2\n")
    monkeypatch.setenv("SEDFLOW_INPUT__PASSWORD_FILE", str(tmp_path / "password"))
    settings = load_settings(toml)
    assert settings.input.client_config()["sasl.password"] == "hunter2"
    assert settings.masked()["input"]["password_file"] == str(tmp_path / "password")


@pytest.mark.parametrize("section", ["input", "output"])
@pytest.mark.parametrize("secret", ["password", "ssl_key_password"])
def test_unreadable_secret_file(
    toml: Path, monkeypatch: pytest.MonkeyPatch, section: str, secret: str
) -> None:
    monkeypatch.setenv(f"SEDFLOW_{section}__{secret}_file".upper(), "/no/such/file")
    told = rf"{section}\.{secret}_file: expected a readable file, got /no/such/file"
    with pytest.raises(SettingsError, match=told):
        getattr(load_settings(toml), section).client_config()


def test_two_sources_of_one_secret(toml: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEDFLOW_INPUT__PASSWORD", "hunter2")
    monkeypatch.setenv("SEDFLOW_INPUT__PASSWORD_FILE", "/no/such/file")
    with pytest.raises(SettingsError, match="expected password or password_file, got both") as info:
        load_settings(toml)
    assert "hunter2" not in str(info.value)


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError):
        load_settings().batch.max_size = 3


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({"batch": {"max_size": 7}}, True),
        ({"input": {"bootstrap": "elsewhere:1", "password": "x"}}, True),
        ({"artifact": {"seed": 1}}, False),
        ({"artifact": {"n_samples": 64}}, False),
        ({"corrections": {"deredden": False}}, False),
    ],
)
def test_config_hash_follows_what_shapes_a_summary(change: dict[str, Any], same: bool) -> None:
    changed = Settings.model_validate(change).config_hash()
    assert (changed == Settings().config_hash()) == same

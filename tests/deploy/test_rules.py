"""Prometheus' own tools accept the rules, and each alert fires and is silent as its cases say."""

import re

import pytest
import yaml

from .files import DEPLOY
from .promtool import promtool

RULES = DEPLOY / "prometheus" / "sedflow.rules.yml"
CASES = DEPLOY / "prometheus" / "sedflow.rules.test.yml"


def alert_names() -> list[str]:
    groups = yaml.safe_load(RULES.read_text())["groups"]
    return [rule["alert"] for group in groups for rule in group["rules"] if "alert" in rule]


def test_rules_and_configuration_are_valid() -> None:
    promtool("check", "rules", str(RULES))
    promtool("check", "config", str(DEPLOY / "prometheus" / "prometheus.yml"))


def test_alerts_fire_and_are_silent() -> None:
    assert "SUCCESS" in promtool("test", "rules", str(CASES))


@pytest.mark.parametrize("alert", alert_names())
def test_an_alert_has_both_cases_and_a_section_in_the_runbook(alert: str) -> None:
    names = [case["name"] for case in yaml.safe_load(CASES.read_text())["tests"]]
    assert any(name.startswith(f"{alert} fires and clears") for name in names)
    assert any(name.startswith(f"{alert} is silent") for name in names)
    assert re.search(f"^### {alert}$", (DEPLOY / "README.md").read_text(), re.MULTILINE)

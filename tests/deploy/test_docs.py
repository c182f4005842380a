"""The documents: what they link to exists, and their blocks are closed and named."""

import re
import subprocess
from pathlib import Path

import pytest
import yaml

from .files import DEPLOY

ROOT = DEPLOY.parent
DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "CHANGELOG.md",
    ROOT / "sedflow_core" / "artifacts" / "README.md",
    DEPLOY / "README.md",
    ROOT / "schemas" / "README.md",
]
LINK = re.compile(r"\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```(\w*)$", re.MULTILINE)
LANGUAGES = {"sh", "python", "mermaid", "toml", "json"}


def anchors(text: str) -> set[str]:
    """The anchors of a document's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings}


def check_link(link: str, base: Path) -> None:
    path, _, anchor = link.partition("#")
    target = base if not path else base.parent / path
    assert target.exists(), link
    if anchor:
        assert anchor in anchors(target.read_text()), link


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.parent.name)
def test_links_lead_somewhere(document: Path) -> None:
    for link in LINK.findall(document.read_text()):
        if not link.startswith("https://"):
            check_link(link, document)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.parent.name)
def test_blocks_are_closed_and_say_what_they_are(document: Path) -> None:
    fences = FENCE.findall(document.read_text())
    assert set(fences[::2]) <= LANGUAGES
    assert set(fences[1::2]) <= {""}
    assert len(fences) % 2 == 0


def test_every_alert_leads_to_the_runbook() -> None:
    rules = yaml.safe_load((DEPLOY / "prometheus" / "sedflow.rules.yml").read_text())
    for rule in (rule for group in rules["groups"] for rule in group["rules"]):
        if "alert" in rule:
            check_link(rule["annotations"]["runbook_url"], ROOT / "README.md")


def test_the_operator_gets_every_rule() -> None:
    (block,) = re.findall(r"```sh\n(.+?)```", (DEPLOY / "README.md").read_text(), re.DOTALL)
    command = block.replace("| kubectl apply -f -", "")
    made = subprocess.run(["/bin/bash", "-c", command], cwd=ROOT, capture_output=True, check=True)
    document = yaml.safe_load(made.stdout)
    rules = yaml.safe_load((DEPLOY / "prometheus" / "sedflow.rules.yml").read_text())
    assert document["kind"] == "PrometheusRule"
    assert document["spec"] == rules

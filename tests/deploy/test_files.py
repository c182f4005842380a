"""Every deployment file passes its linter, and what it names exists.

hadolint, compose-lint and yamllint come from PyPI; kubectl, systemd-analyze and docker are used
where they are. Image builds and Grafana itself need a network or a server: not here.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import kubernetes_validate
import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard
from prometheus_client import CollectorRegistry

from consumer.errors import SettingsError
from consumer.health import Health, serve
from consumer.settings import Settings, load_settings
from sedflow_core import Artifact

from .files import DEPLOY

BIN = Path(sys.executable).parent
MANIFESTS = sorted((DEPLOY / "kubernetes").rglob("*.yaml"))
OF_OPERATORS = {"PodMonitor", "ScaledObject", "Kustomization"}
STATEFUL_SET = DEPLOY / "kubernetes" / "base" / "statefulset.yaml"
KUBERNETES = "1.33"
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text())


def run(*command: str | Path) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=DEPLOY)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def program(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"{name} is not on the PATH")
    return path


def render(folder: str) -> list[dict[str, object]]:
    text = run(program("kubectl"), "kustomize", DEPLOY / "kubernetes" / folder)
    return list(yaml.safe_load_all(text))


def test_dockerfile() -> None:
    run(BIN / "hadolint", "--config", ".hadolint.yaml", "Dockerfile")


def test_yaml() -> None:
    run(BIN / "yamllint", "--strict", "--config-file", ".yamllint.yaml", ".")


def test_compose() -> None:
    config = ".compose-lint.yml"
    run(BIN / "compose-lint", "--fail-on", "medium", "--config", config, "compose.yaml")


def test_compose_is_understood_by_docker() -> None:
    command = [program("docker"), "compose"]
    if subprocess.run([*command, "version"], capture_output=True, check=False).returncode != 0:
        pytest.skip("docker has no compose here")
    run(*command, "--file", "compose.yaml", "config", "--quiet")


def test_every_image_has_an_exact_version() -> None:
    text = (DEPLOY / "Dockerfile").read_text()
    assert "syntax=" not in text  # it would fetch one more image, to build with
    stages = set(re.findall(r"^FROM \S+ AS (\S+)$", text, re.MULTILINE))
    images = set(re.findall(r"^FROM (\S+)", text, re.MULTILINE)) - stages
    ours = "sedflow:demo"  # built here
    images |= {service["image"] for service in COMPOSE["services"].values()} - {ours}
    images |= set(re.findall(r"image: (\S+)", STATEFUL_SET.read_text()))
    assert len(images) == 6
    assert all(re.search(r":v?\d+\.\d+\.\d+", image) for image in images), images


def test_the_dockerfile_copies_what_exists() -> None:
    text = (DEPLOY / "Dockerfile").read_text()
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", text, re.MULTILINE)
    ignored = (DEPLOY.parent / ".dockerignore").read_text().splitlines()
    for path in " ".join(copied).split():
        assert (DEPLOY.parent / path).exists(), path
        assert f"!{path}" in ignored


def ask_health(port: int) -> int:
    """The exit code of the image's health check, which is told that port."""
    text = (DEPLOY / "Dockerfile").read_text().replace("\\\n", "")
    (words,) = re.findall(r"^HEALTHCHECK .*CMD (\[.+\])$", text, re.MULTILINE)
    _, *arguments = json.loads(words)
    environment = {**os.environ, "HEALTH_PORT": str(port)}
    done = subprocess.run(
        [sys.executable, *arguments], env=environment, capture_output=True, check=False
    )
    return done.returncode


def test_the_image_is_healthy_while_the_port_it_is_told_is_live() -> None:
    now = 0.0
    health = Health(lambda: now)
    with serve(health, CollectorRegistry(), "127.0.0.1", 0) as port:
        assert ask_health(port) == 0
        now = 61.0
        assert ask_health(port) == 1
    assert ask_health(port) == 1


def test_the_image_names_the_ports_of_both_lanes_and_of_the_page(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    text = (DEPLOY / "Dockerfile").read_text()
    (exposed,) = re.findall(r"^EXPOSE (.+)$", text, re.MULTILINE)
    ((name, told),) = re.findall(r"(\w+_PORT)=(\d+)", text)
    monkeypatch.setenv(name, told)  # none that the settings would take for a key of theirs
    settings = load_settings(DEPLOY / "sedflow.example.toml")
    assert int(told) == settings.http.port
    assert {int(p) for p in exposed.split()} == {settings.http.port, settings.refit.http_port, 9109}


def test_compose_mounts_what_exists_and_hardens_what_is_ours() -> None:
    for service in COMPOSE["services"].values():
        for volume in service.get("volumes", []):
            assert (DEPLOY / volume.split(":")[0]).exists(), volume
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:")
        if service["image"].startswith("sedflow"):
            assert service["read_only"]
            assert service["cap_drop"] == ["ALL"]


def test_compose_settings_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    for key, value in COMPOSE["services"]["sedflow"]["environment"].items():
        monkeypatch.setenv(key, value)
    settings = load_settings(DEPLOY / "sedflow.example.toml")
    assert settings.page.port == 9109
    assert settings.output.bootstrap == "kafka:9092"


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_manifests_match_their_schema(path: Path) -> None:
    manifest = yaml.safe_load(path.read_text())
    if manifest["kind"] not in OF_OPERATORS:
        kubernetes_validate.validate(filled(manifest), KUBERNETES, strict=True)


def filled(manifest: dict[str, object]) -> dict[str, object]:
    """The manifest with the selectors that Kustomize fills in."""
    spec = manifest["spec"]
    assert isinstance(spec, dict)
    if manifest["kind"] == "StatefulSet":
        spec["selector"] = {"matchLabels": {"a": "b"}}
    return manifest


def test_kustomize_renders_both() -> None:
    base = render("base")
    scaled = render("overlays/keda")
    kinds = sorted(str(manifest["kind"]) for manifest in base)
    assert kinds == sorted(
        (
            "ConfigMap",
            "NetworkPolicy",
            "PodDisruptionBudget",
            "PodMonitor",
            "Service",
            "StatefulSet",
        )
    )
    assert sorted(str(m["kind"]) for m in scaled) == sorted([*kinds, "ScaledObject"])


@pytest.mark.parametrize(("folder", "replicas"), [("base", 2), ("overlays/keda", None)])
def test_the_number_of_pods_is_left_to_keda(folder: str, replicas: int | None) -> None:
    (pods,) = [m for m in render(folder) if m["kind"] == "StatefulSet"]
    assert isinstance(pods["spec"], dict)
    assert pods["spec"].get("replicas") == replicas
    assert pods["spec"]["serviceName"] == "sedflow"


def test_no_lag_told_is_no_lag_of_0() -> None:
    overlay = DEPLOY / "kubernetes" / "overlays" / "keda"
    (trigger,) = yaml.safe_load((overlay / "scaled-object.yaml").read_text())["spec"]["triggers"]
    assert trigger["metadata"]["ignoreNullValues"] == "false"


def test_services_of_the_namespace_are_no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    pod = yaml.safe_load(STATEFUL_SET.read_text())["spec"]["template"]["spec"]
    assert pod["enableServiceLinks"] is False
    monkeypatch.setenv("SEDFLOW_REFIT_SERVICE_HOST", "10.0.0.7")  # what it would be told else
    with pytest.raises(SettingsError, match="SEDFLOW_REFIT_SERVICE_HOST"):
        load_settings(DEPLOY / "kubernetes" / "base" / "sedflow.toml")


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("network-policy", "podSelector"),
        ("disruption-budget", "selector"),
        ("pod-monitor", "selector"),
    ],
)
def test_what_selects_pods_selects_ours_alone(name: str, key: str) -> None:
    """Kustomize fills the selectors of services and workloads, and leaves these as they are."""
    manifest = yaml.safe_load((DEPLOY / "kubernetes" / "base" / f"{name}.yaml").read_text())
    labels = {"app.kubernetes.io/name": "sedflow"}
    assert manifest["spec"][key] == {"matchLabels": labels}


def test_the_settings_of_kubernetes_are_valid(shipped: Artifact) -> None:
    settings = load_settings(DEPLOY / "kubernetes" / "base" / "sedflow.toml")
    assert settings.state.folder == Path("/state")
    assert settings.artifact.sha256 == shipped.sha256
    assert settings.config_hash() == Settings().config_hash()


@pytest.mark.parametrize("name", ["sedflow.service", "sedflow-refit.service"])
def test_systemd_unit(tmp_path: Path, name: str) -> None:
    text = (DEPLOY / "systemd" / name).read_text()
    unit = tmp_path / name
    unit.write_text(re.sub("^ExecStart=.*$", "ExecStart=/bin/true", text, flags=re.MULTILINE))
    assert run(program("systemd-analyze"), "verify", unit) == ""
    command = (program("systemd-analyze"), "security", "--offline=true", "--threshold=20")
    assert "OK" in run(*command, str(unit))


@pytest.mark.parametrize("name", ["overview", "science", "kafka"])
def test_dashboards_have_one_schema_and_unique_panels(name: str) -> None:
    board = json.loads((DEPLOY / "grafana" / "dashboards" / f"{name}.json").read_text())
    assert board["schemaVersion"] == 39
    assert board["uid"] == f"sedflow-{name}"
    numbers = [panel["id"] for panel in board["panels"]]
    assert len(set(numbers)) == len(numbers)
    assert all(panel["targets"] for panel in board["panels"])


@pytest.mark.parametrize("name", ["overview", "science", "kafka"])
def test_grafanas_own_model_knows_all_of_a_dashboard(name: str) -> None:
    board = json.loads((DEPLOY / "grafana" / "dashboards" / f"{name}.json").read_text())
    known = json.loads(JSONEncoder().encode(Dashboard.from_json(board)))
    assert board.keys() <= known.keys()
    for panel, understood in zip(board["panels"], known["panels"], strict=True):
        assert panel.keys() <= understood.keys()
        assert [t["expr"] for t in panel["targets"]] == [t["expr"] for t in understood["targets"]]

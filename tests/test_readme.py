"""What the README says of commands, options and quantities holds.

Every command of its code blocks runs, here or where `ELSEWHERE` says.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import fastavro
import pytest

from consumer.avro import Decoder, encode, own_schema, schemas_path
from sedflow_core.new_prior import read_prior_file
from sedflow_core.prior import PARAMETERS
from sedflow_core.sfh import DERIVED

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
HANDBOOK = (ROOT / "deploy" / "README.md").read_text()
HISTORY = (ROOT / "sedflow_core" / "artifacts" / "README.md").read_text()

ELSEWHERE = {
    "make demo": "tests/consumer/test_demo.py runs its command",
    "make test": "continuous integration",
    "make bench": "continuous integration does not time; the table in the README is its output",
    "pip install .": "tests/test_architecture.py builds the wheel and imports the serving part",
    "pip install '.[mcmc,sim]'": "tests/core/test_mcmc.py needs both",
    "sedflow-consumer topics plan --refit --config sedflow.toml": "tests/integration/test_refit.py",
    "sedflow-consumer refit --config sedflow.toml": "tests/integration/test_refit.py",
    "sedflow-consumer topics plan --config sedflow.toml": "tests/integration/test_topics.py",
    "sedflow-consumer topics check --config sedflow.toml": "tests/integration/test_topics.py",
    "sedflow-consumer run --config sedflow.toml --workers 2": "tests/integration",
    "python -m consumer.demo_alerts --config sedflow.toml --rate 5": (
        "tests/integration/test_demo.py"
    ),
    "pip install '.[page,top]'": "tests/integration/test_page.py needs both",
    "SEDFLOW_PAGE__PORT=9109 sedflow-consumer run --config sedflow.toml": (
        "tests/integration/test_live_daemon.py"
    ),
    "sedflow-consumer top --config sedflow.toml": "tests/consumer/test_top.py",
}
SMALLER = {
    "--n-rows 1000000": "--n-rows 20000",
    "--preset streaming": "--preset streaming --epochs 1 --threads 1",
    "--version 1": "--version 1 --n-support 5000",
    "--out support": "--out support --n 1 --n-clean 50",
    "--record": "--record --n-simulations 20 --n-samples 50 --n-importance 2 --n-classifier 0"
    " --n-local 0 --n-gap 5",
}
"""What the README asks for -> a size that a test can wait for."""
FAILS = "sedflow validate my-artifact"
"""Begins what says 1 of a network as small as these."""


def commands(language: str) -> list[str]:
    """Commands of the README's code blocks, comments dropped and continued lines joined."""
    blocks = re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)
    text = "\n".join(blocks).replace("\\\n", " ")
    lines = [re.sub(r"\s+#.*", "", line).strip() for line in text.splitlines()]
    return [re.sub(r"\s+", " ", line) for line in lines if line]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files that the README's commands read."""
    folder = tmp_path_factory.mktemp("readme")
    shutil.copytree(ROOT / "deploy", folder / "deploy")
    sample = schemas_path() / "1" / "0" / "sample_data" / "hostAlert.json"
    write_archive(sample, folder / "alerts.avro")
    return folder


def smaller(command: str) -> str:
    """The command at a size that a test can wait for."""
    for size, small in SMALLER.items():
        command = command.replace(size, small)
    return command


def run(command: str | list[str], folder: Path, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, check=False, cwd=folder, capture_output=True, text=True, **options
    )


def write_archive(sample: Path, path: Path) -> None:
    record = Decoder().decode(encode(json.loads(sample.read_text()), "hostAlert")).record
    with path.open("wb") as stream:
        fastavro.writer(stream, own_schema("hostAlert"), [record])


def test_every_command_runs_in_order(folder: Path) -> None:
    bin_folder = str(Path(sys.executable).parent)
    environment = {**os.environ, "PATH": f"{bin_folder}:{os.environ['PATH']}"}
    for command in (smaller(c) for c in commands("sh") if c not in ELSEWHERE):
        done = run(command, folder, shell=True, env=environment)
        assert done.returncode == command.startswith(FAILS), f"{command}\n{done.stderr}"


def test_no_command_is_excused_that_is_not_there() -> None:
    assert set(ELSEWHERE) <= set(commands("sh"))


def test_what_runs_elsewhere_names_files_that_are_there() -> None:
    for place in ELSEWHERE.values():
        if place.startswith("tests"):
            assert (ROOT / place.split()[0]).exists(), place


@pytest.mark.parametrize("text", [README, HANDBOOK, HISTORY], ids=["root", "deploy", "artifacts"])
def test_every_target_and_option_that_is_named_exists(text: str) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    assert set(re.findall(r"`make ([a-z-]+)", text)) <= targets
    sources = [p for folder in ("consumer", "sedflow_core") for p in (ROOT / folder).glob("*.py")]
    sources.append(ROOT / "tests" / "bench" / "stream.py")
    known = {o for p in sources for o in re.findall(r'"(--[a-z0-9-]+)"', p.read_text())}
    named = set(re.findall(r"(?<![\w-])--[a-z0-9-]+", text))
    of_others = {"--build", "--build-arg", "--now", "--previous", "--version"}  # docker, systemctl
    of_others |= {"--command-config"}  # of Kafka's tools
    assert named - known <= of_others


def test_the_way_leads_to_files_that_are_there() -> None:
    _, table = README.split("| to change | look in |\n|---|---|\n")
    for row in table.split("\n\n")[0].splitlines():
        first, *others = (Path(name) for name in re.findall(r"`([^`]+)`", row))
        beside = [p if (ROOT / p).exists() else first.parent / p for p in others]
        for path in (first, *beside):
            assert (ROOT / path).exists(), path


def test_the_prior_that_is_shown_can_be_read(tmp_path: Path) -> None:
    (example,) = re.findall(r"```toml\n(.*?)```", README, flags=re.DOTALL)
    (tmp_path / "prior.toml").write_text(example)
    assert set(read_prior_file(tmp_path / "prior.toml")) == {"tau_ism", "n_dust", "log_ssfr_1gyr"}


def test_the_table_of_quantities_is_that_of_the_code() -> None:
    kinds = {"uniform": "uniform", "log_uniform": "log-uniform", "flat_dirichlet": "flat Dirichlet"}
    priors = {p.name: f"{kinds[p.kind]}, {p.low:g} to {p.high:g}" for p in PARAMETERS}
    expected = [
        (f"`{q.name}`", q.unit, priors.get(q.name, ""), q.meaning) for q in (*PARAMETERS, *DERIVED)
    ]
    _, table = README.split("| quantity | unit | prior | meaning |\n|---|---|---|---|\n")
    rows = table.split("\n\n")[0].splitlines()
    assert [tuple(cell.strip() for cell in row.split("|")[1:-1]) for row in rows] == expected


def test_the_python_example_runs(folder: Path) -> None:
    (example,) = re.findall(r"```python\n(from sedflow_core .*?)```", README, flags=re.DOTALL)
    done = run([sys.executable, "-c", example], folder)
    assert done.returncode == 0, done.stderr
    mass = float(done.stdout.strip("[").split("]")[0])
    assert 10.0 < mass < 11.0

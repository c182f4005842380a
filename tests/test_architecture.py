"""The layout's rules: who imports whom, and what serving needs."""

import ast
import subprocess
import sys
import tomllib
import zipfile
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("sedflow_core", "consumer")
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))

ALLOWED = {
    "astropy": {"galaxy", "ssp_library", "tables"},
    "bagpipes": set(),
    "confluent_kafka": {
        "connection",
        "dead_letters",
        "demo_alerts",
        "demo_kafka",
        "extents",
        "kafka",
        "kafka_client",
        "kafka_sink",
        "letter_box",
        "outlet",
        "position_log",
        "positions",
        "start_checks",
        "starts",
        "topic_checks",
        "topics",
    },
    "corner": set(),
    "emcee": {"ensemble"},
    "fastavro": {"avro", "records"},
    "fsps": {"fsps_grid"},
    "h5py": {"fit"},
    "matplotlib": {
        "figures",
        "paper_figures",
        "report",
        "report_figures",
        "report_galaxies",
    },
    "nflows": set(),
    "opentelemetry": {"tracing"},
    "pyarrow": {"tables", "writers"},
    "sbi": {"exactness", "local_c2st", "nflows_bridge"},
    "scipy": set(),
    "speclite": {"bands"},
    "tqdm": {"progress"},
}
"""Package -> the only modules that may import it."""

# torch itself imports tqdm where it finds it.
NOT_FOR_SERVING = {*ALLOWED, "pandas"} - {"confluent_kafka", "fastavro", "tqdm"}
NOT_FOR_ESTIMATION = {
    f"sedflow_core.{name}"
    for name in ("build", "figures", "galaxy", "simulation", "ssp", "train", "validate")
}


def imports_of(path: Path) -> set[str]:
    """Names of every module that a file imports, anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return names


def loaded_after(code: str, *arguments: str) -> set[str]:
    """Modules that a fresh interpreter holds after running code."""
    script = f"{code}\nimport sys\nprint(*sys.modules, sep='\\n')"
    result = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    return set(result.stdout.split())


@pytest.mark.parametrize(
    "name",
    [f"bench.{path.stem}" for path in sorted((ROOT / "tests/bench").glob("[a-z]*.py"))]
    + ["chaos.__main__", "soak.__main__", "screenshots"],
)
def test_what_make_runs_can_be_imported(name: str) -> None:
    import_module(f"tests.{name}")


def test_the_core_never_imports_the_consumer() -> None:
    core = [path for path in MODULES if path.is_relative_to(ROOT / "sedflow_core")]
    assert len(core) > 20
    guilty = {p.name for p in core if any(n.split(".")[0] == "consumer" for n in imports_of(p))}
    assert guilty == set()


@pytest.mark.parametrize("package", ALLOWED)
def test_each_heavy_package_is_imported_by_its_own_module_alone(package: str) -> None:
    users = {
        path.stem for path in MODULES if package in {n.split(".")[0] for n in imports_of(path)}
    }
    assert users <= ALLOWED[package]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_modules_are_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 350


def test_estimation_loads_no_simulator_trainer_or_plotting(tiny_path: Path) -> None:
    loaded = loaded_after(
        "import sys\n"
        "from sedflow_core import Observation, estimate, load_artifact\n"
        "artifact = load_artifact(sys.argv[1])\n"
        "golden = artifact.golden\n"
        "photometry = (golden[k].numpy() for k in ('flux', 'flux_err', 'redshift'))\n"
        "assert not estimate(artifact, Observation(*photometry)).flags.any()",
        str(tiny_path),
    )
    assert loaded & NOT_FOR_ESTIMATION == set()
    assert loaded & NOT_FOR_SERVING == set()
    assert loaded.isdisjoint({"confluent_kafka", "fastavro", "prometheus_client", "consumer"})


def test_the_daemon_loads_only_what_the_serving_install_has() -> None:
    loaded = loaded_after("import consumer.replay, consumer.supervisor, consumer.worker")
    assert loaded & NOT_FOR_ESTIMATION == set()
    assert loaded & NOT_FOR_SERVING == set()


def test_the_wheel_holds_every_file_of_the_packages(tmp_path: Path) -> None:
    """Artifact, data, page and schemas too."""
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.iterdir()
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    files = [path for folder in (*PACKAGES, "schemas") for path in (ROOT / folder).rglob("*")]
    wanted = {
        path.relative_to(ROOT).as_posix()
        for path in files
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert held == {f"consumer/{n}" if n.startswith("schemas/") else n for n in wanted}


def test_serving_dependencies_are_a_budget() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = {requirement.split(">")[0] for requirement in project["dependencies"]}
    assert names == {
        "numpy",
        "torch",
        "safetensors",
        "fastavro",
        "cramjam",
        "confluent-kafka",
        "prometheus-client",
        "pydantic",
        "pydantic-settings",
    }

"""A real schema registry for tests: Apicurio, from Maven Central, with Confluent's interface."""

import os
import shutil
import subprocess
import tarfile
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .broker import BrokerUnavailableError, free_ports, stop_process

VERSION = "2.6.13.Final"
ARTIFACT = f"io.apicurio:apicurio-registry-app:{VERSION}:tar.gz:all"
START_TIMEOUT_S = 180.0


@contextmanager
def registry(port: int | None = None) -> Iterator[str]:
    """Yield the address of a fresh registry, on a free port unless one is given."""
    folder = install()
    port = port or free_ports(1)[0]
    jar = next(folder.glob("*-runner.jar"))
    command = ["java", "-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]
    command += ["-Dquarkus.http.host=127.0.0.1", f"-Dquarkus.http.port={port}", "-jar", str(jar)]
    url = f"http://127.0.0.1:{port}/apis/ccompat/v7"
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder)
        try:
            wait_until_ready(process, url)
            yield url
        finally:
            stop_process(process)


def wait_until_ready(process: subprocess.Popen[bytes], url: str) -> None:
    """Return once the registry lists its subjects."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(f"{url}/subjects", timeout=5) as answer:
                answer.read()
            return
        except OSError:
            time.sleep(0.2)
    raise BrokerUnavailableError("the schema registry did not start")


def install() -> Path:
    """The folder of the registry, filled from Maven Central on first use."""
    for program in ("java", "mvn"):
        if shutil.which(program) is None:
            raise BrokerUnavailableError(f"no schema registry: {program} is not on the PATH")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sedflow"
    folder = cache / f"apicurio-{VERSION}"
    if not folder.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as name:
            partial = Path(name, "unpacked")
            download(Path(name), partial)
            partial.rename(folder)
    return folder


def download(folder: Path, target: Path) -> None:
    """Fetch the archive through Maven and unpack it."""
    maven = ["mvn", "-B", "-ntp", "-q", f"-Dartifact={ARTIFACT}", "-Dtransitive=false"]
    for goal in ("dependency:get", "dependency:copy"):
        options = [f"-DoutputDirectory={folder}"] if goal == "dependency:copy" else []
        done = subprocess.run([*maven, goal, *options], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise BrokerUnavailableError(f"Maven has no schema registry:\n{done.stdout[-2000:]}")
    archive = next(folder.glob("*.tar.gz"))
    with tarfile.open(archive) as content:
        content.extractall(target, filter="data")

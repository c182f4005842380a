"""Several worker processes behind one set of endpoints.

Each worker has metrics, health and endpoints of its own, on a free port of the loopback interface
that it tells its parent. The parent asks them when it is asked itself, so it shows what is true
now, and nothing is shared between processes:

    gathered = Gathered(lambda: {"0": 40001, "1": 40002})    # worker -> port, as of now
    registry.register(gathered)
    with serve(gathered, registry, host, port): ...

Each sample of a worker gains the label `worker`. Of a worker that does not answer the metrics say
that it is not ready and no more, and its parent is neither live nor ready.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException

from prometheus_client import Metric
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

ANSWER_TIMEOUT_S = 3.0

Ports = Callable[[], Mapping[str, int]]
"""Returns the port of each running worker by its name."""


class Gathered(Collector):
    """What the workers say of themselves; metrics of all, health of the worst."""

    def __init__(self, ports: Ports, expected: Collection[str] = ()) -> None:
        self._ports = ports
        self._expected = expected
        """Workers that there are to be, whether or not they have a port."""

    def live(self) -> tuple[bool, str]:
        """Whether every worker polls, and which one does not."""
        return self._verdict("/livez", "polling")

    def ready(self) -> tuple[bool, str]:
        """Whether every worker answers alerts now, and which one does not."""
        return self._verdict("/readyz", "ready")

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics of all workers, each name once."""
        answers = {worker: fetch(port, "/metrics") for worker, port in self._ports().items()}
        texts = {w: text for w, (status, text) in answers.items() if status == HTTPStatus.OK}
        families: dict[str, Metric] = {}
        for worker, text in texts.items():
            _merge(families, text_string_to_metric_families(text), worker)
        for worker in sorted({*self._expected, *answers} - texts.keys()):
            _merge(families, [tell_ready(False)], worker)
        yield from families.values()

    def describe(self) -> Iterator[Metric]:
        """Yield nothing: the names are known once the workers run."""
        yield from ()

    def _verdict(self, path: str, good: str) -> tuple[bool, str]:
        ports = self._ports()
        if not ports:
            return False, "no worker runs"
        answers = {worker: fetch(port, path) for worker, port in ports.items()}
        bad = [
            f"worker {worker}: {text.strip()}"
            for worker, (status, text) in answers.items()
            if status != HTTPStatus.OK
        ]
        return not bad, "; ".join(bad) or good


def tell_ready(ready: bool) -> Metric:
    """Return the metric that tells whether a process answers alerts."""
    return GaugeMetricFamily("sedflow_ready", "1 while alerts are answered", ready)


def fetch(port: int, path: str) -> tuple[int, str]:
    """GET from a worker: status and text; 503 and the reason where it does not answer."""
    status, body = fetch_bytes(port, path)
    return status, body.decode()


def fetch_bytes(port: int, path: str) -> tuple[int, bytes]:
    """GET from a worker: status and body; 503 and the reason where it does not answer."""
    connection = HTTPConnection("127.0.0.1", port, timeout=ANSWER_TIMEOUT_S)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read()
    except (OSError, HTTPException) as error:
        return HTTPStatus.SERVICE_UNAVAILABLE, f"no answer: {error}".encode()
    finally:
        connection.close()


def _merge(families: dict[str, Metric], found: Iterable[Metric], worker: str) -> None:
    for family in found:
        known = families.setdefault(
            family.name, Metric(family.name, family.documentation, family.type)
        )
        known.samples += [s._replace(labels={**s.labels, "worker": worker}) for s in family.samples]

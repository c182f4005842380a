"""Workers behind one parent: metrics of all, health of the worst, over real sockets."""

from contextlib import ExitStack

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from consumer.gather import Gathered
from consumer.health import Health, serve
from consumer.metrics import Metrics

Samples = dict[tuple[str, str], float]


class Workers:
    """Workers that run in this process, each with a registry and a port of its own."""

    def __init__(self, stack: ExitStack, n: int) -> None:
        self.healths = [Health() for _ in range(n)]
        self.metrics = [Metrics(CollectorRegistry()) for _ in range(n)]
        self.ports = {
            str(i): stack.enter_context(serve(health, metrics.registry, "127.0.0.1", 0))
            for i, (health, metrics) in enumerate(zip(self.healths, self.metrics, strict=True))
        }


def scrape(gathered: Gathered) -> Samples:
    registry = CollectorRegistry()
    registry.register(gathered)
    text = generate_latest(registry).decode()
    families = list(text_string_to_metric_families(text))
    assert len({family.name for family in families}) == len(families)
    return {(s.name, s.labels.get("worker", "")): s.value for f in families for s in f.samples}


def test_the_sum_over_workers_is_exact() -> None:
    with ExitStack() as stack:
        workers = Workers(stack, 3)
        for i, metrics in enumerate(workers.metrics):
            metrics.published.inc(10**i)
            metrics.batch_size.observe(i)
        samples = scrape(Gathered(lambda: workers.ports))
    published = {w: v for (n, w), v in samples.items() if n == "sedflow_summaries_published_total"}
    assert published == {"0": 1.0, "1": 10.0, "2": 100.0}
    assert sum(v for (n, _), v in samples.items() if n == "sedflow_batch_size_count") == 3


def test_a_worker_that_does_not_answer_is_not_ready_and_named() -> None:
    with ExitStack() as stack:
        workers = Workers(stack, 1)
        ports = {**workers.ports, "gone": 1}
        gathered = Gathered(lambda: ports)
        told = {n: v for (n, worker), v in scrape(gathered).items() if worker == "gone"}
        live, reason = gathered.live()
    assert told == {"sedflow_ready": 0.0}
    assert not live
    assert reason.startswith("worker gone: no answer")


def test_a_worker_without_a_port_is_not_ready() -> None:
    with ExitStack() as stack:
        workers = Workers(stack, 1)
        workers.healths[0].warmed = workers.healths[0].assigned = True
        workers.metrics[0].registry.register(workers.healths[0])
        samples = scrape(Gathered(lambda: workers.ports, ["0", "1"]))
    assert {w: v for (n, w), v in samples.items() if n == "sedflow_ready"} == {"0": 1.0, "1": 0.0}


@pytest.mark.parametrize("n_ready", [0, 1, 2])
def test_ready_when_all_are(n_ready: int) -> None:
    with ExitStack() as stack:
        workers = Workers(stack, 2)
        for health in workers.healths[:n_ready]:
            health.warmed = health.assigned = True
        ready, reason = Gathered(lambda: workers.ports).ready()
    assert ready == (n_ready == 2)
    assert reason == "ready" or reason.startswith(f"worker {n_ready}: ")


def test_no_worker_is_not_ready() -> None:
    assert Gathered(dict).ready() == (False, "no worker runs")
    assert scrape(Gathered(dict)) == {}

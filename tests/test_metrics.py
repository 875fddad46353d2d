"""How /metrics is rendered: beside the event loop, once at a time, and whole."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from app.metrics import Metrics
from tests.photos import make_jpeg
from tests.running import RunningServer


class Slow(Collector):
    """A collector that takes until it is released, and knows how often, and how many times at once, it is asked."""

    def __init__(self) -> None:
        self.entered = threading.Semaphore(0)
        self.may_end = threading.Event()
        self.asked = self.at_once = self.most_at_once = 0

    def collect(self) -> Iterator[Metric]:
        self.asked += 1
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        self.entered.release()
        assert self.may_end.wait(30)
        self.at_once -= 1
        return iter(())


@pytest.fixture
def slow(null_server: RunningServer) -> Iterator[Slow]:
    """Part of the running server's metrics."""
    collector = Slow()
    registry: CollectorRegistry = null_server.app.state.classifier.metrics.registry
    # Registered without being asked what it has, as `register` would.
    registry._collector_to_names[collector] = []
    yield collector
    collector.may_end.set()
    registry.unregister(collector)


def test_the_service_answers_while_metrics_are_rendered(client: httpx.Client, slow: Slow) -> None:
    """A rendering that takes long keeps no other request waiting."""
    with ThreadPoolExecutor() as pool, httpx.Client(base_url=client.base_url, timeout=30) as other:
        metrics = pool.submit(other.get, "/metrics")
        assert slow.entered.acquire(timeout=30)
        assert client.get("/healthz").status_code == 200
        assert client.post("/predict", content=make_jpeg(1)).status_code == 200
        assert not metrics.done()
        slow.may_end.set()
        assert metrics.result().status_code == 200


def test_one_rendering_runs_at_a_time(client: httpx.Client, slow: Slow) -> None:
    """However many ask at once, no two renderings run at the same time, and each is answered."""
    url = f"{client.base_url}/metrics"
    with ThreadPoolExecutor(9) as pool:
        asking = [pool.submit(httpx.get, url, timeout=30) for _ in range(9)]
        assert slow.entered.acquire(timeout=30)
        assert client.get("/healthz").status_code == 200
        slow.may_end.set()
        assert {each.result().status_code for each in asking} == {200}
    assert slow.most_at_once == 1


async def _asked_nine_times(metrics: Metrics, slow: Slow) -> None:
    first = asyncio.ensure_future(metrics.rendered())
    assert await asyncio.to_thread(slow.entered.acquire, timeout=30)
    later = [asyncio.ensure_future(metrics.rendered()) for _ in range(8)]
    await asyncio.sleep(0)
    slow.may_end.set()
    await asyncio.gather(first, *later)


def test_whoever_asks_meanwhile_shares_the_next_rendering() -> None:
    """Those that ask while one rendering runs are all answered by the next."""
    metrics, slow = Metrics(), Slow()
    metrics.registry._collector_to_names[slow] = []
    asyncio.run(_asked_nine_times(metrics, slow))
    assert (slow.asked, slow.most_at_once) == (2, 1)


async def _rendered_together(metrics: Metrics) -> tuple[str, str]:
    first = asyncio.ensure_future(metrics.rendered())
    await asyncio.sleep(0)
    metrics.log_lines_dropped.inc()
    metrics.open_uploads.set_function(lambda: 7.0)
    second = asyncio.ensure_future(metrics.rendered())
    abandoned = asyncio.ensure_future(metrics.rendered())
    await asyncio.sleep(0)
    abandoned.cancel()
    return (await first).decode(), (await second).decode()


def test_a_rendering_has_what_was_counted_before_it_was_asked_for() -> None:
    """What is counted before the question is in the answer, also where a rendering was running; one who leaves
    takes nobody's answer along."""
    _, second = asyncio.run(_rendered_together(Metrics()))
    assert "resnet_log_lines_dropped 1.0" in second
    assert "resnet_open_uploads 7.0" in second


def test_gauges_are_asked_on_the_event_loop() -> None:
    """A gauge's function reads what belongs to the loop: it runs there, and never on the thread that renders."""
    metrics = Metrics()
    asked_on: list[threading.Thread] = []

    def value() -> float:
        asked_on.append(threading.current_thread())
        return 3.0

    metrics.received_bytes.set_function(value)
    assert b"resnet_received_bytes 3.0" in asyncio.run(metrics.rendered())
    assert set(asked_on) == {threading.main_thread()}


def test_a_folder_that_the_environment_names_is_not_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """One process keeps its metrics in memory, whatever PROMETHEUS_MULTIPROC_DIR names."""
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", "/there/is/none")
    metrics = Metrics()
    metrics.log_lines_dropped.inc()
    assert b"resnet_log_lines_dropped 1.0" in metrics.render()

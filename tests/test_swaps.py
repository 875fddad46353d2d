"""Models that come and go in a service under load: nothing is lost, and nothing of a model that left stays behind."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import threading
import time
import weakref
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import httpx
import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from app import loading
from app.classifier import Classifier
from app.pool import LoadedModel, ModelNotFound, PooledModel
from app.progress import LogReporter
from app.resources import resident_memory_bytes
from app.settings import Settings
from app.threads import in_a_thread
from tests.onnx_graphs import CHANNELS, Maker
from tests.photos import make_jpeg
from tests.running import RunningServer, running_server, wait_until
from tests.versions import checkpoint_of, series_of_models, two_best, version_of, versions_in

T = TypeVar("T")

IMAGES = [make_jpeg(seed) for seed in range(12)]
CLIENTS = 4


class Swapped:
    """A running server, and another version for it."""

    def __init__(self, server: RunningServer, settings: Settings) -> None:
        self.classifier: Classifier = server.app.state.classifier
        self.pool = self.classifier.pool
        assert self.pool.default is not None
        self._loop = self.pool.default.closed.get_loop()
        self._settings = settings

    def on_loop(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(60)

    async def load(self, settings: Settings | None = None, replaces: PooledModel | None = None) -> PooledModel:
        async def open_model() -> LoadedModel:
            return await in_a_thread(
                lambda: loading.load_model(settings or self._settings, self.classifier.metrics, LogReporter()), "load"
            )

        return await self.pool.load(open_model, replaces=replaces)

    def swap(self, settings: Settings | None = None) -> weakref.ref[Any]:
        """Replace the default; returns once the old one is closed, with a reference to its engine."""

        async def swap() -> weakref.ref[Any]:
            old = self.pool.default
            assert old is not None
            await self.load(settings, old)
            await old.closed
            return weakref.ref(old.model.engine)

        return self.on_loop(swap())


def held(server: RunningServer) -> tuple[int, int, set[str]]:
    """Threads, open files, and the series of models."""
    page = httpx.get(f"{server.address}/metrics").text
    return threading.active_count(), len(os.listdir("/proc/self/fd")), series_of_models(page)


@contextmanager
def load(server: RunningServer, check: Callable[[dict[str, Any], bytes], int]) -> Iterator[dict[int, int]]:
    """Clients that post without a pause, each with a connection of its own; how often each version has answered."""
    answered: dict[int, int] = {}
    stop = threading.Event()

    def one_client(number: int) -> None:
        with httpx.Client(base_url=server.address, timeout=30) as client:
            turn = number
            while not stop.is_set():
                image = IMAGES[turn % len(IMAGES)]
                turn += 1
                answer = client.post("/predict", content=image)
                assert answer.status_code == 200, answer.text
                version = check(answer.json(), image)
                answered[version] = answered.get(version, 0) + 1

    with ThreadPoolExecutor(CLIENTS) as clients:
        asking = [clients.submit(one_client, number) for number in range(CLIENTS)]
        try:
            yield answered
        finally:
            stop.set()
        for each in asking:
            each.result()


def test_a_hundred_swaps_under_load(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each answer is one version's own, each version serves, and threads, files, series and memory are as before."""
    current = 1
    monkeypatch.setattr(loading, "null_checkpoint", lambda: checkpoint_of(current))
    settings = Settings(backend="null", port=0, log_level="warning", max_batch_size=4, decode_threads=2)
    with running_server(settings) as server:
        swapped = Swapped(server, settings)
        engines = []
        with load(server, version_of) as answered:
            for current in range(2, 103):
                engines.append(swapped.swap())
                # Not before it has served: each is replaced while requests hold it.
                wait_until(lambda number=current: answered.get(number, 0) > 0)  # type: ignore[misc]
                if current == 2:
                    gc.collect()
                    before = resident_memory_bytes()
        assert set(answered) >= set(range(2, 103))
        default = swapped.pool.default
        assert default is not None
        wait_until(lambda: default.leases == 0)
        gc.collect()
        grown = resident_memory_bytes() - before
        # A hundredth of it would be what one model takes.
        assert grown < 24e6, f"{grown / 1e6:.1f} MB"
        # The first is older than the last collection that the start has made: only its shell may be left.
        assert [each() for each in engines[1:]] == [None] * (len(engines) - 1)
        page = httpx.get(f"{server.address}/metrics").text
        assert versions_in(page) == {102}
        # Compared with the same server after one swap more, whose clients have gone too.
        there = held(server)
        current = 103
        swapped.swap()
        wait_until(lambda: held(server) == there)


def test_a_request_keeps_its_model_while_another_takes_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """A request whose body is on its way at the swap is answered by the model that it was admitted to."""
    current = 1
    monkeypatch.setattr(loading, "null_checkpoint", lambda: checkpoint_of(current))
    settings = Settings(backend="null", port=0, log_level="warning", max_batch_size=4, decode_threads=2)
    has_begun, may_end = threading.Event(), threading.Event()

    def slowly(image: bytes) -> Iterator[bytes]:
        yield image[:1000]
        has_begun.set()
        assert may_end.wait(30)
        yield image[1000:]

    with running_server(settings) as server, ThreadPoolExecutor(1) as pool:
        swapped = Swapped(server, settings)
        old = swapped.pool.default
        assert old is not None
        body = {"Content-Length": str(len(IMAGES[0]))}
        early = pool.submit(
            httpx.post, f"{server.address}/predict", content=slowly(IMAGES[0]), headers=body, timeout=30
        )
        assert has_begun.wait(30)
        wait_until(lambda: old.leases == 1)
        current = 2
        swapped.on_loop(swapped.load(replaces=old))
        later = httpx.post(f"{server.address}/predict", content=IMAGES[1])
        assert version_of(later.json(), IMAGES[1]) == 2
        assert (old.state, old.leases, old.closed.done()) == ("unloading", 1, False)
        assert versions_in(httpx.get(f"{server.address}/metrics").text) == {1, 2}
        may_end.set()
        assert version_of(early.result().json(), IMAGES[0]) == 1
        wait_until(old.closed.done)
        wait_until(lambda: versions_in(httpx.get(f"{server.address}/metrics").text) == {2})


REFUSED: dict[str, tuple[bytes, dict[str, str], int]] = {
    "no image": (b"text", {}, 415),
    "too large": (bytes(Settings().max_body_bytes + 1), {}, 413),
    "encoded": (b"x", {"Content-Encoding": "gzip"}, 415),
    "half a JPEG": (IMAGES[0][:600], {}, 422),
    "a wrong parameter": (IMAGES[0], {"X-Request-Timeout-Ms": "no"}, 422),
    "no time": (IMAGES[0], {"X-Request-Timeout-Ms": "1"}, 504),
}


@pytest.mark.parametrize("name", REFUSED)
def test_every_way_to_be_refused_gives_the_lease_back(null_server: RunningServer, name: str) -> None:
    """Whatever ends a request behind its admission, its lease is over with its answer."""
    body, headers, status = REFUSED[name]
    pooled = null_server.app.state.classifier.pool.default
    for _ in range(3):
        answer = httpx.post(f"{null_server.address}/predict", content=body, headers=headers)
        assert answer.status_code in (status, 503), answer.text
    wait_until(lambda: pooled.leases == 0)


def test_clients_that_leave_give_their_leases_back(null_server: RunningServer) -> None:
    """In the middle of a body, while it is decoded or while it waits: a client that has gone holds no model."""
    pooled = null_server.app.state.classifier.pool.default
    host, port = null_server.address.removeprefix("http://").split(":")
    head = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(IMAGES[0])
    for sent in (head, head + IMAGES[0][:500], head + IMAGES[0]):
        connections = [socket.create_connection((host, int(port))) for _ in range(8)]
        for connection in connections:
            connection.sendall(sent)
        if len(sent) < len(head) + len(IMAGES[0]):
            wait_until(lambda: pooled.leases == 8)
        for connection in connections:
            connection.close()
        wait_until(lambda: pooled.leases == 0)


def test_two_models_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Images for both, mixed: each is decoded, run and named by the model that it was admitted to, and what waits for
    the one is nothing to the other."""
    current = 1
    monkeypatch.setattr(loading, "null_checkpoint", lambda: checkpoint_of(current))
    settings = Settings(backend="null", port=0, log_level="warning", max_batch_size=4, decode_threads=2)
    with running_server(settings) as server:
        swapped = Swapped(server, settings)
        current = 2
        other = swapped.on_loop(swapped.load())
        default = swapped.pool.default
        assert default is not None

        async def one(turn: int) -> None:
            number = 1 + turn % 2
            image = IMAGES[turn % len(IMAGES)]
            admitted = swapped.classifier.admit(None, "null", f"{number:08x}")
            try:
                found = await swapped.classifier.classify(admitted.model, image, 5, time.monotonic() + 30)
            finally:
                admitted.give_back()
            assert found.model.version == f"{number:08x}"
            expected = two_best(number, image)
            assert tuple(each.label for each in found.predictions)[: len(expected)] == expected

        async def many() -> None:
            await asyncio.gather(*[one(turn) for turn in range(200)])

        with load(server, version_of) as answered:
            swapped.on_loop(many())
            wait_until(lambda: answered.get(1, 0) > 0)
        assert set(answered) == {1}
        assert versions_in(httpx.get(f"{server.address}/metrics").text) == {1, 2}

        async def crowd() -> tuple[int, float, float]:
            reservations = [
                default.model.schedule.reserve(default.model.engine.state().device, time.monotonic() + 30)
                for _ in range(8)
            ]
            held = other.model.schedule.held
            waits = default.model.predicted_wait_seconds(), other.model.predicted_wait_seconds()
            for each in reservations:
                default.model.schedule.release(each)
            return held, *waits

        others_held, own_wait, other_wait = swapped.on_loop(crowd())
        assert (others_held, other_wait) == (0, 0.0)
        assert own_wait > 0
        swapped.on_loop(swapped.pool.unload("null", "00000002"))
        with pytest.raises(ModelNotFound):
            swapped.on_loop(one(1))
        assert versions_in(httpx.get(f"{server.address}/metrics").text) == {1}


class Heavy(Maker):
    """With two dense layers of eight megabytes each in front of the last one."""

    WIDTH = 250_000

    def model(self) -> onnx.ModelProto:
        model = super().model()
        random = np.random.default_rng(1)
        for name, shape in (("wide", (CHANNELS, self.WIDTH)), ("narrow", (self.WIDTH, CHANNELS))):
            values = random.normal(0, 1e-3, shape).astype(np.float32)
            model.graph.initializer.append(numpy_helper.from_array(values, name))
        last = model.graph.node.pop()
        last.input[0] = "narrowed"
        model.graph.node.append(helper.make_node("MatMul", ["flat", "wide"], ["widened"]))
        model.graph.node.append(helper.make_node("MatMul", ["widened", "narrow"], ["narrowed"]))
        model.graph.node.append(last)
        return model


def test_the_weights_of_a_real_model_go_with_it(tmp_path: Path) -> None:
    """Ten swaps of an ONNX file of 16 MB leave the memory of one: nothing holds a graph, a session or its arena."""
    path = tmp_path / "heavy.onnx"
    path.write_bytes(Heavy(side=224).build())
    settings = Settings(
        backend="onnx",
        weights=str(path),
        port=0,
        log_level="error",
        max_batch_size=2,
        decode_threads=1,
        preprocessing="torchvision-v1",
    )
    with running_server(settings) as server:
        swapped = Swapped(server, settings)
        for _ in range(2):
            swapped.swap()
        gc.collect()
        before = resident_memory_bytes()
        threads = threading.active_count()
        for _ in range(10):
            swapped.swap()
        gc.collect()
        grown = resident_memory_bytes() - before
        assert grown < 64e6, f"{grown / 1e6:.1f} MB"
        wait_until(lambda: threading.active_count() == threads)
        assert httpx.post(f"{server.address}/predict", content=IMAGES[0]).status_code == 200

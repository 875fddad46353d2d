"""Many clients at once, over real sockets: batches form, and each client gets its own image's answer."""

from __future__ import annotations

import asyncio
import base64
import re
import socket
import statistics
import struct
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import httpx
import pytest
from starlette.types import Receive

from app.api import road
from app.api.carried import Images
from app.api.endpoint import Parser
from app.backends.null import NullBackend
from app.classifier import Classifier
from app.pool import LoadedModel
from app.settings import Settings
from app.types import Outputs, Pixels, Want
from tests.pace import within
from tests.photos import make_jpeg, null_classes
from tests.raw_http import answers_in, receive_all
from tests.running import RunningServer, post_image, running_server, wait_until

CLIENTS = 16


class Gate:
    """Holds the null backend until it is opened, and counts the images that reached it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.opened = threading.Event()
        self.entered = threading.Event()
        self.images = 0
        infer = NullBackend.infer

        def held(backend: NullBackend, batch: Pixels, want: Want) -> Outputs:
            self.images += len(batch)
            self.entered.set()
            assert self.opened.wait(30)
            return infer(backend, batch, want)

        monkeypatch.setattr(NullBackend, "infer", held)


@pytest.fixture
def gate(null_server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    gate = Gate(monkeypatch)
    yield gate
    gate.opened.set()


def queue_depth(server: RunningServer) -> float:
    classifier: Classifier = server.app.state.classifier
    depth = classifier.metrics.registry.get_sample_value("resnet_queue_depth", {"stage": "device"})
    assert depth is not None
    return depth


def test_sixteen_clients_share_batches_and_get_their_own_answers(
    null_server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under 16 clients batches are really larger than one, and every answer is its own image's."""
    infer = NullBackend.infer

    def with_a_cost(backend: NullBackend, batch: Pixels, want: Want) -> Outputs:
        threading.Event().wait(0.01)  # a batch costs 10 ms, whatever its size, as on an accelerator
        return infer(backend, batch, want)

    monkeypatch.setattr(NullBackend, "infer", with_a_cost)
    images = [make_jpeg(seed) for seed in range(100, 100 + CLIENTS)]
    expected = [null_classes(image) for image in images]

    def one_client(number: int) -> list[int]:
        sizes = []
        with httpx.Client(base_url=null_server.address, timeout=30) as client:
            for turn in range(20):
                own = (number + turn) % CLIENTS
                answer = post_image(client, images[own])
                best = [prediction["class_id"] for prediction in answer.json()["predictions"][:2]]
                assert tuple(best) == expected[own]
                sizes.append(int(answer.headers["X-Batch-Size"]))
        return sizes

    with ThreadPoolExecutor(CLIENTS) as clients:
        sizes = [size for sizes in clients.map(one_client, range(CLIENTS)) for size in sizes]
    assert len(sizes) == CLIENTS * 20
    assert statistics.median(sizes) > 1


def test_what_arrives_while_a_batch_runs_goes_together(null_server: RunningServer, gate: Gate) -> None:
    """While the device is busy the next batch forms, and when it is free everything that waits goes at once."""
    images = [make_jpeg(seed) for seed in range(200, 210)]
    with httpx.Client(base_url=null_server.address, timeout=30) as client, ThreadPoolExecutor(10) as clients:
        first = clients.submit(post_image, client, images[0])
        assert gate.entered.wait(30)
        others = [clients.submit(post_image, client, image) for image in images[1:]]
        wait_until(lambda: queue_depth(null_server) == 9)
        gate.opened.set()
        assert first.result().headers["X-Batch-Size"] == "1"
        answers = [other.result() for other in others]
    assert {answer.headers["X-Batch-Size"] for answer in answers} == {"9"}
    assert [answer.json()["predictions"][0]["class_id"] for answer in answers] == [
        null_classes(image)[0] for image in images[1:]
    ]


def test_a_deadline_that_passes_in_the_queue_is_a_504(null_server: RunningServer, gate: Gate) -> None:
    """A request that waits past its deadline is told so on time, and its image never reaches the device."""
    with httpx.Client(base_url=null_server.address, timeout=30) as client, ThreadPoolExecutor(1) as clients:
        first = clients.submit(post_image, client, make_jpeg(300))
        assert gate.entered.wait(30)
        began = time.monotonic()
        with within(0.4):
            late = client.post("/predict", content=make_jpeg(301), headers={"X-Request-Timeout-Ms": "200"})
        took = time.monotonic() - began
        gate.opened.set()
        assert first.result().status_code == 200
    assert (late.status_code, late.json()["code"], late.json()["retryable"]) == (504, "deadline_exceeded", True)
    assert took > 0.15
    assert gate.images == 1


def test_a_client_that_leaves_takes_its_request_along(null_server: RunningServer, gate: Gate) -> None:
    """A client that closes its connection while its image waits frees the place, and the device never sees it."""
    with httpx.Client(base_url=null_server.address, timeout=30) as client, ThreadPoolExecutor(1) as clients:
        first = clients.submit(post_image, client, make_jpeg(400))
        assert gate.entered.wait(30)
        host, port = null_server.address.removeprefix("http://").split(":")
        leaver = socket.create_connection((host, int(port)))
        body = make_jpeg(401)
        leaver.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
        wait_until(lambda: queue_depth(null_server) == 1)
        leaver.close()
        wait_until(lambda: queue_depth(null_server) == 0)
        gate.opened.set()
        assert first.result().status_code == 200
        metrics = client.get("/metrics").text
    assert gate.images == 1
    assert 'resnet_dropped_total{reason="client_gone"} 1.0' in metrics
    assert 'resnet_requests_total{code="client_gone",route="/predict",status="499"} 1.0' in metrics


def test_a_client_that_leaves_behind_a_large_body_is_noticed_too(null_server: RunningServer, gate: Gate) -> None:
    """Whose body comes in large pieces is read on while it waits: reading had stopped for the last piece."""
    registry = null_server.app.state.classifier.metrics.registry
    body = make_jpeg(402).ljust(180_000, b"\0")  # a decoder ignores what is behind an image
    with httpx.Client(base_url=null_server.address, timeout=30) as client, ThreadPoolExecutor(1) as clients:
        first = clients.submit(post_image, client, make_jpeg(400))
        assert gate.entered.wait(30)
        held = registry.get_sample_value("resnet_received_bytes")
        host, port = null_server.address.removeprefix("http://").split(":")
        leaver = socket.create_connection((host, int(port)))
        leaver.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body[:100_000])
        wait_until(lambda: registry.get_sample_value("resnet_received_bytes") == held + 100_000)
        leaver.sendall(body[100_000:])
        wait_until(lambda: queue_depth(null_server) == 1)
        leaver.close()
        wait_until(lambda: queue_depth(null_server) == 0)
        gate.opened.set()
        assert first.result().status_code == 200
    assert gate.images == 1


def test_a_client_that_has_left_before_its_image_is_read_leaves_no_work(
    null_server: RunningServer, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gone when its body has just been read, it is counted as gone, and the device never sees the image."""
    receive_body = road.receive_body
    read, may_go_on = threading.Event(), threading.Event()

    async def held(receive: Receive, parser: Parser) -> Images:
        images = await receive_body(receive, parser)
        read.set()
        assert await asyncio.to_thread(may_go_on.wait, 30)
        return images

    monkeypatch.setattr(road, "receive_body", held)
    registry = null_server.app.state.classifier.metrics.registry

    def gone() -> float:
        labels = {"route": "/predict", "status": "499", "code": "client_gone"}
        return registry.get_sample_value("resnet_requests_total", labels) or 0.0

    before, connections = gone(), null_server.server.server_state.connections
    image = base64.b64encode(make_jpeg(403))
    body = b'{"image": "%b"}' % image
    host, port = null_server.address.removeprefix("http://").split(":")
    leaver = socket.create_connection((host, int(port)))
    leaver.sendall(
        b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
        + body
    )
    assert read.wait(30)
    others = len(connections) - 1
    leaver.close()
    wait_until(lambda: len(connections) == others)
    may_go_on.set()
    wait_until(lambda: gone() == before + 1)
    assert gate.images == 0


def test_of_a_thousand_clients_half_leave_and_cost_nothing_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """While the device is held, 500 of 1,000 clients leave: only the others' images reach it, each with its answer."""
    settings = Settings(backend="null", port=0, log_level="error", max_queue=1000, max_batch_size=8)
    images = [make_jpeg(seed, (48, 48)) for seed in range(20)]
    best = [null_classes(image)[0] for image in images]
    head = b"POST /predict HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
    requests = [head % len(image) + image for image in images]
    with running_server(settings) as server, ExitStack() as sockets:
        gate = Gate(monkeypatch)
        host, port = server.address.removeprefix("http://").split(":")
        clients = []
        for number in range(1000):
            client = sockets.enter_context(socket.create_connection((host, int(port)), timeout=30))
            # Every fourth of those who will leave does so before its last byte.
            sent = requests[number % 20]
            client.sendall(sent[: len(sent) - 1] if number % 8 == 1 else sent)
            clients.append(client)
        assert gate.entered.wait(30)
        in_flight = gate.images
        wait_until(lambda: queue_depth(server) == 875 - in_flight)
        for number, client in enumerate(clients[1::2]):
            if number % 2:  # a reset; the others end as a closed browser does
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.close()
        wait_until(lambda: queue_depth(server) <= 500)
        gate.opened.set()
        answers = [answers_in(receive_all(client)) for client in clients[::2]]
        wait_until(lambda: server.app.state.classifier.model.schedule.held == 0)
        metrics = httpx.get(server.address + "/metrics", timeout=30).text
    assert [answer.status for (answer,) in answers] == [200] * 500
    expected = [best[number % 20] for number in range(0, 1000, 2)]
    assert [answer.json()["predictions"][0]["class_id"] for (answer,) in answers] == expected
    assert 500 <= gate.images <= 500 + in_flight
    # Who never sent its last byte was never taken, so is not dropped either.
    left = re.search(r'resnet_dropped_total\{reason="client_gone"\} ([0-9.]+)', metrics)
    assert left is not None
    assert 375 - in_flight <= float(left[1]) <= 375


def test_a_full_queue_refuses_with_retry_after(monkeypatch: pytest.MonkeyPatch) -> None:
    """Past the queue's bound a request is refused at once, retryable, with a time to come back."""
    with running_server(Settings(backend="null", port=0, log_level="error", max_queue=2, max_batch_size=1)) as server:
        gate = Gate(monkeypatch)
        with httpx.Client(base_url=server.address, timeout=30) as client, ThreadPoolExecutor(8) as clients:
            first = clients.submit(post_image, client, make_jpeg(500))
            assert gate.entered.wait(30)
            waiting = [clients.submit(post_image, client, make_jpeg(501 + number)) for number in range(2)]
            wait_until(lambda: queue_depth(server) == 2)
            with within(0.3):
                refused = post_image(client, make_jpeg(510))
            batch = [("image", (f"{number}.jpg", make_jpeg(number))) for number in range(2)]
            with within(0.3):
                whole_batch = client.post("/predict/batch", files=batch)
            # A full queue is no reason to be sent no traffic: it is told with each refusal, and passes by itself.
            assert client.get("/readyz").status_code == 200
            gate.opened.set()
            assert [first.result().status_code, *[each.result().status_code for each in waiting]] == [200] * 3
    assert (refused.status_code, refused.json()["code"], refused.json()["retryable"]) == (503, "overloaded", True)
    assert int(refused.headers["Retry-After"]) >= 1
    assert refused.json()["retry_after_ms"] > 0
    assert (whole_batch.status_code, whole_batch.json()["code"]) == (503, "overloaded")


def test_a_failing_batch_is_an_internal_error_and_no_more(
    null_server: RunningServer, client: httpx.Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A backend that raises costs its own batch a 500 without a trace; the next request is answered."""

    def broken(backend: NullBackend, batch: Pixels, want: Want) -> Outputs:
        raise RuntimeError("secret detail")

    with monkeypatch.context() as patch:
        patch.setattr(NullBackend, "infer", broken)
        answer = post_image(client, make_jpeg(600))
    assert (answer.status_code, answer.json()["code"]) == (500, "internal")
    assert "secret" not in answer.text
    assert "secret detail" in caplog.text
    assert post_image(client, make_jpeg(600)).status_code == 200


@pytest.mark.parametrize("wrong", ["rows", "nan"])
def test_wrong_outputs_never_become_answers(
    null_server: RunningServer, client: httpx.Client, monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    """Too few rows fail the batch, and a row that is not finite fails alone; neither is a 200."""
    infer = NullBackend.infer

    def mutilated(backend: NullBackend, batch: Pixels, want: Want) -> Outputs:
        outputs = infer(backend, batch, want)
        if wrong == "rows":
            return Outputs(outputs.scores[:-1], outputs.activation)
        outputs.scores[-1, 3] = float("nan")
        return outputs

    with monkeypatch.context() as patch:
        patch.setattr(NullBackend, "infer", mutilated)
        answer = post_image(client, make_jpeg(700))
    expected = {"rows": "internal", "nan": "model_output_invalid"}[wrong]
    assert (answer.status_code, answer.json()["code"]) == (500, expected)


def test_a_blocking_call_on_the_event_loop_is_noticed(
    null_server: RunningServer, client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """These tests run under a watch that turns a blocking call of our code on the event loop into a failure."""
    resolve = Classifier.resolve_top_k

    def sleepy(classifier: Classifier, model: LoadedModel, asked: int | None) -> int:
        time.sleep(0)
        return resolve(classifier, model, asked)

    with monkeypatch.context() as patch:
        patch.setattr(Classifier, "resolve_top_k", sleepy)
        assert post_image(client, make_jpeg(800)).status_code == 500
    assert post_image(client, make_jpeg(800)).status_code == 200

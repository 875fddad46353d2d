"""Clients that take their time: silent, slow, stuck, not reading. Each is cut at its deadline and holds up nobody."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

import httpx
import pytest

from app.api.uploads import UploadLimits
from app.settings import Settings
from tests.pace import within
from tests.photos import make_jpeg, null_classes
from tests.raw_http import WAIT_SECONDS, Answer, answers_in, connect, receive_all
from tests.running import RunningServer, post_image, running_server, wait_until

IMAGE = make_jpeg(1)
BEST = null_classes(IMAGE)[0]
HEAD = b"POST /predict HTTP/1.1\r\nHost: test\r\nContent-Length: 1000000\r\n"
# Deadlines are looked at five times a second, and what a refused client still sends is read for up to two. A timer of
# the event loop, whose clock counts whole milliseconds, may fire a moment early.
HEADER_SECONDS, BODY_SECONDS, RESPONSE_SECONDS = 0.6, 0.8, 0.5
LATE_SECONDS, EARLY_SECONDS = 3.0, 0.05


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    """Deadlines of under a second; a body buys no time."""
    settings = Settings(
        backend="null",
        port=0,
        log_level="warning",
        header_timeout_seconds=HEADER_SECONDS,
        body_timeout_seconds=BODY_SECONDS,
        body_min_rate=1_000_000_000,
        response_timeout_seconds=RESPONSE_SECONDS,
    )
    with running_server(settings) as server:
        yield server


def end_of(connection: socket.socket, began: float, deadline_seconds: float) -> list[Answer]:
    """What a connection is answered with until it closes, which is at its deadline, counted from `began`."""
    with within(deadline_seconds + LATE_SECONDS):
        answers = answers_in(receive_all(connection))
    assert time.monotonic() - began >= deadline_seconds - EARLY_SECONDS
    return answers


def check_timeout(answers: list[Answer], retryable: bool = True) -> None:
    (answer,) = answers
    assert answer.json()["retryable"] is retryable
    assert answer.status == 408
    assert answer.json()["code"] == "request_timeout"
    assert answer.json()["request_id"] == answer.headers["x-request-id"]
    assert answer.headers["connection"] == "close"


def test_a_silent_connection_is_closed_without_a_word(server: RunningServer) -> None:
    """Who sends nothing is not answered: no request is there to answer."""
    began = time.monotonic()
    with connect(server) as connection:
        assert end_of(connection, began, HEADER_SECONDS) == []


@pytest.mark.parametrize("sent", [b"P", HEAD[:30], HEAD], ids=["one byte", "half", "no end"])
def test_half_a_header_is_a_408(server: RunningServer, sent: bytes) -> None:
    """Headers that stop are answered at their deadline."""
    began = time.monotonic()
    with connect(server) as connection:
        connection.sendall(sent)
        check_timeout(end_of(connection, began, HEADER_SECONDS))


def drip(connection: socket.socket, data: bytes, ended: threading.Event) -> None:
    """A byte at a time, until the connection breaks or `ended`."""
    try:
        for byte in data:
            connection.sendall(bytes([byte]))
            if ended.wait(0.05):
                return
    except OSError:
        pass


@pytest.mark.parametrize("head", [b"", HEAD + b"\r\n"], ids=["headers", "body"])
def test_a_byte_at_a_time_does_not_move_the_deadline(server: RunningServer, head: bytes) -> None:
    """Bytes that keep coming, too slowly, are cut like none: the deadline is for the whole."""
    began = time.monotonic()
    ended = threading.Event()
    with connect(server) as connection, ThreadPoolExecutor() as pool:
        connection.sendall(head)
        dripping = pool.submit(drip, connection, b"GET / HTTP/1.1\r\nHost: " + b"a" * 2000, ended)
        answers = end_of(connection, began, BODY_SECONDS if head else HEADER_SECONDS)
        ended.set()
        dripping.result(WAIT_SECONDS)
    # At that pace the same request would fail again.
    check_timeout(answers, retryable=False)
    assert f"The {'body' if head else 'headers'} came too slowly" in answers[0].json()["detail"]


def test_a_stuck_body_is_a_408(server: RunningServer) -> None:
    """Half a body is answered at the body's deadline, and the connection closes."""
    began = time.monotonic()
    with connect(server) as connection:
        connection.sendall(HEAD + b"\r\n" + bytes(500_000))
        check_timeout(end_of(connection, began, BODY_SECONDS))


def test_a_body_that_is_too_slow_is_not_worth_another_try(server: RunningServer) -> None:
    """One that still comes when its time is over is a 408 that is not retryable: at that pace it fails again."""
    ended = threading.Event()
    with connect(server) as connection, ThreadPoolExecutor() as pool:
        connection.sendall(HEAD + b"\r\n")
        dripping = pool.submit(drip, connection, bytes(2000), ended)
        answers = end_of(connection, time.monotonic(), BODY_SECONDS)
        ended.set()
        dripping.result(WAIT_SECONDS)
    check_timeout(answers, retryable=False)
    assert "too slowly" in answers[0].json()["detail"]


def test_bytes_buy_a_body_time_up_to_a_limit() -> None:
    """10 s, a second more for each 64 kB, at most 60 s."""
    limits = UploadLimits(1, 1, 10.0, 64_000, 60.0)
    assert limits.allowed_seconds(0) == 10
    assert limits.allowed_seconds(640_000) == 20
    assert limits.allowed_seconds(10_000_000) == 60


@pytest.mark.parametrize(("bytes_per_second", "passes"), [(40_000, True), (15_000, True), (10_000, False)])
def test_a_phone_is_fast_enough(bytes_per_second: int, passes: bool) -> None:
    """By default a photo of 1.6 MB may come at 15 kB/s and more, and never runs out of time on its way."""
    settings = Settings()
    limits = UploadLimits(
        1, 1, settings.body_timeout_seconds, settings.body_min_rate, settings.body_timeout_max_seconds
    )
    seconds = range(1_600_000 // bytes_per_second + 1)
    assert all(second <= limits.allowed_seconds(second * bytes_per_second) for second in seconds) is passes


def test_a_connection_may_rest_between_requests(server: RunningServer) -> None:
    """The headers' deadline begins with a request's first byte: a client keeps its connection for longer than that."""
    with connect(server) as connection:
        for _ in range(2):
            connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: test\r\n\r\n")
            assert b" 200 " in connection.recv(65536)
            connection.settimeout(2 * HEADER_SECONDS)
            with pytest.raises(TimeoutError):
                connection.recv(1)
            connection.settimeout(WAIT_SECONDS)


def test_an_answer_that_nobody_reads_is_cut(server: RunningServer) -> None:
    """Who asks for much and reads nothing loses the connection, and the service what it held for it."""
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(WAIT_SECONDS)
        host, port = server.address.removeprefix("http://").split(":")
        connection.connect((host, int(port)))
        # Pipelined: more than the sockets' buffers take, however large the system makes them.
        connection.sendall(b"GET /static/swagger-ui-bundle.js HTTP/1.1\r\nHost: test\r\n\r\n" * 64)
        open_connections = server.server.server_state.connections
        wait_until(lambda: any(each.flow.write_paused for each in list(open_connections)))
        with within(RESPONSE_SECONDS + LATE_SECONDS):
            wait_until(lambda: not open_connections)


SLOW = (b"", b"POST /predict HTTP/1.1\r\nHost", HEAD + b"\r\n" + bytes(1000))
"""Silent, stuck in its headers, stuck in its body."""


@contextmanager
def five_hundred_slow_clients(server: RunningServer) -> Iterator[list[socket.socket]]:
    """Of each kind in turn; each has sent what it sends as soon as it is connected, from when on its time runs."""
    with ExitStack() as open_ones:
        connections = []
        for number in range(500):
            connections.append(open_ones.enter_context(connect(server)))
            connections[-1].sendall(SLOW[number % 3])
        yield connections


def cost_of_an_answer(client: httpx.Client) -> tuple[float, float]:
    """Seconds and CPU seconds of client and server: what three of four answers take at least."""
    costs = []
    for _ in range(100):
        began, used = time.perf_counter(), time.process_time()
        answer = post_image(client, IMAGE)
        costs.append((time.perf_counter() - began, time.process_time() - used))
        assert answer.json()["predictions"][0]["class_id"] == BEST
    seconds, cpu_seconds = (sorted(each)[25] for each in zip(*costs, strict=True))
    return seconds, cpu_seconds


def test_five_hundred_slow_clients_hold_up_nobody() -> None:
    """Beside 500 sockets that are silent, stuck in their headers or stuck in their bodies, good requests are answered
    as ever: as soon, and for the same work."""
    patient = {"header_timeout_seconds": 60, "body_timeout_seconds": 60}
    with (
        running_server(Settings(backend="null", port=0, log_level="warning", **patient)) as server,
        httpx.Client(base_url=server.address, timeout=WAIT_SECONDS) as client,
    ):
        cost_of_an_answer(client)
        seconds, cpu_seconds = cost_of_an_answer(client)
        open_ones = server.server.server_state.connections
        with five_hundred_slow_clients(server):
            wait_until(lambda: len(open_ones) == 501)
            beside_seconds, beside_cpu_seconds = cost_of_an_answer(client)
            assert len(open_ones) == 501
    assert beside_seconds < 2 * seconds
    assert beside_cpu_seconds < 2 * cpu_seconds


def test_five_hundred_slow_clients_are_cut_at_their_deadlines(server: RunningServer) -> None:
    """Each of 500 slow clients is answered 408, or closed if it was silent, when its own time is over."""
    with five_hundred_slow_clients(server) as connections, connect(server) as last:
        last.sendall(SLOW[2])
        check_timeout(answers_in(receive_all(last)))
        # The last one's deadline was the last: each of the others has its end by now, and need not be waited for.
        for connection in connections:
            connection.setblocking(False)
        ends = [receive_all(connection) for connection in connections]
    statuses = [[answer.status for answer in answers_in(end)] for end in ends]
    assert statuses[0::3] == [[]] * len(statuses[0::3])
    assert statuses[1::3] == [[408]] * len(statuses[1::3])
    assert statuses[2::3] == [[408]] * len(statuses[2::3])


def test_open_uploads_are_bounded() -> None:
    """Past the number of open uploads a request is told to come again before its body is read; a place that is left
    is free at once."""
    settings = Settings(backend="null", port=0, log_level="warning", max_open_uploads=2)
    with running_server(settings) as server, httpx.Client(base_url=server.address, timeout=WAIT_SECONDS) as client:
        with connect(server) as one, connect(server) as two:
            one.sendall(HEAD + b"\r\n")
            two.sendall(HEAD + b"\r\n")
            wait_until(lambda: len(server.server.server_state.tasks) == 2)
            refused = post_image(client, IMAGE)
            assert (refused.status_code, refused.json()["code"]) == (503, "overloaded")
            assert refused.headers["Retry-After"] in ("1", "2")
            count = 'resnet_requests_total{code="overloaded",route="/predict",status="503"} 1.0'
            assert count in client.get("/metrics").text
            # What has no body takes no place.
            assert client.get("/healthz").status_code == 200
        wait_until(lambda: post_image(client, IMAGE).status_code == 200)


def test_received_bytes_are_bounded() -> None:
    """All bodies together hold no more bytes than they may; what is declared counts before it is sent."""
    settings = Settings(backend="null", port=0, log_level="warning", max_received_bytes=1_200_000)
    with running_server(settings) as server, httpx.Client(base_url=server.address, timeout=WAIT_SECONDS) as client:
        with connect(server) as one, connect(server) as two:
            one.sendall(HEAD + b"\r\n" + bytes(900_000))
            two.sendall(HEAD.replace(b"Content-Length: 1000000", b"Transfer-Encoding: chunked") + b"\r\n")
            metrics = lambda: client.get("/metrics").text  # noqa: E731
            wait_until(lambda: "resnet_received_bytes 900000.0" in metrics())
            refused = client.post("/predict", content=bytes(400_000))
            assert (refused.status_code, refused.json()["code"]) == (503, "overloaded")
            # What does not say its size is refused when it is over.
            chunk = bytes(65536)
            two.sendall(b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for _ in range(5)))
            (answer,) = answers_in(receive_all(two))
            assert (answer.status, answer.json()["code"]) == (503, "overloaded")
        wait_until(lambda: "resnet_received_bytes 0.0" in metrics())
        assert post_image(client, IMAGE).status_code == 200

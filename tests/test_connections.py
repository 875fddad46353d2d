"""Connections as clients and load balancers use them: half closed, at rest, too many, from pages of other origins."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from contextlib import ExitStack

import httpx
import pytest

from app.server import half_closed
from app.server.crowding import most_connections
from app.settings import Settings
from tests.photos import make_jpeg, null_classes
from tests.raw_http import answers_in, connect, post, receive_all, receive_answer
from tests.running import RunningServer, running_server, wait_until
from tests.test_concurrency import Gate, queue_depth

IMAGE = make_jpeg(1)
BEST = null_classes(IMAGE)[0]
PREDICT = post(IMAGE).replace(b"Connection: close\r\n", b"")
HEALTH = b"GET /healthz HTTP/1.1\r\nHost: test\r\n\r\n"
PROBES = ("/healthz", "/readyz", "/metrics")


@pytest.fixture
def gate(null_server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    gate = Gate(monkeypatch)
    yield gate
    gate.opened.set()


def connections_of(server: RunningServer) -> int:
    return len(server.server.server_state.connections)


# --- half closed


@pytest.mark.parametrize(
    ("sent", "statuses"),
    [
        (PREDICT, [200]),
        (HEALTH, [200]),
        (HEALTH + b"\r\n", [200]),
        (PREDICT + HEALTH + PREDICT, [200, 200, 200]),
        (PREDICT + HEALTH[:20], [200]),
        (HEALTH + b"\0garbage", [200, 400]),
        (PREDICT.replace(b"HTTP/1.1", b"HTTP/1.0"), [200]),
        (b"\0garbage", [400]),
    ],
    ids=["an image", "a probe", "a line break more", "three", "and half a head", "and garbage", "HTTP/1.0", "garbage"],
)
def test_a_client_that_only_sends_no_more_is_answered(
    null_server: RunningServer, sent: bytes, statuses: list[int]
) -> None:
    """Who ends its side after its requests, as `nc -N` does, gets all its answers, and then the connection closes."""
    with connect(null_server) as connection:
        connection.sendall(sent)
        connection.shutdown(socket.SHUT_WR)
        answers = [answer for answer in answers_in(receive_all(connection)) if answer.status != 100]
    assert [answer.status for answer in answers] == statuses
    wait_until(lambda: connections_of(null_server) == 0)


@pytest.mark.parametrize("version", [b"HTTP/1.1", b"HTTP/1.0"])
def test_it_is_answered_after_a_long_wait_too(
    null_server: RunningServer, gate: Gate, monkeypatch: pytest.MonkeyPatch, version: bytes
) -> None:
    """While its image waits, one interim answer shows whether it is there; HTTP/1.0, which knows none, gets none."""
    looks, error_of = 0, half_closed._error_of

    def counted(transport: asyncio.Transport) -> int:
        nonlocal looks
        looks += 1
        return error_of(transport)

    monkeypatch.setattr(half_closed, "_error_of", counted)
    with connect(null_server) as first, connect(null_server) as connection:
        first.sendall(PREDICT)
        assert gate.entered.wait(30)
        connection.sendall(PREDICT.replace(b"HTTP/1.1", version))
        connection.shutdown(socket.SHUT_WR)
        wait_until(lambda: queue_depth(null_server) == 1)
        if version == b"HTTP/1.1":
            assert connection.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        wait_until(lambda: looks >= 3)
        assert queue_depth(null_server) == 1
        gate.opened.set()
        (answer,) = answers_in(receive_all(connection))
    assert answer.json()["predictions"][0]["class_id"] == BEST


@pytest.mark.parametrize("body", [b"", IMAGE[:1000]], ids=["no body", "half a body"])
def test_one_that_ends_in_its_body_has_left(null_server: RunningServer, body: bytes) -> None:
    """A body that ends too early is no request: the connection closes without an answer."""
    with connect(null_server) as connection:
        connection.sendall(PREDICT[: PREDICT.index(b"\r\n\r\n") + 4] + body)
        connection.shutdown(socket.SHUT_WR)
        assert receive_all(connection) == b""


# --- at rest


def test_a_connection_rests_as_long_as_the_setting_says() -> None:
    """RESNET_KEEP_ALIVE_SECONDS after its last answer a connection is closed; by default later than load balancers."""
    assert Settings().keep_alive_seconds > 60
    settings = Settings(backend="null", port=0, log_level="error", keep_alive_seconds=0.2)
    with running_server(settings) as server, connect(server) as connection:
        connection.sendall(HEALTH)
        assert receive_answer(connection).status == 200
        assert receive_all(connection) == b""


# --- too many


@pytest.fixture(scope="module")
def small() -> Iterator[RunningServer]:
    """Three connections may be open."""
    with running_server(Settings(backend="null", port=0, log_level="error", max_connections=3)) as server:
        yield server


def test_past_the_bound_only_probes_are_answered(small: RunningServer) -> None:
    """A connection too many is told 503 overloaded and to come again; probes and the open ones go on as ever."""
    with ExitStack() as sockets:
        opened = [sockets.enter_context(connect(small)) for _ in range(3)]
        wait_until(lambda: connections_of(small) == 3)
        for path in PROBES:
            with connect(small) as probe:
                probe.sendall(HEALTH.replace(b"/healthz", path.encode()))
                (answer,) = answers_in(receive_all(probe))
                assert (answer.status, answer.headers["connection"]) == (200, "close")
        with connect(small) as late:
            late.sendall(PREDICT)
            (answer,) = answers_in(receive_all(late))
        assert (answer.status, answer.json()["code"], answer.json()["retryable"]) == (503, "overloaded", True)
        assert int(answer.headers["retry-after"]) >= 1
        assert answer.headers["connection"] == "close"
        for connection in opened:
            connection.sendall(PREDICT)
            assert receive_answer(connection).status == 200
    wait_until(lambda: connections_of(small) == 0)
    assert httpx.post(f"{small.address}/predict", content=IMAGE).status_code == 200


def test_far_past_the_bound_nothing_is_read(small: RunningServer) -> None:
    """Where the connections for probes are taken too, a new one is answered and closed before it has asked."""
    with ExitStack() as sockets:
        for number in range(3 + 64):
            sockets.enter_context(connect(small))
            wait_until(lambda number=number: connections_of(small) == number + 1)
        with connect(small) as late:
            (answer,) = answers_in(receive_all(late))
        assert (answer.status, answer.json()["code"]) == (503, "overloaded")
    wait_until(lambda: connections_of(small) == 0)


@pytest.mark.parametrize(
    ("files", "connections"), [(1024, 1024 - 256 - 64), (256, 256 - 64 - 64), (64, 16), (1_048_576, 10_000)]
)
def test_the_bound_follows_the_limit_of_open_files(
    monkeypatch: pytest.MonkeyPatch, files: int, connections: int
) -> None:
    """By default connections leave files for all else; a number that is set holds."""
    monkeypatch.setattr("app.server.crowding.open_file_limit", lambda: files)
    assert most_connections(Settings()) == connections
    assert most_connections(Settings(max_connections=5)) == 5


def test_ipv4_clients_of_a_socket_for_both_keep_their_address(caplog: pytest.LogCaptureFixture) -> None:
    """Behind RESNET_HOST=:: a client's address is 127.0.0.1, as proxies are listed and logs are read."""
    settings = Settings(backend="null", port=0, host="::", log_level="info")
    with caplog.at_level("INFO"), running_server(settings) as server:
        port = server.address.rpartition(":")[2]
        assert httpx.post(f"http://127.0.0.1:{port}/predict", content=IMAGE).status_code == 200
        assert httpx.post(f"http://[::1]:{port}/predict", content=IMAGE).status_code == 200
    clients = [record.client.rpartition(":")[0] for record in caplog.records if hasattr(record, "client")]
    assert clients == ["127.0.0.1", "::1"]


# --- pages of other origins


@pytest.fixture(scope="module")
def open_to_pages() -> Iterator[RunningServer]:
    settings = Settings(backend="null", port=0, log_level="error", cors_origins=("https://a.example",))
    with running_server(settings) as server:
        yield server


def preflight(server: RunningServer, origin: str, method: str) -> httpx.Response:
    headers = {"Origin": origin, "Access-Control-Request-Method": method}
    return httpx.options(f"{server.address}/predict", headers=headers)


@pytest.mark.parametrize(
    ("origin", "method"), [("https://b.example", "POST"), ("https://a.example", "DELETE"), ("null", "POST")]
)
def test_a_refused_preflight_is_a_problem(open_to_pages: RunningServer, origin: str, method: str) -> None:
    """The refusal has the one shape of errors, repeats nothing, and allows nothing."""
    answer = preflight(open_to_pages, origin, method)
    assert (answer.status_code, answer.json()["code"]) == (400, "malformed_request")
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert answer.json()["request_id"] == answer.headers["X-Request-ID"]
    assert "RESNET_CORS_ORIGINS" in answer.json()["detail"]
    assert ("access-control-allow-origin" in answer.headers) is (origin == "https://a.example")


def test_an_allowed_preflight_is_answered(open_to_pages: RunningServer) -> None:
    """A page of an origin that is listed may ask, and then read its answer."""
    answer = preflight(open_to_pages, "https://a.example", "POST")
    assert (answer.status_code, answer.headers["Access-Control-Allow-Origin"]) == (200, "https://a.example")
    answer = httpx.post(f"{open_to_pages.address}/predict", content=IMAGE, headers={"Origin": "https://a.example"})
    assert answer.headers["Access-Control-Allow-Origin"] == "https://a.example"

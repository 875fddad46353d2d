"""Several requests on one connection before the first is answered, and what is no request behind them."""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterator

import httpx
import pytest

from app.server.protocol import HttpProtocol
from app.settings import Settings
from tests.pace import within
from tests.photos import make_jpeg, null_classes
from tests.raw_http import Answer, answers_in, connect, post, receive_all
from tests.running import RunningServer, post_image, running_server, wait_until
from tests.test_concurrency import Gate, queue_depth

IMAGE = make_jpeg(1)
BEST = null_classes(IMAGE)[0]
PREDICT = post(IMAGE).replace(b"Connection: close\r\n", b"")
HEALTH = b"GET /healthz HTTP/1.1\r\nHost: test\r\n\r\n"
NOWHERE = b"GET /nowhere HTTP/1.1\r\nHost: test\r\n\r\n"
CHUNKED = b"POST /predict HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n"
BAD_CHUNK = CHUNKED + b"3\r\nabc\r\nxyz\r\n"
GARBAGE = b"\0\0garbage\r\n\r\n"
HEADER_SECONDS = 0.3


@pytest.fixture(scope="module")
def null_server() -> Iterator[RunningServer]:
    """One that waits for a head only so long."""
    settings = Settings(backend="null", port=0, log_level="warning", header_timeout_seconds=HEADER_SECONDS)
    with running_server(settings) as server:
        yield server


@pytest.fixture
def gate(null_server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    gate = Gate(monkeypatch)
    yield gate
    gate.opened.set()


@pytest.fixture(autouse=True)
def _no_error_is_logged(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Neither by the server nor by the event loop, which finds out about a task that failed when that is collected."""
    yield
    gc.collect()
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == []


def protocol_of(server: RunningServer) -> HttpProtocol:
    """The server's end of the only connection."""
    (protocol,) = server.server.server_state.connections
    assert isinstance(protocol, HttpProtocol)
    return protocol


def check_refused(answers: list[Answer], whole: list[int], status: int) -> None:
    """The whole requests' answers in their order, each its own; then the refusal, and it alone closes."""
    assert [answer.status for answer in answers] == [*whole, status]
    assert ["close" in answer.headers.get("connection", "") for answer in answers] == [False] * len(whole) + [True]
    assert len({answer.headers["x-request-id"] for answer in answers}) == len(answers)
    for answer in answers:
        if answer.status == 200 and b"predictions" in answer.body:
            assert answer.json()["predictions"][0]["class_id"] == BEST
    assert answers[-1].headers["content-type"] == "application/problem+json"


FAULTS = {
    "garbage": (GARBAGE, 400),
    "a bad chunk": (BAD_CHUNK, 400),
    "too many headers": (HEALTH[:-2] + b"X: y\r\n" * 101 + b"\r\n", 431),
    "trailers without end": (CHUNKED + b"0\r\nX: " + b"a" * 1_000_000, 431),
    "half a head": (HEALTH[:-10], 408),
}


@pytest.mark.parametrize(
    ("whole", "statuses"),
    [
        (HEALTH, [200]),
        (HEALTH + NOWHERE, [200, 404]),
        (PREDICT + HEALTH, [200, 200]),
        (NOWHERE + PREDICT + HEALTH, [404, 200, 200]),
        (PREDICT + NOWHERE + HEALTH + PREDICT, [200, 404, 200, 200]),
    ],
    ids=["one", "two", "two, the first long", "three", "four"],
)
@pytest.mark.parametrize("fault", FAULTS)
def test_what_came_whole_before_a_fault_is_answered_first(
    null_server: RunningServer, fault: str, whole: bytes, statuses: list[int]
) -> None:
    """Every request before the fault gets its answer, in their order, then the fault gets its own, and the connection
    closes at once."""
    sent, status = FAULTS[fault]
    # Long before a connection at rest is closed.
    with within(HEADER_SECONDS + 3), connect(null_server) as connection:
        connection.sendall(whole + sent)
        answers = answers_in(receive_all(connection))
    check_refused(answers, statuses, status)


@pytest.mark.parametrize("fault", ["garbage", "a bad chunk", "half a head"])
def test_a_fault_waits_for_the_answers_before_it(
    null_server: RunningServer, gate: Gate, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """Behind an image that takes long, neither the fault's answer nor the connection's end comes before its own."""
    monkeypatch.setattr("app.server.last_answer._DISCARD_SECONDS", 0.05)
    sent, status = FAULTS[fault]
    with connect(null_server) as connection:
        connection.sendall(PREDICT)
        assert gate.entered.wait(30)
        protocol = protocol_of(null_server)
        connection.sendall(HEALTH + sent)
        wait_until(lambda: protocol._is_refused or protocol._heads.timer)
        timer = protocol._heads.timer
        # Until the time for half a head is over.
        wait_until(lambda: timer is None or protocol._heads.timer is not timer)
        connection.setblocking(False)
        with pytest.raises(BlockingIOError):
            connection.recv(1)
        connection.settimeout(20)
        gate.opened.set()
        answers = answers_in(receive_all(connection))
    check_refused(answers, [200, 200], status)


def test_a_head_that_lies_unread_behind_long_requests_is_not_late(null_server: RunningServer, gate: Gate) -> None:
    """While the server reads nothing, because others are being answered, no client is told that it sends too slowly."""
    with connect(null_server) as connection:
        connection.sendall(PREDICT)
        assert gate.entered.wait(30)
        protocol = protocol_of(null_server)
        connection.sendall(HEALTH + NOWHERE[:20])
        wait_until(lambda: protocol.flow.read_paused and protocol._heads.timer)
        timer = protocol._heads.timer
        connection.sendall(NOWHERE[20:] + post(IMAGE))
        wait_until(lambda: protocol._heads.timer is not timer)
        gate.opened.set()
        answers = answers_in(receive_all(connection))
    assert [answer.status for answer in answers] == [200, 200, 404, 200]
    assert answers[3].json()["predictions"][0]["class_id"] == BEST


def test_nothing_is_answered_behind_a_request_that_closes(null_server: RunningServer) -> None:
    """A request that asks for the connection's end gets it, whatever came behind it."""
    for behind in (HEALTH, GARBAGE, BAD_CHUNK):
        with connect(null_server) as connection:
            connection.sendall(HEALTH + post(IMAGE) + behind)
            answers = answers_in(receive_all(connection))
        assert [answer.status for answer in answers] == [200, 200]
        assert answers[1].headers["connection"] == "close"


def test_a_client_that_leaves_takes_all_its_requests_along(
    null_server: RunningServer, client: httpx.Client, gate: Gate
) -> None:
    """Of two requests in one piece the first waits for the device: when the client leaves, neither reaches it."""
    with connect(null_server) as other:
        other.sendall(PREDICT)
        assert gate.entered.wait(30)
        leaver = connect(null_server)
        leaver.sendall(PREDICT + PREDICT)
        wait_until(lambda: queue_depth(null_server) == 1)
        leaver.close()
        wait_until(lambda: queue_depth(null_server) == 0)
        gate.opened.set()
        other.shutdown(1)
        receive_all(other)
    assert post_image(client, IMAGE).status_code == 200
    assert gate.images == 2

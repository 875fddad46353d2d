"""Requests that are refused by their headers: each is answered like any other refusal, and costs nothing more."""

from __future__ import annotations

import gc
import logging
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import httpx
import pytest

from app.api.turns import Turns
from app.classifier import Classifier
from app.pool import Pool
from app.server.early_refusals import EarlyRefusals
from app.server.forwarded import ForwardedClients
from app.server.protocol import HttpProtocol
from app.server.refused_request import RefusedRequest
from app.settings import Settings
from tests.photos import make_jpeg, null_classes
from tests.raw_http import Answer, answers_in, ask, connect, post, receive_all, receive_answer
from tests.running import RunningServer, running_server, wait_until
from tests.test_concurrency import Gate

IMAGE = make_jpeg(1, (64, 48))
BEST = null_classes(IMAGE)[0]
ORIGIN = "https://page.example"
HEALTH = b"GET /healthz HTTP/1.1\r\nHost: test\r\n\r\n"
GARBAGE = b"\0\0garbage\r\n\r\n"
HEADER_SECONDS = 0.5
NEVER = 3600.0


def kept(body: bytes = IMAGE, *headers: str, path: str = "/predict") -> bytes:
    """A POST request after which the connection is to live on."""
    return post(body, *headers, path=path).replace(b"Connection: close\r\n", b"")


PREDICT = kept()
LARGE = bytes(300_000)


@pytest.fixture(scope="module")
def null_server() -> Iterator[RunningServer]:
    """One that one image fills beside the device's own, and whose headers are waited for half a second."""
    settings = Settings(
        backend="null",
        port=0,
        log_level="warning",
        max_queue=1,
        max_batch_size=1,
        cors_origins=ORIGIN,
        header_timeout_seconds=HEADER_SECONDS,
    )
    with running_server(settings) as server:
        yield server


def classifier_of(server: RunningServer) -> Classifier:
    classifier: Classifier = server.app.state.classifier
    return classifier


def turns_of(server: RunningServer) -> Turns:
    refusals: EarlyRefusals = server.app.state.early_refusals
    return refusals.turns


@pytest.fixture
def full(null_server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[RunningServer]:
    """The server while every place in its schedule is held; at the end each of those images is answered."""
    classifier = classifier_of(null_server)
    assert classifier.model is not None
    most = 1 + classifier.model.engine.state().device.capacity
    gate = Gate(monkeypatch)
    with ExitStack() as sockets:
        holders = [sockets.enter_context(connect(null_server)) for _ in range(most)]
        for number, holder in enumerate(holders, 1):
            holder.sendall(post(IMAGE))
            wait_until(lambda number=number: classifier.model.schedule.held == number)  # type: ignore[misc]
        try:
            yield null_server
        finally:
            gate.opened.set()
        for holder in holders:
            (answer,) = answers_in(receive_all(holder))
            assert answer.json()["predictions"][0]["class_id"] == BEST
    wait_until(lambda: classifier.model.schedule.held == 0)


@pytest.fixture
def held_back(null_server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The turn of no refusal ever comes."""
    monkeypatch.setattr(turns_of(null_server), "wait_seconds", lambda: NEVER)


@pytest.fixture
def at_once(null_server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each refusal has its turn at once."""
    monkeypatch.setattr(turns_of(null_server), "wait_seconds", lambda: 0.0)


@pytest.fixture(autouse=True)
def _no_error_is_logged(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Neither by the server nor by its event loop."""
    yield
    gc.collect()
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == []


def protocols_waiting(server: RunningServer) -> list[HttpProtocol]:
    """The connections on which a request is refused and not over."""
    connections: list[Any] = list(server.server.server_state.connections)
    return [each for each in connections if each._early is not None]


def sample(server: RunningServer, status: int, code: str, path: str = "/predict") -> float:
    labels = {"route": path, "status": str(status), "code": code}
    return classifier_of(server).metrics.registry.get_sample_value("resnet_requests_total", labels) or 0.0


def check_overloaded(answer: Answer) -> None:
    document = answer.json()
    assert (answer.status, document["status"], document["code"]) == (503, 503, "overloaded")
    assert answer.headers["content-type"] == "application/problem+json"
    assert document["retryable"] is True
    assert document["retry_after_ms"] > 0
    assert int(answer.headers["retry-after"]) == max(1, -(-document["retry_after_ms"] // 1000))
    assert document["request_id"] == answer.headers["x-request-id"]


def without_what_differs(answer: Answer) -> tuple[dict[str, Any], set[str], list[str]]:
    """Its document but for the request's id and the moment, its members' order, and the names of its headers."""
    document = answer.json()
    names = list(document)
    document.pop("request_id")
    document.pop("retry_after_ms", None)
    cors = {"access-control-allow-origin", "access-control-expose-headers", "vary"}
    return document, set(answer.headers) - cors, names


# --- what is said


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize(
    ("headers", "client"),
    [
        (("X-Forwarded-For: 203.0.113.7",), "203.0.113.7:0"),
        (("X-Forwarded-For: 10.9.9.9", "X-Forwarded-For: 203.0.113.8:5000, 127.0.0.1"), "203.0.113.8:5000"),
        (("X-Forwarded-For: [2001:db8::1]:443",), "2001:db8::1:443"),
    ],
)
def test_a_proxys_word_on_the_client_is_logged(
    full: RunningServer, caplog: pytest.LogCaptureFixture, headers: tuple[str, ...], client: str
) -> None:
    """A refusal's line names the client that a trusted proxy names, as the line of any other answer does."""
    caplog.set_level(logging.INFO, "app.api.access_log")
    with connect(full) as connection:
        connection.sendall(kept(IMAGE, *headers))
        assert receive_answer(connection).status == 503
        connection.sendall(kept(IMAGE, *headers, path="/unknown"))
        assert receive_answer(connection).status == 404
    wait_until(lambda: len([each for each in caplog.records if hasattr(each, "client")]) == 2)
    clients = {each.status: each.client for each in caplog.records if hasattr(each, "client")}  # type: ignore[attr-defined]
    assert clients == {503: client, 404: client}


def test_a_strangers_word_on_the_client_is_not() -> None:
    """Who is no trusted proxy is the client itself, whatever its headers say; all are believed where all are named."""
    scope = {"client": ("198.51.100.1", 7), "headers": [(b"x-forwarded-for", b"203.0.113.7")]}
    assert ForwardedClients("10.0.0.0/8").client_of(scope) == ("198.51.100.1", 7)
    assert ForwardedClients("198.51.100.0/24").client_of(scope) == ("203.0.113.7", 0)
    assert ForwardedClients("*").client_of(scope) == ("203.0.113.7", 0)
    assert ForwardedClients("*").client_of({"client": None, "headers": []}) is None


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("path", ["/predict", "/predict/batch"])
def test_a_refusal_is_a_problem_with_all_its_members(full: RunningServer, path: str) -> None:
    """503 with Retry-After, a code, and a name for the request that no other one has."""
    answers = [ask(full, post(IMAGE, path=path))[0] for _ in range(2)]
    for answer in answers:
        check_overloaded(answer)
    assert answers[0].headers["x-request-id"] != answers[1].headers["x-request-id"]


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize(
    "another_way",
    [
        post(IMAGE, f"Origin: {ORIGIN}"),
        post(IMAGE, "Origin: https://elsewhere.example"),
        post(IMAGE, path="/predic%74"),
        post(IMAGE, "Connection: Upgrade", "Upgrade: h2c").replace(b"Connection: close\r\n", b""),
    ],
    ids=["the page's origin", "another origin", "an escaped path", "an upgrade"],
)
def test_it_says_what_a_refusal_on_the_usual_way_says(full: RunningServer, another_way: bytes) -> None:
    """What goes through the middlewares is refused there, by the same words under the same headers."""
    shed_before = full_count(full)
    with connect(full) as connection:
        connection.sendall(another_way)
        usual = receive_answer(connection)
    (early,) = ask(full, post(IMAGE))
    check_overloaded(usual)
    check_overloaded(early)
    early.headers.pop("connection")
    usual.headers.pop("connection", None)
    assert without_what_differs(early) == without_what_differs(usual)
    assert full_count(full) == shed_before + 2


def full_count(server: RunningServer) -> float:
    return classifier_of(server).metrics.registry.get_sample_value("resnet_shed_total", {"reason": "full"}) or 0.0


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize(
    "head",
    [
        post(LARGE),
        post(LARGE, f"Origin: {ORIGIN}"),
        post(LARGE, path="/predict/batch?top_k=1"),
        post(LARGE, path="/predic%74"),
    ],
    ids=["early", "an origin", "a query", "an escaped path"],
)
def test_on_either_way_no_body_is_read_first(full: RunningServer, head: bytes) -> None:
    """A request is refused by its headers alone, whichever part of the server looks at them."""
    with connect(full) as connection:
        connection.sendall(head.partition(b"\r\n\r\n")[0] + b"\r\n\r\n")
        check_overloaded(receive_answer(connection))


@pytest.mark.usefixtures("at_once")
def test_behind_a_request_that_is_answered_it_says_the_same(full: RunningServer) -> None:
    """Of two in one piece behind a good one, both are refused where the first is on its usual way."""
    with connect(full) as connection:
        connection.sendall(HEALTH + PREDICT + post(IMAGE))
        healthy, one, two = answers_in(receive_all(connection))
    assert healthy.status == 200
    check_overloaded(one)
    check_overloaded(two)
    two.headers.pop("connection")
    assert without_what_differs(one) == without_what_differs(two)


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize(
    ("sent", "is_kept"),
    [("my-request_1", True), ("a" * 64, True), ("a" * 65, False), ("a b", False), ('"}', False), ("", False)],
)
def test_a_harmless_name_is_kept(full: RunningServer, sent: str, is_kept: bool) -> None:
    """X-Request-ID comes back where nothing in it can do harm; else the request has a new name."""
    (answer,) = ask(full, post(IMAGE, f"X-Request-ID: {sent}"))
    check_overloaded(answer)
    assert (answer.json()["request_id"] == sent) is is_kept
    assert answer.json()["request_id"].replace("-", "").replace("_", "").isalnum()


@pytest.mark.usefixtures("at_once")
def test_of_a_header_that_comes_twice_the_first_counts(full: RunningServer) -> None:
    """As on the usual way."""
    names = []
    for extra in ((), (f"Origin: {ORIGIN}",)):
        (answer,) = ask(full, post(IMAGE, "X-Request-ID: first", "X-Request-ID: second", *extra))
        check_overloaded(answer)
        names.append(answer.json()["request_id"])
    assert names == ["first", "first"]


@pytest.mark.parametrize(
    ("state", "code", "detail"),
    [
        ({"pool": Pool()}, "not_ready", "The model is still loading."),
        ({"pool": Pool(), "draining": True}, "not_ready", "The server is shutting down."),
        ({"pool": Pool(), "failure": "It broke."}, "engine_unavailable", "It broke."),
    ],
    ids=["not ready", "draining", "failed"],
)
@pytest.mark.usefixtures("at_once")
def test_every_state_that_takes_no_images_is_told(
    null_server: RunningServer, monkeypatch: pytest.MonkeyPatch, state: dict[str, Any], code: str, detail: str
) -> None:
    """A server without a model says why and when to come again, in the same words on either way."""
    classifier = classifier_of(null_server)
    for name, value in state.items():
        monkeypatch.setattr(classifier, name, value)
    (early,) = ask(null_server, post(IMAGE))
    (usual,) = ask(null_server, post(IMAGE, f"Origin: {ORIGIN}"))
    assert (early.status, early.json()["code"], early.json()["detail"]) == (503, code, detail)
    assert early.json()["retry_after_ms"] == usual.json()["retry_after_ms"] == 2000
    assert without_what_differs(early) == without_what_differs(usual)


def test_below_a_root_path_its_type_is_where_the_reference_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind a proxy that takes a prefix away, the problem's type names the prefix."""
    settings = Settings(backend="null", port=0, log_level="warning", root_path="/vision", cors_origins=ORIGIN)
    with running_server(settings) as server:
        monkeypatch.setattr(classifier_of(server), "pool", Pool())
        (early,) = ask(server, post(IMAGE))
        (usual,) = ask(server, post(IMAGE, f"Origin: {ORIGIN}"))
        assert early.json()["type"].startswith("/vision/")
        assert without_what_differs(early) == without_what_differs(usual)


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("asked", ["0", "x", "", "-5", "1" * 40, "٣"])
def test_a_wrong_timeout_does_no_harm(full: RunningServer, asked: str) -> None:
    """What is wrong with X-Request-Timeout-Ms is for the route to say; the refusal comes all the same."""
    request = post(IMAGE).replace(b"\r\n\r\n", b"\r\nX-Request-Timeout-Ms: " + asked.encode() + b"\r\n\r\n", 1)
    (answer,) = ask(full, request)
    check_overloaded(answer)


def test_other_paths_and_methods_are_served(full: RunningServer) -> None:
    """A full server's health, metrics and documents are as ever; what is no such route is no such route."""
    with httpx.Client(base_url=full.address, timeout=30) as client:
        for path in ("/healthz", "/readyz", "/metrics", "/docs"):
            assert client.get(path).status_code == 200
        assert client.get("/predict").status_code == 405
        assert client.post("/nowhere").status_code == 404


# --- the connection


@pytest.mark.usefixtures("at_once")
def test_behind_a_small_body_the_connection_lives_on(full: RunningServer) -> None:
    """Refused again and again on one connection, a client then has its other answers on it too."""
    with connect(full) as connection:
        for _ in range(3):
            connection.sendall(PREDICT)
            answer = receive_answer(connection)
            check_overloaded(answer)
            assert "connection" not in answer.headers
        connection.sendall(HEALTH)
        assert receive_answer(connection).status == 200
        assert protocols_waiting(full) == []


@pytest.mark.usefixtures("at_once")
def test_a_body_in_pieces_behind_its_answer_is_read_to_its_end(full: RunningServer) -> None:
    """The answer comes with the headers; the rest of a small body is no request of its own."""
    head, _, body = PREDICT.partition(b"\r\n\r\n")
    with connect(full) as connection:
        connection.sendall(head + b"\r\n\r\n")
        check_overloaded(receive_answer(connection))
        for start in range(0, len(body), 100):
            connection.sendall(body[start : start + 100])
        connection.sendall(HEALTH)
        assert receive_answer(connection).status == 200


CHUNKED = b"POST /predict HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n" + b"%x\r\n%b\r\n0\r\n\r\n" % (
    len(IMAGE),
    IMAGE,
)
CLOSING = {
    "large": kept(LARGE),
    "huge": kept(bytes(9_000_000)),
    "chunked": CHUNKED,
    "expect": kept(IMAGE, "Expect: 100-continue"),
    "close": post(IMAGE),
    "HTTP/1.0": kept().replace(b"HTTP/1.1", b"HTTP/1.0"),
    "HTTP/1.0 kept": kept(IMAGE, "Connection: keep-alive").replace(b"HTTP/1.1", b"HTTP/1.0"),
}


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("kind", CLOSING)
@pytest.mark.parametrize("behind", [b"", HEALTH, PREDICT, GARBAGE], ids=["alone", "health", "another", "garbage"])
def test_a_body_that_is_not_worth_reading_ends_the_connection(full: RunningServer, kind: str, behind: bytes) -> None:
    """The refusal arrives whole, says that the connection closes, and is the last thing on it."""
    (answer,) = ask(full, CLOSING[kind] + behind)
    check_overloaded(answer)
    assert answer.headers["connection"] == "close"
    wait_until(lambda: protocols_waiting(full) == [])


@pytest.mark.usefixtures("at_once")
def test_who_asks_first_sends_no_body(full: RunningServer) -> None:
    """With Expect: 100-continue the answer is the refusal and no 100."""
    head = kept(LARGE, "Expect: 100-continue").partition(b"\r\n\r\n")[0] + b"\r\n\r\n"
    with connect(full) as connection:
        connection.sendall(head)
        answer = receive_answer(connection)
    check_overloaded(answer)
    assert answer.headers["connection"] == "close"


@pytest.mark.parametrize("kind", CLOSING)
def test_nothing_is_answered_behind_one_that_closes_in_its_turn(
    full: RunningServer, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Where its turn is later, a request behind it is not answered either."""
    monkeypatch.setattr(turns_of(full), "wait_seconds", lambda: 0.1)
    with connect(full) as connection:
        connection.sendall(CLOSING[kind] + HEALTH)
        (answer,) = answers_in(receive_all(connection))
    check_overloaded(answer)
    assert answer.headers["connection"] == "close"


@pytest.mark.usefixtures("held_back")
def test_a_client_that_does_not_wait_for_its_answer_has_it_at_once(full: RunningServer) -> None:
    """The next request on a connection gives the one before it its answer, whenever its turn would have been."""
    with connect(full) as connection:
        connection.sendall(PREDICT * 3 + HEALTH)
        received = b""
        while len(answers := answers_in(received)) < 4:
            received += connection.recv(65536)
    assert [answer.status for answer in answers] == [503, 503, 503, 200]


@pytest.mark.parametrize("waits", [0.0, 0.05], ids=["at once", "in a moment"])
@pytest.mark.parametrize("in_pieces", [False, True], ids=["one piece", "pieces"])
def test_pipelined_requests_are_answered_in_their_order(
    full: RunningServer, monkeypatch: pytest.MonkeyPatch, waits: float, in_pieces: bool
) -> None:
    """Refused ones and others in turns, however long a turn takes, are answered in the order that they came."""
    monkeypatch.setattr(turns_of(full), "wait_seconds", lambda: waits)
    names = [f"n{number}" for number in range(8)]
    requests = [
        kept(IMAGE, f"X-Request-ID: {name}")
        if number % 4 < 3
        else HEALTH.replace(b"\r\n\r\n", f"\r\nX-Request-ID: {name}\r\n\r\n".encode())
        for number, name in enumerate(names)
    ]
    with connect(full) as connection:
        if in_pieces:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for each in requests:
                connection.sendall(each[:70])
                connection.sendall(each[70:])
        else:
            connection.sendall(b"".join(requests))
        answers = []
        received = b""
        while len(answers) < 8:
            received += connection.recv(65536)
            answers = answers_in(received)
    assert [answer.headers["x-request-id"] for answer in answers] == names
    assert [answer.status for answer in answers] == [503, 503, 503, 200] * 2


@pytest.mark.parametrize("waits", [0.0, NEVER], ids=["at once", "never"])
@pytest.mark.parametrize(
    ("fault", "status"),
    [(GARBAGE, 400), (HEALTH[:-2] + b"X: y\r\n" * 101 + b"\r\n", 431), (HEALTH[:-10], 408)],
    ids=["garbage", "too many headers", "half a head"],
)
def test_a_fault_behind_it_has_an_answer_of_its_own(
    full: RunningServer, monkeypatch: pytest.MonkeyPatch, waits: float, fault: bytes, status: int
) -> None:
    """The refusal comes first, then the fault's answer, and that ends the connection."""
    monkeypatch.setattr(turns_of(full), "wait_seconds", lambda: waits)
    with connect(full) as connection:
        connection.sendall(PREDICT + fault)
        refused, faulty = answers_in(receive_all(connection))
    check_overloaded(refused)
    assert "connection" not in refused.headers
    assert (faulty.status, faulty.headers["connection"]) == (status, "close")


BAD_BODY = b"POST /predict HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nxyz\r\n"


@pytest.mark.parametrize("waits", [0.0, NEVER], ids=["at once", "never"])
def test_a_body_that_makes_no_sense_is_refused_like_any(
    full: RunningServer, monkeypatch: pytest.MonkeyPatch, waits: float
) -> None:
    """Whatever is wrong with the body, it is not read: the one answer is the refusal."""
    monkeypatch.setattr(turns_of(full), "wait_seconds", lambda: waits)
    (answer,) = ask(full, BAD_BODY)
    check_overloaded(answer)
    assert answer.headers["connection"] == "close"
    wait_until(lambda: protocols_waiting(full) == [])


@pytest.mark.usefixtures("held_back")
def test_endless_extensions_of_a_chunk_are_not_read_for_ever(full: RunningServer) -> None:
    """What comes in a refused body's framing is bounded as elsewhere."""
    (answer,) = ask(full, BAD_BODY.partition(b"\r\n\r\n")[0] + b"\r\n\r\n3;" + b"a" * 1_000_000)
    check_overloaded(answer)


@pytest.mark.usefixtures("at_once")
def test_a_body_that_does_not_come_is_not_waited_for(full: RunningServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind the answer the rest of a small body has a moment; then the connection is closed."""
    monkeypatch.setattr("app.server.refused_request._REST_SECONDS", 0.1)
    with connect(full) as connection:
        connection.sendall(PREDICT[:-10])
        (answer,) = answers_in(receive_all(connection))
    check_overloaded(answer)
    wait_until(lambda: protocols_waiting(full) == [])


def at_rest_after(server: RunningServer, connection: socket.socket, seconds: float) -> None:
    """The server closes this connection once it has been at rest for so long."""
    client = connection.getsockname()
    connections: list[Any] = []

    def is_accepted() -> bool:
        connections[:] = [each for each in server.server.server_state.connections if each.client == client]  # type: ignore[union-attr]
        return len(connections) == 1

    wait_until(is_accepted)
    connections[0].timeout_keep_alive = seconds


@pytest.mark.usefixtures("at_once")
def test_a_connection_at_rest_behind_a_refusal_is_closed(full: RunningServer) -> None:
    """As behind any other answer; one on which a request has begun by then is not."""
    with connect(full) as idle, connect(full) as busy:
        at_rest_after(full, idle, 0.1)
        at_rest_after(full, busy, 0.1)
        # In one piece with a refused one, the next begins and is not whole for longer than connections rest.
        busy.sendall(PREDICT + HEALTH[:10])
        check_overloaded(receive_answer(busy))
        idle.sendall(PREDICT)
        check_overloaded(receive_answer(idle))
        assert receive_all(idle) == b""
        busy.sendall(HEALTH[10:])
        assert receive_answer(busy).status == 200


def test_what_is_answered_in_one_piece_with_a_refusal_is_not_cut(
    full: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection's rest is over when the next request comes, also where a refused one was sent along with it."""
    waits = [0.0, 0.3]
    monkeypatch.setattr(turns_of(full), "wait_seconds", lambda: waits.pop(0))
    look = EarlyRefusals.look
    looked: list[None] = []

    def the_first_alone(refusals: EarlyRefusals, *request: Any) -> Any:
        looked.append(None)
        return look(refusals, *request) if len(looked) == 1 else None

    monkeypatch.setattr(EarlyRefusals, "look", the_first_alone)
    with connect(full) as connection:
        at_rest_after(full, connection, 0.05)
        # The second is refused at the end of its body, and waits for its turn for longer than connections rest.
        connection.sendall(PREDICT + PREDICT)
        answers = answers_in(receive_all(connection))
    assert [answer.status for answer in answers] == [503, 503]
    for answer in answers:
        check_overloaded(answer)


# --- turns, leavers and the end


@pytest.mark.usefixtures("held_back")
def test_a_client_that_leaves_before_its_turn_is_counted_and_leaks_nothing(full: RunningServer) -> None:
    """It is a 499, as elsewhere, and nothing is held for it. (One that only says that it sends no more is answered.)"""
    before = sample(full, 499, "client_gone"), sample(full, 503, "overloaded")
    held = classifier_of(full).model.schedule.held
    leavers = [connect(full) for _ in range(5)]
    for leaver in leavers:
        leaver.sendall(PREDICT)
    wait_until(lambda: len(protocols_waiting(full)) == 5)
    for leaver in leavers:
        leaver.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        leaver.close()
    wait_until(lambda: sample(full, 499, "client_gone") == before[0] + 5)
    assert sample(full, 503, "overloaded") == before[1]
    assert protocols_waiting(full) == []
    assert classifier_of(full).model.schedule.held == held


def test_an_answer_comes_in_its_turn(full: RunningServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request whose turn is later is answered then, whole body or not, and the connection lives on."""
    monkeypatch.setattr(turns_of(full), "wait_seconds", lambda: 0.3)
    with connect(full) as connection:
        began = time.monotonic()
        connection.sendall(PREDICT)
        check_overloaded(receive_answer(connection))
        assert time.monotonic() - began >= 0.3
        connection.sendall(HEALTH)
        assert receive_answer(connection).status == 200


def test_one_that_cannot_be_sent_holds_up_no_other(full: RunningServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that wait behind a refusal whose sending fails are sent in their turn."""
    turns = iter((0.1, 0.2))
    monkeypatch.setattr(turns_of(full), "wait_seconds", lambda: next(turns))
    send, sent = RefusedRequest.send, 0

    def fail_once(self: RefusedRequest, *, closes: bool = False) -> None:
        nonlocal sent
        sent += 1
        if sent == 1:
            raise OSError("The connection is broken.")
        send(self, closes=closes)

    monkeypatch.setattr(RefusedRequest, "send", fail_once)
    with connect(full) as one, connect(full) as two:
        one.sendall(PREDICT)
        wait_until(lambda: len(protocols_waiting(full)) == 1)
        two.sendall(PREDICT)
        check_overloaded(receive_answer(two))
    assert sent >= 2


def test_shutdown_answers_those_that_wait_for_their_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that ends tells each of them at once what it would have been told in its turn."""
    settings = Settings(backend="null", port=0, log_level="warning", shutdown_linger_seconds=0)
    with ExitStack() as sockets, running_server(settings) as server:
        monkeypatch.setattr(turns_of(server), "wait_seconds", lambda: NEVER)
        monkeypatch.setattr(classifier_of(server), "pool", Pool())
        waiting = [sockets.enter_context(connect(server)) for _ in range(4)]
        requests = [PREDICT, PREDICT[:-10], kept(LARGE), post(IMAGE)]
        for connection, request in zip(waiting, requests, strict=True):
            connection.sendall(request)
        wait_until(lambda: len(protocols_waiting(server)) == 4)
        server.server.should_exit = True
        for connection in waiting:
            (answer,) = answers_in(receive_all(connection))
            assert (answer.status, answer.json()["code"]) == (503, "not_ready")
            assert answer.headers["connection"] == "close"


# --- counted and logged


@pytest.mark.usefixtures("at_once")
def test_each_is_counted(full: RunningServer) -> None:
    """By path, status and code, as other answers; and as shed."""
    before = [sample(full, 503, "overloaded", path) for path in ("/predict", "/predict/batch")]
    shed = full_count(full)
    for path in ("/predict", "/predict", "/predict/batch"):
        ask(full, post(IMAGE, path=path))
    after = [sample(full, 503, "overloaded", path) for path in ("/predict", "/predict/batch")]
    assert [after[0] - before[0], after[1] - before[1]] == [2, 1]
    assert full_count(full) == shed + 3


@pytest.mark.usefixtures("at_once")
def test_of_many_lines_ten_a_second_are_written_and_the_rest_is_told(
    full: RunningServer, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever way they are refused, lines and what is said to be left out add up to the refusals."""
    monkeypatch.setattr("app.api.access_log._SUM_UP_SECONDS", 0.3)
    caplog.set_level(logging.INFO, "app.api.access_log")
    clock = [1000.0]
    log = full.app.state.access_log
    monkeypatch.setattr(log._sample, "_clock", lambda: clock[0])
    monkeypatch.setattr(log._sample, "_omitted", 0)
    with connect(full) as connection:
        for number in range(60):
            origin = (f"Origin: {ORIGIN}",) if number % 2 else ()
            connection.sendall(kept(IMAGE, "User-Agent: a storm", *origin))
            check_overloaded(receive_answer(connection))
    refused = [each for each in caplog.records if getattr(each, "status", None) == 503]
    assert len(refused) == 10
    wait_until(lambda: any("more requests" in each.getMessage() for each in caplog.records))
    clock[0] += 1
    ask(full, post(IMAGE))
    omitted = [getattr(each, "omitted", 0) for each in caplog.records]
    assert sum(omitted) == 50
    early = refused[0]
    assert (early.levelno, early.route, early.code) == (logging.INFO, "/predict", "overloaded")  # type: ignore[attr-defined]
    assert (early.user_agent, early.method) == ("a storm", "POST")  # type: ignore[attr-defined]
    assert "POST /predict 503 overloaded" in early.getMessage()


@pytest.mark.usefixtures("at_once")
def test_who_was_refused_is_served_later_on_the_same_connection(
    null_server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection that was refused twice has its image's own answer once there is a model."""
    with connect(null_server) as connection:
        with monkeypatch.context() as unready:
            unready.setattr(classifier_of(null_server), "pool", Pool())
            for _ in range(2):
                connection.sendall(PREDICT)
                assert receive_answer(connection).status == 503
        connection.sendall(PREDICT)
        answer = receive_answer(connection)
    assert answer.status == 200
    assert answer.json()["predictions"][0]["class_id"] == BEST

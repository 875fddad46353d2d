"""The app on any ASGI server: plain uvicorn with both of its parsers, hypercorn, and clients without a server.

All that is missing there are the deadlines of clients that are slow before a request is one.
"""

from __future__ import annotations

import base64
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from app.api import middleware
from app.classifier import Classifier
from app.settings import Settings
from tests.any_server import KINDS, ON_A_SOCKET, Kind, Served, served_by
from tests.photos import make_jpeg, null_classes
from tests.raw_http import Answer, answers_in, post, receive_all
from tests.running import wait_until
from tests.test_concurrency import Gate

IMAGE = make_jpeg(1)
BEST = null_classes(IMAGE)[0]
BASE64 = base64.b64encode(IMAGE).decode()
ORIGIN = "https://page.example"
MEGABYTE = 1_000_000
SETTINGS = Settings(
    backend="null",
    log_level="warning",
    max_batch_size=1,
    max_queue=8,
    max_body_bytes=MEGABYTE,
    max_images=2,
    cors_origins=ORIGIN,
    body_timeout_seconds=0.5,
    body_min_rate=1_000_000_000,
)
FILES = [("image", (f"{number}.jpg", IMAGE, "image/jpeg")) for number in range(2)]


@pytest.fixture(scope="module", params=KINDS)
def served(request: pytest.FixtureRequest) -> Iterator[Served]:
    with served_by(request.param, SETTINGS) as served:
        yield served


@pytest.fixture(scope="module", params=ON_A_SOCKET)
def on_a_socket(request: pytest.FixtureRequest) -> Iterator[Served]:
    with served_by(request.param, SETTINGS) as served:
        yield served


def classifier_of(served: Served) -> Classifier:
    classifier: Classifier = served.app.state.classifier
    return classifier


def sample(served: Served, name: str, **labels: str) -> float:
    return classifier_of(served).metrics.registry.get_sample_value(name, labels) or 0.0


def connect(served: Served) -> socket.socket:
    assert served.address is not None
    return socket.create_connection(served.address, timeout=20)


# --- endpoints


@pytest.mark.parametrize(
    "arguments",
    [
        {"content": IMAGE},
        {"content": IMAGE, "params": {"top_k": 5}},
        {"content": IMAGE, "headers": {"X-Request-Timeout-Ms": "20000"}},
        {"json": {"image": BASE64}},
        {"files": FILES[:1]},
    ],
    ids=["bytes", "top_k", "a deadline", "JSON", "a form"],
)
def test_an_image_is_classified(served: Served, arguments: dict[str, Any]) -> None:
    """Every kind of body is answered with the image's classes and the headers of a prediction."""
    answer = served.post("/predict", **arguments)
    assert answer.status_code == 200, answer.text
    assert answer.json()["predictions"][0]["class_id"] == BEST
    assert len(answer.json()["predictions"]) == 5
    assert "decode;dur=" in answer.headers["Server-Timing"]
    assert answer.headers["X-Batch-Size"] == "1"
    assert answer.headers["X-Request-ID"]


def test_several_images_are_classified(served: Served) -> None:
    """A batch has a result for each image, in the order sent: here one of them is a problem."""
    files = [FILES[0], ("image", ("text.txt", b"text", "text/plain"))]
    results = served.post("/predict/batch", files=files).json()["results"]
    assert [each["status"] for each in results] == [200, 415]
    assert results[0]["predictions"][0]["class_id"] == BEST
    assert results[1]["code"] == "unsupported_image_format"


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/healthz", "application/json"),
        ("/readyz", "application/json"),
        ("/metrics", "text/plain"),
        ("/docs", "text/html"),
        ("/docs/errors", "text/html"),
        ("/openapi.json", "application/json"),
        ("/static/example.jpg", "image/jpeg"),
    ],
)
def test_pages_and_probes(served: Served, path: str, kind: str) -> None:
    """All that is not for images answers too."""
    answer = served.get(path)
    assert answer.status_code == 200
    assert answer.headers["Content-Type"].startswith(kind)


def test_each_answer_is_counted(served: Served) -> None:
    """The metrics count requests by route, status and code, as on the service's own server."""
    labels = {"route": "/predict", "status": "200", "code": ""}
    before = sample(served, "resnet_requests_total", **labels)
    served.post("/predict", content=IMAGE)
    wait_until(lambda: sample(served, "resnet_requests_total", **labels) == before + 1)


# --- errors

ERRORS: dict[str, tuple[str, str, dict[str, Any], int, str]] = {
    "no path": ("GET", "/nowhere", {}, 404, "not_found"),
    "no method": ("GET", "/predict", {}, 405, "method_not_allowed"),
    "no image": ("POST", "/predict", {"content": b""}, 400, "malformed_request"),
    "no base64": ("POST", "/predict", {"json": {"image": "*"}}, 400, "invalid_base64"),
    "text": ("POST", "/predict", {"content": b"text"}, 415, "unsupported_image_format"),
    "half": ("POST", "/predict", {"content": IMAGE[:500]}, 422, "image_corrupt"),
    "top_k": ("POST", "/predict", {"content": IMAGE, "params": {"top_k": "0"}}, 422, "invalid_parameter"),
    "packed": (
        "POST",
        "/predict",
        {"content": IMAGE, "headers": {"Content-Encoding": "gzip"}},
        415,
        "unsupported_encoding",
    ),
    "large": ("POST", "/predict", {"content": bytes(2 * MEGABYTE)}, 413, "body_too_large"),
    "large elsewhere": ("POST", "/healthz", {"content": bytes(2 * MEGABYTE)}, 413, "body_too_large"),
    "too many": ("POST", "/predict/batch", {"files": FILES + FILES}, 413, "too_many_images"),
    "no batch": ("POST", "/predict/batch", {"content": IMAGE}, 415, "unsupported_media_type"),
    "a refused preflight": (
        "OPTIONS",
        "/predict",
        {"headers": {"Origin": "https://elsewhere.example", "Access-Control-Request-Method": "POST"}},
        400,
        "malformed_request",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_every_error_is_a_problem(served: Served, name: str) -> None:
    """Whichever layer finds it, an error has its status, its code, and the request's id in body and header."""
    method, path, arguments, status, code = ERRORS[name]
    answer = served.request(method, path, **arguments)
    assert (answer.status_code, answer.headers["Content-Type"]) == (status, "application/problem+json")
    document = answer.json()
    assert (document["code"], document["status"]) == (code, status)
    assert document["request_id"] == answer.headers["X-Request-ID"]
    if status == 405:
        assert answer.headers["Allow"] == "POST"


def test_a_body_of_no_declared_size_is_counted(on_a_socket: Served) -> None:
    """A body in pieces is refused once it is over the limit."""
    answer = on_a_socket.post("/predict", content=iter([bytes(MEGABYTE // 2)] * 4))
    assert (answer.status_code, answer.json()["code"]) == (413, "body_too_large")


# --- refusals, limits and the end


@pytest.mark.parametrize("size", [len(IMAGE), 900_000], ids=["small", "large"])
def test_a_refusal_comes_before_the_body_is_used(served: Served, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """Without a model an image is refused with Retry-After, and a client that sends it whole reads the answer."""
    with monkeypatch.context() as patch:
        patch.setattr(classifier_of(served).pool, "default", None)
        answer = served.post("/predict", content=IMAGE.ljust(size, b"\0"))
    assert (answer.status_code, answer.json()["code"]) == (503, "not_ready")
    assert int(answer.headers["Retry-After"]) >= 1
    assert served.post("/predict", content=IMAGE).status_code == 200


def test_nothing_is_leased_when_all_is_answered(served: Served) -> None:
    """Answers, errors and refusals give their leases back."""
    for arguments in ({"content": IMAGE}, {"content": b"text"}, {"content": IMAGE, "params": {"top_k": "x"}}):
        served.post("/predict", **arguments)
    schedule = classifier_of(served).model.schedule
    wait_until(lambda: schedule.held == 0 and not schedule._announced)


def test_a_full_queue_refuses(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """Past the bound of reservations an image is refused, and those before it are answered."""
    gate = Gate(monkeypatch)
    schedule = classifier_of(served).model.schedule
    with ThreadPoolExecutor(16) as clients:
        try:
            answers = [clients.submit(served.post, "/predict", content=IMAGE) for _ in range(16)]
            wait_until(lambda: sum(answer.done() for answer in answers) >= 3)
        finally:
            gate.opened.set()
        statuses = [answer.result().status_code for answer in answers]
    assert set(statuses) == {200, 503}
    wait_until(lambda: schedule.held == 0)


def test_the_end_of_the_grace_period_answers_what_is_open(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request whose answer has not begun gets 503 draining when the grace period ends."""
    gate = Gate(monkeypatch)
    drain = served.app.state.drain
    with ThreadPoolExecutor(1) as clients:
        try:
            waiting = clients.submit(served.post, "/predict", content=IMAGE)
            assert gate.entered.wait(30)
            (task,) = drain.open
            task.get_loop().call_soon_threadsafe(drain.end)
            answer = waiting.result()
        finally:
            gate.opened.set()
            drain.is_over = False
    assert (answer.status_code, answer.json()["code"]) == (503, "draining")
    assert int(answer.headers["Retry-After"]) >= 1


def test_a_server_that_drains_says_so(served: Served) -> None:
    """Readiness falls; requests that still come are answered, and liveness stays."""
    classifier = classifier_of(served)
    classifier.draining = True
    try:
        statuses = [served.get(path).status_code for path in ("/healthz", "/readyz")]
        answer = served.post("/predict", content=IMAGE)
    finally:
        classifier.draining = False
    assert statuses == [200, 503]
    assert answer.status_code == 200


# --- clients that leave, and slow ones


def test_a_client_that_leaves_takes_its_request_along(on_a_socket: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that closes its connection while its image waits frees its place, and the device never sees it."""
    gate = Gate(monkeypatch)
    schedule = classifier_of(on_a_socket).model.schedule
    with connect(on_a_socket) as first, connect(on_a_socket) as leaver:
        first.sendall(post(IMAGE))
        assert gate.entered.wait(30)
        leaver.sendall(post(IMAGE))
        wait_until(lambda: schedule.held == 2)
        leaver.close()
        wait_until(lambda: schedule.held == 1)
        gate.opened.set()
        (answer,) = answers_in_any(receive_all(first))
    assert answer.status == 200
    assert gate.images == 1


@pytest.mark.parametrize("framing", ["Content-Length: 500000", "Transfer-Encoding: chunked"])
def test_a_body_that_does_not_come_is_a_408(on_a_socket: Served, framing: str) -> None:
    """A body has its deadline on any server: only headers that do not come are the server's own matter."""
    with connect(on_a_socket) as connection:
        connection.sendall(f"POST /predict HTTP/1.1\r\nHost: t\r\n{framing}\r\n\r\n".encode())
        (answer,) = answers_in_any(receive_all(connection))
    assert (answer.status, answer.json()["code"]) == (408, "request_timeout")
    assert answer.headers["connection"] == "close"


def test_a_client_that_still_sends_sees_the_refusal(on_a_socket: Served) -> None:
    """An answer given before the body was read arrives, and no reset before it."""
    with connect(on_a_socket) as connection:
        size = 20 * MEGABYTE
        connection.sendall(b"POST /predict HTTP/1.1\r\nHost: t\r\nContent-Length: %d\r\n\r\n" % size)
        connection.sendall(bytes(size))
        (answer,) = answers_in_any(receive_all(connection))
    assert (answer.status, answer.json()["code"]) == (413, "body_too_large")


def answers_in_any(received: bytes) -> list[Answer]:
    """The answers on a connection, of which a server may send interim ones before."""
    return [answer for answer in answers_in(received) if answer.status >= 200]


def test_small_bodies_keep_the_connection(on_a_socket: Served) -> None:
    """A refused request with a small body is answered, and the next one on its connection too."""
    assert len(IMAGE) < middleware.SMALL_BYTES
    for _ in range(2):
        answer = on_a_socket.post("/predict", content=IMAGE, params={"top_k": "0"})
        assert answer.status_code == 422
        assert answer.headers.get("Connection") != "close"


@pytest.mark.parametrize("kind", ON_A_SOCKET)
def test_a_server_stops_in_good_order(kind: Kind) -> None:
    """The lifespan ends with the server: the model is given back, and nothing is left running."""
    with served_by(kind, SETTINGS) as served:
        assert served.post("/predict", content=IMAGE).status_code == 200
        model = classifier_of(served).model
        assert model is not None
    assert not model.engine.state().ready

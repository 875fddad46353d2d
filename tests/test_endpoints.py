"""An endpoint is an entry of a list: whatever is in it is admitted, limited, refused, logged and answered alike."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from functools import partial

import httpx
import pytest

from app.api.endpoint import Endpoint, Endpoints, ImageEndpoint, Results
from app.api.native import PROBLEMS
from app.api.native.parser import NativeParser
from app.api.registry import all_endpoints
from app.errors import Overloaded, ServiceError, Unavailable
from app.server.refusal_bodies import RefusalBodies
from app.settings import Settings
from app.types import Classification
from tests.photos import make_jpeg, null_classes
from tests.raw_http import Answer, ask, connect, post, receive_answer
from tests.running import RunningServer, running_server, wait_until

IMAGE = make_jpeg(1, (64, 48))
BEST = null_classes(IMAGE)[0]
PATTERN = "/models/{name}/predict"
PATH = "/models/any/predict"
LIMIT = 50_000
PREFIX = "/behind/a/proxy"


class Shouted:
    """Errors of another shape than the native ones: plain text."""

    media_type = "text/x-shouted"

    def body(self, error: ServiceError, request_id: str, root_path: str) -> bytes:
        wait = error.retry_after_seconds if isinstance(error, Unavailable) else None
        again = "" if wait is None else f" {round(wait * 1e3)} ms"
        return f"100% {error.code.upper()} {request_id} {root_path}{again}".encode()


class Broken:
    """A parser with a fault of its own."""

    timeout_seconds = None

    def __init__(self, scope: object, headers: object) -> None:
        raise RuntimeError("a fault in a parser")


def number_of(results: Results) -> bytes | ServiceError:
    (outcome,) = results.images
    return str(outcome.predictions[0].class_id).encode() if isinstance(outcome, Classification) else outcome


SHOUTED = Shouted()
OTHERS: list[Endpoint] = [
    ImageEndpoint(
        path=PATTERN,
        max_body_bytes=LIMIT,
        errors=SHOUTED,
        parser=partial(NativeParser, max_images=None),
        render=number_of,
        media_type="text/x-number",
    ),
    ImageEndpoint(path="/broken", max_body_bytes=LIMIT, errors=SHOUTED, parser=Broken, render=number_of),
    Endpoint(path="/models/{name}", methods=("GET",), max_body_bytes=10, errors=SHOUTED),
]


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    """A server of the native endpoints and these, behind a proxy that strips a prefix."""
    settings = Settings(
        backend="null", port=0, log_level="warning", root_path=PREFIX, body_timeout_seconds=0.5, body_min_rate=10**9
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("app.server.app.all_endpoints", lambda settings: Endpoints([*all_endpoints(settings), *OTHERS]))
        with running_server(settings) as server:
            yield server


@pytest.fixture
def unready(server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> RunningServer:
    """The server without a model; each refusal has its turn at once."""
    monkeypatch.setattr(server.app.state.classifier.pool, "default", None)
    monkeypatch.setattr(server.app.state.early_refusals.turns, "wait_seconds", lambda: 0.0)
    return server


def check_shouted(answer: Answer, status: int, code: str) -> str:
    """It has the endpoint's own shape; the rest of its text."""
    assert (answer.status, answer.headers["content-type"].partition(";")[0]) == (status, Shouted.media_type)
    percent, shouted, request_id, prefix, *rest = answer.body.decode().split(" ")
    assert (percent, shouted, prefix) == ("100%", code.upper(), PREFIX)
    assert request_id == answer.headers["x-request-id"]
    return " ".join(rest)


def requests_counted(server: RunningServer, status: int, code: str) -> float:
    labels = {"route": PATTERN, "status": str(status), "code": code}
    registry = server.app.state.classifier.metrics.registry
    return registry.get_sample_value("resnet_requests_total", labels) or 0.0


def test_an_endpoint_is_answered_by_its_renderer(server: RunningServer) -> None:
    """The image is classified, and the answer is the endpoint's own, with the headers of every prediction."""
    before = requests_counted(server, 200, "")
    answer = httpx.post(server.address + PATH, content=IMAGE)
    assert (answer.status_code, answer.headers["Content-Type"]) == (200, "text/x-number")
    assert int(answer.text) == BEST
    assert answer.headers["X-Batch-Size"] == "1"
    assert "decode;dur=" in answer.headers["Server-Timing"]
    wait_until(lambda: requests_counted(server, 200, "") == before + 1)


@pytest.mark.parametrize(
    ("request_bytes", "status", "code"),
    [
        (post(b"text", path=PATH), 415, "unsupported_image_format"),
        (post(IMAGE, path=PATH + "?top_k=0"), 422, "invalid_parameter"),
        (post(IMAGE, "Content-Encoding: gzip", path=PATH), 415, "unsupported_encoding"),
        (post(bytes(LIMIT + 1), path=PATH), 413, "body_too_large"),
        (post(IMAGE, path="/broken"), 500, "internal"),
        (post(IMAGE, path=PATH)[:-100], 408, "request_timeout"),
        (b"POST %b HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n" % PATH.encode(), 400, "malformed_request"),
    ],
    ids=["format", "parameter", "encoding", "size", "a fault of ours", "a slow body", "a broken body"],
)
def test_an_error_has_the_endpoints_shape(
    server: RunningServer, caplog: pytest.LogCaptureFixture, request_bytes: bytes, status: int, code: str
) -> None:
    """Whichever layer finds it: the parser, the limits, the last resort, or the connection in the body's middle."""
    caplog.set_level(logging.CRITICAL)
    if status == 400:
        head, _, body = request_bytes.partition(b"\r\n\r\n")
        with connect(server) as connection:
            connection.sendall(head + b"\r\n\r\n")
            wait_until(lambda: server.app.state.drain.open)
            connection.sendall(body)
            answer = receive_answer(connection)
    else:
        (answer,) = ask(server, request_bytes)
    check_shouted(answer, status, code)


def test_errors_elsewhere_stay_problems(server: RunningServer) -> None:
    """Unknown paths, other methods of this path and the native endpoints are answered with problems."""
    for answer in (
        httpx.post(f"{server.address}/models/any/other", content=IMAGE),
        httpx.put(f"{server.address}{PATH}", content=IMAGE),
        httpx.post(f"{server.address}/predict", content=b"text"),
    ):
        assert answer.headers["Content-Type"] == "application/problem+json"


def test_an_endpoint_without_images_has_its_own_errors_and_limit(server: RunningServer) -> None:
    """One that no route answers is a 404 in its shape, and a body over its limit a 413."""
    answer = httpx.get(f"{server.address}/models/any")
    assert (answer.status_code, answer.text.split(" ")[1]) == (404, "NOT_FOUND")
    answer = httpx.request("GET", f"{server.address}/models/any", content=bytes(11))
    assert (answer.status_code, answer.text.split(" ")[1]) == (413, "BODY_TOO_LARGE")


def test_it_is_refused_by_its_headers(unready: RunningServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request for a path with a parameter is refused early, in the endpoint's shape, and counted by the pattern."""
    seen: list[str] = []
    render = type(unready.app.state.early_refusals).render
    monkeypatch.setattr(
        type(unready.app.state.early_refusals),
        "render",
        lambda refusals, refusal, *how, **named: (
            seen.append(refusal.endpoint.path) or render(refusals, refusal, *how, **named)
        ),
    )
    before = requests_counted(unready, 503, "not_ready")
    for path in (PATH, "/models/an%2520other/predict?top_k=1"):
        (answer,) = ask(unready, post(IMAGE, path=path))
        assert check_shouted(answer, 503, "not_ready") == "2000 ms"
        assert answer.headers["retry-after"] == "2"
    assert seen == [PATTERN, PATTERN]
    assert requests_counted(unready, 503, "not_ready") == before + 2


def test_both_ways_of_a_refusal_say_the_same(unready: RunningServer) -> None:
    """One that the road refuses, as of a request that asks for another protocol, differs in its id alone."""
    upgrade = post(IMAGE, "Upgrade: h2c", path=PATH).replace(b"Connection: close", b"Connection: Upgrade")
    with connect(unready) as connection:
        connection.sendall(upgrade)
        on_the_road = receive_answer(connection)
    (early,) = ask(unready, post(IMAGE, path=PATH))
    assert check_shouted(on_the_road, 503, "not_ready") == check_shouted(early, 503, "not_ready")
    early.headers.pop("connection")
    assert set(on_the_road.headers) == set(early.headers)


def test_what_is_not_documented_is_not_in_the_document(server: RunningServer) -> None:
    """The OpenAPI document has the endpoints that describe themselves."""
    document = httpx.get(f"{server.address}/openapi.json").json()
    assert sorted(document["paths"]) == ["/healthz", "/metrics", "/predict", "/predict/batch", "/readyz"]


@pytest.mark.parametrize(
    ("method", "path", "found"),
    [
        ("POST", PATH, PATTERN),
        ("POST", "/models/a b/predict", PATTERN),
        ("POST", "/models/a/b/predict", None),
        ("POST", "/models//predict", None),
        ("GET", PATH, None),
        ("GET", "/models/any", "/models/{name}"),
        ("POST", "/broken", "/broken"),
        ("POST", "/broken/", None),
        ("post", "/broken", None),
    ],
)
def test_an_endpoint_is_found_by_method_and_path(method: str, path: str, found: str | None) -> None:
    """A parameter is one part of the path, and never empty."""
    endpoint = Endpoints(OTHERS).find(method, path)
    assert (endpoint.path if endpoint else None) == found


class InSeconds:
    """A format that the template cannot hold: it says the wait in another unit."""

    media_type = "text/plain"

    def body(self, error: ServiceError, request_id: str, root_path: str) -> bytes:
        assert isinstance(error, Unavailable)
        return f"{error.retry_after_seconds:.3f}".encode()


@pytest.mark.parametrize("errors", [PROBLEMS, SHOUTED, InSeconds()], ids=lambda errors: type(errors).__name__)
@pytest.mark.parametrize("wait", [None, 0.1, 12.3456])
def test_a_prepared_body_is_the_formats_own(errors: Shouted, wait: float | None) -> None:
    """For each refusal, the first of its kind and the later ones, it is byte for byte what the format renders."""
    if wait is None and isinstance(errors, InSeconds):
        wait = 3.0
    bodies = RefusalBodies()
    for request_id, factor in (("first", 1.0), ("second_987654321", 2.5), ("third", 0.3)):
        error = Overloaded("100% busy, %s and %(id)b", None if wait is None else wait * factor)
        prepared = bodies.body(errors, error, request_id, PREFIX)
        assert prepared == errors.body(error, request_id, PREFIX)
        if isinstance(errors, type(PROBLEMS)):
            assert json.loads(prepared)["request_id"] == request_id

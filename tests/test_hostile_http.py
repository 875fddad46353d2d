"""Requests that nobody sends by mistake, over a socket, to a service in a process of its own."""

from __future__ import annotations

import base64
import json
import re
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.pace import within
from tests.photos import make_jpeg, null_classes
from tests.process_costs import MEGABYTE, growth, quickest, ready_service
from tests.raw_http import Answer, answers_in, ask, connect, post, receive_all, receive_answer
from tests.running import ServiceProcess

IMAGE = make_jpeg(1)
BEST = null_classes(IMAGE)[0]
POST = b"POST /predict HTTP/1.1\r\nHost: test\r\n"
GET = b"GET /healthz HTTP/1.1\r\nHost: test\r\n"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    """A ready service, its log lines JSON."""
    with ready_service(tmp_path_factory.mktemp("service")) as service:
        assert good(service.address)
        yield service
        assert good(service.address)


def good(address: str) -> bool:
    """Whether a good request is answered as ever."""
    (answer,) = ask(address, post(IMAGE))
    return answer.status == 200 and answer.json()["predictions"][0]["class_id"] == BEST


def check(answer: Answer, status: int, code: str) -> None:
    assert (answer.status, answer.json()["code"]) == (status, code)
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["request_id"] == answer.headers["x-request-id"]


# --- not HTTP, or not quite

NOT_HTTP = {
    "noise": bytes(range(256)) * 4,
    "a TLS greeting": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500),
    "an SSH greeting": b"SSH-2.0-OpenSSH_9.2\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(20),
    "HTTP/0.9": b"GET /healthz\r\n\r\n",
    "HTTP/9.9": b"GET /healthz HTTP/9.9\r\nHost: test\r\n\r\n",
    "a method that is none": b"BREW /predict HTTP/1.1\r\nHost: test\r\n\r\n",
    "a tunnel": b"CONNECT example.com:443 HTTP/1.1\r\nHost: example.com\r\n\r\n",
    "a path in UTF-8": "GET /prädikt HTTP/1.1\r\nHost: test\r\n\r\n".encode(),
    "a null byte in the path": b"GET /heal\0thz HTTP/1.1\r\nHost: test\r\n\r\n",
    "a null byte in a header": GET + b"X: a\0b\r\n\r\n",
    "a header without a name": GET + b": b\r\n\r\n",
    "a space before the colon": GET + b"X : b\r\n\r\n",
    "a folded header": GET + b"X: a\r\n b\r\n\r\n",
    "a bare carriage return": GET + b"X: a\rb\r\n\r\n",
    "a length that is no number": POST + b"Content-Length: ten\r\n\r\n",
    "a length below nothing": POST + b"Content-Length: -1\r\n\r\n",
    "a length beyond all": POST + b"Content-Length: %d\r\n\r\n" % 10**30,
    "two lengths": POST + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
    "a length and chunks": POST + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"0\r\n\r\nGET /admin HTTP/1.1\r\nHost: t\r\n\r\n",
    "chunks and a length": POST + b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n"
    b"0\r\n\r\nGET /admin HTTP/1.1\r\nHost: t\r\n\r\n",
    "chunked, not last": POST + b"Transfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n",
    "a chunk of no length": POST + b"Transfer-Encoding: chunked\r\n\r\nxyz\r\nabc\r\n",
    "a chunk longer than said": POST + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabcdef\r\n0\r\n\r\n",
}


@pytest.mark.parametrize("name", NOT_HTTP)
def test_what_is_not_http_is_one_problem(service: ServiceProcess, name: str) -> None:
    """One answer, a 400 in the one shape, and the connection closes: nothing behind it is taken for a request."""
    (answer,) = ask(service.address, NOT_HTTP[name])
    check(answer, 400, "malformed_request")
    assert answer.headers["connection"] == "close"


def test_a_good_request_is_answered_before_the_garbage_behind_it(service: ServiceProcess) -> None:
    """What is pipelined behind a good request does not spoil its answer, and ends the connection."""
    keep = post(IMAGE).replace(b"Connection: close\r\n", b"")
    with connect(service.address) as connection:
        connection.sendall(keep + b"\0\0garbage\r\n\r\n")
        first, *rest = answers_in(receive_all(connection))
    assert first.status == 200
    assert [answer.status for answer in rest] == [400]


def test_pipelined_requests_are_answered_in_their_order(service: ServiceProcess) -> None:
    """Twenty requests in one piece: twenty answers, each its own."""
    images = [make_jpeg(seed, (64, 48)) for seed in range(20)]
    pieces = [post(image).replace(b"Connection: close\r\n", b"") for image in images[:-1]] + [post(images[-1])]
    with connect(service.address) as connection:
        connection.sendall(b"".join(pieces))
        answers = answers_in(receive_all(connection))
    assert [answer.json()["predictions"][0]["class_id"] for answer in answers] == [
        null_classes(image)[0] for image in images
    ]


@pytest.mark.parametrize("protocol", ["websocket", "h2c"])
def test_an_offer_to_upgrade_is_passed_over(service: ServiceProcess, protocol: str) -> None:
    """A request that offers another protocol is answered as if it did not, body and all, and so is the next one."""
    offer = ("Upgrade: " + protocol, "HTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA")
    first = post(IMAGE, *offer).replace(b"Connection: close", b"Connection: Upgrade, HTTP2-Settings")
    chunked = first.split(b"\r\n\r\n", 1)[0].replace(
        b"Content-Length: %d" % len(IMAGE), b"Transfer-Encoding: chunked"
    ) + b"\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(IMAGE), IMAGE)
    no_body = GET + b"Connection: Upgrade\r\nUpgrade: " + protocol.encode() + b"\r\n\r\n"
    for pieces in (
        [first + chunked + no_body + post(IMAGE)],
        [first[:300], first[300:], chunked, no_body, post(IMAGE)],
    ):
        with connect(service.address) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for piece in pieces:
                connection.sendall(piece)
            answers = answers_in(receive_all(connection))
        assert [answer.status for answer in answers] == [200, 200, 200, 200]
        assert [answer.json()["predictions"][0]["class_id"] for answer in (*answers[:2], answers[3])] == [BEST] * 3


# --- floods

FLOODS = {
    "one header without end": GET + b"X: " + b"a" * (64 * MEGABYTE),
    "one long header": GET + b"X: " + b"a" * 40_000 + b"\r\n\r\n",
    "a name without end": GET + b"a" * (64 * MEGABYTE),
    "100,000 headers": GET + b"".join(b"X-%d: 1\r\n" % number for number in range(100_000)) + b"\r\n",
    "101 headers": GET + b"".join(b"X-%d: 1\r\n" % number for number in range(100)) + b"\r\n",
    "a path without end": b"GET /" + b"a" * (64 * MEGABYTE),
    "a long query": b"GET /healthz?" + b"a" * 40_000 + b" HTTP/1.1\r\nHost: t\r\n\r\n",
    "trailers without end": post(b"").replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")
    + b"0\r\nX: "
    + b"a" * (64 * MEGABYTE),
    "a chunk's extension without end": post(b"").replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")
    + b"5;x="
    + b"a" * (64 * MEGABYTE),
}


@pytest.mark.parametrize("name", FLOODS)
def test_heads_without_end_are_cut(service: ServiceProcess, name: str) -> None:
    """A 431 at the bound, whatever part of a head is too large; what more comes is thrown away and holds no memory."""
    answers: list[Answer] = []
    grown = growth(service, lambda: answers.extend(ask(service.address, FLOODS[name])))
    (answer,) = answers
    check(answer, 431, "headers_too_large")
    assert grown < 8 * MEGABYTE


def test_heads_within_the_bounds_pass(service: ServiceProcess) -> None:
    """99 headers, and 30 kB of one, are served."""
    many = GET + b"".join(b"X-%d: 1\r\n" % number for number in range(98)) + b"Connection: close\r\n\r\n"
    large = GET + b"Connection: close\r\nX: " + b"a" * 30_000 + b"\r\n\r\n"
    assert [ask(service.address, head)[0].status for head in (many, large)] == [200, 200]


def test_a_declared_body_over_the_limit_is_refused_before_it_is_read(service: ServiceProcess) -> None:
    """413 within 50 ms of the headers; not a byte of the body was sent."""

    def declare() -> None:
        head = POST + b"Content-Length: 10000001\r\n\r\n"
        with connect(service.address) as connection:
            connection.sendall(head)
            check(receive_answer(connection), 413, "body_too_large")

    assert quickest(declare) < 0.05


def test_a_chunked_body_is_refused_at_the_limit(service: ServiceProcess) -> None:
    """413 no later than 64 KB past the limit, to a client that then waits for an answer."""
    with connect(service.address) as connection:
        connection.sendall(POST + b"Transfer-Encoding: chunked\r\n\r\n")
        whole = bytes(10_000_000 + 65_536)
        for at in range(0, len(whole), 50_000):
            piece = whole[at : at + 50_000]
            connection.sendall(b"%x\r\n%b\r\n" % (len(piece), piece))
        (answer,) = answers_in(receive_all(connection))
    check(answer, 413, "body_too_large")


def multipart(*parts: bytes) -> bytes:
    return b"".join(b"--b\r\n" + part + b"\r\n" for part in parts) + b"--b--\r\n"


FORM = "Content-Type: multipart/form-data; boundary=b"


def test_a_form_of_many_parts_is_refused(service: ServiceProcess) -> None:
    """1,001 parts: 400 within 100 ms."""
    body = multipart(*[b'Content-Disposition: form-data; name="a"\r\n\r\nb'] * 1001)

    def send() -> None:
        check(ask(service.address, post(body, FORM))[0], 400, "malformed_request")

    assert quickest(send) < 0.1


JSON = "Content-Type: application/json"
BAD_BODIES: dict[str, tuple[bytes, tuple[str, ...], int, str]] = {
    "JSON a million deep": (b"[" * 1_000_000, (JSON,), 400, "malformed_request"),
    "JSON a million deep, in its place": (
        b'{"image": ' + b'{"a":' * 1_000_000 + b"1" + b"}" * 1_000_001,
        (JSON,),
        400,
        "malformed_request",
    ),
    "a number of a million digits": (
        b'{"image": "", "top_k": ' + b"9" * 1_000_000 + b"}",
        (JSON,),
        400,
        "malformed_request",
    ),
    "bytes that are no UTF-8": (b'{"image": "\xff\xfe"}', (JSON,), 400, "malformed_request"),
    "half a surrogate": (b'{"image": "\\ud800"}', (JSON,), 400, "malformed_request"),
    "NaN": (b'{"image": NaN}', (JSON,), 400, "malformed_request"),
    "base64 with a hole": (b'{"image": "aGVs bG8*"}', (JSON,), 400, "invalid_base64"),
    "base64 without its end": (b'{"image": "aGVsbG8"}', (JSON,), 400, "invalid_base64"),
    "the URL alphabet": (b'{"image": "_-_-"}', (JSON,), 400, "invalid_base64"),
    "a list of data: URLs": (
        b'{"image": "data:image/png;base64,aGk=,data:image/png;base64,aGk="}',
        (JSON,),
        400,
        "invalid_base64",
    ),
    "a data: URL that is not base64": (b'{"image": "data:image/png,%89PNG"}', (JSON,), 400, "invalid_base64"),
    "an address": (b'{"image": "http://127.0.0.1:1/a.jpg"}', (JSON,), 400, "invalid_base64"),
    "a file's address": (b'{"image": "file:///etc/passwd"}', (JSON,), 400, "invalid_base64"),
    "gzip": (b"\x1f\x8b" + bytes(100), ("Content-Encoding: gzip",), 415, "unsupported_encoding"),
    "brotli within identity": (IMAGE, ("Content-Encoding: identity, br",), 415, "unsupported_encoding"),
    "a form without a boundary": (IMAGE, ("Content-Type: multipart/form-data",), 400, "malformed_request"),
    "a boundary of 10,000 letters": (
        b"--" + b"b" * 10_000,
        ("Content-Type: multipart/form-data; boundary=" + "b" * 10_000,),
        400,
        "malformed_request",
    ),
    "a form that does not end": (multipart(b"X: y\r\n\r\n" + IMAGE)[:-9], (FORM,), 400, "malformed_request"),
    "a part's header without end": (b"--b\r\nX: " + b"a" * 1_000_000, (FORM,), 400, "malformed_request"),
    "a part of 10,000 headers": (b"--b\r\n" + b"X: y\r\n" * 10_000, (FORM,), 400, "malformed_request"),
    "an image that is a page": (
        b"<html><body>cat</body></html>",
        ("Content-Type: image/png",),
        415,
        "unsupported_image_format",
    ),
    "nothing": (b"", (), 400, "malformed_request"),
}


@pytest.mark.parametrize("name", BAD_BODIES)
def test_bad_bodies_are_told_apart(service: ServiceProcess, name: str) -> None:
    """Each has its own status and code, within 2 s and 64 MB."""
    body, headers, status, code = BAD_BODIES[name]
    answers: list[Answer] = []
    with within(2):
        grown = growth(service, lambda: answers.extend(ask(service.address, post(body, *headers))))
    check(answers[0], status, code)
    assert grown < 64 * MEGABYTE


def test_the_bytes_decide_what_they_are(service: ServiceProcess) -> None:
    """A JPEG is a JPEG under any content type that is no form and no JSON, and with any name in a form."""
    for kind in ("image/png", "text/html", "application/x-www-form-urlencoded", "nonsense", "image/svg+xml"):
        assert ask(service.address, post(IMAGE, f"Content-Type: {kind}"))[0].status == 200
    part = b'Content-Disposition: form-data; name="x"; filename="../../etc/passwd"\r\nContent-Type: text/plain\r\n\r\n'
    assert ask(service.address, post(multipart(part + IMAGE), FORM))[0].status == 200


@pytest.mark.parametrize(
    "path",
    [
        "/..%2f..%2fetc%2fpasswd",
        "/../../etc/passwd",
        "/static/..%2f..%2fsettings.py",
        "/static/%2e%2e/%2e%2e/settings.py",
        "/static/docs.css%00.js",
        "//etc/passwd",
        "/predict/..%2f..%2fetc",
        "/models/..%2f..%2fetc/predict",
        "/predict/",
        "/docs/errors/",
        "/%0d%0aSet-Cookie:%20a=b",
    ],
)
def test_paths_that_climb_lead_nowhere(service: ServiceProcess, path: str) -> None:
    """404 in the one shape; no redirect, and nothing of the path in the answer."""
    (answer,) = ask(service.address, f"GET {path} HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n".encode())
    check(answer, 404, "not_found")
    assert "evil" not in str(answer.headers) + answer.body.decode()
    assert "set-cookie" not in answer.headers


# --- ids and log lines


def log_lines(service: ServiceProcess, request_id: str) -> list[dict[str, Any]]:
    service.wait_for(request_id)
    return [json.loads(line) for line in service.lines if request_id in line]


@pytest.mark.parametrize(
    "sent",
    ["", "a b", "a" * 65, "a;b", "a/b", "ä", "a\tb", '"}', "${jndi:ldap://x}", "%0a", "../a", "a,b"],
)
def test_a_request_id_that_could_do_harm_is_replaced(service: ServiceProcess, sent: str) -> None:
    """Only letters, digits, - and _ come back, 64 of them at most; else the service makes one of its own."""
    (answer,) = ask(service.address, post(IMAGE, f"X-Request-ID: {sent}"))
    assert answer.status == 200
    assert re.fullmatch(r"[0-9a-f]{32}", answer.headers["x-request-id"])


def test_each_request_is_one_log_line(service: ServiceProcess) -> None:
    """A JSON object with the request's id, status, code, sizes and times."""
    ask(service.address, post(IMAGE, "X-Request-ID: one-good-request", "User-Agent: tests", path="/predict?top_k=2"))
    ask(service.address, post(b"no image", "X-Request-ID: one-bad-request"))
    ask(service.address, NOT_HTTP["noise"])
    (good_line,) = log_lines(service, "one-good-request")
    assert {name: good_line[name] for name in ("level", "method", "path", "route", "status", "code", "user_agent")} == {
        "level": "INFO",
        "method": "POST",
        "path": "/predict",
        "route": "/predict",
        "status": 200,
        "code": None,
        "user_agent": "tests",
    }
    assert good_line["received_bytes"] == len(IMAGE)
    assert good_line["sent_bytes"] > 50
    assert good_line["batch_size"] == 1
    assert good_line["total_ms"] > good_line["decode_ms"] > 0
    assert {"queue_ms", "inference_ms", "client", "time"} <= good_line.keys()
    (bad_line,) = log_lines(service, "one-bad-request")
    assert (bad_line["status"], bad_line["code"]) == (415, "unsupported_image_format")
    refused = json.loads(service.wait_for('"status": 400'))
    assert refused["code"] == "malformed_request"
    assert refused["request_id"]


@pytest.mark.parametrize("sent", [b"", IMAGE[:1000]], ids=["no body", "half a body"])
def test_a_client_that_leaves_is_logged_as_gone(service: ServiceProcess, sent: bytes) -> None:
    """499 client_gone, and no error: nobody was there to answer."""
    request_id = f"leaves-{len(sent)}"
    with connect(service.address) as connection:
        connection.sendall(POST + f"Content-Length: 5000\r\nX-Request-ID: {request_id}\r\n\r\n".encode() + sent)
    (line,) = log_lines(service, request_id)
    assert (line["level"], line["status"], line["code"]) == ("INFO", 499, "client_gone")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    data=st.one_of(
        st.binary(min_size=1, max_size=300),
        st.builds(
            lambda request, at, piece: request[:at] + piece + request[at:],
            st.sampled_from(
                [
                    post(b"{}", "Content-Type: application/json"),
                    GET + b"Connection: close\r\n\r\n",
                    POST + b"Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
                ]
            ),
            st.integers(0, 100),
            st.binary(min_size=1, max_size=20)
            | st.sampled_from([b"\r\n", b"\n", b"\0", b": ", b"Content-Length: 1\r\n"]),
        ),
    )
)
def test_any_bytes_on_a_connection(service: ServiceProcess, data: bytes) -> None:
    """Whatever is said, each answer is HTTP and none a 5xx; a request that is not whole is waited for and no more."""
    with connect(service.address) as connection:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        for answer in answers_in(receive_all(connection)):
            assert answer.status < 500
            assert answer.status < 400 or answer.json()["code"]


def test_nothing_a_client_sends_forges_a_log_line(service: ServiceProcess) -> None:
    """Line breaks, quotes, escapes and terminals' sequences in a path, a header, a file name: still one line each, and
    every line that was written is JSON."""
    forged = '{"level": "ERROR", "message": "forged"}'
    part = f'Content-Disposition: form-data; name="f"; filename="a\r\n{forged}\r\n"\r\n\r\n'.encode()
    nasty = f'quote" \x1b[2J\x9b31m \u2028 {forged}'.encode()
    head = b"POST /predict?a=%0d%0a" + b"%22%7d HTTP/1.1\r\nHost: t\r\nConnection: close\r\nX-Request-ID: nasty-1\r\n"
    ask(service.address, head + b"Content-Length: 0\r\n\r\n")
    ask(service.address, post(multipart(part + IMAGE), FORM, "X-Request-ID: nasty-2"))
    ask(service.address, b"GET /%0a%0d" + b" HTTP/1.1\r\nHost: t\r\nConnection: close\r\nX-Request-ID: nasty-3\r\n\r\n")
    agent = b"GET /nowhere HTTP/1.1\r\nHost: t\r\nConnection: close\r\nX-Request-ID: nasty-4\r\nUser-Agent: " + nasty
    ask(service.address, agent.replace(b"\x1b", b"") + b"\r\n\r\n")
    for number in range(1, 5):
        assert len(log_lines(service, f"nasty-{number}")) == 1
    lines = [json.loads(line) for line in service.lines]
    assert not any(line["message"] == "forged" for line in lines)
    assert all(character.isprintable() for line in service.lines for character in line)


def test_secrets_in_headers_and_bodies_are_not_logged(service: ServiceProcess) -> None:
    """Credentials, cookies, queries and images stay out of the log."""
    secret = "s3cr3t-t0k3n"
    encoded = base64.b64encode(secret.encode() * 30).decode()
    body = json.dumps({"image": encoded, secret: 1}).encode()
    headers = (JSON, f"Authorization: Bearer {secret}", f"Cookie: a={secret}", "X-Request-ID: with-secrets")
    ask(service.address, post(body, *headers, path=f"/predict?token={secret}"))
    assert len(log_lines(service, "with-secrets")) == 1
    assert not any(secret in line or encoded[:20] in line for line in service.lines)

"""The proxy of docker-compose.proxy.yml: Debian's nginx, started by its own script, in front of real servers."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.errors import (
    BodyTooLarge,
    DeadlineExceeded,
    EngineUnavailable,
    HeadersTooLarge,
    MalformedRequest,
    MethodNotAllowed,
    NotFound,
    Overloaded,
    ServiceError,
)
from app.settings import Settings
from tests.certificates import self_signed
from tests.pace import within
from tests.running import RunningServer, wait_until

START = Path(__file__).parent.parent / "proxy" / "start.sh"
# Debian keeps it where only root's PATH leads.
NGINX = shutil.which("nginx", path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
MEGABYTE = 1_000_000

pytestmark = pytest.mark.skipif(NGINX is None, reason="nginx is not installed (Debian: apt-get install nginx)")


# --- what runs


@dataclass
class Proxy:
    """nginx, as the container starts it."""

    process: subprocess.Popen[bytes]
    folder: Path
    port: int
    tls_port: int

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def said(self) -> str:
        """What the script and nginx wrote to stderr."""
        return (self.folder / "stderr").read_text(encoding="utf-8", errors="replace")

    def log(self) -> list[dict[str, Any]]:
        """The access log so far: each line is one JSON object in ASCII."""
        text = (self.folder / "stdout").read_bytes().decode("ascii")
        return [json.loads(line) for line in text.split("\n") if line]

    def logged(self, request_id: str) -> dict[str, Any]:
        """The one line of a request; nginx writes it after the answer."""
        found: list[dict[str, Any]] = []

        def is_there() -> bool:
            found[:] = [line for line in self.log() if line["request_id"] == request_id]
            return bool(found)

        wait_until(is_there)
        (line,) = found
        return line

    def ask(self, request: bytes) -> tuple[http.client.HTTPResponse, bytes]:
        """Send bytes as they are and read one answer."""
        with self.connect() as connection:
            connection.sendall(request)
            return answer_on(connection)

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=30)


def answer_on(connection: socket.socket) -> tuple[http.client.HTTPResponse, bytes]:
    with contextlib.closing(http.client.HTTPResponse(connection)) as answer:
        answer.begin()
        return answer, answer.read()


def environment(folder: Path, service: str, **variables: str) -> dict[str, str]:
    """What start.sh is given, with free ports for nginx."""
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(3)]
        listen, tls_listen, probe = (f"127.0.0.1:{each.getsockname()[1]}" for each in sockets)
    return {
        "PATH": os.environ["PATH"] + ":/usr/sbin:/sbin",
        "PROXY_RUN": str(folder),
        "PROXY_TLS": str(folder / "tls"),
        "PROXY_LISTEN": listen,
        "PROXY_TLS_LISTEN": tls_listen,
        "PROXY_PROBE": probe,
        "PROXY_SERVICE": service.removeprefix("http://"),
        "RESNET_PUBLISH_TLS": tls_listen,
    } | variables


def command() -> list[str]:
    # Started by root, as in a CI container, nginx gives its workers to a user who cannot read pytest's folders.
    return ["sh", str(START), *(["-g", "user root;"] if os.getuid() == 0 else [])]


@contextlib.contextmanager
def proxy_before(service: str, folder: Path, **variables: str) -> Iterator[Proxy]:
    """Run the proxy in front of the service at an address until the block ends."""
    given = environment(folder, service, **variables)
    with (folder / "stdout").open("wb") as stdout, (folder / "stderr").open("wb") as stderr:
        process = subprocess.Popen(command(), env=given, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr)
    port, tls_port = (int(given[name].rpartition(":")[2]) for name in ("PROXY_LISTEN", "PROXY_TLS_LISTEN"))
    proxy = Proxy(process, folder, port, tls_port)

    def answers() -> bool:
        # A connection is not enough: the check of the configuration, before the start, listens for a moment too.
        assert process.poll() is None, proxy.said
        with contextlib.closing(http.client.HTTPConnection(given["PROXY_PROBE"], timeout=5)) as probe:
            try:
                probe.request("GET", "/")
                return probe.getresponse().status == 204
            except (OSError, http.client.HTTPException):
                return False

    try:
        wait_until(answers)
        yield proxy
    finally:
        # Its workers end with it; a killed master would leave them behind.
        process.send_signal(signal.SIGTERM)
        process.wait(30)


@dataclass
class Echo:
    """A stand-in for the service that answers with what it was asked, once `may_answer` is set."""

    address: str = ""
    may_answer: threading.Event = field(default_factory=threading.Event)
    hang_up: bool = False
    asked: list[dict[str, Any]] = field(default_factory=list)


@contextlib.contextmanager
def echoing() -> Iterator[Echo]:
    echo = Echo()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
            headers = [(name.lower(), value) for name, value in self.headers.items()]
            seen = {"method": self.command, "target": self.path, "headers": headers, "body_bytes": len(body)}
            echo.asked.append(seen)
            echo.may_answer.wait(30)
            if echo.hang_up:
                self.close_connection = True
                return
            text = json.dumps(seen).encode()
            with contextlib.suppress(ConnectionError):
                self.send_response(200)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

        do_POST = do_GET

        def log_message(self, format: str, *args: Any) -> None:
            pass

    class Quiet(ThreadingHTTPServer):
        daemon_threads = True

    with Quiet(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        echo.address = f"http://127.0.0.1:{server.server_address[1]}"
        echo.may_answer.set()
        try:
            yield echo
        finally:
            echo.may_answer.set()
            server.shutdown()
            thread.join(30)


@pytest.fixture(scope="module")
def proxy(null_server: RunningServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    with proxy_before(null_server.address, tmp_path_factory.mktemp("proxy")) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def through(proxy: Proxy) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=proxy.address, timeout=30) as client:
        yield client


@pytest.fixture
def echo() -> Iterator[Echo]:
    with echoing() as echo:
        yield echo


def assert_problem(
    answer: http.client.HTTPResponse | httpx.Response,
    body: bytes,
    error: ServiceError,
    retry_after_seconds: int | None = None,
    request_id: str | None = None,
) -> None:
    """The answer is `error` in the service's shape: these members, these words, and no others."""
    headers = {name.lower(): value for name, value in answer.headers.items()}
    if request_id is None:
        request_id = headers["x-request-id"]
        assert re.fullmatch("[0-9a-f]{32}", request_id)
    expected: dict[str, Any] = {
        "type": f"/docs/errors#{error.code}",
        "title": error.title,
        "status": error.status,
        "detail": error.detail,
        "code": error.code,
        "request_id": request_id,
        "retryable": error.retryable,
    }
    if retry_after_seconds is not None:
        expected["retry_after_ms"] = retry_after_seconds * 1000
    document = json.loads(body)
    assert document == expected
    assert list(document) == list(expected)
    status = answer.status_code if isinstance(answer, httpx.Response) else answer.status
    assert status == error.status
    assert headers["content-type"] == "application/problem+json"
    assert headers["x-request-id"] == request_id
    assert headers.get("retry-after") == (None if retry_after_seconds is None else str(retry_after_seconds))
    assert headers["server"] == "nginx"


def request(line: str, *headers: str) -> bytes:
    return "\r\n".join([line, *headers, "Host: proxy", "Connection: close", "", ""]).encode("latin-1")


# --- what passes


def test_images_are_classified_through_the_proxy(
    client: httpx.Client, through: httpx.Client, example_jpeg: bytes
) -> None:
    """/predict and /predict/batch answer as they do without the proxy, in memory and from its files."""
    for image in (example_jpeg, example_jpeg + bytes(9 * MEGABYTE)):
        direct = client.post("/predict", content=image).json()
        answer = through.post("/predict", content=image)
        assert answer.status_code == 200
        assert answer.json()["predictions"] == direct["predictions"]
    files = [("images", (f"{number}.jpg", example_jpeg)) for number in range(3)]
    batch = through.post("/predict/batch", files=files)
    assert batch.status_code == 200
    assert batch.json()["results"][2]["predictions"]


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/docs", "/openapi.json"])
def test_everything_but_the_metrics_is_served(client: httpx.Client, through: httpx.Client, path: str) -> None:
    """Probes and pages pass as they are."""
    assert through.get(path).status_code == client.get(path).status_code == 200
    assert through.get(path).content == client.get(path).content


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "/nothing", b""),
        ("GET", "/predict", b""),
        ("POST", "/predict", b"no image"),
        ("POST", "/predict?top_k=-1", b"no image"),
        ("POST", "/predict/batch", b"no form"),
    ],
)
def test_the_services_own_problems_pass_unchanged(
    client: httpx.Client, through: httpx.Client, method: str, path: str, body: bytes
) -> None:
    """A problem of the service comes through to the byte, with its headers."""
    headers = {"X-Request-ID": "the-same", "Content-Type": "application/octet-stream"}
    direct, passed = (each.request(method, path, content=body, headers=headers) for each in (client, through))
    assert passed.status_code == direct.status_code >= 400
    assert passed.content == direct.content
    # The connection's own, and the sender's.
    ours = {"date", "server", "connection"}
    assert {name: value for name, value in passed.headers.items() if name not in ours} == {
        name: value for name, value in direct.headers.items() if name not in ours
    }


def test_a_request_id_is_passed_on_where_it_is_harmless(through: httpx.Client) -> None:
    """The client's own id comes back where the service would take it; any other is replaced, once for both."""
    kept = through.get("/nothing", headers={"X-Request-ID": "Aa0_-" + "x" * 59})
    assert kept.headers["X-Request-ID"] == kept.json()["request_id"] == "Aa0_-" + "x" * 59
    for harmful in ("x" * 65, "a b", 'a"b', "ä".encode().decode("latin-1"), ""):
        replaced = through.get("/nothing", headers={"X-Request-ID": harmful.encode("latin-1")})
        assert re.fullmatch("[0-9a-f]{32}", replaced.headers["X-Request-ID"])
        assert replaced.json()["request_id"] == replaced.headers["X-Request-ID"]


def test_what_a_client_claims_of_itself_goes_no_further(echo: Echo, tmp_path: Path) -> None:
    """The service is told the connection's address and scheme, not those that a client made up; paths stay encoded."""
    claims = {"X-Forwarded-For": "1.2.3.4", "X-Forwarded-Proto": "https", "X_Forwarded_For": "1.2.3.4"}
    with proxy_before(echo.address, tmp_path) as proxy:
        seen = httpx.get(f"{proxy.address}/a%2Fb/%C3%A4?x=%20", headers=claims).json()
    forwarded = [pair for pair in seen["headers"] if "forwarded" in pair[0]]
    assert forwarded == [["x-forwarded-for", "127.0.0.1"], ["x-forwarded-proto", "http"]]
    assert ["host", f"127.0.0.1:{proxy.port}"] in seen["headers"]
    assert seen["target"] == "/a%2Fb/%C3%A4?x=%20"


def test_the_service_sees_a_request_when_it_is_whole(echo: Echo, tmp_path: Path) -> None:
    """While half of a body is on its way the service is not asked."""
    with proxy_before(echo.address, tmp_path) as proxy, proxy.connect() as slow:
        slow.sendall(request("POST /predict HTTP/1.1", "Content-Length: 200000") + bytes(100_000))
        # A request that came later, and is answered, shows that the first has not gone on.
        assert httpx.get(f"{proxy.address}/later").status_code == 200
        assert [each["target"] for each in echo.asked] == ["/later"]
        slow.sendall(bytes(100_000))
        answer, body = answer_on(slow)
    assert answer.status == 200
    assert json.loads(body)["body_bytes"] == 200_000


# --- what nginx refuses itself


@pytest.mark.parametrize(
    ("sent", "error"),
    [
        (b"NONSENSE\r\n\r\n", MalformedRequest()),
        (b"GET /predict HTTP/1.1\r\nConnection: close\r\n\r\n", MalformedRequest()),
        (request("GET /predict HTTP/9.9"), MalformedRequest()),
        (request("GET /%00 HTTP/1.1"), MalformedRequest()),
        (request("POST /predict HTTP/1.1", "Content-Length: 1", "Content-Length: 2"), MalformedRequest()),
        (request("POST /predict HTTP/1.1", "Content-Length: 5", "Transfer-Encoding: chunked"), MalformedRequest()),
        (request("POST /predict HTTP/1.1", "Transfer-Encoding: gzip"), MalformedRequest()),
        (request("TRACE /predict HTTP/1.1"), MethodNotAllowed()),
        (request("GET /" + "a" * 9000 + ".html HTTP/1.1"), HeadersTooLarge()),
        (request("GET /page.html HTTP/1.1", "Cookie: " + "a" * 9000), HeadersTooLarge()),
        (request("GET / HTTP/1.1", *[f"X-{number}: {'a' * 7000}" for number in range(6)]), HeadersTooLarge()),
        (request("GET /.problem/malformed_request HTTP/1.1"), NotFound()),
        (request("POST /predict HTTP/1.1", "Content-Length: 10000001"), BodyTooLarge(10_000_000)),
        (request("POST /predict/batch HTTP/1.1", "Content-Length: 64000001"), BodyTooLarge(64_000_000)),
        (request("POST /other.jpg HTTP/1.1", "Content-Length: 10000001"), BodyTooLarge(10_000_000)),
    ],
)
def test_nginx_refuses_in_the_services_words(proxy: Proxy, sent: bytes, error: ServiceError) -> None:
    """What nginx refuses before the service is asked has the service's shape, status and texts."""
    answer, body = proxy.ask(sent)
    assert_problem(answer, body, error)
    assert answer.getheader("Allow") == ("POST" if error.status == 405 else None)


def test_nginxs_problems_carry_the_clients_request_id(proxy: Proxy) -> None:
    """A refusal of nginx names the id that the client gave."""
    for sent in (
        request("GET /metrics HTTP/1.1", "X-Request-ID: my-id"),
        request("GET / HTTP/1.1", "X-Request-ID: my-id", "Cookie: " + "a" * 9000),
    ):
        answer, body = proxy.ask(sent)
        assert answer.getheader("X-Request-ID") == json.loads(body)["request_id"] == "my-id"


@pytest.mark.parametrize(
    "path",
    ["/metrics", "/metrics/", "/metrics?x", "/%6Detrics", "//metrics", "/a/../metrics", "/metrics/x", "/metrics#x"],
)
def test_metrics_are_not_for_the_outside(proxy: Proxy, path: str) -> None:
    """No way to write /metrics leads to it."""
    answer, body = proxy.ask(request(f"GET {path} HTTP/1.1"))
    assert_problem(answer, body, NotFound())


def test_the_413_reaches_a_client_that_is_still_sending(proxy: Proxy) -> None:
    """http.client, which reads only when it has sent all 20 MB, gets the problem and no reset."""
    connection = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=30)
    with contextlib.closing(connection):
        connection.request("POST", "/predict", body=bytes(20 * MEGABYTE))
        answer = connection.getresponse()
        assert_problem(answer, answer.read(), BodyTooLarge(10_000_000))


def test_a_body_without_a_length_is_counted(proxy: Proxy) -> None:
    """A chunked body is refused once it is over the limit, with the same answer."""

    def chunks() -> Iterator[bytes]:
        for _ in range(20):
            yield bytes(MEGABYTE)

    connection = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=30)
    with contextlib.closing(connection):
        connection.request(
            "POST", "/predict", body=chunks(), encode_chunked=True, headers={"Transfer-Encoding": "chunked"}
        )
        answer = connection.getresponse()
        assert_problem(answer, answer.read(), BodyTooLarge(10_000_000))


def test_the_limits_are_the_services_settings(echo: Echo, tmp_path: Path) -> None:
    """RESNET_MAX_BODY_BYTES, RESNET_MAX_BATCH_BODY_BYTES and RESNET_ROOT_PATH hold for the proxy too."""
    limits = {"RESNET_MAX_BODY_BYTES": "999", "RESNET_MAX_BATCH_BODY_BYTES": "1234567"}
    with (
        proxy_before(echo.address, tmp_path, RESNET_ROOT_PATH="/classify", **limits) as proxy,
        httpx.Client(base_url=proxy.address, timeout=30) as client,
    ):
        for path, limit in (("/predict", 999), ("/predict/batch", 1_234_567)):
            assert client.post(path, content=bytes(limit)).status_code == 200
            refused = client.post(path, content=bytes(limit + 1)).json()
            assert refused["detail"] == BodyTooLarge(limit).detail
            assert refused["type"] == "/classify/docs/errors#body_too_large"


def test_the_defaults_are_the_services() -> None:
    """start.sh falls back on what the service falls back on."""
    given = dict(re.findall(r"\$\(value (RESNET_\w+) (\S+) ", START.read_text(encoding="utf-8")))
    shared = {
        name: default
        for name, default in given.items()
        if name.removeprefix("RESNET_").lower() in Settings.model_fields
    }
    assert len(shared) == 6
    for name, default in shared.items():
        expected = Settings.model_fields[name.removeprefix("RESNET_").lower()].default
        assert default == '""' if expected == "" else float(default) == expected


# --- slow and many


@pytest.mark.parametrize(
    ("sent", "logged"),
    [
        (b"", False),
        (b"GET / HTTP/1.1\r\nHost: pro", True),
        (request("POST /predict HTTP/1.1", "Content-Length: 1000") + b"only this", True),
    ],
    ids=["silent", "half a head", "half a body"],
)
def test_a_client_that_stops_sending_is_cut_off(echo: Echo, tmp_path: Path, sent: bytes, logged: bool) -> None:
    """The connection ends at the time limit, without an answer, and the service never heard of it."""
    limits = {"RESNET_HEADER_TIMEOUT_SECONDS": "0.3", "RESNET_BODY_TIMEOUT_SECONDS": "0.3"}
    with proxy_before(echo.address, tmp_path, **limits) as proxy, proxy.connect() as slow:
        began = time.monotonic()
        slow.sendall(sent)
        with within(5):
            assert slow.recv(1000) == b""
        assert time.monotonic() - began > 0.2
        if logged:
            wait_until(lambda: [line["status"] for line in proxy.log()] == [408])
    assert echo.asked == []


def test_one_address_holds_only_so_many_requests(echo: Echo, tmp_path: Path) -> None:
    """Over RESNET_PROXY_CONNECTIONS of one address at once nginx answers 503 overloaded; then there is room again."""
    echo.may_answer.clear()
    with proxy_before(echo.address, tmp_path, RESNET_PROXY_CONNECTIONS="1") as proxy:
        with proxy.connect() as first:
            first.sendall(request("GET /first HTTP/1.1"))
            wait_until(lambda: echo.asked)
            refused = httpx.get(f"{proxy.address}/second", headers={"X-Request-ID": "second"})
            assert_problem(refused, refused.content, Overloaded(), retry_after_seconds=1, request_id="second")
            echo.may_answer.set()
            answer, _ = answer_on(first)
            assert answer.status == 200
        wait_until(lambda: httpx.get(f"{proxy.address}/third").status_code == 200)
    assert "/second" not in [each["target"] for each in echo.asked]


def test_without_room_for_a_body_the_answer_is_overloaded(echo: Echo, tmp_path: Path) -> None:
    """A body that cannot be stored is refused as a 503 that may be tried again, not as an error of the client's."""
    with proxy_before(echo.address, tmp_path) as proxy:
        shutil.rmtree(tmp_path / "bodies")
        refused = httpx.post(f"{proxy.address}/predict", content=bytes(MEGABYTE))
        assert_problem(refused, refused.content, Overloaded(), retry_after_seconds=1)
    assert echo.asked == []


# --- a service that is not there


def test_a_service_that_is_gone_is_unavailable(tmp_path: Path) -> None:
    """Nothing listens, or nothing accepts within 3 s: 503 engine_unavailable with Retry-After."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener, contextlib.ExitStack() as waiting:
        host, port = listener.getsockname()
        with proxy_before(f"{host}:{port}", tmp_path) as proxy:
            # The kernel takes one connection more than the backlog says, and lets the next ones wait.
            for _ in range(3):
                caller = waiting.enter_context(socket.socket())
                caller.setblocking(False)
                caller.connect_ex((host, port))
            deaf = httpx.get(f"{proxy.address}/predict", timeout=30)
            listener.close()
            gone = httpx.get(f"{proxy.address}/predict", timeout=30)
    for answer in (deaf, gone):
        assert_problem(answer, answer.content, EngineUnavailable(), retry_after_seconds=2)


def test_a_service_that_hangs_up_is_asked_once(echo: Echo, tmp_path: Path) -> None:
    """A request that the service took and did not answer is not sent again: an image would be classified twice."""
    echo.hang_up = True
    with proxy_before(echo.address, tmp_path) as proxy:
        for method in ("GET", "POST"):
            answer = httpx.request(method, f"{proxy.address}/predict")
            assert_problem(answer, answer.content, EngineUnavailable(), retry_after_seconds=2)
    assert [each["method"] for each in echo.asked] == ["GET", "POST"]


def test_a_service_that_does_not_answer_in_time_is_a_504(echo: Echo, tmp_path: Path) -> None:
    """5 s after the service's own deadline nginx answers in its place."""
    echo.may_answer.clear()
    with proxy_before(echo.address, tmp_path, RESNET_REQUEST_TIMEOUT_MS="100") as proxy:
        began = time.monotonic()
        with within(15):
            answer = httpx.get(f"{proxy.address}/predict", timeout=30)
        assert time.monotonic() - began > 5
        assert_problem(answer, answer.content, DeadlineExceeded())


def test_sigquit_answers_what_was_taken(echo: Echo, tmp_path: Path) -> None:
    """The container's stop signal closes the door, lets a running request end, and leaves status 0."""
    echo.may_answer.clear()
    with proxy_before(echo.address, tmp_path) as proxy, proxy.connect() as connection:
        connection.sendall(request("GET /predict HTTP/1.1"))
        wait_until(lambda: echo.asked)
        proxy.process.send_signal(signal.SIGQUIT)

        def door_is_closed() -> bool:
            with socket.socket() as caller:
                return caller.connect_ex(("127.0.0.1", proxy.port)) != 0

        wait_until(door_is_closed)
        echo.may_answer.set()
        answer, _ = answer_on(connection)
        assert answer.status == 200
        assert proxy.process.wait(30) == 0


# --- HTTPS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a self-signed certificate for 127.0.0.1."""
    return self_signed(tmp_path_factory.mktemp("certificate"))


def test_with_a_certificate_it_serves_https(null_server: RunningServer, certificate: Path, tmp_path: Path) -> None:
    """Images are classified over TLS 1.2 and 1.3 and no older one; HTTP/2 is offered; plain HTTP leads there."""
    trust = ssl.create_default_context(cafile=str(certificate / "tls.crt"))
    image = (START.parent.parent / "app" / "data" / "example.jpg").read_bytes()
    with proxy_before(null_server.address, tmp_path, PROXY_TLS=str(certificate)) as proxy:
        secure = f"https://127.0.0.1:{proxy.tls_port}"
        with httpx.Client(verify=trust, timeout=30) as client:
            assert client.post(f"{secure}/predict", content=image).status_code == 200
            large = client.post(f"{secure}/predict", content=bytes(20 * MEGABYTE))
            assert_problem(large, large.content, BodyTooLarge(10_000_000))
            moved = client.post(f"{proxy.address}/predict?top_k=1", content=image)
            assert moved.status_code == 308
            assert moved.headers["Location"] == f"{secure}/predict?top_k=1"
            # A load balancer's probes need no certificate; what is no request has nowhere to be led to.
            assert client.get(f"{proxy.address}/readyz").json()["ready"] is True
        answer, body = proxy.ask(b"NONSENSE\r\n\r\n")
        assert_problem(answer, body, MalformedRequest())
        assert {agreed_on(proxy, certificate, ssl.TLSVersion.TLSv1_2), agreed_on(proxy, certificate, None)} == {
            ("TLSv1.2", "h2"),
            ("TLSv1.3", "h2"),
        }
        assert "alert protocol version" in said_to_tls_1_1(proxy)
        assert {line["tls"] for line in proxy.log() if line["status"] == 200} >= {"TLSv1.3"}
        assert f"HTTPS with the certificate in {certificate}" in proxy.said


def agreed_on(proxy: Proxy, certificate: Path, version: ssl.TLSVersion | None) -> tuple[str | None, str | None]:
    """The TLS version and protocol of a connection with a client that speaks no newer version."""
    context = ssl.create_default_context(cafile=str(certificate / "tls.crt"))
    context.set_alpn_protocols(["h2", "http/1.1"])
    if version is not None:
        context.maximum_version = version
    with (
        socket.create_connection(("127.0.0.1", proxy.tls_port), timeout=30) as plain,
        context.wrap_socket(plain, server_hostname="127.0.0.1") as secure,
    ):
        return secure.version(), secure.selected_alpn_protocol()


def said_to_tls_1_1(proxy: Proxy) -> str:
    """What openssl's client prints when it knows no newer TLS than 1.1. Python's own would warn of the version."""
    client = ["openssl", "s_client", "-tls1_1", "-cipher", "ALL:@SECLEVEL=0", "-connect", f"127.0.0.1:{proxy.tls_port}"]
    return subprocess.run(client, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60).stderr


def test_plain_http_may_be_served_beside_https(echo: Echo, certificate: Path, tmp_path: Path) -> None:
    """With RESNET_PROXY_HTTP=serve both answer, and the service is told which it was."""
    trust = ssl.create_default_context(cafile=str(certificate / "tls.crt"))
    variables = {"PROXY_TLS": str(certificate), "RESNET_PROXY_HTTP": "serve"}
    with proxy_before(echo.address, tmp_path, **variables) as proxy, httpx.Client(verify=trust) as client:
        for scheme, port in (("http", proxy.port), ("https", proxy.tls_port)):
            seen = client.get(f"{scheme}://127.0.0.1:{port}/").json()
            assert ["x-forwarded-proto", scheme] in seen["headers"]


def test_without_a_certificate_it_says_so(proxy: Proxy) -> None:
    """Plain HTTP only, and the log warns of it."""
    assert "plain HTTP only" in proxy.said
    with socket.socket() as caller:
        assert caller.connect_ex(("127.0.0.1", proxy.tls_port)) != 0


# --- a start that cannot be


@pytest.mark.parametrize(
    ("variables", "complaint"),
    [
        (
            {"RESNET_MAX_BODY_BYTES": "10m"},
            "RESNET_MAX_BODY_BYTES cannot be '10m': it must be a whole number of bytes.",
        ),
        ({"RESNET_MAX_BODY_BYTES": "0"}, "RESNET_MAX_BODY_BYTES cannot be '0'"),
        ({"RESNET_REQUEST_TIMEOUT_MS": "1;\ndaemon on"}, "RESNET_REQUEST_TIMEOUT_MS cannot be"),
        ({"RESNET_ROOT_PATH": '/"}; #'}, "RESNET_ROOT_PATH cannot be"),
        ({"RESNET_PROXY_HTTP": "off"}, "RESNET_PROXY_HTTP cannot be 'off': it must be redirect or serve."),
        ({"PROXY_TLS": "one"}, "one has one of tls.crt and tls.key; HTTPS needs both."),
        ({"PROXY_TLS": "broken"}, "cannot load certificate"),
    ],
)
def test_a_wrong_setting_stops_the_start(tmp_path: Path, variables: dict[str, str], complaint: str) -> None:
    """The script ends with status 1 and a line that says what is wrong; nginx does not start on half of a setting."""
    for name in ("one/tls.crt", "broken/tls.crt", "broken/tls.key"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("no certificate")
    if "PROXY_TLS" in variables:
        variables = {"PROXY_TLS": str(tmp_path / variables["PROXY_TLS"])}
    given = environment(tmp_path, "127.0.0.1:9", **variables)
    run = subprocess.run(command(), env=given, capture_output=True, text=True, timeout=60)
    assert run.returncode == 1
    assert complaint in run.stderr


# --- the log


def test_every_request_is_one_json_line(proxy: Proxy, through: httpx.Client, example_jpeg: bytes) -> None:
    """A line has the id, the client, sizes, times and both statuses: the client's and the service's."""
    through.post("/predict?top_k=1", content=example_jpeg, headers={"X-Request-ID": "log-1", "User-Agent": "tests/1"})
    line = proxy.logged("log-1")
    assert line["method"] == "POST"
    assert line["path"] == "/predict?top_k=1"
    assert line["status"] == line["service_status"] == 200
    assert line["client"] == "127.0.0.1"
    assert line["user_agent"] == "tests/1"
    assert line["received_bytes"] > len(example_jpeg)
    assert line["sent_bytes"] > 100
    assert isinstance(line["total_ms"], int)
    assert 0 <= line["service_ms"] <= line["total_ms"] + 1 < 30_000
    proxy.ask(request("GET /metrics HTTP/1.1", "X-Request-ID: log-2"))
    refused = proxy.logged("log-2")
    assert refused["status"] == 404
    assert refused["service_status"] is None
    assert refused["service_ms"] is None


def test_a_client_cannot_forge_a_line(proxy: Proxy) -> None:
    """Line ends, quotes, backslashes and bytes that are no text, in path and headers, stay within their line."""
    before = len(proxy.log())
    forged = '"}\r\n{"request_id":"forged"}'
    attempts = [
        request("GET /metrics/%0D%0A%7B%22forged%22%3A1%7D HTTP/1.1", "X-Request-ID: forge-0"),
        request('GET /metrics/"},{"\\ HTTP/1.1', 'User-Agent: "},{"forged":"\\', "X-Request-ID: forge-1"),
        request("GET /metrics HTTP/1.1", "User-Agent: ok\x01\x7f\xff\x85\xe2\x80\xa8", "X-Request-ID: forge-2"),
        request("GET /metrics HTTP/1.1", "User-Agent: " + "a" * 7000, "X-Request-ID: forge-3"),
        request("GET /metrics/\xff\xfe HTTP/1.1", "X-Request-ID: forge-4"),
        request("GET /metrics HTTP/1.1", f"X-Request-ID: {forged}"),
    ]
    for attempt in attempts:
        proxy.ask(attempt)
    wait_until(lambda: len(proxy.log()) >= before + len(attempts))
    lines = proxy.log()[before:]
    assert len(lines) == len(attempts)
    assert {"time", "request_id", "status", "path", "user_agent"} <= set.intersection(*(set(line) for line in lines))
    assert all(line["request_id"] != "forged" for line in lines)
    by_id = {line["request_id"]: line for line in lines}
    assert by_id["forge-0"]["path"] == "/metrics/%0D%0A%7B%22forged%22%3A1%7D"
    assert by_id["forge-1"]["user_agent"] == '"},{"forged":"\\'
    assert by_id["forge-2"]["user_agent"] == "ok"
    assert by_id["forge-3"]["user_agent"] == "a" * 256


def test_good_probes_are_no_news(proxy: Proxy, through: httpx.Client) -> None:
    """/healthz and /readyz that answer 200 are left out of the log; a later request is there."""
    for path in ("/healthz", "/readyz"):
        assert through.get(path, headers={"X-Request-ID": "probe"}).status_code == 200
    through.get("/nothing", headers={"X-Request-ID": "after-probes"})
    proxy.logged("after-probes")
    assert all(line["request_id"] != "probe" for line in proxy.log())

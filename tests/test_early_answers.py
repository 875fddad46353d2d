"""An answer given before the body was read arrives, at real clients that are still sending."""

from __future__ import annotations

import http.client
import json
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator

import httpx
import pytest

from app.settings import Settings
from tests.pace import within
from tests.running import RunningServer, running_server

MEGABYTE = 1_000_000


def address(server: RunningServer) -> tuple[str, int]:
    host, port = server.address.removeprefix("http://").split(":")
    return host, int(port)


@pytest.fixture(scope="module")
def strict_server() -> Iterator[RunningServer]:
    """It takes bodies of 0.5 MB, and of batches up to 64 MB of which it has no room for more than 0.5 MB."""
    settings = Settings(
        backend="null", port=0, log_level="warning", max_body_bytes=MEGABYTE // 2, max_received_bytes=MEGABYTE // 2
    )
    with running_server(settings) as server:
        yield server


# What is refused before its body is read → path, headers, status and code.
REFUSED: dict[str, tuple[str, dict[str, str], int, str]] = {
    "too large": ("/predict", {}, 413, "body_too_large"),
    "packed": ("/predict/batch", {"Content-Encoding": "gzip"}, 415, "unsupported_encoding"),
    "no room": ("/predict/batch", {}, 503, "overloaded"),
    "too many headers": ("/predict/batch", {f"X-{number}": "1" for number in range(100)}, 431, "headers_too_large"),
}


def by_http_client(server: RunningServer, path: str, headers: dict[str, str], body: bytes) -> tuple[int, str]:
    """Python's http.client, which sends everything before it reads."""
    connection = http.client.HTTPConnection(*address(server), timeout=30)
    try:
        connection.request("POST", path, body=body, headers=headers)
        answer = connection.getresponse()
        assert answer.getheader("Connection") == "close"
        return answer.status, json.loads(answer.read())["code"]
    finally:
        connection.close()


def by_httpx(server: RunningServer, path: str, headers: dict[str, str], body: bytes) -> tuple[int, str]:
    answer = httpx.post(f"{server.address}{path}", content=body, headers=headers, timeout=30)
    return answer.status_code, answer.json()["code"]


def by_curl(server: RunningServer, path: str, headers: dict[str, str], body: bytes) -> tuple[int, str]:
    """curl, told not to wait for a 100-continue: it sends and listens at once."""
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    command = ["curl", "-sS", "-w", "\n%{http_code}", "--data-binary", "@-", "-H", "Expect:", f"{server.address}{path}"]
    for name, value in headers.items():
        command += ["-H", f"{name}: {value}"]
    printed = subprocess.run(command, input=body, capture_output=True, timeout=60, check=True).stdout.decode()
    document, _, status = printed.rpartition("\n")
    return int(status), json.loads(document)["code"]


@pytest.mark.parametrize("size", [MEGABYTE, 20 * MEGABYTE], ids=["1 MB", "20 MB"])
@pytest.mark.parametrize("send", [by_http_client, by_httpx, by_curl])
@pytest.mark.parametrize("refused", REFUSED)
def test_clients_that_still_send_see_the_refusal(
    strict_server: RunningServer, refused: str, send: Callable[..., tuple[int, str]], size: int
) -> None:
    """The answer arrives, and no reset before it, whichever layer gives it."""
    path, headers, status, code = REFUSED[refused]
    for _ in range(3):
        assert send(strict_server, path, headers, bytes(size)) == (status, code)


def test_curl_sees_the_413_and_sends_no_body(
    null_server: RunningServer, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """curl asks with Expect: 100-continue, is refused, and sends nothing."""
    curl = shutil.which("curl")
    if curl is None:
        pytest.skip("curl is not installed")
    body = tmp_path_factory.mktemp("body") / "body"
    body.write_bytes(bytes(20 * MEGABYTE))
    command = [curl, "-sS", "-w", "\n%{http_code} %{size_upload}", "--data-binary", f"@{body}"]
    command += ["-H", "Expect: 100-continue", f"{null_server.address}/predict"]
    printed = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    document, _, figures = printed.rpartition("\n")
    assert json.loads(document)["code"] == "body_too_large"
    assert figures == "413 0"


def test_a_declared_size_is_refused_before_any_byte_of_it(null_server: RunningServer) -> None:
    """Content-Length over the limit is answered from the headers alone, at once."""
    with socket.create_connection(address(null_server), timeout=10) as connection, within(1):
        connection.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 10000001\r\n\r\n")
        head = connection.recv(4096)
    assert head.startswith(b"HTTP/1.1 413 ")


def test_the_rest_of_an_endless_body_is_not_read_for_ever(null_server: RunningServer) -> None:
    """A client that goes on sending after its refusal is cut off after the grace of two seconds."""
    with socket.create_connection(address(null_server), timeout=10) as connection:
        connection.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n")
        assert connection.recv(4096).startswith(b"HTTP/1.1 413 ")
        connection.settimeout(30)
        with within(5):
            while connection.recv(4096):
                pass


def test_the_connection_lives_on_after_a_body_that_was_read(client: httpx.Client) -> None:
    """An error whose body was read whole keeps the connection open for the next request."""
    answer = client.post("/predict", content=b"text")
    assert answer.status_code == 415
    assert answer.headers.get("Connection") != "close"

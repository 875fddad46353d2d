"""An answer given before the body was read arrives, at real clients that are still sending."""

from __future__ import annotations

import http.client
import json
import shutil
import socket
import subprocess
import time

import httpx
import pytest

from tests.running import RunningServer

MEGABYTE = 1_000_000


def address(server: RunningServer) -> tuple[str, int]:
    host, port = server.address.removeprefix("http://").split(":")
    return host, int(port)


@pytest.mark.parametrize("size", [20 * MEGABYTE, 50 * MEGABYTE])
def test_http_client_sees_the_413(null_server: RunningServer, size: int) -> None:
    """Python's http.client, which sends everything before it reads, gets the 413 and no reset."""
    connection = http.client.HTTPConnection(*address(null_server), timeout=30)
    connection.request("POST", "/predict", body=bytes(size))
    answer = connection.getresponse()
    assert answer.status == 413
    assert answer.getheader("Connection") == "close"
    assert json.loads(answer.read())["code"] == "body_too_large"
    connection.close()


@pytest.mark.parametrize("headers", [{}, {"Content-Encoding": "gzip"}])
def test_httpx_sees_the_refusal(client: httpx.Client, headers: dict[str, str]) -> None:
    """httpx gets the 413 and the 415 of a body that is not read."""
    answer = client.post("/predict", content=bytes(20 * MEGABYTE), headers=headers)
    assert answer.status_code == (415 if headers else 413)


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
    with socket.create_connection(address(null_server), timeout=10) as connection:
        began = time.monotonic()
        connection.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 10000001\r\n\r\n")
        head = connection.recv(4096)
        took = time.monotonic() - began
    assert head.startswith(b"HTTP/1.1 413 ")
    assert took < 1


def test_the_rest_of_an_endless_body_is_not_read_for_ever(null_server: RunningServer) -> None:
    """A client that goes on sending after its refusal is cut off after the grace of two seconds."""
    with socket.create_connection(address(null_server), timeout=10) as connection:
        connection.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n")
        assert connection.recv(4096).startswith(b"HTTP/1.1 413 ")
        began = time.monotonic()
        connection.settimeout(10)
        remaining = b""
        while chunk := connection.recv(4096):
            remaining += chunk
        assert time.monotonic() - began < 5


def test_the_connection_lives_on_after_a_body_that_was_read(client: httpx.Client) -> None:
    """An error whose body was read whole keeps the connection open for the next request."""
    answer = client.post("/predict", content=b"text")
    assert answer.status_code == 415
    assert answer.headers.get("Connection") != "close"

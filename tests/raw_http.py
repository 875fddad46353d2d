"""HTTP by hand, over a socket: what well-behaved clients cannot be made to send."""

from __future__ import annotations

import contextlib
import json
import re
import socket
from dataclasses import dataclass
from typing import Any

from tests.running import RunningServer

WAIT_SECONDS = 20


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


def host_and_port(address: str) -> tuple[str, int]:
    host, port = address.removeprefix("http://").split(":")
    return host, int(port)


def connect(server: RunningServer | str) -> socket.socket:
    address = server if isinstance(server, str) else server.address
    return socket.create_connection(host_and_port(address), timeout=WAIT_SECONDS)


def receive_all(connection: socket.socket) -> bytes:
    """Everything until the other side closes; a reset counts as an end."""
    received = b""
    try:
        while chunk := connection.recv(65536):
            received += chunk
    except ConnectionResetError:
        pass
    return received


def answers_in(received: bytes) -> list[Answer]:
    """The answers in a connection's bytes, each with a Content-Length."""
    answers = []
    while received:
        head, _, received = received.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines)
        length = int(headers.get("content-length", "0"))
        answers.append(Answer(int(first.split(" ")[1]), headers, received[:length]))
        received = received[length:]
    return answers


def receive_answer(connection: socket.socket, has_body: bool = True) -> Answer:
    """The next answer, whole, from a connection that may stay open."""
    received = b""
    while True:
        head, found, body = received.partition(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head.lower())
        if found and (not has_body or (length and len(body) >= int(length[1]))):
            return answers_in(received)[0]
        chunk = connection.recv(65536)
        assert chunk, received
        received += chunk


def ask(server: RunningServer | str, data: bytes) -> list[Answer]:
    """What is answered to `data`, sent over a connection of its own, until the server closes it."""
    with connect(server) as connection:
        with contextlib.suppress(ConnectionResetError, BrokenPipeError):
            connection.sendall(data)
        return answers_in(receive_all(connection))


def post(body: bytes, *headers: str, path: str = "/predict") -> bytes:
    """A POST request with a Content-Length, after which the connection is to close."""
    lines = [f"POST {path} HTTP/1.1", "Host: test", f"Content-Length: {len(body)}", "Connection: close", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body

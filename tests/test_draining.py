"""A shutdown whose grace period ends: whatever is open then is answered 503 draining, wherever it waits."""

from __future__ import annotations

import json
import signal
import socket
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.photos import make_jpeg
from tests.raw_http import WAIT_SECONDS, Answer, answers_in, receive_all
from tests.running import ServiceProcess, service_process
from tests.several_processes import several_processes

# Batches begin and do not end; neither does decoding what begins with "hang".
STANDING_STILL = """
import threading
from app.backends import null
from app.cli import main
from app.images import threads

infer, decode = null.NullBackend.infer, threads.decode

def held(backend, batch, want):
    if batch.any():
        print("a batch has begun", flush=True)
        threading.Event().wait()
    return infer(backend, batch, want)

def decode_or_hang(data, *how):
    if data.startswith(b"hang"):
        print("a decode has begun", flush=True)
        threading.Event().wait()
    return decode(data, *how)

null.NullBackend.infer, threads.decode = held, decode_or_hang
main()
"""
FLAGS = ("--backend", "null", "--max-batch-size", "1", "--shutdown-linger-seconds", "0", "--log-format", "json")
GRACE = ("--shutdown-grace-seconds", "1")


def post(address: tuple[str, int], body: bytes, declared: int | None = None, chunked: bool = False) -> socket.socket:
    """A connection on which an upload has begun, or is whole where no more than `body` is declared."""
    connection = socket.create_connection(address, timeout=WAIT_SECONDS)
    framing = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: %d" % (declared or len(body))
    head = b"POST /predict HTTP/1.1\r\nHost: t\r\nX-Request-ID: asked-here\r\n" + framing + b"\r\n\r\n"
    connection.sendall(head + (b"%x\r\n%b\r\n" % (len(body), body) if chunked else body))
    return connection


def address_in(line: str) -> tuple[str, int]:
    host, port = line.split("http://")[1].split("/")[0].split('"')[0].split(":")
    return host, int(port)


def check_drained(answer: Answer) -> None:
    document = answer.json()
    assert (answer.status, document["code"], document["retryable"]) == (503, "draining", True)
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["x-request-id"] == document["request_id"] == "asked-here"
    assert int(answer.headers["retry-after"]) >= 1


def check_log(service: ServiceProcess, count: int) -> None:
    """`count` lines of 503 draining, and neither a traceback nor a 499."""
    logged = [json.loads(line) for line in service.lines if line.startswith("{")]
    assert [line["code"] for line in logged if line.get("status")] == ["draining"] * count
    assert {line["status"] for line in logged if line.get("status")} == {503}
    assert not any("Traceback" in line or "traceback" in line for line in service.lines), service.lines


def answer_on(connection: socket.socket) -> Answer:
    """What is answered until the connection closes, in one piece."""
    with connection:
        (answer,) = answers_in(receive_all(connection))
    return answer


def test_the_end_of_grace_answers_whatever_is_open(tmp_path: Path) -> None:
    """In a batch, in the queue, in a decode, within an upload: each is answered 503, and the exit status is 0."""
    with service_process(*FLAGS, *GRACE, folder=tmp_path, program=STANDING_STILL) as service, ExitStack() as stack:
        address = address_in(service.wait_for("Ready:"))
        batched = post(address, make_jpeg(1))
        service.wait_for("a batch has begun")
        decoding = post(address, b"hang")
        service.wait_for("a decode has begun")
        queued = post(address, make_jpeg(2))
        upload = post(address, b"half", declared=5_000_000)
        chunked = post(address, b"half", chunked=True)
        pool = stack.enter_context(ThreadPoolExecutor())
        answers = [pool.submit(answer_on, each) for each in (batched, decoding, queued, upload, chunked)]
        assert service.stop() == 0
        for answer in answers:
            check_drained(answer.result())
        check_log(service, len(answers))


def test_a_client_that_goes_on_sending_reads_the_answer(tmp_path: Path) -> None:
    """An upload that is ended in its middle while megabytes are on their way: the client sees the 503 and no reset."""
    with service_process(*FLAGS, *GRACE, folder=tmp_path, program=STANDING_STILL) as service:
        upload = post(address_in(service.wait_for("Ready:")), b"half", declared=9_000_000)
        service.process.send_signal(signal.SIGTERM)
        service.wait_for("503")
        upload.sendall(bytes(8_000_000))
        check_drained(answer_on(upload))
        assert service.ended() == 0
        check_log(service, 1)


def test_control_c_while_it_stops_ends_the_grace_period(tmp_path: Path) -> None:
    """A Ctrl-C during the grace period answers what is open at once, however long the period is."""
    long = ("--shutdown-grace-seconds", "1000")
    with service_process(*FLAGS, *long, folder=tmp_path, program=STANDING_STILL) as service:
        batched = post(address_in(service.wait_for("Ready:")), make_jpeg(1))
        service.wait_for("a batch has begun")
        service.process.send_signal(signal.SIGINT)
        # Not in the same moment: two signals that both wait are one.
        batched.settimeout(1)
        with pytest.raises(TimeoutError):
            batched.recv(1)
        batched.settimeout(WAIT_SECONDS)
        service.process.send_signal(signal.SIGINT)
        check_drained(answer_on(batched))
        assert service.ended() == 0
        check_log(service, 1)


def test_front_ends_answer_whatever_is_open(tmp_path: Path) -> None:
    """With several processes each front-end answers its own: those in the engine's batch, and half uploads."""
    with several_processes(tmp_path, *FLAGS[2:], *GRACE) as service, ThreadPoolExecutor() as pool:
        service.hold()
        address = address_in(service.address)
        connections = [post(address, make_jpeg(number)) for number in range(4)]
        connections += [post(address, b"half", declared=5_000_000) for _ in range(4)]
        answers = [pool.submit(answer_on, each) for each in connections]
        assert service.service.stop() == 0
        for answer in answers:
            check_drained(answer.result())
        check_log(service.service, len(answers))
        service.release()

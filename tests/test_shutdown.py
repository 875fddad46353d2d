"""SIGTERM under full load, at a moment that nobody chose: once in the suite, `SHUTDOWN_ROUNDS` times in `make load`."""

from __future__ import annotations

import http.client
import json
import os
import random
import signal
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from tests.photos import make_jpeg, null_classes
from tests.running import service_process

ROUNDS = int(os.environ.get("SHUTDOWN_ROUNDS", "2"))
CLIENTS = 32
# Thirty-two clients, a queue of eight and batches of four that take 20 ms: some always wait, and some are refused.
SLOW = """
import threading
from app.backends import null
from app.cli import main

infer = null.NullBackend.infer

def slow(backend, batch, want):
    threading.Event().wait(0.02)
    return infer(backend, batch, want)

null.NullBackend.infer = slow
main()
"""
FLAGS = ("--backend", "null", "--max-batch-size", "4", "--max-queue", "8", "--shutdown-grace-seconds", "10")


class Load:
    """Clients that ask until nobody listens any more, and keep account of what became of every request."""

    def __init__(self, host: str, port: int, signal_after: int) -> None:
        self.address = (host, port)
        self.statuses: Counter[tuple[int, str]] = Counter()
        self.lost: list[str] = []
        self.due = threading.Event()
        """Set once `signal_after` images were answered."""
        self._signal_after = signal_after
        self._lock = threading.Lock()

    def client(self, number: int) -> None:
        image = make_jpeg(number, (64, 48))
        best = null_classes(image)[0]
        while True:
            connection = http.client.HTTPConnection(*self.address, timeout=30)
            try:
                connection.connect()
            except ConnectionRefusedError:
                return
            with closing(connection):
                while self._ask(connection, image, best):
                    pass

    def _ask(self, connection: http.client.HTTPConnection, image: bytes, best: int) -> bool:
        """One request; whether the connection stands for another."""
        try:
            connection.request("POST", "/predict", image)
            answer = connection.getresponse()
            document = json.loads(answer.read())
        except (OSError, http.client.HTTPException) as error:
            with self._lock:
                self.lost.append(repr(error))
            return False
        with self._lock:
            self.statuses[answer.status, document.get("code", "")] += 1
            if answer.status == 200 and document["predictions"][0]["class_id"] != best:
                self.lost.append("somebody else's answer")
            if self.statuses[200, ""] >= self._signal_after:
                self.due.set()
        return answer.getheader("Connection") != "close"


@pytest.mark.parametrize("turn", range(ROUNDS))
def test_sigterm_under_full_load_loses_nothing(turn: int, tmp_path: Path) -> None:
    """Every request on every connection that was made is answered, by a prediction of its own or a retryable 503."""
    chance = random.Random(turn)
    linger = ("--shutdown-linger-seconds", f"{chance.choice((0, 0.2, 0.6))}")
    with service_process(*FLAGS, *linger, folder=tmp_path, program=SLOW) as service:
        host, port = service.wait_for("Ready:").split("http://")[1].split("/")[0].split(":")
        load = Load(host, int(port), signal_after=chance.randrange(20, 200))
        with ThreadPoolExecutor(CLIENTS) as pool:
            running = [pool.submit(load.client, number) for number in range(CLIENTS)]
            assert load.due.wait(60)
            service.process.send_signal(signal.SIGTERM)
            for client in running:
                client.result()
        assert service.ended() == 0
    assert load.lost == []
    assert set(load.statuses) <= {(200, ""), (503, "overloaded"), (503, "draining")}
    assert load.statuses[503, "overloaded"] > 0

"""Servers for tests: in a thread of this process, under a watch for blocking calls, or as the command itself."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from blockbuster import BlockBuster

from app.loading import LoadedModel
from app.process import Server, address_of, build_server, listen
from app.progress import LogReporter
from app.server import Hooks
from app.settings import Settings

START_SECONDS = 60
CACHE_DIR = "RESNET_CACHE_DIR"


@dataclass
class RunningServer:
    """A server in a thread; `address` answers as soon as it exists."""

    address: str
    server: Server
    events: queue.Queue[LoadedModel | Exception] = field(default_factory=queue.Queue)

    @property
    def app(self) -> Any:
        return self.server.config.app

    def wait_until_loaded(self) -> LoadedModel | Exception:
        """The model, once it serves, or what its loading failed with."""
        return self.events.get(timeout=START_SECONDS)


@contextlib.contextmanager
def running_server(settings: Settings, wait: bool = True) -> Iterator[RunningServer]:
    """Run the service of `settings` until the block ends; with `wait`, begin once it is ready."""
    listener = listen(settings)
    events: queue.Queue[LoadedModel | Exception] = queue.Queue()
    server = build_server(settings, Hooks(LogReporter(), events.put, events.put))
    running = RunningServer(address_of(settings, listener), server, events)
    # Calls of our own code that would hold the event loop raise, and so turn up as failed requests. Only ours:
    # uvicorn's and the standard library's own habits are theirs.
    watch = BlockBuster(["app"])
    thread = threading.Thread(target=lambda: server.run(sockets=[listener]), daemon=True)
    watch.activate()
    thread.start()
    try:
        if wait:
            model = running.wait_until_loaded()
            assert isinstance(model, LoadedModel), model
        yield running
    finally:
        server.should_exit = True
        thread.join(START_SECONDS)
        watch.deactivate()
        listener.close()
        assert not thread.is_alive(), "the server did not stop"


@dataclass
class ServiceProcess:
    """`resnet-serve serve` as its own process."""

    process: subprocess.Popen[str]
    lines: list[str]
    address: str = ""

    def wait_for(self, text: str, seconds: float = START_SECONDS) -> str:
        """The first line of its output that has `text`."""
        give_up_at = time.monotonic() + seconds
        seen = 0
        with self._news:
            while True:
                for line in self.lines[seen:]:
                    if text in line:
                        return line
                seen = len(self.lines)
                if self._ended or not self._news.wait(give_up_at - time.monotonic()):
                    raise AssertionError(f"no line with {text!r} in:\n" + "\n".join(self.lines))

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Signal it and wait for its exit status."""
        self.process.send_signal(number)
        return self.ended()

    def ended(self) -> int:
        """Its exit status, once all it said has been read."""
        status = self.process.wait(START_SECONDS)
        self._reader.join(10)
        return status

    def close(self) -> None:
        self._reader.join(10)
        assert self.process.stdout is not None
        self.process.stdout.close()

    def __post_init__(self) -> None:
        self._news = threading.Condition()
        self._ended = False
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._news:
                self.lines.append(line.rstrip("\n"))
                self._news.notify_all()
        with self._news:
            self._ended = True
            self._news.notify_all()


@contextlib.contextmanager
def service_process(
    *flags: str, folder: Path, environment: dict[str, str] | None = None, program: str | None = None
) -> Iterator[ServiceProcess]:
    """Start the command in `folder` on a free port; it is killed when the block ends, if it still runs.

    `program` stands in for `python -m app`, where a test needs a fake at the model's border. It is one process, unless
    the flags say otherwise, for what `program` puts in place is there in no other.
    """
    start = ["-m", "app"] if program is None else ["-c", program]
    process = subprocess.Popen(
        [sys.executable, *start, "serve", "--port", "0", *flags],
        cwd=folder,
        env=clean_environment()
        | {"PYTHONPATH": str(Path(__file__).parent.parent), "RESNET_HTTP_WORKERS": "1"}
        # No load balancer has to notice that it stops.
        | {"RESNET_SHUTDOWN_LINGER_SECONDS": "0"}
        | (environment or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    service = ServiceProcess(process, [])
    try:
        yield service
    finally:
        process.kill()
        process.wait()
        service.close()


def clean_environment() -> dict[str, str]:
    """This process's, without settings but for the cache that all tests share."""
    return {name: value for name, value in os.environ.items() if not name.startswith("RESNET_") or name == CACHE_DIR}


def wait_until(condition: Any, seconds: float = 30.0) -> None:
    """Look again and again until `condition()` holds; fail after `seconds`."""
    give_up_at = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < give_up_at, "the condition did not come true"
        threading.Event().wait(0.005)


def post_image(client: httpx.Client, image: bytes, **params: Any) -> httpx.Response:
    return client.post("/predict", content=image, params=params or None)

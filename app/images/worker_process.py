"""The parent's side of a decoding process: start it, ask it, end it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from dataclasses import asdict

import numpy as np

from ..interpreter import import_path
from ..types import DecodeMode, Pixels, Preprocessing
from . import wire
from .decode import DecodeLimits

_START_SECONDS = 60.0
# How long a process that closed its socket may take to be gone.
_EXIT_SECONDS = 5.0
# What of the environment a decoder needs. The rest can hold secrets, and what reads strangers' bytes needs none.
_KEPT = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "PATH", "LANG")


class WorkerDied(Exception):
    """The process ended by itself, or could not be started."""


class WorkerGarbled(Exception):
    """The process answered what it never should."""


class WorkerProcess:
    """One process that decodes. `exchange` runs on the event loop and is not called twice at once."""

    def __init__(self, process: subprocess.Popen[bytes], connection: socket.socket) -> None:
        self.id = process.pid
        self._process = process
        self._connection = connection

    def is_alive(self) -> bool:
        return self._process.poll() is None

    async def exchange(self, data: bytes, preprocessing: Preprocessing) -> Pixels:
        """The image's pixels.

        Raises the `ServiceError` that decoding it raised there, `WorkerDied` or `WorkerGarbled`; after the last two,
        and after it was cancelled, the process is of no more use.
        """
        loop = asyncio.get_running_loop()
        try:
            await loop.sock_sendall(self._connection, wire.request_head(data, preprocessing))
            await loop.sock_sendall(self._connection, data)
            kind, size = wire.ANSWER.unpack(await self._receive(wire.ANSWER.size))
            height, width = preprocessing.crop
            if not (size == height * width * 3 if kind == wire.PIXELS else size <= wire.MAX_ERROR_BYTES):
                raise WorkerGarbled(f"an answer of kind {kind} and {size} bytes")
            body = await self._receive(size)
        except (ConnectionError, EOFError):
            raise WorkerDied() from None
        if kind == wire.PIXELS:
            return np.frombuffer(body, np.uint8).reshape(height, width, 3)
        try:
            error = wire.error_of(body)
        except (ValueError, KeyError, TypeError) as fault:
            raise WorkerGarbled("an error without its code") from fault
        raise error

    async def _receive(self, size: int) -> bytearray:
        loop = asyncio.get_running_loop()
        received = bytearray(size)
        rest = memoryview(received)
        while rest:
            count = await loop.sock_recv_into(self._connection, rest)
            if not count:
                raise EOFError
            rest = rest[count:]
        return received

    def kill(self) -> None:
        self._process.kill()

    def wait(self) -> int:
        """Its exit status, with a minus the signal's number; it is killed if it does not end. Blocks."""
        with self._connection:
            try:
                return self._process.wait(_EXIT_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                return self._process.wait()

    def wait_until_ready(self) -> bool:
        """Whether it could start. Blocks."""
        self._connection.settimeout(_START_SECONDS)
        with suppress(OSError):
            if self._connection.recv(1) == wire.READY:
                self._connection.setblocking(False)
                return True
        return False


class WorkerProcesses:
    """Starts processes for one decoder and knows those that live."""

    def __init__(self, limits: DecodeLimits, mode: DecodeMode, memory_bytes: int, timeout_seconds: float) -> None:
        self._options = json.dumps(
            {
                "limits": asdict(limits),
                "mode": mode,
                "memory_bytes": memory_bytes,
                # For where the parent, who ends it at the limit, cannot.
                "last_resort_seconds": 2 * timeout_seconds + 1,
            }
        )
        self._living: set[WorkerProcess] = set()
        self.is_closed = False

    def living(self) -> list[WorkerProcess]:
        return list(self._living)

    def start(self) -> WorkerProcess:
        """A process that is ready for its first image. Blocks; raises `WorkerDied` or `OSError`."""
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                process = subprocess.Popen(
                    [sys.executable, "-P", "-B", "-m", "app.images.worker", str(theirs.fileno()), self._options],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    pass_fds=(theirs.fileno(),),
                    env=_environment(),
                    # Ctrl-C on a terminal is for the service, which stops its decoders last.
                    start_new_session=True,
                )
            except BaseException:
                ours.close()
                raise
        worker = WorkerProcess(process, ours)
        self._living.add(worker)
        if self.is_closed:
            worker.kill()
        if not worker.wait_until_ready():
            worker.kill()
            raise WorkerDied(f"exit status {self.wait(worker)}")
        return worker

    def wait(self, worker: WorkerProcess) -> int:
        """The exit status of one that ended or was killed, also asked again. Blocks."""
        status = worker.wait()
        self._living.discard(worker)
        return status

    def kill_all(self) -> None:
        """Also what is being started."""
        self.is_closed = True
        for worker in self.living():
            worker.kill()

    def wait_for_all(self) -> None:
        """Blocks until they are gone."""
        for worker in self.living():
            self.wait(worker)


def describe_status(status: int) -> str:
    if status >= 0:
        return f"exit status {status}"
    with suppress(ValueError):
        return signal.Signals(-status).name
    return f"signal {-status}"


def _environment() -> dict[str, str]:
    kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
    # One thread: each would reserve memory of its own.
    return {**kept, "PYTHONPATH": import_path(), "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}

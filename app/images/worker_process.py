"""The parent's side of a decoding process: start it, ask it, end it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass

from ..errors import ImageTooLarge, ServiceError
from ..processes import ONE_THREAD, child_environment
from ..processes import command as child_command
from ..types import DecodeMode, Pixels, Preprocessing
from . import wire
from .decode import DecodeLimits
from .exchange import PLACES, Exchange, create_exchange

_START_SECONDS = 60.0
# How long a process that closed its socket may take to be gone.
_EXIT_SECONDS = 5.0


class WorkerDied(Exception):
    """The process ended by itself, or could not be started."""


class WorkerGarbled(Exception):
    """The process answered what it never should."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of the image in a place: its pixels or its error, or neither where it was no longer wanted."""

    place: int
    pixels: Pixels | None = None
    error: ServiceError | None = None


class WorkerProcess:
    """One process that decodes. It has up to `PLACES` images, and answers in the order in which it was asked."""

    def __init__(self, process: subprocess.Popen[bytes], connection: socket.socket, exchange: Exchange) -> None:
        self.id = process.pid
        self._process = process
        self._connection = connection
        self._exchange = exchange
        self._free = list(range(PLACES))
        # Of the images that it has, in order: their places, crops and sizes.
        self._asked: deque[tuple[int, tuple[int, int], int]] = deque()
        self._told: Preprocessing | None = None
        self._received = b""

    def fileno(self) -> int:
        """To wait for its answers, and for its end."""
        return self._connection.fileno()

    def ask(self, data: bytes, preprocessing: Preprocessing) -> int:
        """Hand an image over; the place that it has. Raises `OSError` where the process has ended.

        Raises `ImageTooLarge` where the image, or its pixels, are larger than a place.
        """
        height, width = preprocessing.crop
        if max(len(data), height * width * 3, wire.MAX_ERROR_BYTES) > self._exchange.place_bytes:
            raise ImageTooLarge("The image has more bytes than this server's decoders take.")
        place = self._free[-1]
        self._exchange.put(place, data)
        self._exchange.want(place, True)
        record = wire.RECORD.pack(wire.IMAGE, place, len(data))
        if preprocessing is not self._told:
            record = wire.preprocessing_record(preprocessing) + record
        # Some bytes, which a socket with room for 200 kB takes whole.
        self._connection.sendall(record)
        self._told = preprocessing
        self._free.pop()
        self._asked.append((place, preprocessing.crop, len(data)))
        return place

    def forget(self, place: int) -> None:
        """Nobody wants the image there any more: it is not decoded, unless that has begun."""
        self._exchange.want(place, False)

    def answers(self) -> Iterator[Answer]:
        """What it has answered since, one after another: what came before nonsense is an answer.

        Raises `WorkerDied` or `WorkerGarbled`; after these it is of no more use.
        """
        try:
            received = self._connection.recv(4096)
        except BlockingIOError:
            return
        except OSError:
            raise WorkerDied() from None
        if not received:
            raise WorkerDied()
        received = self._received + received
        whole = len(received) - len(received) % wire.RECORD.size
        self._received = received[whole:]
        for record in wire.RECORD.iter_unpack(received[:whole]):
            yield self._answer(*record)

    def _answer(self, kind: int, place: int, size: int) -> Answer:
        if not self._asked or self._asked[0][0] != place:
            raise WorkerGarbled("an answer to what it was not asked")
        _, crop, data_bytes = self._asked.popleft()
        if kind == wire.PIXELS:
            answer = Answer(place, pixels=self._exchange.get_pixels(place, *crop))
        elif kind == wire.ERROR and size <= wire.MAX_ERROR_BYTES:
            try:
                answer = Answer(place, error=wire.error_of(self._exchange.get(place, size)))
            except (ValueError, KeyError, TypeError) as fault:
                raise WorkerGarbled("an error without its code") from fault
        elif kind == wire.SKIPPED:
            answer = Answer(place)
        else:
            raise WorkerGarbled(f"an answer of kind {kind} and {size} bytes")
        self._exchange.tidy(place, data_bytes)
        self._free.append(place)
        return answer

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

    def __init__(
        self, limits: DecodeLimits, mode: DecodeMode, memory_bytes: int, place_bytes: int, timeout_seconds: float
    ) -> None:
        """`memory_bytes` is what an image may take there, `place_bytes` the largest file."""
        self._place_bytes = place_bytes
        self._options = json.dumps(
            {
                "limits": asdict(limits),
                "mode": mode,
                "memory_bytes": memory_bytes,
                "place_bytes": place_bytes,
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
        memory = create_exchange(self._place_bytes)
        try:
            exchange = Exchange(memory, self._place_bytes)
            process, connection = self._spawn(memory)
        finally:
            os.close(memory)
        worker = WorkerProcess(process, connection, exchange)
        self._living.add(worker)
        if self.is_closed:
            worker.kill()
        if not worker.wait_until_ready():
            worker.kill()
            raise WorkerDied(f"exit status {self.wait(worker)}")
        return worker

    def _spawn(self, memory: int) -> tuple[subprocess.Popen[bytes], socket.socket]:
        ours, theirs = socket.socketpair()
        with theirs:
            given = (str(theirs.fileno()), str(memory), self._options)
            try:
                process = subprocess.Popen(
                    child_command("app.images.worker", *given, flags=("-B",)),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    pass_fds=(theirs.fileno(), memory),
                    env=child_environment(more=ONE_THREAD),
                    # Ctrl-C on a terminal is for the service, which stops its decoders last.
                    start_new_session=True,
                )
            except BaseException:
                ours.close()
                raise
        return process, ours

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

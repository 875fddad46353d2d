"""Servers that take turns at the same load: rate, latencies, CPU time and memory of each, round by round.

Each server is a process of its own on a free port, and so is the load generator. A server is ready when it answers an
image with 200.
"""

from __future__ import annotations

import asyncio
import os
import signal
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from app.bench.answers import read_status
from app.bench.bodies import write_bodies
from app.bench.children import NEEDS, command
from app.bench.clients import Clients, prepare
from app.bench.measuring import Generator
from app.bench.processes import cpu_seconds, proportional_kilobytes
from app.bench.serving import free_port, server_process
from app.bench.steps import Step, Tally
from app.bench.target import Target
from app.errors import StartError
from app.processes import child_environment

_NO_TARGET_MS = 1e9
_START_SECONDS = 120.0
_POLL_SECONDS = 0.1
_CACHE_DIR = "RESNET_CACHE_DIR"


@dataclass
class Server:
    """A server, and the requests that it is sent."""

    name: str
    command: Sequence[str]
    """`{port}` stands for the port."""
    bodies: Sequence[bytes]
    environment: Mapping[str, str]
    request: Mapping[str, str] = field(default_factory=dict)
    """`path` and `content_type`, where they are not those of our service."""
    folder: Path | None = None
    ends_by: signal.Signals = signal.SIGINT
    turns: list[Turn] = field(default_factory=list)

    def failed(self) -> None:
        """A round in which the server did not start."""
        step = Tally(_NO_TARGET_MS, connection_errors=Counter({"no start": 1})).step("closed", requests=0, seconds=0)
        self.turns.append(Turn(step, 0.0, 0.0, 0, 0))

    @property
    def rates(self) -> list[float]:
        return [turn.step.throughput for turn in self.turns]

    def latencies_ms(self, name: str) -> list[float]:
        """The latency `name` ("p50") of each round that had answers."""
        return [getattr(turn.step.latency_ms, name) for turn in self.turns if turn.step.latency_ms]

    @property
    def cpu_ms(self) -> list[float]:
        """CPU time of the server's processes for each answer, by round."""
        return [turn.cpu_seconds / max(1, turn.answers) * 1e3 for turn in self.turns]

    @property
    def load_cpu_ms(self) -> list[float]:
        """CPU time of the load generator for each answer, by round."""
        return [turn.step.generator_cpu_seconds / max(1, turn.step.good) * 1e3 for turn in self.turns]


@dataclass(frozen=True)
class Turn:
    """One server's result in one round."""

    step: Step
    start_seconds: float
    cpu_seconds: float
    """CPU time of the server's processes over the warm-up and the step …"""
    answers: int
    """… and the answers in both."""
    memory_kilobytes: int
    """Proportional (PSS), after the step."""


def our_service(name: str, *flags: str, bodies: Sequence[bytes], http_workers: str = "1") -> Server:
    """`resnet-serve serve` with these flags, and no setting of this process but the cache's folder."""
    own = {"RESNET_HTTP_WORKERS": http_workers}
    if _CACHE_DIR in os.environ:
        own[_CACHE_DIR] = os.environ[_CACHE_DIR]
    line = command("", "serve", "--port", "{port}", *flags)
    return Server(name, line, bodies, child_environment(NEEDS, own))


@dataclass
class Running:
    """A server that answers."""

    server: Server
    target: Target
    pid: int
    start_seconds: float


class Load:
    """The load generator's process, with a number of closed-loop clients."""

    def __init__(self, generator: Generator, folder: Path, clients: int) -> None:
        self._generator = generator
        self._folder = folder
        self._clients = clients

    @classmethod
    @asynccontextmanager
    async def start(cls, clients: int) -> AsyncIterator[Load]:
        with tempfile.TemporaryDirectory() as name:
            async with Generator.start(Path(name), _NO_TARGET_MS) as generator:
                yield cls(generator, Path(name), clients)

    def running(self, server: Server) -> AbstractAsyncContextManager[Running]:
        return running(server, self._folder)

    async def turn(self, running: Running, warm_up_seconds: float, seconds: float) -> Turn:
        """A closed loop of `seconds` after a warm-up; the turn is kept with the server too."""
        server = running.server
        if not (self._folder / server.name).exists():
            write_bodies(self._folder / server.name, server.bodies)
        cpu = cpu_seconds(running.pid)
        steps = [
            await self._generator.closed(
                running.target,
                clients=self._clients,
                bodies=server.name,
                seconds=each,
                request=dict(server.request),
                status_alone=True,
            )
            for each in (warm_up_seconds, seconds)
        ]
        used = cpu_seconds(running.pid) - cpu
        answers = sum(step.good for step in steps)
        turn = Turn(steps[-1], running.start_seconds, used, answers, proportional_kilobytes(running.pid))
        server.turns.append(turn)
        return turn


@asynccontextmanager
async def running(server: Server, logs: Path) -> AsyncIterator[Running]:
    """The server, from its first answer until the block ends. Raises `StartError` where none comes."""
    target = Target("http", "127.0.0.1", free_port())
    command = [part.replace("{port}", str(target.port)) for part in server.command]
    log = logs / f"server-{target.port}.log"
    async with server_process(command, server.environment, log, server.folder, server.ends_by) as process:
        await process.ready(_first_answer(target, server))
        with process.held():
            yield Running(server, target, process.pid, time.monotonic() - process.began)


async def _first_answer(target: Target, server: Server) -> None:
    clients = Clients(target, [prepare(target, server.bodies[0], **server.request)], read=read_status)
    try:
        async with asyncio.timeout(_START_SECONDS):
            while True:
                answer = await clients.ask(0)
                if answer.status == 200:
                    return
                await asyncio.sleep(_POLL_SECONDS)
    except TimeoutError:
        raise StartError(f"{server.name} did not answer within {_START_SECONDS:g} s.") from None
    finally:
        clients.close()

"""An engine on a backend that does as it is told, in this process or in one of its own: the same tests drive both.

`python -m tests.scripted CONTROL SCRIPT` is the engine's process of the service itself, with this backend in it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
import tempfile
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from app import loading
from app.backends import Batch, null_checkpoint
from app.backends.null import NullBackend
from app.engine import Engine
from app.engine.board import Board, create_board
from app.engine.remote import RemoteEngine
from app.engine.segment import Segment, SlotLayout, create_segment
from app.errors import DeviceLost, FeaturesNotAvailable, OutOfMemory, TensorsNotAvailable
from app.metrics import Metrics, SharedFiles
from app.processes.channel import Channel, Message
from app.progress import LogReporter
from app.settings import Settings
from app.types import InputSpec, Outputs, Want

Kind = Literal["in process", "own process"]
KINDS: tuple[Kind, ...] = ("in process", "own process")
CLASSES = 1000
Script = Callable[[Sequence[int]], Any]


# --- scripts: what the backend does with a batch of images of these levels; None where it is to answer


def answer(levels: Sequence[int]) -> None:
    """As it should."""


def poisoned(by: int, levels: Sequence[int]) -> None:
    if by in levels:
        raise ValueError("poison")


def a_row_too_many(levels: Sequence[int]) -> Any:
    return np.zeros((len(levels) + 1, CLASSES)) if len(levels) > 1 else None


def no_rows(levels: Sequence[int]) -> Any:
    return np.zeros((0, CLASSES))


def out_of_memory_above(most: int, levels: Sequence[int]) -> None:
    if len(levels) > most:
        raise OutOfMemory()


def lost(why: str, levels: Sequence[int]) -> None:
    raise DeviceLost(why)


def too_few_classes(levels: Sequence[int]) -> Any:
    return np.zeros((len(levels), CLASSES - 1))


def without_features(levels: Sequence[int]) -> None:
    """As a model that has no features and takes no tensors."""


class ScriptedBackend(NullBackend):
    """Answers with the image's own level as the best class, unless `script` does something else with a batch.

    Its features are the level in eight numbers, its maps the level in 8×3×3.
    """

    max_batch_size = 32

    def __init__(self) -> None:
        super().__init__(null_checkpoint())
        self.script: Script = answer
        self.batches: list[list[int]] = []
        self.may_run = threading.Event()
        self.may_run.set()
        self.has_entered = threading.Event()

    def prepare(self, spec: InputSpec, want: Want) -> None:
        # By its name: in the engine's own process, whose main module this is, it is another object.
        if getattr(self.script, "__name__", "") == without_features.__name__:
            raise TensorsNotAvailable() if spec == InputSpec.TENSOR_F32 else FeaturesNotAvailable()

    def infer(self, batch: Batch, want: Want) -> Outputs:
        levels = [int(each[0, 0, 0]) for each in batch]
        self.batches.append(levels)
        self.has_entered.set()
        self.may_run.wait()
        if (scripted := self.script(levels)) is not None:
            return Outputs(np.asarray(scripted, np.float32), "softmax")
        scores = np.zeros((len(batch), CLASSES), np.float32)
        scores[np.arange(len(batch)), levels] = 9.0
        maps = np.repeat(np.float32(levels), 72).reshape(len(batch), 8, 3, 3)
        return Outputs(
            scores,
            "softmax",
            maps.mean((2, 3)) if Want.FEATURES in want else None,
            maps if Want.FEATURE_MAPS in want else None,
        )

    def warm_up(self, batch_size: int) -> None:
        pass


class Device(Protocol):
    """The backend, wherever it is."""

    def follow(self, script: Script) -> None:
        """From the next batch on; a function of this module, or a `partial` of one."""

    def hold(self) -> None:
        """Batches begin and do not end …"""

    def release(self) -> None:
        """… until now."""

    def wait_until_entered(self) -> None:
        """Until a batch has begun since the last `hold`."""

    def batches(self) -> list[list[int]]:
        """The levels of each batch so far."""

    def metrics(self) -> str: ...

    async def why_lost(self) -> str: ...


class LocalDevice:
    """In this process."""

    def __init__(self, backend: ScriptedBackend, metrics: Metrics | None = None, engine: Engine | None = None) -> None:
        self._backend = backend
        self._metrics = metrics
        self._engine = engine

    def follow(self, script: Script) -> None:
        self._backend.script = script

    def hold(self) -> None:
        self._backend.has_entered.clear()
        self._backend.may_run.clear()

    def release(self) -> None:
        self._backend.may_run.set()

    def wait_until_entered(self) -> None:
        assert self._backend.has_entered.wait(30)

    def batches(self) -> list[list[int]]:
        return self._backend.batches

    def metrics(self) -> str:
        assert self._metrics is not None
        return self._metrics.render().decode()

    async def why_lost(self) -> str:
        assert self._engine is not None
        return str(await self._engine.until_lost())


class DistantDevice:
    """In the engine's process: each call is sent there, and waited for."""

    def __init__(self, connection: Connection, folder: Path, said: asyncio.Queue[Message]) -> None:
        self._connection = connection
        self._folder = folder
        self._said = said

    def follow(self, script: Script) -> None:
        self._ask("follow", script)

    def hold(self) -> None:
        self._ask("hold")

    def release(self) -> None:
        with contextlib.suppress(OSError, EOFError):  # a process that was lost has ended
            self._ask("release")

    def wait_until_entered(self) -> None:
        self._ask("wait_until_entered")

    def batches(self) -> list[list[int]]:
        batches: list[list[int]] = self._ask("batches")
        return batches

    def metrics(self) -> str:
        registry = CollectorRegistry()
        MultiProcessCollector(registry, str(self._folder))
        return generate_latest(registry).decode()

    async def why_lost(self) -> str:
        while (message := await self._said.get()).kind != "failed":
            pass
        text: str = message.fields["error"]
        return text

    def _ask(self, name: str, *arguments: Any) -> Any:
        self._connection.send((name, arguments))
        return self._connection.recv()


def serve_device(device: LocalDevice, connection: Connection) -> None:
    """What `DistantDevice` asks."""
    with contextlib.suppress(EOFError):
        while True:
            name, arguments = connection.recv()
            connection.send(getattr(device, name)(*arguments))


@contextlib.asynccontextmanager
async def scripted_engine(kind: Kind, **options: Any) -> AsyncIterator[tuple[Engine, Device]]:
    """An engine of either kind, warm, and its device; `options` are settings."""
    settings = Settings(backend="null", **({"max_batch_size": 32} | options))
    start = in_this_process if kind == "in process" else in_its_own
    async with start(settings) as (engine, device):
        try:
            yield engine, device
        finally:
            device.release()
            await engine.close()


@contextlib.asynccontextmanager
async def in_this_process(settings: Settings) -> AsyncIterator[tuple[Engine, Device]]:
    backend, metrics = ScriptedBackend(), Metrics()
    engine = with_backend(backend, partial(loading.load_model, settings, metrics, LogReporter())).engine
    await engine.start()
    yield engine, LocalDevice(backend, metrics, engine)


def with_backend(backend: ScriptedBackend, load: Callable[[], loading.LoadedModel]) -> loading.LoadedModel:
    create = loading.create_backend
    loading.create_backend = lambda *arguments: backend
    try:
        return load()
    finally:
        loading.create_backend = create


@contextlib.asynccontextmanager
async def in_its_own(settings: Settings) -> AsyncIterator[tuple[Engine, Device]]:
    """With this process as its supervisor and its front-end."""
    control, theirs = Channel.pair()
    script, their_script = socket.socketpair()
    board_descriptor = create_board()
    lock = os.memfd_create("lock")
    said: asyncio.Queue[Message] = asyncio.Queue()
    with tempfile.TemporaryDirectory() as name, script, theirs, their_script:
        SharedFiles(Path(name), "engine").create()
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", __name__, str(theirs.fileno()), str(their_script.fileno())),
            pass_fds=(theirs.fileno(), their_script.fileno()),
            env=os.environ | {"PROMETHEUS_MULTIPROC_DIR": name},
        )
        theirs.close()
        their_script.close()
        connection = Connection(os.dup(script.fileno()))
        try:
            control.listen(said.put_nowait)
            control.send("start", [board_descriptor, lock], settings=settings.model_dump_json(), name="engine")
            while (message := await said.get()).kind != "loaded":
                assert message.kind != "failed", message
            engine = attach(control, SlotLayout(**message.fields["layout"]), Board(board_descriptor))
            for descriptor in message.descriptors:
                os.close(descriptor)
            await engine.start()
            yield engine, DistantDevice(connection, Path(name), said)
            control.tell("stop")
            async with asyncio.timeout(30):
                await process.wait()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
            control.close()
            connection.close()
            os.close(board_descriptor)
            os.close(lock)


def attach(control: Channel, layout: SlotLayout, board: Board) -> RemoteEngine:
    ours, theirs = socket.socketpair()
    memory = create_segment(layout)
    with theirs:
        control.send("attach", [theirs.fileno(), memory], layout=layout.as_fields())
    segment = Segment(memory, layout)
    os.close(memory)
    return RemoteEngine(ours, segment, board)


def main(control: str, script: str) -> None:
    from app.workers import __main__ as worker

    backend = ScriptedBackend()
    device = LocalDevice(backend)
    threading.Thread(target=serve_device, args=(device, Connection(int(script))), daemon=True).start()
    loading.create_backend = lambda *arguments: backend
    worker.main("engine", control)


if __name__ == "__main__":
    main(*sys.argv[1:])

"""A device for slots that computes on the CPU, writes down what it is asked, and fails when it is told to."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from app.backends.torch.devices import CpuDevice, Program
from tests.lazy import torch


@dataclass(frozen=True)
class Step:
    """One thing put onto a stream: "in" and "out" with rows, "run" with a bucket, "wait", "capture" with a pool."""

    stream: int
    kind: str
    size: int = 0


@dataclass
class Capture:
    """A captured program: the stream and pool that it was captured for, and where it reads and writes."""

    stream: int
    pool: int
    bucket: int


class RecordingDevice(CpuDevice):
    """Keeps the host's buffers, so that a copy's direction can be told by their addresses."""

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self.captures: list[Capture] = []
        self.freed = 0
        self.well = True
        self.drained_before: int | None = None
        """How many steps had been put onto streams when the device was first waited for."""
        self.on_buffer: Callable[[tuple[int, ...]], None] = lambda shape: None
        self.on_work: Callable[[int], None] = lambda bucket: None
        """Called with the rows of each computation, replayed or not, before it."""
        self.on_capture: Callable[[int], None] = lambda bucket: None
        self.on_wait: Callable[[], None] = lambda: None
        self._pinned: list[torch.Tensor] = []
        self._numbers = itertools.count(1)
        self._pools = itertools.count(100)
        self._here = threading.local()

    def stream(self) -> Any:
        return next(self._numbers)

    @contextmanager
    def on(self, stream: Any) -> Iterator[None]:
        outer = getattr(self._here, "stream", None)
        self._here.stream = stream
        try:
            yield
        finally:
            self._here.stream = outer

    def buffer(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        self.on_buffer(shape)
        return super().buffer(shape, dtype)

    def host_buffer(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        memory = super().buffer(shape, dtype)
        self._pinned.append(memory)
        return memory

    def copy(self, target: torch.Tensor, source: torch.Tensor) -> None:
        to_host, from_host = self._is_pinned(target), self._is_pinned(source)
        assert to_host != from_host, "a copy crosses the border, from or to pinned memory"
        self._put("out" if to_host else "in", len(target))
        super().copy(target, source)

    def pool(self) -> Any:
        return next(self._pools)

    def capture(self, program: Program, stream: Any, pool: Any) -> Program:
        assert self._here.stream == stream, "captured on the slot's own stream"
        bucket = self.last_bucket
        self.on_capture(bucket)
        self.captures.append(Capture(stream, pool, bucket))

        def replay() -> None:
            self._put("run", bucket)
            program()

        return replay

    def wait(self, stream: Any) -> None:
        assert self._here.stream in (None, stream)
        self.steps.append(Step(stream, "wait"))
        self.on_wait()

    def drain(self) -> None:
        self.drained_before = self.drained_before if self.drained_before is not None else len(self.steps)
        if not self.well:
            raise torch.AcceleratorError("CUDA error: unspecified launch failure")

    def free_memory(self) -> None:
        self.freed += 1

    def _is_pinned(self, memory: torch.Tensor) -> bool:
        address = memory.untyped_storage().data_ptr()
        return any(each.untyped_storage().data_ptr() == address for each in self._pinned)

    # --- seen from the network

    last_bucket = 0

    def watched(self, network: torch.nn.Module) -> torch.nn.Module:
        """The network, which tells this device of every batch that it computes."""
        network.register_forward_pre_hook(self._computes)
        return network

    def _computes(self, module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        self.last_bucket = len(inputs[0])
        self.on_work(self.last_bucket)

    def _put(self, kind: str, size: int) -> None:
        stream = getattr(self._here, "stream", None)
        assert stream is not None, "work without a stream"
        self.steps.append(Step(stream, kind, size))

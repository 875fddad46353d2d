"""A slot: what one batch in flight has to itself on a device."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import OutOfMemory, first_line
from ...types import Pixels, Scores, Want, is_pixels
from ..base import Batch
from .buckets import Run, buckets_up_to, plan_runs
from .devices import Device, Program
from .faults import Fault, fault_of
from .forward import Forward
from .runners import Rows, further

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

_TIMED_TRIES = 3


@dataclass(frozen=True, slots=True)
class _Buffers:
    """Where a batch lies on both sides; programs know their addresses, so they stay."""

    host_input: torch.Tensor
    input: torch.Tensor
    output: torch.Tensor
    host_output: torch.Tensor


class Slot:
    """A stream, buffers that stay where they are, and a program for each bucket.

    A batch crosses as uint8 from a pinned buffer, is computed in one or more runs, and only the rows of its own images
    come back. Everything is in the order of one stream, so that buffers are reused without waiting; the host waits
    once, at the end. One thread at a time.
    """

    def __init__(
        self,
        device: Device,
        forward: Forward,
        crop: tuple[int, int],
        classes: int,
        capacity: int,
        *,
        graphs: bool = True,
        seconds: dict[int, float] | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """`capacity` is the largest batch; it is halved until the buffers fit. `seconds` (bucket → what a run takes)
        may be shared by the slots of one device: what one has measured the others believe.

        Raises what the device raises where not even buffers for one image fit.
        """
        self._device = device
        self._forward: Forward | None = forward
        self._graphs = graphs
        self._clock = clock
        self._seconds = {} if seconds is None else seconds
        self._stream: Any = device.stream()
        self._pool: Any = device.pool() if graphs else None
        self.capacity, self._buffers = self._allocated(capacity, crop, classes)
        self._programs: dict[int, Program] = {}
        self._too_large = capacity + 1
        self._plans: list[tuple[Run, ...]] = []

    @property
    def buckets(self) -> list[int]:
        """What is prepared."""
        return sorted(self._programs)

    def prepare(self, batch_size: int) -> None:
        """Make a program for each bucket up to `batch_size`, largest first, so that the smaller ones reuse its memory.

        A bucket that the memory does not hold is left out, and batches of that size are split. Raises `OutOfMemory`
        where not even one image fits.
        """
        import torch

        wanted = buckets_up_to(min(batch_size, self.capacity))
        missing = [each for each in wanted if each not in self._programs and each < self._too_large]
        with torch.inference_mode(), self._device.on(self._stream):
            for bucket in reversed(missing):
                if not self._fits(bucket):
                    self._too_large = bucket
                    # Not while the error is being handled: its frames hold the memory that is to be freed.
                    self._device.free_memory()
        if not self._programs:
            raise OutOfMemory()
        if missing:
            own = {bucket: seconds for bucket, seconds in self._seconds.items() if bucket in self._programs}
            self._plans = plan_runs(self.capacity, own)
            # What the programs needed before they were captured: they have memory of their own now.
            self._device.free_memory()

    def run(self, batch: Pixels) -> Scores:
        """Scores `(N, classes)` for `(N, H, W, 3)` uint8, N up to `capacity`. Blocks until they are there."""
        import torch

        count = len(batch)
        if count > self.capacity:
            raise ValueError(f"A batch of {count} in a slot for {self.capacity}.")
        buffers = self._open_buffers()
        # A slot that nobody prepared runs the batch as it is.
        runs = self._plans[count] if self._plans else (Run(count, count),)
        with torch.inference_mode(), self._device.on(self._stream):
            try:
                np.copyto(buffers.host_input[:count].numpy(), batch)
                start = 0
                for run in runs:
                    rows = slice(start, start := start + run.images)
                    # The rows from `images` to `bucket` hold what was there; they are computed and not copied back.
                    self._device.copy(buffers.input[: run.images], buffers.host_input[rows])
                    self._run_program(run.bucket)
                    self._device.copy(buffers.host_output[rows], buffers.output[: run.images])
                self._device.wait(self._stream)
            except BaseException:
                # What is on the stream already still reads and writes the buffers: the next batch must find them free.
                self._settle()
                raise
            return np.array(buffers.host_output[:count].numpy())

    def run_further(self, batch: Batch, want: Want) -> Rows:
        """As it comes: what few ask for has no buffers, no buckets and no graphs."""
        import torch

        if self._forward is None:
            raise RuntimeError("The slot is closed.")
        device, kind = self._device, torch.uint8 if is_pixels(batch) else torch.float32
        with torch.inference_mode(), device.on(self._stream):
            try:
                host_input = device.host_buffer(batch.shape, kind)
                np.copyto(host_input.numpy(), batch)
                inputs = device.buffer(batch.shape, kind)
                device.copy(inputs, host_input)
                found = [self._on_host(part) for part in further(self._forward, inputs, want)]
                device.wait(self._stream)
            except BaseException:
                self._settle()
                raise
            return Rows.of(found)

    def _on_host(self, part: torch.Tensor | None) -> torch.Tensor | None:
        if part is None:
            return None
        target = self._device.host_buffer(tuple(part.shape), part.dtype)
        self._device.copy(target, part)
        return target

    def close(self) -> None:
        """Let the programs go, then the memory they use."""
        self._settle()
        self._programs.clear()
        self._plans = []
        self._forward = self._buffers = self._pool = None

    def _fits(self, bucket: int) -> bool:
        """Prepare a bucket, if the memory holds it."""
        try:
            self._programs[bucket] = self._prepared(bucket)
            if bucket not in self._seconds:
                self._seconds[bucket] = self._measured(bucket)
        except (RuntimeError, MemoryError) as error:
            self._programs.pop(bucket, None)
            if fault_of(error, self._device.drain) is not Fault.OUT_OF_MEMORY:
                raise
            logger.warning("The device's memory does not hold a batch of %d: %s", bucket, first_line(error))
            return False
        return True

    def _prepared(self, bucket: int) -> Program:
        def work() -> None:
            self._compute(bucket)

        for _ in range(self._device.warm_runs):
            work()
        self._device.wait(self._stream)
        if not self._graphs:
            return work
        try:
            return self._device.capture(work, self._stream, self._pool)
        except Exception as error:
            self._pool = self._device.pool()  # nothing is promised of a pool in which a capture broke
            if fault_of(error) is Fault.OUT_OF_MEMORY:
                raise
            # Whether it was the capture or the device that broke is seen by running without one.
            work()
            self._device.wait(self._stream)
            self._graphs = False
            logger.warning(
                "A batch of %d could not be captured as a CUDA graph; it and smaller ones run without, slower: %s",
                bucket,
                first_line(error),
            )
            return work

    def _run_program(self, bucket: int) -> None:
        program = self._programs.get(bucket)
        if program is None:
            self._compute(bucket)
        else:
            program()

    def _compute(self, bucket: int) -> None:
        if self._forward is None:
            raise RuntimeError("The slot is closed.")
        buffers = self._open_buffers()
        # Into a buffer outside the programs' pool: what lies in the pool is overwritten by any other program of it.
        buffers.output[:bucket].copy_(self._forward(buffers.input[:bucket]))

    def _measured(self, bucket: int) -> float:
        """Seconds of one run, copies included, of several without a pause: as a batch that is split runs them.

        The least of three tries: what else the machine does only ever makes one longer.
        """
        buffers = self._open_buffers()
        tries = []
        for _ in range(_TIMED_TRIES):
            began = self._clock()
            for _ in range(self._device.timed_runs):
                self._device.copy(buffers.input[:bucket], buffers.host_input[:bucket])
                self._programs[bucket]()
                self._device.copy(buffers.host_output[:bucket], buffers.output[:bucket])
            self._device.wait(self._stream)
            tries.append((self._clock() - began) / self._device.timed_runs)
        return min(tries)

    def _open_buffers(self) -> _Buffers:
        if self._buffers is None:
            raise RuntimeError("The slot is closed.")
        return self._buffers

    def _allocated(self, capacity: int, crop: tuple[int, int], classes: int) -> tuple[int, _Buffers | None]:
        import torch

        device = self._device
        while True:
            pixels, scores = (capacity, *crop, 3), (capacity, classes)
            try:
                with device.on(self._stream):
                    return capacity, _Buffers(
                        device.host_buffer(pixels, torch.uint8),
                        device.buffer(pixels, torch.uint8),
                        device.buffer(scores, torch.float32),
                        device.host_buffer(scores, torch.float32),
                    )
            except (RuntimeError, MemoryError) as error:
                if capacity == 1 or fault_of(error, device.drain) is not Fault.OUT_OF_MEMORY:
                    raise
            device.free_memory()
            capacity //= 2

    def _settle(self) -> None:
        """Wait for the stream, whatever it says: the error that is told is the one that came first."""
        try:
            self._device.wait(self._stream)
        except RuntimeError as error:
            logger.debug("The stream did not end well: %s", first_line(error))

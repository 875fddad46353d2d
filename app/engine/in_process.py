"""The engine in this process: one batcher in front of one backend's threads."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import NamedTuple, cast

import numpy as np

from ..backends import Backend, Batch
from ..batching import Batcher, Events, LatencyModel
from ..errors import (
    DeadlineExceeded,
    DeviceLost,
    EngineUnavailable,
    Internal,
    InvalidParameter,
    OutOfMemory,
    ServiceError,
)
from ..metrics import Metrics, ModelMetrics
from ..resources import return_free_memory
from ..threads import Threads, in_a_thread
from ..types import InputSpec, ModelIdentity, Outputs, Pixels, Tensor, Want
from .base import EngineState, Scored
from .planning import BatchPlan, Timings, has_room_for_twice, plan_batches

logger = logging.getLogger(__name__)

_Kind = tuple[InputSpec, Want]
# What the warm-up measures; nearly all requests are of this kind.
_PLAIN: _Kind = (InputSpec.PIXELS_U8, Want.SCORES)
# A batch that takes ten times as long as batches of its size do has not merely been unlucky.
_HUNG_TIMES = 10.0


class InProcessEngine:
    """Runs `backend` on `backend.concurrency` threads and keeps that many batches outstanding."""

    def __init__(
        self,
        backend: Backend,
        *,
        max_batch_size: int | None,
        max_queue: int,
        max_queue_bytes: int | None = None,
        max_delay_seconds: float = 0.0,
        hang_seconds: float = 30.0,
        slo_seconds: float | None = None,
        metrics: ModelMetrics | None = None,
        timings: Timings | None = None,
    ) -> None:
        """`max_batch_size` None lets the warm-up choose it; with `timings` it asks an earlier one, and tells a later.

        A batch may take `hang_seconds`, or ten times what its size usually takes where that is longer.
        """
        self.backend = backend
        self._fixed_batch_size = max_batch_size
        self._slo_seconds = slo_seconds
        self._hang_seconds = hang_seconds
        self._max_queue = max_queue
        self._timings = timings
        self._metrics = metrics or Metrics().of_model(ModelIdentity("", ""))
        self._threads = Threads(backend.concurrency, "infer")
        self._closing = threading.Event()
        self._is_warming_up = False
        self._plan: BatchPlan | None = None
        self._lost: asyncio.Future[DeviceLost] | None = None
        self._prepared: dict[_Kind, asyncio.Task[type[ServiceError] | None]] = {}
        self._batcher: Batcher[_Item, Outputs] = Batcher(
            self._run_batch,
            max_batch_size=1,
            max_waiting=max_queue,
            max_waiting_bytes=max_queue_bytes,
            size_of=lambda item: item.values.nbytes,
            concurrency=backend.concurrency,
            max_delay_seconds=max_delay_seconds,
            hang_seconds=self._longest,
            is_timed=_is_plain,
            events=_Counted(self._metrics, self._is_lost),
        )

    @property
    def plan(self) -> BatchPlan | None:
        """What the warm-up found; None until it is done."""
        return self._plan

    async def start(self) -> None:
        self._is_warming_up = True
        try:
            plan = await self._threads.run(self._warm_up)
            await self._warm_up_others(plan)
        except Exception:
            # Of a call that is cancelled the warm-up runs on.
            self._is_warming_up = False
            raise
        self._is_warming_up = False
        self._batcher.cap.plan(plan.max_batch_size)
        self._batcher.expect(LatencyModel(plan.seconds))
        # Room for a full queue beside full batches: an admitted image is not refused after it was decoded.
        self._batcher.max_waiting = self._max_queue + self.backend.concurrency * plan.max_batch_size
        self._plan = plan
        self._report()

    async def _warm_up_others(self, plan: BatchPlan) -> None:
        # Each further slot sets up its own stream and buffers: a barrier keeps one thread from warming twice.
        others = self.backend.concurrency - 1
        if others:
            barrier = threading.Barrier(self.backend.concurrency)

            def warm() -> None:
                barrier.wait(timeout=60)
                self.backend.warm_up(plan.max_batch_size)

            await asyncio.gather(*[self._threads.run(warm) for _ in range(others + 1)])

    def _report(self) -> None:
        """Give the gauges their functions: not before it is warm, for the same model may be loaded twice."""
        metrics, batcher = self._metrics, self._batcher
        metrics.waiting_for_device = lambda: batcher.waiting
        metrics.watch(metrics.batch_cap, lambda: batcher.cap.now)
        metrics.watch(metrics.latency_model("alpha"), lambda: batcher.latency.alpha)
        metrics.watch(metrics.latency_model("beta"), lambda: batcher.latency.beta)

    def _warm_up(self) -> BatchPlan:
        plan = plan_batches(
            self.backend.warm_up,
            self.backend.max_batch_size,
            self._fixed_batch_size,
            self._closing.is_set,
            slo_seconds=self._slo_seconds,
            known=self._timings.read() if self._timings else None,
            has_room=has_room_for_twice(self.backend.device, self.backend.concurrency),
        )
        # What was cut short knows too little.
        if self._timings and not self._closing.is_set():
            self._timings.keep(plan.seconds)
        return plan

    async def run(self, item: Pixels | Tensor, want: Want, deadline: float) -> Scored:
        if self._plan is None:
            raise EngineUnavailable()
        spec = InputSpec.of(item)
        if (spec, want) != _PLAIN:
            await self._prepare((spec, want), deadline)
        batched = await self._batcher.submit(_Item(item, want), deadline=deadline, key=(spec, item.shape, want))
        return Scored(batched.value, batched.batch_size, batched.queue_seconds, batched.inference_seconds)

    async def _prepare(self, kind: _Kind, deadline: float) -> None:
        """Let the backend set up what `kind` needs: at its first use, beside the batches that run."""
        task = self._prepared.get(kind)
        if task is None:
            task = asyncio.get_running_loop().create_task(self._set_up(kind))
            self._prepared[kind] = task
        if not task.done():
            await asyncio.wait([task], timeout=max(0.0, deadline - time.monotonic()))
        if not task.done():
            raise DeadlineExceeded()
        if (error := task.result()) is not None:
            raise error()

    async def _set_up(self, kind: _Kind) -> type[ServiceError] | None:
        """Why the backend cannot do it."""
        error: type[ServiceError]
        try:
            await in_a_thread(partial(self.backend.prepare, *kind), "prepare")
            return None
        except InvalidParameter as refused:
            return type(refused)
        except (OutOfMemory, MemoryError):
            error = OutOfMemory
        except Exception:
            logger.exception("The %s backend cannot be prepared for %s from %s.", self.backend.name, kind[1], kind[0])
            error = Internal
        # The next request tries again.
        del self._prepared[kind]
        return error

    def state(self) -> EngineState:
        batcher = self._batcher
        reason = (
            "lost"
            if batcher.lost is not None
            else "closed"
            if self._closing.is_set()
            else "warming"
            if self._plan is None
            else None
        )
        return EngineState(reason is None, reason, batcher.device())

    async def until_lost(self) -> DeviceLost:
        if self._batcher.lost is not None:
            return self._batcher.lost
        if self._lost is None:
            self._lost = asyncio.get_running_loop().create_future()
        return await asyncio.shield(self._lost)

    async def close(self) -> None:
        self._closing.set()
        has_ended = await self._batcher.close()
        # A call that does not come back holds its thread, and the device with it: the process ends without them.
        # A warm-up that still runs is not waited for: a service that is told to stop while it starts should stop.
        if not self._is_warming_up and has_ended and self._batcher.lost is None:
            await self._threads.run(self.backend.close)
            # Its weights go now: the garbage collector passes over objects that are as old as the service.
            del self.backend
            await self._threads.run(return_free_memory)
        self._threads.stop()

    def _longest(self, batch_size: int) -> float:
        return max(self._hang_seconds, _HUNG_TIMES * self._batcher.latency.predict(batch_size))

    def _is_lost(self, error: DeviceLost) -> None:
        logger.critical("%s; only a restart helps.", error)
        if self._lost is not None and not self._lost.done():
            self._lost.set_result(error)

    def _run_batch(self, items: Sequence[_Item]) -> asyncio.Future[Sequence[Outputs]]:
        self._metrics.batch_size.observe(len(items))
        return self._threads.run(partial(self._infer, items))

    def _infer(self, items: Sequence[_Item]) -> Sequence[Outputs]:
        try:
            outputs = self.backend.infer(cast("Batch", np.stack([item.values for item in items])), items[0].want)
            return [outputs.row(index) for index in range(len(outputs.scores))]
        except (OutOfMemory, DeviceLost):
            raise
        except MemoryError:
            raise OutOfMemory(retry_after_seconds=1.0) from None
        except Exception as error:
            logger.exception("The %s backend failed on a batch of %d.", self.backend.name, len(items))
            raise Internal() from error


class _Item(NamedTuple):
    """An image in the queue."""

    values: Pixels | Tensor
    want: Want


def _is_plain(key: Hashable) -> bool:
    spec, _, want = cast("tuple[InputSpec, tuple[int, ...], Want]", key)
    return (spec, want) == _PLAIN


class _Counted(Events):
    """The batcher's events as metrics."""

    def __init__(self, metrics: ModelMetrics, on_lost: Callable[[DeviceLost], None]) -> None:
        self._metrics = metrics
        self._on_lost = on_lost

    def dropped(self, reason: str) -> None:
        self._metrics.dropped.labels(reason).inc()

    def batch_failed(self, kind: str, batch_size: int) -> None:
        self._metrics.batch_failures(kind).inc()

    def lost(self, error: DeviceLost) -> None:
        self._on_lost(error)

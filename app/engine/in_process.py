"""The engine in this process: one batcher in front of one backend's threads."""

from __future__ import annotations

import asyncio
import logging
import math
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from ..backends import Backend
from ..batching import Batcher
from ..errors import EngineUnavailable, Internal
from ..metrics import Metrics
from ..types import InputSpec, Outputs, Pixels, ScoreKind, Scores, Want
from .base import EngineState, Scored
from .planning import BatchPlan, plan_batches

logger = logging.getLogger(__name__)

_Row = tuple[Scores, ScoreKind]


class InProcessEngine:
    """Runs `backend` on `backend.concurrency` threads and keeps that many batches outstanding."""

    def __init__(
        self,
        backend: Backend,
        *,
        max_batch_size: int | None,
        max_queue: int,
        max_delay_seconds: float = 0.0,
        metrics: Metrics | None = None,
    ) -> None:
        """`max_batch_size` None lets the warm-up choose it."""
        self.backend = backend
        self._fixed_batch_size = max_batch_size
        self._metrics = metrics or Metrics()
        self._threads = ThreadPoolExecutor(backend.concurrency, thread_name_prefix="infer")
        self._closing = threading.Event()
        self._plan: BatchPlan | None = None
        self._batcher: Batcher[Pixels, _Row] = Batcher(
            self._run_batch,
            max_batch_size=1,
            max_waiting=max_queue,
            concurrency=backend.concurrency,
            max_delay_seconds=max_delay_seconds,
            on_drop=lambda reason: self._metrics.dropped.labels(reason).inc(),
        )
        self._metrics.queue_depth.labels("device").set_function(lambda: self._batcher.waiting)

    @property
    def plan(self) -> BatchPlan | None:
        """What the warm-up found; None until it is done."""
        return self._plan

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        plan = await loop.run_in_executor(
            self._threads,
            lambda: plan_batches(
                self.backend.warm_up,
                self.backend.max_batch_size,
                self._fixed_batch_size,
                self._closing.is_set,
            ),
        )
        # Each further slot sets up its own stream and buffers: a barrier keeps one thread from warming twice.
        others = self.backend.concurrency - 1
        if others:
            barrier = threading.Barrier(self.backend.concurrency)

            def warm() -> None:
                barrier.wait(timeout=60)
                self.backend.warm_up(plan.max_batch_size)

            await asyncio.gather(*[loop.run_in_executor(self._threads, warm) for _ in range(others + 1)])
        self._batcher.max_batch_size = plan.max_batch_size
        self._plan = plan

    async def run(self, item: Pixels, deadline: float) -> Scored:
        if self._plan is None:
            raise EngineUnavailable()
        batched = await self._batcher.submit(item, deadline=deadline, key=InputSpec.PIXELS_U8)
        scores, kind = batched.value
        return Scored(scores, kind, batched.batch_size, batched.queue_seconds, batched.inference_seconds)

    def state(self) -> EngineState:
        if self._closing.is_set():
            return EngineState(False, "closed", 0.0)
        if self._plan is None:
            return EngineState(False, "warming", 0.0)
        batches_before = math.ceil(self._batcher.waiting / self._plan.max_batch_size) + self._batcher.running
        wait = batches_before / self.backend.concurrency * self._plan.seconds_per_image * self._plan.max_batch_size
        return EngineState(True, None, wait)

    async def close(self) -> None:
        self._closing.set()
        await self._batcher.close()
        if self._plan is not None:
            await asyncio.get_running_loop().run_in_executor(self._threads, self.backend.close)
        # A warm-up that still runs is not waited for: a service that is told to stop while it starts should stop.
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _run_batch(self, items: Sequence[Pixels]) -> Sequence[_Row]:
        self._metrics.batch_size.observe(len(items))
        outputs = await asyncio.get_running_loop().run_in_executor(self._threads, self._infer, items)
        return [(row, outputs.kind) for row in outputs.scores]

    def _infer(self, items: Sequence[Pixels]) -> Outputs:
        try:
            return self.backend.infer(np.stack(items), Want.SCORES)
        except Exception as error:
            logger.exception("The %s backend failed on a batch of %d.", self.backend.name, len(items))
            raise Internal() from error

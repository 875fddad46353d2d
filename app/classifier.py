"""The classifier: bytes in, Classification out. Every door calls this one object."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from .batching import retry_after_seconds
from .engine import EngineState
from .errors import EngineUnavailable, InvalidParameter, ModelOutputInvalid, NotReady, Overloaded, ServiceError
from .images import Decoder
from .loading import LoadedModel
from .metrics import Metrics
from .ranking import rank
from .types import Classification, StageTimings

DEFAULT_TOP_K = 5

Phase = Literal["loading", "warming", "ready", "stuck", "restarting", "draining", "failed"]

# How long all decoders may be held by images that do not end before only a restart is the cure: what is slow, and does
# not hang, has ended by then.
_STUCK_SECONDS = 60.0
_LOST = "The device is beyond repair; this server ends, to be started again."
_RESTARTING = "The model's process has ended and is being started again."
_STUCK = "Every decoder is held by an image that takes longer than this server allows."


@dataclass(frozen=True, slots=True)
class ServiceState:
    """What health is asked for. `ready` is true only when requests are served and new ones are welcome."""

    phase: Phase
    ready: bool
    reason: str | None


class Places:
    """Images that have a place: from their last byte to their answer."""

    def __init__(self) -> None:
        self._own = 0

    @property
    def taken(self) -> int:
        return self._own

    def take(self) -> None:
        self._own += 1

    def give_back(self) -> None:
        self._own -= 1


class Classifier:
    """Decodes, batches, ranks. Holds the model that serves now; a swap is one assignment to `model`.

    An image is taken only if it can be answered in time: the backlogs of decoding and of the device together are what
    it would wait. That is looked at twice, when its headers have come, so that a body which leads nowhere is never
    read, and when its body has, from when on it has a place of its own.
    """

    def __init__(
        self,
        decoder: Decoder,
        metrics: Metrics,
        max_queue: int = 256,
        longest_seconds: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
        places: Places | None = None,
    ) -> None:
        """`places` counts those of other processes too, where the service has several."""
        self.metrics = metrics
        self._stages = {stage: metrics.stage_seconds.labels(stage) for stage in ("decode", "queue", "inference")}
        self.model: LoadedModel | None = None
        self.draining = False
        self.failure: str | None = None
        self.decoder = decoder
        self.places = places or Places()
        self._max_queue = max_queue
        self._longest_seconds = longest_seconds
        self._clock = clock
        metrics.queue_depth.labels("decode").set_function(lambda: decoder.waiting)
        metrics.decode_slots_lost.set_function(lambda: decoder.lost)
        metrics.ready.set_function(lambda: float(self.state().ready))

    def state(self) -> ServiceState:
        if self.failure is not None:
            return ServiceState("failed", False, self.failure)
        if self.draining:
            return ServiceState("draining", False, "The server is shutting down.")
        if self.model is None:
            return ServiceState("loading", False, "The model is still loading.")
        engine = self.model.engine.state()
        if engine.reason == "lost":
            return ServiceState("failed", False, _LOST)
        if engine.reason == "restarting":
            return ServiceState("restarting", False, _RESTARTING)
        if not engine.ready:
            return ServiceState("warming", False, "The model is loaded and warms up.")
        if not self.decoder.usable:
            is_hopeless = self.decoder.stuck_seconds > _STUCK_SECONDS
            return ServiceState("failed" if is_hopeless else "stuck", False, _STUCK)
        return ServiceState("ready", True, None)

    def admit(self, seconds: float | None = None) -> LoadedModel:
        """The model that a request keeps from here to its answer; it has `seconds` for it once its body is there.

        Raises `NotReady`, `EngineUnavailable`, or `Overloaded` with when to come again.
        """
        model = self.model
        engine = model.engine.state() if model is not None else None
        if model is None or engine is None or not engine.ready or not self.decoder.usable:
            state = self.state()
            kind = EngineUnavailable if state.phase in ("failed", "stuck", "restarting") else NotReady
            raise kind(state.reason, retry_after_seconds=2.0)
        self._check_load(engine, min(seconds or self._longest_seconds, self._longest_seconds))
        return model

    def _check_load(self, engine: EngineState, seconds: float) -> None:
        """Whether an image with `seconds` left would be answered in time. Raises `Overloaded`."""
        wait = self.decoder.predicted_wait_seconds + engine.predicted_wait_seconds
        if self.places.taken >= self._max_queue + engine.capacity:
            self.metrics.shed.labels("full").inc()
            raise Overloaded(retry_after_seconds=retry_after_seconds(wait))
        late_by = wait + engine.predicted_run_seconds - seconds
        if wait > 0 and late_by > 0:
            self.metrics.shed.labels("late").inc()
            raise Overloaded(retry_after_seconds=retry_after_seconds(late_by))

    def resolve_top_k(self, model: LoadedModel, asked: int | None) -> int:
        """How many predictions to give. Raises `InvalidParameter` outside 1…classes."""
        if asked is None:
            return min(DEFAULT_TOP_K, model.class_count)
        if not 1 <= asked <= model.class_count:
            raise InvalidParameter(f"top_k must be from 1 to {model.class_count}, the number of classes.")
        return asked

    async def classify(self, model: LoadedModel, data: bytes, top_k: int, deadline: float) -> Classification:
        """Classify one encoded image.

        `deadline` is an absolute monotonic time. Raises a `ServiceError`: the image's (`ImageCorrupt` and its like),
        the service's (`Overloaded`, `DeadlineExceeded`) or the model's (`ModelOutputInvalid`).
        """
        began = self._clock()
        self._check_load(model.engine.state(), deadline - began)
        self.places.take()
        try:
            return await self._classify(model, data, top_k, deadline, began)
        finally:
            self.places.give_back()

    async def _classify(
        self, model: LoadedModel, data: bytes, top_k: int, deadline: float, began: float
    ) -> Classification:
        try:
            pixels = await self.decoder.decode(data, model.preprocessing, deadline)
        except ServiceError as error:
            if error.code in ("overloaded", "deadline_exceeded"):
                self.metrics.dropped.labels(error.code.removesuffix("_exceeded")).inc()
            raise
        decoded = self._clock()
        scored = await model.engine.run(pixels, deadline)
        timings = StageTimings(decoded - began, scored.queue_seconds, scored.inference_seconds)
        for stage, seconds in (
            ("decode", timings.decode_seconds),
            ("queue", timings.queue_seconds),
            ("inference", timings.inference_seconds),
        ):
            self._stages[stage].observe(seconds)
        try:
            predictions = rank(scored.scores, scored.activation, model.labels, top_k)
        except ModelOutputInvalid:
            self.metrics.nan_outputs.inc()
            raise
        return Classification(model.identity, predictions, timings, scored.batch_size)

    async def close(self) -> None:
        """Stop decoding and give the device back."""
        await self.decoder.close()
        if self.model is not None:
            await self.model.engine.close()

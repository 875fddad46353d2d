"""The classifier: admits an image and turns its bytes into classes."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from .batching import Announcement
from .errors import (
    DeadlineExceeded,
    EngineUnavailable,
    InvalidParameter,
    ModelOutputInvalid,
    NotReady,
    ServiceError,
    Unavailable,
)
from .images import Decoder
from .metrics import Metrics
from .pool import Lease, LoadedModel, Pool
from .ranking import rank
from .types import Classification, Pixels, ScoredImage, StageTimings, Tensor, Want

DEFAULT_TOP_K = 5

Phase = Literal["loading", "warming", "ready", "stuck", "restarting", "draining", "failed"]

# If images occupy all decoders for longer than this, only a restart helps: a decoder that is slow, but does not hang,
# is done by then.
_STUCK_SECONDS = 60.0
_LOST = "The device is beyond repair; this server ends, to be started again."
_RESTARTING = "The model's process has ended and is being started again."
_STUCK = "Every decoder is held by an image that takes longer than this server allows."


@dataclass(frozen=True, slots=True)
class ServiceState:
    """The state that health checks report. `ready` is true only if requests are served and new ones are accepted."""

    phase: Phase
    ready: bool
    reason: str | None


class Admitted:
    """A request that was accepted by its headers. It holds a lease of its model until `give_back`."""

    __slots__ = ("_announcement", "_lease")

    def __init__(self, lease: Lease, announcement: Announcement) -> None:
        self._lease = lease
        self._announcement = announcement

    @property
    def model(self) -> LoadedModel:
        return self._lease.model

    def body_has_ended(self) -> None:
        """The body is complete: from now on each image has its own reservation, or is refused. May be called again."""
        if self._lease.is_open:
            self._lease.model.schedule.withdraw(self._announcement)

    def give_back(self) -> None:
        """The request is over: answered, or its client has left. May be called again."""
        self.body_has_ended()
        self._lease.give_back()


class Classifier:
    """Admits, decodes, batches and ranks images, each by the model that its request has leased from the pool.

    An image is admitted only if it can be answered in time, according to the reservations ahead of it (`Schedule`).
    That is checked twice: when the headers have arrived, so that the body of a refused request is never read, and at
    the end of the body, when the image gets its own reservation.
    """

    def __init__(
        self,
        decoder: Decoder,
        metrics: Metrics,
        longest_seconds: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.metrics = metrics
        self.pool = Pool()
        self.draining = False
        self.failure: str | None = None
        self.decoder = decoder
        self._longest_seconds = longest_seconds
        self._clock = clock
        metrics.queue_depth.labels("decode").set_function(lambda: decoder.waiting)
        metrics.decode_slots_lost.set_function(lambda: decoder.lost)
        metrics.ready.set_function(lambda: float(self.state().ready))

    @property
    def model(self) -> LoadedModel | None:
        """The default model, for requests that name none; it may still be warming up."""
        default = self.pool.default
        return None if default is None else default.model

    def state(self) -> ServiceState:
        """The state of the service with its default model."""
        return self._state_of(self.model)

    def _state_of(self, model: LoadedModel | None) -> ServiceState:
        if self.failure is not None:
            return ServiceState("failed", False, self.failure)
        if self.draining:
            return ServiceState("draining", False, "The server is shutting down.")
        if model is None:
            return ServiceState("loading", False, "The model is still loading.")
        engine = model.engine.state()
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

    def check(self, seconds: float | None = None) -> None:
        """Check whether a request for the default model would be admitted, with `seconds` from the end of its body.

        Raises `NotReady`, `EngineUnavailable`, or `Overloaded` with the time to retry.
        """
        self._check(self.model, seconds)

    def admit(self, seconds: float | None = None, name: str | None = None, version: str | None = None) -> Admitted:
        """Accept a request by its headers, for the default model or the one that it names.

        Raises as `check`; for a named model also `ModelNotFound` and `ModelConflict`.
        """
        pool = self.pool
        pooled = pool.default if name is None and version is None else pool.find(name, version)
        if pooled is None:
            raise self._not_ready(None)
        self._check(pooled.model, seconds)
        return Admitted(pooled.lease(), pooled.model.schedule.announce())

    def _check(self, model: LoadedModel | None, seconds: float | None) -> None:
        if model is None:
            raise self._not_ready(None)
        seconds = min(seconds or self._longest_seconds, self._longest_seconds)
        model.schedule.repeat_refusal(seconds)
        engine = model.engine.state()
        if not engine.ready or not self.decoder.usable:
            raise self._not_ready(model)
        model.schedule.check(engine.device, seconds, self.decoder.predicted_seconds())

    def _not_ready(self, model: LoadedModel | None) -> Unavailable:
        state = self._state_of(model)
        kind = EngineUnavailable if state.phase in ("failed", "stuck", "restarting") else NotReady
        return kind(state.reason, retry_after_seconds=2.0)

    def resolve_top_k(self, model: LoadedModel, asked: int | None) -> int:
        """The number of predictions to return. Raises `InvalidParameter` outside 1…classes."""
        if asked is None:
            return min(DEFAULT_TOP_K, model.class_count)
        if not 1 <= asked <= model.class_count:
            raise InvalidParameter(f"top_k must be from 1 to {model.class_count}, the number of classes.")
        return asked

    async def classify(
        self, model: LoadedModel, data: bytes, top_k: int, deadline: float, batch: Hashable | None = None
    ) -> Classification:
        """The `top_k` most probable classes of one encoded image. Parameters and errors are those of `score`."""
        scored = await self.score(model, data, Want.SCORES, deadline, batch)
        predictions = rank(scored.outputs.scores, scored.outputs.activation, model.labels, top_k)
        return Classification(scored.model, predictions, scored.timings, scored.batch_size)

    async def score(
        self, model: LoadedModel, image: bytes | Tensor, want: Want, deadline: float, batch: Hashable | None = None
    ) -> ScoredImage:
        """The model's outputs for one image: an encoded one, or a normalised tensor.

        `deadline` is an absolute monotonic time. `batch` identifies a request with several images, which share its
        turns at decoding. Raises a `ServiceError`: the image's (such as `ImageCorrupt`, or `InvalidParameter` for a
        tensor of another shape or with values that are not finite), the service's (`Overloaded`, `DeadlineExceeded`)
        or the model's (`ModelOutputInvalid`, `FeaturesNotAvailable`, `TensorsNotAvailable`).
        """
        began = self._clock()
        schedule = model.schedule
        if isinstance(image, np.ndarray):
            _check_tensor(image, model)
            decoded_in = 0.0
        else:
            decoded_in = self.decoder.predicted_seconds(self.decoder.cost_of(image), batch)
        reservation = schedule.reserve(model.engine.state().device, deadline, decoded_in)
        try:
            item = image if isinstance(image, np.ndarray) else await self._decoded(model, image, deadline, batch)
            decode_seconds = self._clock() - began
            scored = await model.engine.run(item, want, deadline)
            schedule.observe(reservation, answered=True)
        except DeadlineExceeded:
            schedule.observe(reservation, answered=False)
            raise
        finally:
            schedule.release(reservation)
        timings = StageTimings(decode_seconds, scored.queue_seconds, scored.inference_seconds)
        stages = model.metrics.stage_seconds
        if not isinstance(image, np.ndarray):
            stages["decode"].observe(timings.decode_seconds)
        stages["queue"].observe(timings.queue_seconds)
        stages["inference"].observe(timings.inference_seconds)
        if not scored.outputs.is_finite():
            model.metrics.nan_outputs.inc()
            raise ModelOutputInvalid()
        return ScoredImage(model.identity, scored.outputs, timings, scored.batch_size)

    async def _decoded(self, model: LoadedModel, data: bytes, deadline: float, batch: Hashable | None) -> Pixels:
        try:
            return await self.decoder.decode(data, model.preprocessing, deadline, batch)
        except ServiceError as error:
            if error.code in ("overloaded", "deadline_exceeded"):
                self.metrics.dropped.labels(error.code.removesuffix("_exceeded")).inc()
            raise

    async def close(self) -> None:
        """Stop decoding and close every model."""
        await self.decoder.close()
        await self.pool.close()


def _check_tensor(tensor: Tensor, model: LoadedModel) -> None:
    """Raises `InvalidParameter` for a tensor that the model does not accept."""
    shape = (3, *model.preprocessing.crop)
    if tensor.shape != shape or tensor.dtype != np.float32:
        raise InvalidParameter(f"The tensor must be float32 of shape {list(shape)}, normalised as the model expects.")
    if not np.isfinite(tensor).all():
        raise InvalidParameter("The tensor has values that are not finite numbers.")

"""Classifies one image: decode → score → rank, with admission in front."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from .batching import Announcement, Schedule, SharedReservations, Shed
from .errors import DeadlineExceeded, EngineUnavailable, InvalidParameter, ModelOutputInvalid, NotReady, ServiceError
from .images import Decoder
from .loading import LoadedModel
from .metrics import Metrics
from .ranking import rank
from .types import Classification, Pixels, ScoredImage, StageTimings, Tensor, Want

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


@dataclass(frozen=True, slots=True)
class Admitted:
    """A request that was accepted by its headers: the model that it keeps to its answer."""

    model: LoadedModel
    announcement: Announcement


class Classifier:
    """Decodes, scores, ranks. Holds the model that serves now; a swap is one assignment to `model`.

    An image is admitted only if it can be answered in time, as the reservations ahead of it say (`Schedule`). That is
    checked twice: when its headers have come, so that the body of a refused request is never read, and at the end of
    its body, where it gets a reservation of its own.
    """

    def __init__(
        self,
        decoder: Decoder,
        metrics: Metrics,
        max_queue: int = 256,
        longest_seconds: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
        shared: SharedReservations | None = None,
    ) -> None:
        """`shared` counts the reservations of other processes too, where the service has several."""
        self.metrics = metrics
        self._stages = {stage: metrics.stage_seconds.labels(stage) for stage in ("decode", "queue", "inference")}
        self.model: LoadedModel | None = None
        self.draining = False
        self.failure: str | None = None
        self.decoder = decoder
        shed = {reason: metrics.shed.labels(reason) for reason in get_args(Shed)}
        self.schedule = Schedule(
            max_queue,
            clock=clock,
            count_shed=lambda reason: shed[reason].inc(),
            shared=shared,
        )
        self._longest_seconds = longest_seconds
        self._clock = clock
        metrics.queue_depth.labels("decode").set_function(lambda: decoder.waiting)
        metrics.decode_slots_lost.set_function(lambda: decoder.lost)
        metrics.ready.set_function(lambda: float(self.state().ready))
        metrics.reservations.set_function(lambda: self.schedule.held)
        metrics.predicted_wait.set_function(self.predicted_wait_seconds)

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

    def check(self, seconds: float | None = None) -> LoadedModel:
        """The model that serves; a request with `seconds` from the end of its body would be admitted now.

        Raises `NotReady`, `EngineUnavailable`, or `Overloaded` with when to come again.
        """
        seconds = min(seconds or self._longest_seconds, self._longest_seconds)
        self.schedule.repeat_refusal(seconds)
        model = self.model
        engine = model.engine.state() if model is not None else None
        if model is None or engine is None or not engine.ready or not self.decoder.usable:
            state = self.state()
            kind = EngineUnavailable if state.phase in ("failed", "stuck", "restarting") else NotReady
            raise kind(state.reason, retry_after_seconds=2.0)
        self.schedule.check(engine.device, seconds, self.decoder.predicted_seconds())
        return model

    def admit(self, seconds: float | None = None) -> Admitted:
        """Accept a request by its headers. Raises as `check`."""
        return Admitted(self.check(seconds), self.schedule.announce())

    def predicted_wait_seconds(self) -> float:
        """How long an image that came now would wait for the device; 0 while there is no model."""
        return self.schedule.predicted_wait_seconds(self.model.engine.state().device) if self.model else 0.0

    def resolve_top_k(self, model: LoadedModel, asked: int | None) -> int:
        """How many predictions to give. Raises `InvalidParameter` outside 1…classes."""
        if asked is None:
            return min(DEFAULT_TOP_K, model.class_count)
        if not 1 <= asked <= model.class_count:
            raise InvalidParameter(f"top_k must be from 1 to {model.class_count}, the number of classes.")
        return asked

    async def classify(
        self, model: LoadedModel, data: bytes, top_k: int, deadline: float, batch: Hashable | None = None
    ) -> Classification:
        """The `top_k` most probable classes of one encoded image. Parameters and errors as `score` has them."""
        scored = await self.score(model, data, Want.SCORES, deadline, batch)
        predictions = rank(scored.outputs.scores, scored.outputs.activation, model.labels, top_k)
        return Classification(scored.model, predictions, scored.timings, scored.batch_size)

    async def score(
        self, model: LoadedModel, image: bytes | Tensor, want: Want, deadline: float, batch: Hashable | None = None
    ) -> ScoredImage:
        """The model's outputs for one image: an encoded one, or a tensor that is normalised already.

        `deadline` is an absolute monotonic time; `batch` is the request, where that carries several images: they share
        its turns at being decoded. Raises a `ServiceError`: the image's (`ImageCorrupt` and its like, and
        `InvalidParameter` for a tensor of another shape or with values that are not finite), the service's
        (`Overloaded`, `DeadlineExceeded`) or the model's (`ModelOutputInvalid`, `FeaturesNotAvailable`,
        `TensorsNotAvailable`).
        """
        began = self._clock()
        if isinstance(image, np.ndarray):
            _check_tensor(image, model)
            decoded_in = 0.0
        else:
            decoded_in = self.decoder.predicted_seconds(self.decoder.cost_of(image), batch)
        reservation = self.schedule.reserve(model.engine.state().device, deadline, decoded_in)
        try:
            item = image if isinstance(image, np.ndarray) else await self._decoded(model, image, deadline, batch)
            decode_seconds = self._clock() - began
            scored = await model.engine.run(item, want, deadline)
            self.schedule.observe(reservation, answered=True)
        except DeadlineExceeded:
            self.schedule.observe(reservation, answered=False)
            raise
        finally:
            self.schedule.release(reservation)
        timings = StageTimings(decode_seconds, scored.queue_seconds, scored.inference_seconds)
        if not isinstance(image, np.ndarray):
            self._stages["decode"].observe(timings.decode_seconds)
        self._stages["queue"].observe(timings.queue_seconds)
        self._stages["inference"].observe(timings.inference_seconds)
        if not scored.outputs.is_finite():
            self.metrics.nan_outputs.inc()
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
        """Stop decoding and give the device back."""
        await self.decoder.close()
        if self.model is not None:
            await self.model.engine.close()


def _check_tensor(tensor: Tensor, model: LoadedModel) -> None:
    """Raises `InvalidParameter` for a tensor that the model does not take."""
    shape = (3, *model.preprocessing.crop)
    if tensor.shape != shape or tensor.dtype != np.float32:
        raise InvalidParameter(f"The tensor must be float32 of shape {list(shape)}, normalised as the model expects.")
    if not np.isfinite(tensor).all():
        raise InvalidParameter("The tensor has values that are not finite numbers.")

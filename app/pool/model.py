"""A loaded model: everything that depends on a checkpoint, in one immutable object."""

from __future__ import annotations

from dataclasses import dataclass

from ..batching import Schedule
from ..engine import Engine
from ..metrics import ModelMetrics
from ..types import ModelIdentity, Preprocessing


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """Everything about a model that one process can tell another: all but the objects that run it."""

    identity: ModelIdentity
    preprocessing: Preprocessing
    labels: tuple[str, ...]
    backend: str
    device: str
    source: str
    warnings: tuple[str, ...]
    score_count: int
    """Numbers that the network returns for an image. A single number can tell two classes apart."""

    @property
    def class_count(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, slots=True, eq=False)
class LoadedModel(ModelFacts):
    """A model that requests use from admission to answer. The pool that holds it closes it."""

    engine: Engine
    schedule: Schedule
    """Reservations on this model's engine. Images of other models wait in other queues and do not count here."""
    metrics: ModelMetrics

    def predicted_wait_seconds(self) -> float:
        """How long an image that arrived now would wait for the device."""
        return self.schedule.predicted_wait_seconds(self.engine.state().device)

    async def close(self) -> None:
        """Close the engine and remove the metrics. The model must not be in use by a request."""
        try:
            await self.engine.close()
        finally:
            self.metrics.close()

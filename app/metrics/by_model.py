"""The metrics of one model, labelled with its name and version; they are removed when the model is closed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from ..types import ModelIdentity
from .gauges import GaugeFunctions
from .shared_files import ModelFiles

STAGE_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_SIZE_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128)
_STAGES = ("decode", "queue", "inference")
_LABELS = ("model", "version")


class ModelMetrics:
    """One model's metrics in one process, in their own registry. Created by `Metrics.of_model`.

    If the same model is loaded twice, as during a reload, both use this object, and `close` is called once for each.
    """

    def __init__(
        self,
        identity: ModelIdentity,
        files: ModelFiles | None,
        dropped: Counter,
        on_close: Callable[[ModelMetrics], None],
    ) -> None:
        self.identity = identity
        self.dropped = dropped
        """Shared by all models."""
        self.files = files
        self.registry = CollectorRegistry()
        self._functions = GaugeFunctions(is_shared=files is not None)
        self.waiting_for_device: Callable[[], float] = _none
        self._on_close = on_close
        self._own = (identity.name, identity.version)
        stage_seconds = Histogram(
            "resnet_stage_seconds",
            "Seconds an image spent on a stage: decode, queue or inference.",
            [*_LABELS, "stage"],
            buckets=STAGE_BUCKETS,
            registry=self.registry,
        )
        self.stage_seconds = {stage: stage_seconds.labels(*self._own, stage) for stage in _STAGES}
        self.batch_size = Histogram(
            "resnet_batch_size",
            "Images in each batch that ran.",
            _LABELS,
            buckets=_SIZE_BUCKETS,
            registry=self.registry,
        ).labels(*self._own)
        self._batch_failures = Counter(
            "resnet_batch_failures",
            "Batches that failed, by kind: raised, wrong_count, out_of_memory or hung.",
            [*_LABELS, "kind"],
            registry=self.registry,
        )
        self.nan_outputs = Counter(
            "resnet_nan_outputs",
            "Images that the model answered with NaN or infinity.",
            _LABELS,
            registry=self.registry,
        ).labels(*self._own)
        self.reservations = Gauge(
            "resnet_reservations",
            "Images admitted and not answered yet, wherever they are: being decoded, waiting, or on the device.",
            _LABELS,
            registry=self.registry,
            multiprocess_mode="livesum",
        ).labels(*self._own)
        self.predicted_wait = Gauge(
            "resnet_predicted_wait_seconds",
            "How long an image that came now would wait for the device.",
            _LABELS,
            registry=self.registry,
            multiprocess_mode="livemax",
        ).labels(*self._own)
        self.batch_cap = Gauge(
            "resnet_batch_cap",
            "Largest batch formed at present; less than planned after the device ran out of memory.",
            _LABELS,
            registry=self.registry,
            multiprocess_mode="livemax",
        ).labels(*self._own)
        self._latency_model = Gauge(
            "resnet_latency_model_seconds",
            "What a batch is expected to take: alpha, and beta for each image.",
            [*_LABELS, "term"],
            registry=self.registry,
            multiprocess_mode="livemax",
        )
        self._model = Gauge(
            "resnet_model",
            "Always 1; its labels say what is served.",
            ["name", "version", "backend", "device"],
            registry=self.registry,
            multiprocess_mode="livemax",
        )

    def batch_failures(self, kind: str) -> Counter:
        return self._batch_failures.labels(*self._own, kind)

    def watch(self, gauge: Gauge, function: Callable[[], float]) -> None:
        """Have one of these gauges evaluate `function` on the event loop."""
        self._functions.set(gauge, function)

    def look(self) -> None:
        """Evaluate the gauges' functions now."""
        self._functions.look()

    def latency_model(self, term: str) -> Gauge:
        return self._latency_model.labels(*self._own, term)

    def loaded(self, backend: str, device: str) -> None:
        """The model has been loaded, on this backend and device."""
        self._model.labels(*self._own, backend, device).set(1)

    def close(self) -> None:
        """The model is unloaded. The last use to be closed removes the series."""
        self._on_close(self)

    def remove(self) -> None:
        """Drop the gauges' functions and the files."""
        self._functions.clear()
        self.waiting_for_device = _none
        if self.files is not None:
            self.files.remove()


class OfAllModels(Collector):
    """The metrics of all models; each family appears once."""

    def __init__(self, models: Callable[[], Iterable[ModelMetrics]]) -> None:
        self._models = models

    def collect(self) -> Iterator[Metric]:
        families: dict[str, Metric] = {}
        for model in self._models():
            for family in model.registry.collect():
                families.setdefault(family.name, Metric(family.name, family.documentation, family.type)).samples.extend(
                    family.samples
                )
        yield from families.values()


def _none() -> float:
    return 0.0

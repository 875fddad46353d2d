"""The metrics of one process of the service, as one object (no module globals)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from threading import Lock
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest, values
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.multiprocess import MultiProcessCollector

from ..errors import StartError
from ..threads import in_a_thread
from ..types import ModelIdentity
from .by_model import STAGE_BUCKETS, ModelMetrics, OfAllModels
from .gauges import GaugeFunctions, gauge_class, read_last_values
from .shared_files import ModelFiles, SharedFiles

# The interval at which the event loop's lag is measured and gauges shared by several processes are updated.
_LOOK_SECONDS = 0.5
# A model's files may be removed while they are being read.
_READS = 5

_LAG_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1, 5)


class Metrics:
    """Prometheus metrics of one process, in a registry of its own."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self, shared: SharedFiles | None = None) -> None:
        """With `shared`, `render` covers all processes whose files are in its folder."""
        self.registry = CollectorRegistry()
        self._shared = shared
        self._rendered = self.registry
        self._functions = GaugeFunctions(is_shared=shared is not None)
        self._models: dict[ModelIdentity, ModelMetrics] = {}
        self._uses: dict[ModelIdentity, int] = {}
        self._model_files: dict[tuple[str, str], ModelFiles] = {}
        # Models are loaded on threads, and closed on the event loop.
        self._lock = Lock()
        self._rendering: asyncio.Task[bytes] | None = None
        self._next: asyncio.Task[bytes] | None = None
        # Even if the environment sets PROMETHEUS_MULTIPROC_DIR: that folder is not this service's, and may not exist.
        values.ValueClass = values.MutexValue
        if shared is not None:
            values.ValueClass = self._file_values(shared)
            self._rendered = CollectorRegistry()
            MultiProcessCollector(self._rendered, str(shared.folder))  # type: ignore[no-untyped-call]
        Gauge = gauge_class(self._functions)
        self.registry.register(OfAllModels(lambda: list(self._models.values())))

        self.requests = Counter(
            "resnet_requests",
            "Answers sent, by route, status and error code.",
            ["route", "status", "code"],
            registry=self.registry,
        )
        self.decode_seconds = Histogram(
            "resnet_decode_seconds",
            "Seconds that decoding an image took once it began, by format.",
            ["format"],
            buckets=STAGE_BUCKETS,
            registry=self.registry,
        )
        self.decode_slots_lost = Gauge(
            "resnet_decode_slots_lost",
            "Decodes that are over their time limit and have not ended yet.",
            registry=self.registry,
            multiprocess_mode="livesum",
        )
        self.dropped = Counter(
            "resnet_dropped",
            "Images dropped before the device, by reason: client_gone, deadline or overloaded.",
            ["reason"],
            registry=self.registry,
        )
        self.shed = Counter(
            "resnet_shed",
            "Refused because of load, by reason: full (too many wait), late (the deadline would not be met), uploads.",
            ["reason"],
            registry=self.registry,
        )
        # Looked up once: under overload most requests are refused.
        self._shed = {reason: self.shed.labels(reason) for reason in ("full", "late")}
        self.event_loop_lag = Histogram(
            "resnet_event_loop_lag_seconds",
            "How late the event loop was for a timer, twice a second.",
            buckets=_LAG_BUCKETS,
            registry=self.registry,
        )
        self.queue_depth = Gauge(
            "resnet_queue_depth",
            "Images waiting for a stage.",
            ["stage"],
            registry=self.registry,
            multiprocess_mode="livesum",
        )
        self.ready = Gauge(
            "resnet_ready", "1 while requests are served, else 0.", registry=self.registry, multiprocess_mode="livemin"
        )
        self.open_uploads = Gauge(
            "resnet_open_uploads",
            "Requests whose bodies are on their way.",
            registry=self.registry,
            multiprocess_mode="livesum",
        )
        self.received_bytes = Gauge(
            "resnet_received_bytes",
            "Bytes of bodies held for requests that are not answered yet.",
            registry=self.registry,
            multiprocess_mode="livesum",
        )
        self.log_lines_dropped = Gauge(
            "resnet_log_lines_dropped",
            "Log lines that could not be written: a full disk, or a reader that has stopped.",
            registry=self.registry,
            multiprocess_mode="livesum",
        )

        self.queue_depth.labels("device").set_function(
            lambda: sum(each.waiting_for_device() for each in list(self._models.values()))
        )

    def of_model(self, identity: ModelIdentity) -> ModelMetrics:
        """The metrics of a model that is being loaded; the caller closes them when it is unloaded.

        Raises `StartError` if their files cannot be created.
        """
        with self._lock:
            model = self._models.get(identity)
            if model is None:
                files = None
                if self._shared is not None:
                    files = self._files_of(identity, self._shared)
                model = self._models[identity] = ModelMetrics(identity, files, self.dropped, self._close_model)
            self._uses[identity] = self._uses.get(identity, 0) + 1
            return model

    def _files_of(self, identity: ModelIdentity, shared: SharedFiles) -> ModelFiles:
        try:
            files = shared.of_model(identity)
        except OSError as error:
            raise StartError(
                f"The metrics of the model cannot be written to {shared.folder}: {error.strerror}. Set TMPDIR to a "
                "folder with some megabytes of room."
            ) from None
        self._model_files[identity.name, identity.version] = files
        return files

    def _close_model(self, model: ModelMetrics) -> None:
        with self._lock:
            self._uses[model.identity] -= 1
            if not self._uses[model.identity]:
                del self._uses[model.identity], self._models[model.identity]
                self._model_files.pop((model.identity.name, model.identity.version), None)
                model.remove()

    def count_shed(self, reason: str) -> None:
        """An image was refused by a model's schedule: "full" or "late"."""
        self._shed[reason].inc()

    def _file_values(self, shared: SharedFiles) -> Callable[..., Any]:
        """Replaces prometheus_client's value class: values of a model's metrics are kept in the model's files."""
        of_process = values.MultiProcessValue(lambda: shared.process)  # type: ignore[no-untyped-call]

        def new_value(
            kind: str,
            metric: str,
            name: str,
            label_names: Sequence[str],
            label_values: Sequence[str],
            *more: Any,
            **named: Any,
        ) -> Any:
            labels = dict(zip(label_names, label_values, strict=True))
            # `resnet_model` has the name in the label `name`.
            files = self._model_files.get((labels.get("model", labels.get("name", "")), labels.get("version", "")))
            make = of_process if files is None else files.new_value
            return make(kind, metric, name, label_names, label_values, *more, **named)

        return new_value

    def render(self) -> bytes:
        """The metrics in Prometheus' text format. With several processes it reads files, and blocks."""
        self.look()
        return generate_latest(self._rendered)

    async def rendered(self) -> bytes:
        """`render` on a separate thread: with eight front-ends it takes about 26 ms.

        One rendering runs at a time. Requests that come meanwhile share the next one, so that no answer is out of date.
        """
        if self._next is None:
            self._next = asyncio.create_task(self._render_behind(self._rendering))
        # A cancelled request must not cancel it for the others.
        return await asyncio.shield(self._next)

    async def _render_behind(self, running: asyncio.Task[bytes] | None) -> bytes:
        if running is not None:
            await asyncio.wait([running])
        self._rendering, self._next = self._next, None
        self.look()
        return await in_a_thread(self._render_looked, "metrics")

    def _render_looked(self) -> bytes:
        read_last_values()
        for _ in range(_READS - 1):
            with suppress(FileNotFoundError):
                return generate_latest(self._rendered)
        return generate_latest(self._rendered)

    def look(self) -> None:
        """Evaluate the gauges' functions now, and write the shared values."""
        self._functions.look()
        for model in list(self._models.values()):
            model.look()

    async def look_often(self) -> None:
        """Measure the event loop's lag, which delays every request, and call `look`; for ever."""
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + _LOOK_SECONDS
            await asyncio.sleep(_LOOK_SECONDS)
            self.event_loop_lag.observe(max(0.0, loop.time() - due))
            self.look()

"""What the service counts and times, as one object for each process (no module globals).

Where several processes are one service, each keeps its values in files that all can read (prometheus_client's
multiprocess mode), and whichever is asked answers for all of them. The files of a process that died count on in the one
that takes its place, so that no counter falls.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest, values
from prometheus_client import Gauge as _Gauge
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.multiprocess import MultiProcessCollector

from .threads import in_a_thread

# How late the event loop is, and what gauges say that several processes share, is looked at as often as this.
_LOOK_SECONDS = 0.5

_STAGE_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_LAG_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1, 5)
# As prometheus_client names them: what is kept, and of gauges how those of several processes become one.
_FILE_KINDS = ("counter", "histogram", "gauge_livesum", "gauge_livemin", "gauge_livemax")
_FILE_BYTES = 256 * 1024
_SIZE_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128)


@dataclass(frozen=True, slots=True)
class SharedFiles:
    """Where several processes keep their metrics, and which of them this one is.

    The environment's `PROMETHEUS_MULTIPROC_DIR` has to name the same folder. A process takes the name of the one that
    it replaces.
    """

    folder: Path
    process: str

    def create(self) -> None:
        """Make the process's files, empty and with their space taken: a page that finds none would kill its writer."""
        for kind in _FILE_KINDS:
            with self._file(kind).open("xb") as file:
                os.posix_fallocate(file.fileno(), 0, _FILE_BYTES)

    def forget_gauges(self) -> None:
        """The process has died: what it counted stays, what it measured is no more."""
        for kind in _FILE_KINDS:
            if kind.startswith("gauge"):
                # Somebody may have tidied the folder for temporary files, or no file may be opened now: until the next
                # process of this name writes its own gauges, these are old, and that is all.
                with suppress(OSError), self._file(kind).open("r+b") as file:
                    file.write(bytes(8))  # how much of it is used

    def _file(self, kind: str) -> Path:
        return self.folder / f"{kind}_{self.process}.db"


_thread = threading.local()


class _Looked:
    """A gauge's function, and what it said last."""

    def __init__(self, gauge: _Gauge, function: Callable[[], float]) -> None:
        self._gauge = gauge
        self._function = function
        self._value = 0.0

    def look(self, *, is_shared: bool) -> None:
        self._value = self._function()
        if is_shared:
            self._gauge.set(self._value)

    def read(self) -> float:
        return self._value if getattr(_thread, "has_looked", False) else self._function()


class Metrics:
    """Prometheus metrics of one process, in a registry of its own."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self, shared: SharedFiles | None = None) -> None:
        """With `shared`, `render` answers for all processes whose files lie there."""
        self.registry = CollectorRegistry()
        self._rendered = self.registry
        self._looked_at: list[_Looked] = []
        self._rendering: asyncio.Task[bytes] | None = None
        self._next: asyncio.Task[bytes] | None = None
        looked_at = self._looked_at
        # Also where the environment names a folder of its own, which may not be there: it is not this service's.
        values.ValueClass = values.MutexValue
        if shared is not None:
            values.ValueClass = values.MultiProcessValue(lambda: shared.process)  # type: ignore[no-untyped-call]
            self._rendered = CollectorRegistry()
            MultiProcessCollector(self._rendered, str(shared.folder))  # type: ignore[no-untyped-call]

        class Gauge(_Gauge):
            """Of a shared gauge the value is written; a function is asked for it now and then."""

            def set_function(self, f: Callable[[], float]) -> None:
                looked = _Looked(self, f)
                looked_at.append(looked)
                if shared is None:
                    super().set_function(looked.read)

        self.requests = Counter(
            "resnet_requests",
            "Answers sent, by route, status and error code.",
            ["route", "status", "code"],
            registry=self.registry,
        )
        self.stage_seconds = Histogram(
            "resnet_stage_seconds",
            "Seconds an image spent on a stage: decode, queue or inference.",
            ["stage"],
            buckets=_STAGE_BUCKETS,
            registry=self.registry,
        )
        self.decode_seconds = Histogram(
            "resnet_decode_seconds",
            "Seconds that decoding an image took once it began, by format.",
            ["format"],
            buckets=_STAGE_BUCKETS,
            registry=self.registry,
        )
        self.decode_slots_lost = Gauge(
            "resnet_decode_slots_lost",
            "Decodes that are over their time limit and have not ended yet.",
            registry=self.registry,
            multiprocess_mode="livesum",
        )
        self.batch_size = Histogram(
            "resnet_batch_size",
            "Images in each batch that ran.",
            buckets=_SIZE_BUCKETS,
            registry=self.registry,
        )
        self.dropped = Counter(
            "resnet_dropped",
            "Images dropped before the device, by reason: client_gone, deadline or overloaded.",
            ["reason"],
            registry=self.registry,
        )
        self.batch_failures = Counter(
            "resnet_batch_failures",
            "Batches that failed, by kind: raised, wrong_count, out_of_memory or hung.",
            ["kind"],
            registry=self.registry,
        )
        self.nan_outputs = Counter(
            "resnet_nan_outputs", "Images that the model answered with NaN or infinity.", registry=self.registry
        )
        self.shed = Counter(
            "resnet_shed",
            "Refused because of load, by reason: full (too many wait), late (the deadline would not be met), uploads.",
            ["reason"],
            registry=self.registry,
        )
        self.reservations = Gauge(
            "resnet_reservations",
            "Images admitted and not answered yet, wherever they are: being decoded, waiting, or on the device.",
            registry=self.registry,
            multiprocess_mode="livesum",
        )
        self.predicted_wait = Gauge(
            "resnet_predicted_wait_seconds",
            "How long an image that came now would wait for the device.",
            registry=self.registry,
            multiprocess_mode="livemax",
        )
        self.batch_cap = Gauge(
            "resnet_batch_cap",
            "Largest batch formed at present; less than planned after the device ran out of memory.",
            registry=self.registry,
            multiprocess_mode="livemax",
        )
        self.latency_model = Gauge(
            "resnet_latency_model_seconds",
            "What a batch is expected to take: alpha, and beta for each image.",
            ["term"],
            registry=self.registry,
            multiprocess_mode="livemax",
        )
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
        self.model = Gauge(
            "resnet_model",
            "Always 1; its labels say what is served.",
            ["name", "version", "backend", "device"],
            registry=self.registry,
            multiprocess_mode="livemax",
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

    def render(self) -> bytes:
        """The metrics in Prometheus' text format. Reads files where several processes share them, and blocks."""
        self.look()
        return generate_latest(self._rendered)

    async def rendered(self) -> bytes:
        """As `render`, on a thread of its own: of eight front-ends it takes some 26 ms.

        One at a time. Whoever asks while one runs shares the next, which counts what came before the question.
        """
        if self._next is None:
            self._next = asyncio.create_task(self._render_behind(self._rendering))
        # One that is given up must not end it for the others.
        return await asyncio.shield(self._next)

    async def _render_behind(self, running: asyncio.Task[bytes] | None) -> bytes:
        if running is not None:
            await asyncio.wait([running])
        self._rendering, self._next = self._next, None
        self.look()
        return await in_a_thread(self._render_looked, "metrics")

    def _render_looked(self) -> bytes:
        # The functions read what belongs to the event loop.
        _thread.has_looked = True
        return generate_latest(self._rendered)

    def look(self) -> None:
        """Ask the gauges' functions for their values now, and write those that are shared."""
        for looked in self._looked_at:
            looked.look(is_shared=self._rendered is not self.registry)

    async def look_often(self) -> None:
        """Measure how late the event loop is, what holds it holds every request, and `look`; for ever."""
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + _LOOK_SECONDS
            await asyncio.sleep(_LOOK_SECONDS)
            self.event_loop_lag.observe(max(0.0, loop.time() - due))
            self.look()

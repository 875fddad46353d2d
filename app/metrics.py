"""What the service counts and times, as one object for each service (no module globals)."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

_STAGE_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_SIZE_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """Prometheus metrics of one service, in a registry of its own."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
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
        self.queue_depth = Gauge("resnet_queue_depth", "Images waiting for a stage.", ["stage"], registry=self.registry)
        self.ready = Gauge("resnet_ready", "1 while requests are served, else 0.", registry=self.registry)
        self.model = Gauge(
            "resnet_model",
            "Always 1; its labels say what is served.",
            ["name", "version", "backend", "device"],
            registry=self.registry,
        )

        self.open_uploads = Gauge(
            "resnet_open_uploads", "Requests whose bodies are on their way.", registry=self.registry
        )
        self.received_bytes = Gauge(
            "resnet_received_bytes",
            "Bytes of bodies held for requests that are not answered yet.",
            registry=self.registry,
        )
        self.log_lines_dropped = Gauge(
            "resnet_log_lines_dropped",
            "Log lines that could not be written: a full disk, or a reader that has stopped.",
            registry=self.registry,
        )

    def render(self) -> bytes:
        """The metrics in Prometheus' text format."""
        return generate_latest(self.registry)

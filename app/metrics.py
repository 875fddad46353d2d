"""What the service counts and times, as one object for each service (no module globals)."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

_STAGE_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_LAG_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1, 5)
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
        self.predicted_wait = Gauge(
            "resnet_predicted_wait_seconds", "How long an image that came now would wait.", registry=self.registry
        )
        self.batch_cap = Gauge(
            "resnet_batch_cap",
            "Largest batch formed at present; less than planned after the device ran out of memory.",
            registry=self.registry,
        )
        self.latency_model = Gauge(
            "resnet_latency_model_seconds",
            "What a batch is expected to take: alpha, and beta for each image.",
            ["term"],
            registry=self.registry,
        )
        self.event_loop_lag = Histogram(
            "resnet_event_loop_lag_seconds",
            "How late the event loop was for a timer, twice a second.",
            buckets=_LAG_BUCKETS,
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

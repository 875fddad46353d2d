"""Settings of batches, queue and deadlines."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from .group import AutoOrCount, Group


class BatchingSettings(Group):
    """How images are batched, how many wait, and how long a request may take."""

    title: ClassVar[str] = "Batching"

    max_batch_size: AutoOrCount = Field(
        "auto",
        description="Most images in one batch. auto: the smallest size within 5% of the best measured throughput.",
    )
    max_batch_delay_ms: float = Field(
        0.0,
        ge=0,
        description="How long a free device waits for a batch to fill. 0: a waiting image starts at once.",
    )
    slo_p99_ms: float | None = Field(
        None,
        gt=0,
        description=(
            "What an answer may take from its last body byte, in 99 of 100 cases. The largest batch and each request's "
            "deadline follow from it, and what would be later is refused."
        ),
    )
    max_queue: int = Field(256, ge=1, description="Most images that wait, for decoding and for the device together.")
    max_queue_bytes: int = Field(256_000_000, ge=1, description="Most bytes of pixels that wait for the device.")
    request_timeout_ms: int = Field(
        30_000,
        ge=1,
        description="Deadline of a request from its last body byte; X-Request-Timeout-Ms can only shorten it.",
    )
    model_timeout_seconds: float = Field(
        30.0,
        gt=0,
        description=(
            "How long a batch may take, or ten times what its size usually takes. Then the device counts as hung: what "
            "waits is refused, /healthz fails and the process ends."
        ),
    )

    @property
    def longest_request_seconds(self) -> float:
        """The longest time from a request's last body byte to its answer; slower requests are refused."""
        return min(self.request_timeout_ms, self.slo_p99_ms or self.request_timeout_ms) / 1e3

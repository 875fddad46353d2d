"""Limits on clients: size and rate of requests, and number of connections."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from .group import AutoOrCount, Group


class LimitSettings(Group):
    """The largest bodies and images that are accepted."""

    title: ClassVar[str] = "Limits"

    max_body_bytes: int = Field(10_000_000, ge=1, description="Largest body of POST /predict.")
    max_batch_body_bytes: int = Field(64_000_000, ge=1, description="Largest body of POST /predict/batch.")
    max_images: int = Field(64, ge=1, description="Most images in one POST /predict/batch.")
    max_megapixels_jpeg: float = Field(64, gt=0, description="Largest JPEG that is decoded, in millions of pixels.")
    max_megapixels: float = Field(25, gt=0, description="Largest image of any other format, in millions of pixels.")
    max_side: int = Field(16_384, ge=1, description="Longest side of an image that is decoded, in pixels.")
    max_jpeg_scans: int = Field(64, ge=1, description="Most scans of a progressive JPEG that is decoded.")
    max_jpeg_megapixel_scans: float = Field(
        1_000, gt=0, description="Largest product of a JPEG's megapixels and scans: what decoding it costs."
    )


class ClientSettings(Group):
    """How long clients may take to send and to read, and how many there may be at once."""

    title: ClassVar[str] = "Clients"

    header_timeout_seconds: float = Field(
        5.0, gt=0, description="How long a client may take to send a request's headers."
    )
    max_header_bytes: int = Field(32_768, ge=1024, description="Largest head of a request: its first line and headers.")
    max_headers: int = Field(100, ge=1, description="Most headers of a request.")
    body_timeout_seconds: float = Field(
        10.0, gt=0, description="How long a client may take to send a body, and a second more for each body_min_rate."
    )
    body_min_rate: int = Field(15_000, ge=1, description="Bytes of body that buy a client one more second.")
    body_timeout_max_seconds: float = Field(120.0, gt=0, description="How long a client may take to send any body.")
    response_timeout_seconds: float = Field(
        30.0, gt=0, description="How long a client may leave an answer unread before its connection is cut."
    )
    keep_alive_seconds: float = Field(
        75.0,
        gt=0,
        description=(
            "How long a connection may rest between requests. Longer than what keeps it open on the other side, a load "
            "balancer's idle timeout for one, or requests meet a connection that has just been closed."
        ),
    )
    max_connections: AutoOrCount = Field(
        "auto",
        description=(
            "Most connections open at once; past it only /healthz, /readyz and /metrics are answered. auto: what the "
            "limit of open files leaves room for, up to 10,000."
        ),
    )
    max_open_uploads: int = Field(1024, ge=1, description="Most requests whose bodies are on their way at once.")
    max_received_bytes: int = Field(
        256_000_000, ge=1, description="Most bytes of bodies held at once, over all requests that are not answered yet."
    )

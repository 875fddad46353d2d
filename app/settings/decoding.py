"""Settings of the decoding of images."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from .group import AutoOrCount, Group


class DecodingSettings(Group):
    """How images are decoded, and how many at once."""

    title: ClassVar[str] = "Decoding"

    decode: Literal["exact", "fast"] = Field(
        "exact",
        description=(
            "exact: pixels as the reference transform makes them. fast: large JPEGs are decoded smaller; "
            "pixels and probabilities differ a little."
        ),
    )
    decoder: Literal["threads", "processes"] = Field(
        "threads",
        description=(
            "Where images are decoded: in threads, or in processes that are killed at the time limit and replaced."
        ),
    )
    decode_threads: AutoOrCount = Field(
        "auto", description="Images decoded at once. auto: the CPUs it may use, as far as decode_memory_bytes holds."
    )
    decode_memory_bytes: AutoOrCount = Field(
        "auto", description="Memory set aside for decoding. auto: half of what the service may use."
    )
    decode_timeout_seconds: float = Field(
        10.0, gt=0, description="How long decoding one image may take; then the answer is image_too_complex."
    )

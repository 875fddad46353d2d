"""The record in an ONNX file's metadata: how its graph is served, and which weights it was made of."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from ..types import Activation, Preprocessing

RECORD_KEY = "resnet_serve"
SOURCE = "the file's own word"


class Written(BaseModel):
    """A part of a record. Later versions add members and change none."""

    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)


class Record(Written):
    """The common members of the records in ONNX files from this service: artifacts and quantized models."""

    version: Literal[1] = 1
    architecture: str = Field(max_length=64)
    preprocessing: Preprocessing
    labels: tuple[str, ...]
    activation: Activation = "softmax"
    takes_pixels: bool
    """Whether the graph contains channel order and normalisation."""
    source: str
    """The checkpoint's file name."""
    source_sha256: str
    graph_sha256: str
    """The digest of the graph as `onnx_process` computes it: a record beside another graph is refused."""
    versions: dict[str, str]
    """Versions of the packages that created the graph."""

    @property
    def class_count(self) -> int:
        return len(self.labels)


class ArtifactRecord(Record):
    """The record of an artifact whose weights were not quantized by this service."""

    kind: Literal["artifact"]

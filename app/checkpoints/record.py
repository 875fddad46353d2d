"""The record in an ONNX file's metadata: how its graph is served, and which weights it was made of."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from ..types import Activation, Preprocessing

RECORD_KEY = "resnet_serve"
SOURCE = "the file's own word"


class Written(BaseModel):
    """A part of a record. A later version adds members and changes none."""

    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)


class Record(Written):
    """The members that the records of all ONNX files have which this service writes: artifacts and quantized models."""

    version: Literal[1] = 1
    architecture: str = Field(max_length=64)
    preprocessing: Preprocessing
    labels: tuple[str, ...]
    activation: Activation = "softmax"
    takes_pixels: bool
    """Whether channel order and normalisation are in the graph."""
    source: str
    """The checkpoint's file name."""
    source_sha256: str
    graph_sha256: str
    """Of the graph as `onnx_process` digests it: a record beside another graph says nothing."""
    versions: dict[str, str]
    """Of the packages that made the graph."""

    @property
    def class_count(self) -> int:
        return len(self.labels)


class ArtifactRecord(Record):
    """The record of an artifact whose weights were not quantized by this service."""

    kind: Literal["artifact"]

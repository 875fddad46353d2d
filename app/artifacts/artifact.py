"""An artifact: one ONNX file with a checkpoint's network, its weights, and all that serving it needs.

The file is an ONNX model that any runtime opens; it is not optimised for a CPU. Behind the graph come three entries of
the model's metadata:

    resnet_serve            the record, in the form that `quantize` writes too (`checkpoints.record`)
    resnet_serve_artifact   what the cache needs beside it (`Facts`)
    resnet_serve_sha256     the seal: SHA-256 of every byte before this entry, which is the last
"""

from __future__ import annotations

import hashlib
import mmap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from itertools import chain
from pathlib import Path
from typing import BinaryIO

from .. import __version__
from ..checkpoints import ArtifactRecord, Checkpoint, Graph, QuantizedRecord, Record
from ..checkpoints.onnx_metadata import graph_digest, metadata_entry, read_metadata, without_metadata
from ..checkpoints.quantized import parse_record
from ..checkpoints.record import RECORD_KEY, Written
from ..files import open_regular
from ..layers import ResNetSwitches
from .key import SCHEMA_VERSION

_FACTS_KEY, _SEAL_KEY = "resnet_serve_artifact", "resnet_serve_sha256"
_CHUNK_BYTES = 1 << 20
_PACKAGES = ("torch", "torchvision", "numpy", "onnx", "onnxruntime")


class Facts(Written):
    """All of a checkpoint and its graph that is not in the record."""

    schema_version: int
    key: str
    sha256: str
    """Of the weights' file: its first digits are the model's version."""
    source: str
    """Path of the weights' file."""
    class_count: int
    switches: ResNetSwitches | None
    decided_by: dict[str, str]
    """Decision → the source that it came from."""
    warnings: tuple[str, ...]
    is_fallback: bool
    graph: Graph
    """Without its model and its record."""


@dataclass(frozen=True, slots=True)
class Artifact:
    """An artifact on disk, verified."""

    path: Path
    record: Record
    facts: Facts

    @property
    def checkpoint(self) -> Checkpoint:
        """The checkpoint that it was made of, as a graph in place of weights."""
        record, facts = self.record, self.facts
        return Checkpoint(
            weights={},
            architecture=record.architecture,
            class_count=facts.class_count,
            preprocessing=record.preprocessing,
            labels=record.labels,
            sha256=facts.sha256,
            source=facts.source,
            warnings=facts.warnings,
            switches=facts.switches,
            graph=replace(
                facts.graph, path=self.path, quantized=record if isinstance(record, QuantizedRecord) else None
            ),
            activation=record.activation,
            is_fallback=facts.is_fallback,
        )


def tool_versions() -> dict[str, str]:
    """Versions of the packages that make a graph, as far as they are installed."""
    found = {"resnet-serve": __version__}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def serialized(checkpoint: Checkpoint, key: str) -> Iterator[bytes | memoryview]:
    """The artifact of `checkpoint`, whose graph has its model in memory, in pieces."""
    graph = checkpoint.graph
    assert graph is not None
    record, facts = _record(checkpoint, graph_digest(graph.model)), _facts(checkpoint, key)
    entries = (
        metadata_entry(RECORD_KEY, record.model_dump_json()),
        metadata_entry(_FACTS_KEY, facts.model_dump_json()),
    )
    sha256 = hashlib.sha256()
    pieces: Iterable[bytes | memoryview] = chain(without_metadata(graph.model), entries)
    for piece in pieces:
        sha256.update(piece)
        yield piece
    yield metadata_entry(_SEAL_KEY, sha256.hexdigest())


def read_artifact(path: Path, key: str) -> Artifact:
    """The artifact in the file `path`, every byte verified.

    Raises ValueError where it is not as it was written, or not the artifact of `key`; and `OSError`.
    """
    with open_regular(path) as file:
        content_bytes = file.seek(0, 2) - len(metadata_entry(_SEAL_KEY, "0" * 64))
        if content_bytes <= 0:
            raise ValueError("it is too short")
        # Read and not mapped: a disk that fails is an error here, where it would end the process else.
        if _tail(file, content_bytes) != metadata_entry(_SEAL_KEY, _digest(file, content_bytes)):
            raise ValueError("its bytes are not as they were written")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            entries = read_metadata(data)
    try:
        record = parse_record(entries[RECORD_KEY])
        facts = Facts.model_validate_json(entries[_FACTS_KEY])
    except (KeyError, ValueError):
        raise ValueError("it is of another form") from None
    if (facts.key, facts.schema_version) != (key, SCHEMA_VERSION):
        raise ValueError("it is of another checkpoint or schema version")
    return Artifact(path, record, facts)


def _tail(file: BinaryIO, begin: int) -> bytes:
    file.seek(begin)
    return file.read()


def _digest(file: BinaryIO, size_bytes: int) -> str:
    """SHA-256 of the first bytes of the file."""
    sha256 = hashlib.sha256()
    file.seek(0)
    while size_bytes > 0 and (chunk := file.read(min(size_bytes, _CHUNK_BYTES))):
        sha256.update(chunk)
        size_bytes -= len(chunk)
    return sha256.hexdigest()


def _record(checkpoint: Checkpoint, graph_sha256: str) -> Record:
    assert checkpoint.graph is not None
    decided = {
        "architecture": checkpoint.architecture,
        "preprocessing": checkpoint.preprocessing,
        "labels": checkpoint.labels,
        "activation": checkpoint.activation,
        "graph_sha256": graph_sha256,
    }
    if checkpoint.graph.quantized is not None:
        return checkpoint.graph.quantized.model_copy(update=decided)
    return ArtifactRecord(
        kind="artifact",
        takes_pixels=checkpoint.graph.takes_pixels,
        source=Path(checkpoint.source).name,
        source_sha256=checkpoint.sha256,
        versions=tool_versions(),
        **decided,
    )


def _facts(checkpoint: Checkpoint, key: str) -> Facts:
    assert checkpoint.graph is not None
    decisions = checkpoint.decisions
    named = {} if decisions is None else {name: getattr(decisions, name) for name in decisions.__slots__}
    return Facts(
        schema_version=SCHEMA_VERSION,
        key=key,
        sha256=checkpoint.sha256,
        source=checkpoint.source,
        class_count=checkpoint.class_count,
        switches=checkpoint.switches,
        decided_by={name: decision.source for name, decision in named.items()},
        warnings=checkpoint.warnings,
        is_fallback=checkpoint.is_fallback,
        graph=replace(checkpoint.graph, model=b"", path=None, quantized=None),
    )

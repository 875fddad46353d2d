"""ONNX files, served as they are. `onnx_process` examines them; this process parses nothing of them."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from math import floor
from pathlib import Path
from typing import IO, Any

from ..errors import CheckpointError
from ..labels import are_labels_of
from ..processes.framing import read_document
from ..processes.limited import Ended, Limits, NotStarted, run_limited
from ..types import Preprocessing
from .base import Decision, Graph, Stored, Told
from .examination import examining
from .onnx_data import assemble, cannot_be_served, damaged, data_files, mapped
from .presets import PRESETS
from .quantized import QuantizedRecord, read_record
from .record import SOURCE, ArtifactRecord, Record

MAX_FILE_BYTES = (1 << 31) - 1  # protobuf's own limit
_MORE_MEMORY_BYTES = 2 << 30
_MAX_CPU_SECONDS = 120
_MAX_SECONDS = 25.0
_MAX_DOCUMENT_BYTES = 64 << 20
_ZEROS, _ONES, _LEVELS = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), (1 / 255, 1 / 255, 1 / 255)
_CROP_PCT = 0.875
_GRAPH = "the file's graph"


def read_onnx(path: Path, output: str | None = None) -> Stored:
    """The graph, after its checks and a trial run. `output` names the output with the scores; None to find it.

    Raises `CheckpointError` in one line for a graph that is damaged or refused.
    """
    for package in ("onnx", "onnxruntime"):
        if importlib.util.find_spec(package) is None:
            raise CheckpointError(f"{path} is an ONNX file, which needs the package {package}. pip install {package}")
    beside = data_files(path)
    size_bytes = sum(file.stat().st_size for file in (path, *beside.values()))
    if size_bytes > MAX_FILE_BYTES:
        raise CheckpointError(
            f"{path} has {size_bytes:,} bytes, with the files beside it. The limit for ONNX is {MAX_FILE_BYTES:,}."
        )
    try:
        found, small = _ask(path, beside, output, size_bytes)
        if "refused" in found:
            raise cannot_be_served(path, found["refused"])
        if "damaged" in found:
            raise damaged(path, found["damaged"])
        record = _record(path, found)
        model = (
            path.read_bytes()
            if found["pieces"] is None
            else assemble(path, list(beside.values()), small, found["pieces"])
        )
        # An artifact of weights: this service's own graph, unchanged according to the record's digest.
        is_exported = isinstance(record, ArtifactRecord) and record.takes_pixels
        graph = Graph(
            model=model,
            input_name=found["input"],
            output_name=found["output"],
            dtype=found["dtype"],
            layout=found["layout"],
            size=tuple(found["size"]) if found["size"] else None,
            batch_size=found["batch"],
            class_count=found["classes"],
            scale=found["scale"],
            takes_pixels=record is not None and record.takes_pixels,
            is_exported=is_exported,
            computes_in="int8" if found["quantized"] else "float32" if is_exported else "",
            quantized=record if isinstance(record, QuantizedRecord) else None,
        )
        told = Told(activation=Decision(found["activation"], _GRAPH) if found["activation"] else None)
        return Stored(
            {},
            _told_by(record).then(told),
            tuple(f"{path.name}: {warning}." for warning in found["warnings"]),
            graph,
            notes=tuple(f"{path.name}: {note}." for note in found["notes"]),
        )
    except OSError as error:
        raise CheckpointError(f"Cannot read {path}: {error.strerror}.") from None
    except (Ended, ValueError, KeyError, TypeError):
        raise damaged(path, f"ONNX Runtime crashed on it, or took over {_MAX_SECONDS:.0f} s or its memory") from None


def settle(graph: Graph, told: Told) -> Told:
    """`told` with an architecture, and with the preprocessing for the graph's input, assumed if not stated.

    A graph that normalises its input always takes levels or fractions, whatever the files beside it state.
    """
    preprocessing = told.preprocessing or Decision(_usual(graph), "torchvision's usual way", is_assumed=True)
    if graph.scale is not None and not graph.takes_pixels:
        deviation = _ONES if graph.scale == "unit" else _LEVELS
        value = replace(preprocessing.value, mean=_ZEROS, std=deviation)
        preprocessing = replace(preprocessing, value=value, source=f"{preprocessing.source}, normalised by the graph")
    return replace(told, preprocessing=preprocessing).then(Told(architecture=Decision("onnx", _GRAPH)))


def _record(path: Path, found: dict[str, Any]) -> Record | None:
    """The record in the file. Raises `CheckpointError` if it is damaged or belongs to another graph."""
    if found["record"] is None:
        return None
    offset, length = found["record"]
    with mapped(path) as data:
        record = read_record(data[offset : offset + length].decode("utf-8", "replace"), path)
    if (
        record.graph_sha256 != found["graph_sha256"]
        or not are_labels_of(record.labels, found["classes"])
        or (record.takes_pixels and (found["dtype"], found["layout"]) != ("uint8", "nhwc"))
    ):
        again = "Quantize" if isinstance(record, QuantizedRecord) else "Export"
        raise CheckpointError(
            f"{path} holds another graph than the one that its record was made of. {again} the checkpoint again."
        )
    return record


def _told_by(record: Record | None) -> Told:
    if record is None:
        return Told()
    return Told(
        architecture=Decision(record.architecture, SOURCE),
        preprocessing=Decision(record.preprocessing, SOURCE),
        labels=Decision(record.labels, SOURCE),
        activation=Decision(record.activation, SOURCE),
    )


def _usual(graph: Graph) -> Preprocessing:
    usual = PRESETS["torchvision-v1"]
    if graph.size is None:
        return usual
    return replace(usual, resize_short_side=floor(max(graph.size) / _CROP_PCT), crop=graph.size)


def _ask(path: Path, beside: dict[str, Path], output: str | None, size_bytes: int) -> tuple[dict[str, Any], bytes]:
    """The answer of `onnx_process`, and the changed parts of the model that follow it. Raises `Ended`."""

    def take(pipe: IO[bytes]) -> tuple[dict[str, Any], bytes]:
        found = read_document(pipe, _MAX_DOCUMENT_BYTES)
        if "not_run" in found:
            raise NotStarted(str(found["not_run"]))
        return found, pipe.read(2 * size_bytes + _MAX_DOCUMENT_BYTES)

    asked = {
        "path": str(path.resolve()),
        "beside": {name: str(file.resolve()) for name, file in beside.items()},
        "output": output,
    }
    limits = Limits(2 * size_bytes + _MORE_MEMORY_BYTES, _MAX_CPU_SECONDS, _MAX_SECONDS)
    # Freed memory is returned to the system at once, to keep the process within its memory limit.
    environment = {"MALLOC_MMAP_THRESHOLD_": str(4 << 20)}
    with examining(path):
        return run_limited(
            "app.checkpoints.onnx_process", (), take, limits, data=json.dumps(asked).encode(), environment=environment
        )

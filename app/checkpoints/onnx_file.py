"""ONNX files: a graph with its weights, served as it is. `onnx_process` examines it; here nothing of it is parsed."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from math import floor
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from ..labels import are_labels_of
from ..types import Preprocessing
from .base import Decision, Graph, Stored, Told
from .limited_process import run_limited
from .presets import PRESETS
from .quantized import SOURCE, QuantizedRecord, read_record

MAX_FILE_BYTES = (1 << 31) - 1  # protobuf's own
_MAX_MEMORY_BYTES = 8 << 30
_MAX_CPU_SECONDS = 120
_MAX_SECONDS = 180.0
_ZEROS, _ONES, _LEVELS = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), (1 / 255, 1 / 255, 1 / 255)
_CROP_PCT = 0.875
# ModelProto: after ir_version (1), the tags of its other fields, which writers put in order of their numbers.
_NEXT_TAGS = frozenset({0x12, 0x1A, 0x22, 0x28, 0x32, 0x3A, 0x42})


def is_onnx(head: bytes, tail: bytes) -> bool:
    """A ModelProto begins with `ir_version`, 3 (2017) and up. (A SavedModel begins alike, with version 1.)"""
    return len(head) > 2 and head[0] == 0x08 and 3 <= head[1] < 0x40 and head[2] in _NEXT_TAGS


def read_onnx(path: Path) -> Stored:
    """The graph, checked and tried. Raises `CheckpointError` in one line for one that is damaged or not to be run."""
    for package in ("onnx", "onnxruntime"):
        if importlib.util.find_spec(package) is None:
            raise CheckpointError(f"{path} is an ONNX file, which needs the package {package}. pip install {package}")
    size_bytes = path.stat().st_size
    if size_bytes > MAX_FILE_BYTES:
        raise CheckpointError(f"{path} has {size_bytes:,} bytes. The limit for ONNX is {MAX_FILE_BYTES:,}.")
    model = path.read_bytes()
    line, _, changed = _ask(model).partition(b"\n")
    try:
        found = json.loads(line)
        if "refused" in found:
            raise CheckpointError(f"{path} cannot be served: {found['refused']}.")
        if "damaged" in found:
            raise _damaged(path, found["damaged"])
        record = _record(path, found)
        graph = Graph(
            model=changed if found["changed"] else model,
            input_name=found["input"],
            output_name=found["output"],
            dtype=found["dtype"],
            layout=found["layout"],
            size=tuple(found["size"]) if found["size"] else None,
            batch_size=found["batch"],
            class_count=found["classes"],
            scale=found["scale"],
            takes_pixels=record is not None and record.takes_pixels,
            computes_in="int8" if found["quantized"] else "",
            quantized=record,
        )
        notes = (f"{path.name}: {found['note']}.",) if found["note"] else ()
        told = Told(activation=Decision(found["kind"], "the file's graph"))
        return Stored({}, _told_by(record).then(told), notes, graph)
    except (ValueError, KeyError, TypeError):
        raise _damaged(path, "ONNX Runtime crashed on it, or went over its time or memory") from None


def settle(graph: Graph, told: Told) -> Told:
    """`told`, and what a graph leaves to assume: a name, and how images are prepared for its input.

    A graph that normalises its input is given levels or fractions, whatever files beside it say.
    """
    preprocessing = told.preprocessing or Decision(_usual(graph), "torchvision's usual way", is_assumed=True)
    if graph.scale is not None and not graph.takes_pixels:
        deviation = _ONES if graph.scale == "unit" else _LEVELS
        value = replace(preprocessing.value, mean=_ZEROS, std=deviation)
        preprocessing = replace(preprocessing, value=value, source=f"{preprocessing.source}, normalised by the graph")
    return replace(told, preprocessing=preprocessing).then(Told(architecture=Decision("onnx", "the file's graph")))


def _record(path: Path, found: dict[str, Any]) -> QuantizedRecord | None:
    """Raises `CheckpointError` for a record that is damaged, or that was made of another graph."""
    if found["record"] is None:
        return None
    record = read_record(found["record"], path)
    if (
        record.graph_sha256 != found["graph_sha256"]
        or not are_labels_of(record.labels, found["classes"])
        or (record.takes_pixels and (found["dtype"], found["layout"]) != ("uint8", "nhwc"))
    ):
        raise CheckpointError(
            f"{path} holds another graph than the one that its record was made of. Quantize the checkpoint again."
        )
    return record


def _told_by(record: QuantizedRecord | None) -> Told:
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


def _ask(model: bytes) -> bytes:
    return run_limited(
        "onnx_process.py",
        data=model,
        memory_bytes=_MAX_MEMORY_BYTES,
        cpu_seconds=_MAX_CPU_SECONDS,
        seconds=_MAX_SECONDS,
    )


def _damaged(path: Path, reason: str) -> CheckpointError:
    return CheckpointError(f"{path} is a damaged ONNX file ({reason}). Copy or export it again.")

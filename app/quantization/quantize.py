"""The quantization of a checkpoint: an int8 network with its record, and a report of accuracy and speed."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import numpy as np

from .. import __version__
from ..agreement import Probabilities, compare, probabilities
from ..backends.onnx import OnnxBackend
from ..backends.parts import infer_all
from ..checkpoints import CheckImages, Checkpoint, Cpu, Graph, QuantizedRecord, Speeds
from ..checkpoints.onnx_metadata import graph_digest, metadata_entry, without_metadata
from ..checkpoints.record import RECORD_KEY
from ..resources import saturates
from ..types import Pixels, Want
from .calibration import Method, Quantizer
from .graphs import Prepared, backend_of, float_graph, prepare
from .photos import Photos, split
from .report import Disagreement, Report
from .search import Candidate, damage, smallest_good, worst_first

Progress = Callable[[str, int, int], None]
"""Receives the step, the amount done and the total."""

MOST_CALIBRATING = 256
MOST_CHECK_IMAGES = 24
_SCANNED_PHOTOS = 16
_ROUNDS, _TIMES = 8, 3


@dataclass(frozen=True, slots=True)
class Options:
    method: Method = "percentile"
    per_channel: bool = True
    reduce_range: bool | None = None
    """None: only on CPUs whose 16-bit sums would saturate."""
    keep_float: int | Literal["auto"] = "auto"
    """Number of layers that stay in float32, the most damaging first; auto: as few as the agreement allows."""
    least_agreement: float = 0.95
    """The top-1 agreement that auto has to reach."""
    threads: int = 1


def quantize(checkpoint: Checkpoint, photos: Photos, options: Options, progress: Progress) -> tuple[bytes, Report]:
    """The serialized ONNX model with its record, and the report.

    The layers are chosen with the calibration photos; the report is on the held-out ones. Raises `QuantizationError`.
    """
    progress("Exporting the network", 0, 1)
    prepared = prepare(float_graph(checkpoint, options.threads), checkpoint.preprocessing.crop, options.threads)
    progress("Exporting the network", 1, 1)
    calibrating, held_out = split(len(photos), MOST_CALIBRATING)
    reduce_range = options.reduce_range
    if reduce_range is None:
        here = Cpu.here()
        reduce_range = saturates(here.machine, here.features)
    workshop = _Workshop(checkpoint, prepared, photos.pixels[calibrating], options, reduce_range, progress)
    with workshop.quantizer:
        chosen = workshop.choose()
        float32, int8 = workshop.backend(prepared.graph), workshop.backend(chosen.graph)
        pixels = photos.pixels[held_out]
        reference = workshop.probabilities(float32, pixels, "Comparing: float32")
        found = workshop.probabilities(int8, pixels, "Comparing: int8")
        speeds = measure_speeds(float32, int8, pixels[:1], options.threads, progress)
    record = QuantizedRecord(
        architecture=checkpoint.architecture,
        preprocessing=checkpoint.preprocessing,
        labels=checkpoint.labels,
        activation=checkpoint.activation,
        takes_pixels=prepared.graph.takes_pixels,
        source=Path(checkpoint.source).name,
        source_sha256=checkpoint.sha256,
        graph_sha256=graph_digest(chosen.graph.model),
        method=options.method,
        per_channel=options.per_channel,
        reduce_range=reduce_range,
        kept_float=chosen.kept_float,
        layers=len(prepared.layers),
        calibration_images=len(photos.pixels[calibrating]),
        agreement=compare(reference, found),
        speeds=speeds,
        cpu=Cpu.here(),
        versions={name: version(name) for name in ("onnxruntime", "onnx", "numpy")} | {"resnet-serve": __version__},
        check=CheckImages.of(pixels[:MOST_CHECK_IMAGES], reference[:MOST_CHECK_IMAGES]),
    )
    entry = metadata_entry(RECORD_KEY, record.model_dump_json())
    model = b"".join((*without_metadata(chosen.graph.model), entry))
    report = Report(
        record=record,
        skipped=photos.skipped,
        other_files=photos.other_files,
        damages=workshop.damages,
        disagreements=_disagreements(photos.names[held_out], reference, found, checkpoint.labels),
        best=tuple(zip(reference.max(axis=1), found[np.arange(len(found)), reference.argmax(axis=1)], strict=True)),
        float32_bytes=len(prepared.graph.model),
        int8_bytes=len(model),
    )
    return model, report


class _Workshop:
    """The state shared by the steps that choose the layers."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        prepared: Prepared,
        pixels: Pixels,
        options: Options,
        reduce_range: bool,
        progress: Progress,
    ) -> None:
        self._checkpoint = checkpoint
        self._prepared = prepared
        self._pixels = pixels
        self._options = options
        self._progress = progress
        self.quantizer = Quantizer(
            prepared,
            options.method,
            per_channel=options.per_channel,
            reduce_range=reduce_range,
            threads=options.threads,
        )
        self.damages: dict[str, float] = {}
        """The damage of each layer, if measured."""

    def choose(self) -> Candidate:
        """Calibrate, and choose the layers that stay in float32."""
        float32 = self.backend(self._prepared.graph)
        self.quantizer.calibrate(
            self._pixels, float32.prepared, lambda done, total: self._progress("Calibrating", done, total)
        )
        reference = self.probabilities(float32, self._pixels, "Comparing: float32")

        def measure(kept: tuple[str, ...]) -> Candidate:
            what = f"Trying with {len(kept)} of {len(self._prepared.layers)} layers in float32"
            graph = self.quantizer.quantize(keep_float=kept)
            return Candidate(
                graph, kept, compare(reference, self.probabilities(self.backend(graph), self._pixels, what))
            )

        wanted, least = self._options.keep_float, self._options.least_agreement
        whole = measure(()) if wanted in (0, "auto") else None
        if whole is not None and (wanted == 0 or whole.is_good(least)):
            return whole
        self.damages = self._scan(float32)
        order = worst_first(self.damages)
        if isinstance(wanted, int):
            return measure(tuple(order[:wanted]))
        # With more than half of the layers in float32 the network would hardly be quantized.
        return smallest_good(order[: max(1, len(order) // 2)], measure, lambda found: found.is_good(least))

    def _scan(self, float32: OnnxBackend) -> dict[str, float]:
        """The damage of each layer when it alone is in 8 bits."""
        pixels = self._pixels[:_SCANNED_PHOTOS]
        reference = infer_all(float32, pixels).scores
        damages = {}
        for number, layer in enumerate(self._prepared.layers):
            graph = self.quantizer.quantize(only=(layer,))
            damages[layer] = damage(reference, infer_all(self.backend(graph), pixels).scores)
            self._progress("Measuring layers", number + 1, len(self._prepared.layers))
        return damages

    def backend(self, graph: Graph) -> OnnxBackend:
        return backend_of(graph, self._checkpoint, self._options.threads)

    def probabilities(self, backend: OnnxBackend, pixels: Pixels, what: str) -> Probabilities:
        outputs = infer_all(backend, pixels, lambda done: self._progress(what, done, len(pixels)))
        return probabilities(outputs.scores, outputs.activation)


def measure_speeds(float32: OnnxBackend, int8: OnnxBackend, image: Pixels, threads: int, progress: Progress) -> Speeds:
    """Median seconds of `image` (1, H, W, 3) on each, measured in turn so that other load affects both."""
    seconds: dict[str, list[float]] = {"float32": [], "int8": []}
    for done in range(_ROUNDS):
        for name, backend in (("float32", float32), ("int8", int8)):
            # Untimed: the caches still hold the other network's data.
            backend.infer(image, Want.SCORES)
            for _ in range(_TIMES):
                began = time.perf_counter()
                backend.infer(image, Want.SCORES)
                seconds[name].append(time.perf_counter() - began)
        progress("Timing both in turn", done + 1, _ROUNDS)
    return Speeds(
        float32_seconds=statistics.median(seconds["float32"]),
        int8_seconds=statistics.median(seconds["int8"]),
        threads=threads,
    )


def _disagreements(
    names: tuple[str, ...], reference: Probabilities, found: Probabilities, labels: tuple[str, ...]
) -> tuple[Disagreement, ...]:
    both = zip(names, reference, found, strict=True)
    if len(labels) == 1:
        labels = (f"not {labels[0]}", labels[0])
    return tuple(
        Disagreement(
            photo=name,
            float32_label=labels[int(expected.argmax())],
            float32_probability=float(expected.max()),
            int8_label=labels[int(given.argmax())],
            int8_probability=float(given.max()),
            float32_margin=float(expected.max() - expected[given.argmax()]),
        )
        for name, expected, given in both
        if expected.argmax() != given.argmax()
    )

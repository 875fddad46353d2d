"""Whether a quantized model may be served: by what it promised, and by what it does on this CPU."""

from __future__ import annotations

import logging
from collections.abc import Callable
from importlib.metadata import version

import numpy as np

from ..agreement import probabilities
from ..checkpoints import Checkpoint, Cpu, QuantizedRecord
from ..errors import QuantizationError
from .base import Backend
from .parts import infer_all

logger = logging.getLogger(__name__)


def check_record(checkpoint: Checkpoint, least: float) -> None:
    """Raises `QuantizationError` where the recorded top-1 agreement is under `least`. Nothing for other checkpoints."""
    record = _record(checkpoint)
    if record is not None and record.agreement.top1 < least:
        raise QuantizationError(
            f"{checkpoint.source} was quantized with a top-1 agreement of {record.agreement.top1:.1%} on "
            f"{record.agreement.images} images, and RESNET_MIN_AGREEMENT (--min-agreement) is {least:.1%}. Quantize "
            f"{record.source} again with more photos or more layers in float32 (--keep-float), or lower the setting."
        )


def check_again(checkpoint: Checkpoint, backend: Backend, least: float, say: Callable[[str], None]) -> None:
    """On another CPU or runtime than the record's, run the stored images. Raises `QuantizationError` under `least`.

    Without VNNI, AVX2 adds products of 8 bits up in 16, where they saturate: the same file answers otherwise there.
    """
    record = _record(checkpoint)
    if record is None:
        return
    here, runtime = Cpu.here(), version("onnxruntime")
    if here == record.cpu and runtime == record.versions.get("onnxruntime"):
        return
    say(f"Checking the quantized model on this CPU, with {record.check.shape[0]} stored images")
    top1, difference = _agreement_here(record, backend)
    logger.info(
        "Quantized on %s with ONNX Runtime %s; here, on %s with %s, top-1 agreement with float32 is %.3f and "
        "probabilities differ by %.4f on average",
        record.cpu.describe(),
        record.versions.get("onnxruntime"),
        here.describe(),
        runtime,
        top1,
        difference,
    )
    if top1 < least:
        raise QuantizationError(
            f"{checkpoint.source} was quantized on {record.cpu.describe()}. On this CPU ({here.describe()}) its top-1 "
            f"agreement is {top1:.1%} on the {record.check.shape[0]} images stored with it, and RESNET_MIN_AGREEMENT "
            f"(--min-agreement) is {least:.1%}. Quantize {record.source} on this machine, or with --reduce-range."
        )


def _agreement_here(record: QuantizedRecord, backend: Backend) -> tuple[float, float]:
    """Top-1 agreement with float32, and the mean difference in the probability of its first class."""
    outputs = infer_all(backend, record.check.images())
    given = probabilities(outputs.scores, outputs.activation)
    classes = np.array(record.check.classes)
    is_finite = np.asarray(np.isfinite(given).all(axis=1))
    differences = np.abs(given[np.arange(len(given)), classes] - record.check.probabilities)
    same = (given.argmax(axis=1) == classes) & is_finite
    return float(same.mean()), float(np.where(is_finite, differences, 1.0).mean())


def _record(checkpoint: Checkpoint) -> QuantizedRecord | None:
    return checkpoint.graph.quantized if checkpoint.graph is not None else None

"""ONNX Runtime's quantizer: value ranges measured once on photos, and 8-bit graphs made with them."""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
import warnings
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from numpy.typing import NDArray

from ..backends.onnx_sessions import session_options
from ..checkpoints import Graph
from ..errors import QuantizationError, clause_of
from ..types import Pixels
from .graphs import OPERATORS, Prepared

Method = Literal["entropy", "percentile", "minmax"]
# The share of a tensor's values that the 8-bit range covers (the rest is clipped), and the bins of its histogram.
_PERCENTILE = {"percentile": 99.999, "num_bins": 2048, "symmetric": False}


class Quantizer:
    """Makes 8-bit graphs of one network. A context manager: its temporary folder holds the measurements."""

    def __init__(
        self, prepared: Prepared, method: Method, *, per_channel: bool, reduce_range: bool, threads: int
    ) -> None:
        self._prepared = prepared
        self._method = method
        self._per_channel = per_channel
        self._reduce_range = reduce_range
        self._threads = threads
        self._temporary = tempfile.TemporaryDirectory(prefix="quantize-")
        self._folder = Path(self._temporary.name)

    def __enter__(self) -> Quantizer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._temporary.cleanup()

    def calibrate(
        self, photos: Pixels, prepared: Callable[[Pixels], NDArray[Any]], progress: Callable[[int, int], None]
    ) -> None:
        """Measure all value ranges on `photos` (N, H, W, 3); `prepared` turns each into the graph's input."""
        import onnx
        from onnxruntime.quantization import create_calibrator, save_tensors_data

        model = self._folder / "float32.onnx"
        onnx.save(self._prepared.model, model)
        with _quietly(), _explained("calibrated"):
            calibrator = create_calibrator(
                model,
                OPERATORS,
                augmented_model_path=str(self._folder / "watched.onnx"),
                calibrate_method=self._calibration_method(),
                extra_options=dict(_PERCENTILE) if self._method == "percentile" else {},
            )
            calibrator.infer_session = self._session(calibrator.augmented_model_path)
            # One by one: all values of all layers take some hundred megabytes for a single photo.
            for number, photo in enumerate(photos):
                calibrator.collect_data(_Reader(self._prepared.graph.input_name, prepared(photo[None])))
                progress(number + 1, len(photos))
            save_tensors_data(calibrator.compute_data(), self._ranges)

    def quantize(self, keep_float: Collection[str] = (), only: Collection[str] = ()) -> Graph:
        """The network with all layers in 8 bits except `keep_float`, or with only the layers `only` in 8 bits."""
        from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

        target = self._folder / "int8.onnx"
        with _quietly(), _explained("quantized"):
            # QDQ form with unsigned activations and signed weights: ONNX Runtime fuses it best on CPUs
            # (onnxruntime.quantization.quantize_static, "Choosing parameters for CPU inference").
            quantize_static(
                self._folder / "float32.onnx",
                target,
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=list(OPERATORS),
                per_channel=self._per_channel,
                reduce_range=self._reduce_range,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                nodes_to_quantize=list(only),
                nodes_to_exclude=[*self._prepared.before, *keep_float],
                calibrate_method=self._calibration_method(),
                calibration_cache_path=self._ranges,
                # Scores in 256 steps would have ties, and the range would clip those of the first classes.
                extra_options={"OpTypesToExcludeOutputQuantization": ["Gemm", "MatMul"]},
            )
        return replace(self._prepared.graph, model=target.read_bytes(), computes_in="int8")

    def _session(self, model: str) -> Any:
        """The calibrator's session, but with `threads` threads; its own takes one for each core of the machine."""
        import onnxruntime

        options = session_options(self._threads)
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    @property
    def _ranges(self) -> Path:
        return self._folder / "ranges.json"

    def _calibration_method(self) -> Any:
        from onnxruntime.quantization import CalibrationMethod

        return {
            "entropy": CalibrationMethod.Entropy,
            "percentile": CalibrationMethod.Percentile,
            "minmax": CalibrationMethod.MinMax,
        }[self._method]


class _Reader:
    """One input for ONNX Runtime's calibrators (a `CalibrationDataReader`: only `get_next` is required)."""

    def __init__(self, name: str, images: NDArray[Any]) -> None:
        self._left: list[dict[str, NDArray[Any]]] = [{name: images}]

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        return self._left.pop() if self._left else None


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Silence the quantizer, which prints a line for every photo and logs every adjusted number as the root logger."""
    root = logging.getLogger()
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        root.addFilter(_is_ours)
        try:
            yield
        finally:
            root.removeFilter(_is_ours)


def _is_ours(record: logging.LogRecord) -> bool:
    return record.name != "root"


@contextlib.contextmanager
def _explained(what: str) -> Iterator[None]:
    """Raise the quantizer's exceptions (many classes, some of them asserts) as one `QuantizationError` with advice."""
    try:
        yield
    except (MemoryError, QuantizationError):
        raise
    except Exception as error:
        raise QuantizationError(
            f"ONNX Runtime's quantizer failed, the network cannot be {what}: {clause_of(error)}. Try another "
            f"--method, or serve the checkpoint as it is."
        ) from error

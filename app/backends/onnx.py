"""ONNX Runtime: the default on CPU. It runs an exported graph, or an ONNX file's own as it is."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..checkpoints import Checkpoint, Graph
from ..errors import SettingError
from ..types import Activation, InputSpec, Outputs, Pixels, Preprocessing, Want, is_pixels
from .base import BackendOptions, Batch
from .onnx_forms import Forms
from .onnx_input import GraphInput
from .onnx_sessions import Sessions

_MAX_BATCH_SIZE = 32


def create_onnx_backend(checkpoint: Checkpoint, options: BackendOptions) -> OnnxBackend:
    """A session of the graph in `checkpoint`. Raises `SettingError` for what the graph or this machine cannot do."""
    check_onnx_options(options.device, options.precision)
    graph = checkpoint.graph
    if graph is None:
        raise SettingError(
            f"RESNET_BACKEND is onnx, which serves ONNX files, and {checkpoint.source} is none. Set it to auto."
        )
    crop = checkpoint.preprocessing.crop
    if graph.size is not None and graph.size != crop:
        raise SettingError(
            f"The preprocessing gives images of {crop[0]}×{crop[1]}, but the graph in {checkpoint.source} takes "
            f"{graph.size[0]}×{graph.size[1]}. Set RESNET_PREPROCESSING to auto or to one that fits."
        )
    return OnnxBackend(graph, checkpoint.preprocessing, checkpoint.activation, options)


def check_onnx_options(device: str, precision: str) -> None:
    """Raises `SettingError` for a device and a precision that no graph is served on or in."""
    if precision not in ("auto", "float32"):
        raise SettingError(
            f"RESNET_PRECISION is {precision}, but ONNX graphs are served in their own, exported ones in float32. "
            "Set it to auto, or RESNET_BACKEND to auto."
        )
    if device.startswith("cuda"):
        raise SettingError(
            f"RESNET_DEVICE is {device}, but ONNX graphs are served on the CPU. Set it to auto or cpu, or "
            "RESNET_BACKEND to auto."
        )


class OnnxBackend:
    """Sessions behind the backend contract. A graph of a fixed batch size is given full batches."""

    name = "onnx"

    def __init__(
        self, graph: Graph, preprocessing: Preprocessing, activation: Activation, options: BackendOptions
    ) -> None:
        self._graph = graph
        self._activation: Activation = activation
        self._threads = options.threads
        self._sessions = Sessions(graph, options.threads)
        self._take(preprocessing)
        self.concurrency = self._sessions.calls
        self._largest_warmed = 0
        self.max_batch_size = graph.batch_size or _MAX_BATCH_SIZE
        threads = f"{options.threads} threads, " if options.threads else ""
        padded = f", batches of {graph.batch_size}" if graph.batch_size else ""
        self.device = f"cpu ({threads}{graph.computes_in or graph.dtype}{padded})"

    def _take(self, preprocessing: Preprocessing) -> None:
        self._input = GraphInput(self._graph, preprocessing)
        self._forms = Forms(self._graph, self._threads, self._input)

    def prepared_by(self, preprocessing: Preprocessing) -> OnnxBackend:
        """The same sessions behind another preprocessing."""
        other = copy.copy(self)
        other._take(preprocessing)
        return other

    @property
    def input_specs(self) -> frozenset[InputSpec]:
        return self._forms.input_specs

    @property
    def wants(self) -> Want:
        return self._forms.wants

    def prepare(self, spec: InputSpec, want: Want) -> None:
        if (spec, want) != (InputSpec.PIXELS_U8, Want.SCORES):
            self._forms.form(spec, want)

    def infer(self, batch: Batch, want: Want) -> Outputs:
        if want == Want.SCORES and is_pixels(batch):
            return self._infer(batch)
        form = self._forms.form(InputSpec.of(batch), want)
        images = self._input.filled(self.prepared(batch) if is_pixels(batch) else np.ascontiguousarray(batch))
        with self._sessions.borrow(form.session):
            found = form.run(images, self._graph.output_name, want)
        features, maps = (None if part is None else part[: len(batch)] for part in (found.features, found.maps))
        return Outputs(self._rows(found.scores, len(images))[: len(batch)], self._activation, features, maps)

    def _infer(self, batch: Pixels, options: Any = None) -> Outputs:
        images = self._input.filled(self.prepared(batch))
        with self._sessions.borrow() as session:
            (scores,) = session.run([self._graph.output_name], {self._graph.input_name: images}, options)
        return Outputs(self._rows(scores, len(images))[: len(batch)], self._activation)

    def _rows(self, scores: NDArray[Any], count: int) -> NDArray[np.float32]:
        return np.ascontiguousarray(np.asarray(scores, np.float32).reshape(count, self._graph.class_count))

    def warm_up(self, batch_size: int) -> None:
        # Grey noise and not zeros: denormals and dead paths would time differently.
        noise = np.random.default_rng(0).integers(0, 256, (batch_size, *self._input.crop, 3), dtype=np.uint8)
        self._infer(noise, self._giving_back() if batch_size < self._largest_warmed else None)
        self._largest_warmed = max(self._largest_warmed, batch_size)

    def _giving_back(self) -> Any:
        """Options of a run that ends with the arena's unused memory given back."""
        import onnxruntime

        options = onnxruntime.RunOptions()
        options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        return options

    def close(self) -> None:
        self._sessions.close()
        self._forms.close()

    def prepared(self, batch: Pixels) -> NDArray[Any]:
        """The batch in the graph's own layout, numbers and channel order."""
        return self._input.prepared(batch)

"""ONNX Runtime: the default on CPU. It runs an exported graph, or an ONNX file's own as it is."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..checkpoints import Checkpoint, Graph
from ..errors import SettingError
from ..types import Activation, InputSpec, Outputs, Pixels, Preprocessing, Want
from .base import BackendOptions
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
    """Sessions behind the backend contract. Normalisation is numpy's; a graph of a fixed batch is given full ones."""

    name = "onnx"
    input_specs = frozenset({InputSpec.PIXELS_U8})

    def __init__(
        self, graph: Graph, preprocessing: Preprocessing, activation: Activation, options: BackendOptions
    ) -> None:
        self._graph = graph
        self._activation: Activation = activation
        self._take(preprocessing)
        self._sessions = Sessions(graph, options.threads)
        self.concurrency = self._sessions.calls
        self._largest_warmed = 0
        self.max_batch_size = graph.batch_size or _MAX_BATCH_SIZE
        threads = f"{options.threads} threads, " if options.threads else ""
        padded = f", batches of {graph.batch_size}" if graph.batch_size else ""
        self.device = f"cpu ({threads}{graph.computes_in or graph.dtype}{padded})"

    def _take(self, preprocessing: Preprocessing) -> None:
        self._crop = preprocessing.crop
        self._is_bgr = preprocessing.is_bgr
        self._scale, self._shift = preprocessing.scale_and_shift()

    def prepared_by(self, preprocessing: Preprocessing) -> OnnxBackend:
        """The same sessions behind another preprocessing."""
        other = copy.copy(self)
        other._take(preprocessing)
        return other

    def infer(self, batch: Pixels, want: Want) -> Outputs:
        return self._infer(batch)

    def _infer(self, batch: Pixels, options: Any = None) -> Outputs:
        images = self.prepared(batch)
        size = self._graph.batch_size
        if size is not None and len(images) < size:
            # The last image again: zeros could meet operators that no photo meets.
            images = np.concatenate([images, np.repeat(images[-1:], size - len(images), axis=0)])
        with self._sessions.borrow() as session:
            (scores,) = session.run([self._graph.output_name], {self._graph.input_name: images}, options)
        rows = np.asarray(scores, np.float32).reshape(len(images), self._graph.class_count)
        return Outputs(np.ascontiguousarray(rows[: len(batch)]), self._activation)

    def warm_up(self, batch_size: int) -> None:
        # Grey noise and not zeros: denormals and dead paths would time differently.
        noise = np.random.default_rng(0).integers(0, 256, (batch_size, *self._crop, 3), dtype=np.uint8)
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

    def prepared(self, batch: Pixels) -> NDArray[Any]:
        """The batch in the graph's own layout, numbers and channel order."""
        if self._graph.takes_pixels:
            return np.ascontiguousarray(batch)
        images: NDArray[Any] = batch[..., ::-1] if self._is_bgr else batch
        if self._graph.layout == "nchw":
            images = images.transpose(0, 3, 1, 2)
        if self._graph.dtype == "uint8":
            return np.ascontiguousarray(images)
        axes = (3, 1, 1) if self._graph.layout == "nchw" else (3,)
        prepared: NDArray[Any] = np.multiply(images, self._scale.reshape(axes), dtype=np.float32, order="C")
        prepared += self._shift.reshape(axes)
        return prepared.astype(self._graph.dtype, copy=False)

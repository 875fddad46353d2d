"""Pixels → what a graph takes: channel order, layout, normalisation and numbers, in numpy where the graph has none."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..checkpoints import Graph
from ..types import Pixels, Preprocessing, Tensor


class GraphInput:
    """The input of one graph behind one preprocessing."""

    def __init__(self, graph: Graph, preprocessing: Preprocessing) -> None:
        self._graph = graph
        self.crop = preprocessing.crop
        self._is_bgr = preprocessing.is_bgr
        self._scale, self._shift = preprocessing.scale_and_shift()

    def prepared(self, batch: Pixels) -> NDArray[Any]:
        """The batch in the graph's own layout, numbers and channel order."""
        if self._graph.takes_pixels:
            return np.ascontiguousarray(batch)
        if self._graph.dtype == "uint8":
            return np.ascontiguousarray(self._ordered(batch, self._graph.layout))
        return self._normalised(batch, self._graph.layout).astype(self._graph.dtype, copy=False)

    def tensor(self, batch: Pixels) -> Tensor:
        """The batch as a client that sends tensors would send it."""
        return self._normalised(batch, "nchw")

    def filled(self, images: NDArray[Any]) -> NDArray[Any]:
        """A full batch, for a graph that takes no other."""
        size = self._graph.batch_size
        if size is None or len(images) >= size:
            return images
        # The last image again: zeros could meet operators that no photo meets.
        return np.concatenate([images, np.repeat(images[-1:], size - len(images), axis=0)])

    def _ordered(self, batch: Pixels, layout: Literal["nchw", "nhwc"]) -> NDArray[Any]:
        images: NDArray[Any] = batch[..., ::-1] if self._is_bgr else batch
        return images.transpose(0, 3, 1, 2) if layout == "nchw" else images

    def _normalised(self, batch: Pixels, layout: Literal["nchw", "nhwc"]) -> NDArray[np.float32]:
        axes = (3, 1, 1) if layout == "nchw" else (3,)
        normalised: NDArray[np.float32] = np.multiply(
            self._ordered(batch, layout), self._scale.reshape(axes), dtype=np.float32, order="C"
        )
        normalised += self._shift.reshape(axes)
        return normalised

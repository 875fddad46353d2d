"""Preprocessing layers of a Keras model, evaluated symbolically for each channel of the image.

Each supported layer computes `factor × level + shift` of a channel, reorders the channels, or sets the size. A sequence
of them does the same. Every other layer is refused, and the error names it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import CheckpointError
from ..types import Preprocessing
from .keras_graph import KerasGraph, Node, Tensor
from .keras_layers import Size, is_inert
from .keras_operations import CASTS, FLIPS, FLOATS, JOINS, PARTS, channels_of, is_last_axis
from .keras_resizing import Geometry, is_served, resized
from .keras_scaling import Scaling

IMAGE_SIDE = 224


@dataclass(frozen=True, slots=True)
class _Channel:
    """`factor × level + shift` of one channel of the model's input."""

    source: int
    factor: float = 1.0
    shift: float = 0.0

    def times(self, factor: float) -> _Channel:
        return _Channel(self.source, self.factor * factor, self.shift * factor)

    def plus(self, shift: float) -> _Channel:
        return _Channel(self.source, self.factor, self.shift + shift)


@dataclass(frozen=True, slots=True)
class _Image:
    channels: tuple[_Channel, ...]
    geometry: Geometry


@dataclass(slots=True)
class Prepared:
    """A model's preprocessing, up to its first convolution."""

    size: Size
    preprocessing: Preprocessing | None = None
    """None if it neither changes values nor resizes."""
    used: set[str] = field(default_factory=set)
    """Labels of layers whose variables are part of the preprocessing, not of the network."""
    warnings: list[str] = field(default_factory=list)


class Images:
    """The images between the nodes, from the model's inputs on."""

    def __init__(self, graph: KerasGraph, tensors: Mapping[str, NDArray[Any]]) -> None:
        self._graph = graph
        self._scaling = Scaling(graph, tensors)
        self._images: dict[Tensor, _Image] = {}
        self._warnings: list[str] = []

    def size_at(self, tensor: Tensor) -> Size:
        """The size of the images at `tensor`. Raises `CheckpointError` for the first unknown layer before it."""
        return self._follow(tensor).geometry.size or (IMAGE_SIDE, IMAGE_SIDE)

    def prepared(self, tensor: Tensor, usual: Preprocessing) -> Prepared:
        """The preprocessing before `tensor`. Properties that the model does not set are those of `usual`."""
        image = self._follow(tensor)
        geometry, channels = image.geometry, image.channels
        size = geometry.size or (IMAGE_SIDE, IMAGE_SIDE)
        found = Prepared(size, None, self._scaling.used, self._warnings)
        is_open = all(channel == _Channel(number) for number, channel in enumerate(channels)) and len(channels) == 3
        if is_open and geometry.interpolation is None:
            return found
        value = replace(
            usual,
            resize_short_side=geometry.short_side,
            crop=size,
            interpolation=geometry.interpolation or usual.interpolation,
            floor_crop=geometry.is_floor_crop,
        )
        found.preprocessing = value if is_open else self._with_scale(value, channels, tensor.node)
        return found

    def _with_scale(self, value: Preprocessing, channels: Sequence[_Channel], node: Node) -> Preprocessing:
        order = tuple(channel.source for channel in channels)
        if order not in ((0, 1, 2), (2, 1, 0)):
            raise self._graph.refusal(node, f"it is given the channels {order} of an image, and not three of its own")
        if not all(channel.factor > 0 and np.isfinite([channel.factor, channel.shift]).all() for channel in channels):
            raise self._graph.refusal(node, "it is given levels that do not rise with the image's")
        levels = 255.0
        normalization = self._scaling.mean_of_fractions
        if normalization is not None and all(channel.factor > 1 for channel in channels):
            # Levels from 0 to 255 have no mean below 1, so the model was trained on levels from 0 to 1.
            levels = 1.0
            self._warnings.append(
                f"{self._graph.path.name} has {normalization.describe()}, with means below 1 and no scaling "
                f"before it: its images are taken to go from 0 to 1."
            )
        std = [1 / (levels * channel.factor) for channel in channels]
        mean = [-channel.shift * deviation for channel, deviation in zip(channels, std, strict=True)]
        return replace(value, mean=_three(mean), std=_three(std), is_bgr=order == (2, 1, 0))

    def _follow(self, tensor: Tensor) -> _Image:
        if not self._images:
            for node in self._graph.nodes:
                self._take(node)
        found = self._images.get(tensor)
        if found is None:
            raise self._unknown(tensor)
        return found

    def _unknown(self, tensor: Tensor) -> CheckpointError:
        """The refusal of the first layer whose output is unknown."""
        node = tensor.node
        while unknown := [each for each in node.inputs if each not in self._images]:
            node = unknown[0].node
        return self._graph.refusal(node, "which is not known before a ResNet-50")

    def _take(self, node: Node) -> None:
        """Evaluate a node, if all its inputs are images and it is supported."""
        if node.kind == "InputLayer":
            self._images[Tensor(node)] = self._input(node)
            return
        given = [self._images.get(tensor) for tensor in node.inputs]
        images = [image for image in given if image is not None]
        if not images or len(images) < len(given):
            return
        made = self._make(node, images)
        if isinstance(made, _Image):
            self._images[Tensor(node)] = made
        elif made is not None:
            self._images |= {Tensor(node, number): image for number, image in enumerate(made)}

    def _input(self, node: Node) -> _Image:
        shape = node.options.get("batch_shape") or node.options.get("batch_input_shape")
        if not isinstance(shape, list) or len(shape) != 4:
            return _Image(tuple(map(_Channel, range(3))), Geometry(None))
        height, width, channels = shape[1:]
        if channels != 3 and channels is not None:
            raise self._graph.refusal(
                node, f"the model takes images of {str(channels)[:20]} channels, and photos have 3"
            )
        size = None
        if isinstance(height, int) and isinstance(width, int):
            if not is_served((height, width)):
                raise self._graph.refusal(node, f"the model takes images of {height}×{width}")
            size = (height, width)
        return _Image(tuple(map(_Channel, range(3))), Geometry(size))

    def _make(self, node: Node, images: list[_Image]) -> _Image | list[_Image] | None:
        image, kind = images[0], node.kind
        if kind in JOINS:
            joined = tuple(channel for each in images for channel in each.channels)
            return _Image(joined, image.geometry) if is_last_axis(node) and len(joined) <= 4 else None
        if len(images) > 1:
            return None
        if is_inert(node) or (kind == "Activation" and node.options.get("activation") in ("linear", None)):
            return image
        if kind in CASTS:
            name = node.keywords.get("dtype", node.options.get("dtype"))
            return image if not isinstance(name, str) or name in FLOATS else None
        if kind in PARTS:
            is_whole = node.keywords.get("num_or_size_splits", 3) == 3 and is_last_axis(node)
            return [_Image((channel,), image.geometry) for channel in image.channels] if is_whole else None
        if kind in ("GetItem", "tf.__operators__.getitem"):
            taken = channels_of(node, len(image.channels))
            return None if taken is None else replace(image, channels=tuple(image.channels[each] for each in taken))
        if kind in FLIPS:
            return replace(image, channels=image.channels[::-1]) if is_last_axis(node) else None
        if kind in ("Resizing", "CenterCrop"):
            return replace(image, geometry=resized(self._graph, node, image.geometry, self._warnings))
        pairs = self._scaling.of(node, len(image.channels))
        if pairs is None:
            return None
        return replace(
            image,
            channels=tuple(
                channel.times(factor).plus(shift)
                for channel, (factor, shift) in zip(image.channels, pairs, strict=True)
            ),
        )


def _three(values: Sequence[float]) -> tuple[float, float, float]:
    first, second, third = values
    return first, second, third

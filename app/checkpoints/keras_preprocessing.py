"""Preprocessing layers in a Keras graph, evaluated symbolically for each channel.

Every operation that is known is `factor × level + shift` of one channel of the image, or puts channels in another
order, or sets the size. So is what they are together. Anything else is refused by its name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import CheckpointError
from ..types import Interpolation, Preprocessing
from .keras_body import read_epsilon
from .keras_graph import KerasGraph, Node, Tensor
from .keras_layers import Size, is_inert
from .keras_operations import (
    CASTS,
    FLIPS,
    FLOATS,
    JOINS,
    PARTS,
    PRODUCTS,
    QUOTIENTS,
    SIGN,
    channels_of,
    inverted,
    is_last_axis,
    negated,
    numbers_of,
    operands_of,
    pairs_of,
)

IMAGE_SIDE = 224
_SMALLEST, _LARGEST = 32, 4096
_INTERPOLATIONS = {
    "nearest": Interpolation.NEAREST,
    "bilinear": Interpolation.BILINEAR,
    "bicubic": Interpolation.BICUBIC,
    "lanczos3": Interpolation.LANCZOS,
}
_NORMALIZATION_EPSILON = 1e-7  # keras.backend.epsilon(), the least deviation that Normalization divides by


@dataclass(frozen=True, slots=True)
class _Channel:
    """`factor × level + shift`, of one channel of the image that the model is given."""

    source: int
    factor: float = 1.0
    shift: float = 0.0

    def times(self, factor: float) -> _Channel:
        return _Channel(self.source, self.factor * factor, self.shift * factor)

    def plus(self, shift: float) -> _Channel:
        return _Channel(self.source, self.factor, self.shift + shift)


@dataclass(frozen=True, slots=True)
class _Geometry:
    """How an image of any size comes to the model's."""

    size: Size | None
    """None: any."""
    short_side: int | None = None
    interpolation: Interpolation | None = None
    """None where no layer resizes."""
    is_floor_crop: bool = False


@dataclass(frozen=True, slots=True)
class _Image:
    channels: tuple[_Channel, ...]
    geometry: _Geometry


@dataclass(slots=True)
class Prepared:
    """What a model does with an image before its first convolution."""

    size: Size
    preprocessing: Preprocessing | None = None
    """None where it does nothing that would change values or resize."""
    used: set[str] = field(default_factory=set)
    """Labels of layers whose variables are in it, and that are no part of the network."""
    warnings: list[str] = field(default_factory=list)


class Images:
    """Follows images from the inputs through the nodes."""

    def __init__(self, graph: KerasGraph, tensors: Mapping[str, NDArray[Any]]) -> None:
        self._graph = graph
        self._tensors = tensors
        self._images: dict[Tensor, _Image] = {}
        self._used: set[str] = set()
        self._warnings: list[str] = []
        self._mean_of_fractions: Node | None = None

    def size_at(self, tensor: Tensor) -> Size:
        """Of the images there. Raises `CheckpointError` where they are none, by the first layer that is unknown."""
        return self._follow(tensor).geometry.size or (IMAGE_SIDE, IMAGE_SIDE)

    def prepared(self, tensor: Tensor, usual: Preprocessing) -> Prepared:
        """What is done before `tensor`; `usual` where the model leaves something open."""
        image = self._follow(tensor)
        geometry, channels = image.geometry, image.channels
        size = geometry.size or (IMAGE_SIDE, IMAGE_SIDE)
        found = Prepared(size, None, self._used, self._warnings)
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
        if self._mean_of_fractions is not None and all(channel.factor > 1 for channel in channels):
            # Of levels from 0 to 255 no mean is below 1: the model was given images from 0 to 1.
            levels = 1.0
            self._warnings.append(
                f"{self._graph.path.name} has {self._mean_of_fractions.describe()}, with means below 1 and no scaling "
                f"before it: its images are taken to go from 0 to 1."
            )
        std = [1 / (levels * channel.factor) for channel in channels]
        mean = [-channel.shift * deviation for channel, deviation in zip(channels, std, strict=True)]
        return replace(value, mean=_three(mean), std=_three(std), is_bgr=order == (2, 1, 0))

    # --- following

    def _follow(self, tensor: Tensor) -> _Image:
        if not self._images:
            for node in self._graph.nodes:
                self._take(node)
        found = self._images.get(tensor)
        if found is None:
            raise self._unknown(tensor)
        return found

    def _unknown(self, tensor: Tensor) -> CheckpointError:
        """By the first layer that no image comes out of."""
        node = tensor.node
        while unknown := [each for each in node.inputs if each not in self._images]:
            node = unknown[0].node
        return self._graph.refusal(node, "which is not known before a ResNet-50")

    def _take(self, node: Node) -> None:
        """What the node gives, where it is known and of images alone."""
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
            return _Image(tuple(map(_Channel, range(3))), _Geometry(None))
        height, width, channels = shape[1:]
        if channels != 3 and channels is not None:
            raise self._graph.refusal(
                node, f"the model takes images of {str(channels)[:20]} channels, and photos have 3"
            )
        size = None
        if isinstance(height, int) and isinstance(width, int):
            if not (_SMALLEST <= height <= _LARGEST and _SMALLEST <= width <= _LARGEST):
                raise self._graph.refusal(node, f"the model takes images of {height}×{width}")
            size = (height, width)
        return _Image(tuple(map(_Channel, range(3))), _Geometry(size))

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
            return replace(image, geometry=self._resized(node, image.geometry))
        pairs = self._affine(node, len(image.channels))
        if pairs is None:
            return None
        return replace(
            image,
            channels=tuple(
                channel.times(factor).plus(shift)
                for channel, (factor, shift) in zip(image.channels, pairs, strict=True)
            ),
        )

    # --- values

    def _affine(self, node: Node, count: int) -> list[tuple[float, float]] | None:
        """Factor and shift of each channel."""
        kind, options = node.kind, node.options
        if kind == "Rescaling":
            return pairs_of(options.get("scale"), options.get("offset", 0.0), count)
        if kind == "Normalization":
            return self._normalization(node, count)
        if kind == "BatchNormalization":
            return self._batch_normalization(node, count)
        if kind in ("Negative", "tf.math.negative"):
            return [(-1.0, 0.0)] * count
        operands = operands_of(node)
        if operands is None:
            return None
        value, is_first = operands
        if kind in SIGN:
            if is_first:
                return pairs_of(SIGN[kind], value, count)
            return pairs_of(1.0, value if SIGN[kind] > 0 else negated(value), count)
        if kind in PRODUCTS:
            return pairs_of(value, 0.0, count)
        if kind in QUOTIENTS and not is_first:
            return pairs_of(inverted(value), 0.0, count)
        return None

    def _normalization(self, node: Node, count: int) -> list[tuple[float, float]] | None:
        """(x - mean) / deviation, by the options, or by what it learnt; inverted, the other way round."""
        mean, variance = numbers_of(node.options.get("mean")), numbers_of(node.options.get("variance"))
        if mean is None or variance is None:
            mean, variance = (self._variable(node, leaf) for leaf in ("mean", "variance"))
        if mean is None or variance is None or node.options.get("axis", -1) not in (-1, 3, [-1], [3], None, []):
            return None
        self._used.add(node.label)
        deviation = np.maximum(np.sqrt(np.maximum(variance, 0)), _NORMALIZATION_EPSILON)
        if node.options.get("invert"):
            return pairs_of(deviation, mean, count)
        if mean.max() < 1 and deviation.max() < 1 and mean.max() > 0:
            self._mean_of_fractions = node
        return pairs_of(1 / deviation, -mean / deviation, count)

    def _batch_normalization(self, node: Node, count: int) -> list[tuple[float, float]] | None:
        mean, variance = (self._variable(node, leaf) for leaf in ("moving_mean", "moving_variance"))
        if mean is None or variance is None:
            return None
        gamma, beta = self._variable(node, "gamma"), self._variable(node, "beta")
        factor = (1.0 if gamma is None else gamma) / np.sqrt(variance + read_epsilon(self._graph, node))
        self._used.add(node.label)
        return pairs_of(factor, (0.0 if beta is None else beta) - mean * factor, count)

    def _variable(self, node: Node, leaf: str) -> NDArray[np.float64] | None:
        return numbers_of(self._tensors.get(f"{node.label}/{leaf}"))

    # --- size

    def _resized(self, node: Node, before: _Geometry) -> _Geometry:
        height, width = node.options.get("height"), node.options.get("width")
        if not (isinstance(height, int) and isinstance(width, int)):
            raise self._graph.refusal(node, "its height and width cannot be read")
        size = (height, width)
        if not all(_SMALLEST <= side <= _LARGEST for side in size):
            raise self._graph.refusal(node, f"it makes images of {height}×{width}")
        if before.size == size:
            return before
        if node.kind == "CenterCrop":
            if before.short_side is None or before.size is None or height > before.size[0] or width > before.size[1]:
                raise self._graph.refusal(node, "a crop is served of images whose short side was set before it alone")
            return replace(before, size=size, is_floor_crop=True)
        if before.size is not None:
            raise self._graph.refusal(
                node, f"the model takes images of {before.size[0]}×{before.size[1]} and resizes them once more"
            )
        return self._resizing(node, size)

    def _resizing(self, node: Node, size: Size) -> _Geometry:
        options = node.options
        name = options.get("interpolation", "bilinear")
        interpolation = _INTERPOLATIONS.get(name) if isinstance(name, str) else None
        is_cropped = bool(options.get("crop_to_aspect_ratio"))
        if interpolation is None or options.get("pad_to_aspect_ratio") or (is_cropped and size[0] != size[1]):
            raise self._graph.refusal(node, "its interpolation, its padding or its crop to a ratio is not served")
        if interpolation is not Interpolation.NEAREST and not options.get("antialias"):
            self._warnings.append(
                f"{self._graph.path.name} resizes images with {node.describe()}, which takes single points of a large "
                f"photo; here it is resized by the {interpolation.value} filter over all of them, as Pillow does. "
                f"For the same answers, send images of {size[0]}×{size[1]}."
            )
        return _Geometry(size, size[0] if is_cropped else None, interpolation)


def _three(values: Sequence[float]) -> tuple[float, float, float]:
    first, second, third = values
    return first, second, third

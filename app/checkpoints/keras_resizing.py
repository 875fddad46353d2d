"""Keras layers that resize and crop images, as the resize and crop of this service's preprocessing."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..types import Interpolation
from .keras_graph import KerasGraph, Node
from .keras_layers import Size

_SMALLEST, _LARGEST = 32, 4096
_INTERPOLATIONS = {
    "nearest": Interpolation.NEAREST,
    "bilinear": Interpolation.BILINEAR,
    "bicubic": Interpolation.BICUBIC,
    "lanczos3": Interpolation.LANCZOS,
}


@dataclass(frozen=True, slots=True)
class Geometry:
    """The resize and crop of an image to the model's size."""

    size: Size | None
    """None for any size."""
    short_side: int | None = None
    interpolation: Interpolation | None = None
    """None if no layer resizes."""
    is_floor_crop: bool = False


def is_served(size: Size) -> bool:
    """Whether both sides of an image are within the limits."""
    return all(_SMALLEST <= side <= _LARGEST for side in size)


def resized(graph: KerasGraph, node: Node, before: Geometry, warnings: list[str]) -> Geometry:
    """The geometry behind a Resizing or CenterCrop layer. Raises `CheckpointError` for one that is not served.

    A resize that samples single points of the image is added to `warnings`.
    """
    height, width = node.options.get("height"), node.options.get("width")
    if not (isinstance(height, int) and isinstance(width, int)):
        raise graph.refusal(node, "its height and width cannot be read")
    size = (height, width)
    if not is_served(size):
        raise graph.refusal(node, f"it makes images of {height}×{width}")
    if before.size == size:
        return before
    if node.kind == "CenterCrop":
        if before.short_side is None or before.size is None or height > before.size[0] or width > before.size[1]:
            raise graph.refusal(node, "a crop is served of images whose short side was set before it alone")
        return replace(before, size=size, is_floor_crop=True)
    if before.size is not None:
        raise graph.refusal(
            node, f"the model takes images of {before.size[0]}×{before.size[1]} and resizes them once more"
        )
    return _read_resizing(graph, node, size, warnings)


def _read_resizing(graph: KerasGraph, node: Node, size: Size, warnings: list[str]) -> Geometry:
    options = node.options
    name = options.get("interpolation", "bilinear")
    interpolation = _INTERPOLATIONS.get(name) if isinstance(name, str) else None
    is_cropped = bool(options.get("crop_to_aspect_ratio"))
    if interpolation is None or options.get("pad_to_aspect_ratio") or (is_cropped and size[0] != size[1]):
        raise graph.refusal(node, "its interpolation, its padding or its crop to a ratio is not served")
    if interpolation is not Interpolation.NEAREST and not options.get("antialias"):
        warnings.append(
            f"{graph.path.name} resizes images with {node.describe()}, which takes single points of a large "
            f"photo; here it is resized by the {interpolation.value} filter over all of them, as Pillow does. "
            f"For the same answers, send images of {size[0]}×{size[1]}."
        )
    return Geometry(size, size[0] if is_cropped else None, interpolation)

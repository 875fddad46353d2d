"""A Keras graph's body compared with ResNet50V2, whose activations come before the convolutions.

Only its epsilons may differ: `networks.resnet50v2` takes no other layers.
"""

from __future__ import annotations

from collections.abc import Callable

from .keras_body import NO_PADS, RELU, STAGES, Body, Walk, read_epsilons
from .keras_graph import KerasGraph, Node, Tensor
from .keras_layers import Pads, Size, behind_inert

_V2_EPSILON = 1.001e-5


def read_body_v2(
    graph: KerasGraph, end: Tensor, role: Callable[[Node], str | None], size_at: Callable[[Tensor], Size]
) -> Body:
    """The body that ends in `end`, as `keras_body.read_body` reads ResNet50's."""
    walk = Walk(graph, role)
    tensor = walk.norm(walk.activation(end, "relu"), "norm")
    for stage, blocks in reversed(STAGES):
        for block in reversed(range(blocks)):
            is_strided = block == blocks - 1 and stage < 4
            tensor = _bottleneck_v2(walk, tensor, f"layer{stage}.{block}", is_strided)
    tensor = walk.pool(tensor, "maxpool")
    source = walk.convolution(tensor, "stem")
    last = size = size_at(source)
    for name, node, window in walk.measured(size):
        expected = _expected_v2(name)
        if (window.kernel[0], window.stride, window.pads, window.dilation) != (*expected, (1, 1)):
            raise graph.refusal(node, f"its kernel, stride or padding is not that of ResNet50V2's {name}")
        last = window.gives
    if "maxpool" not in [name for name, _, _ in walk.windows]:
        raise graph.refusal(tensor.node, "ResNet50V2's pool was expected behind it")
    for activated, node in walk.activations.values():
        if activated != RELU:
            raise graph.refusal(node, "an activation that ResNet50V2 does not have there: relu was expected")
    epsilon, altered = read_epsilons(walk, _V2_EPSILON)
    return Body(source, last, "1x1", "symmetric", "symmetric", epsilon, tuple(altered))


def _bottleneck_v2(walk: Walk, tensor: Tensor, name: str, is_strided: bool) -> Tensor:
    main, side = walk.branches(tensor, f"{name}.expand")
    main = walk.convolution(main, f"{name}.expand")
    main = walk.norm(walk.activation(main, f"{name}.relu"), f"{name}.spatial_bn")
    main = walk.convolution(main, f"{name}.spatial")
    main = walk.norm(walk.activation(main, f"{name}.relu"), f"{name}.reduce_bn")
    start = walk.convolution(main, f"{name}.reduce")
    given = walk.norm(walk.activation(start, f"{name}.relu"), f"{name}.preact")
    if name.endswith(".0"):
        # The projection starts from the output of the block's own normalisation.
        walk.meet(start, walk.convolution(side, f"{name}.shortcut"), name)
        return behind_inert(given)
    if is_strided:
        side = walk.pool(side, f"{name}.skip")
    return walk.meet(given, side, name)


def _expected_v2(name: str) -> tuple[int, Size, Pads]:
    """Kernel, stride and padding."""
    if name in ("stem", "maxpool"):
        return (7, (2, 2), (3, 3, 3, 3)) if name == "stem" else (3, (2, 2), (1, 1, 1, 1))
    block, _, part = name.rpartition(".")
    is_strided = block in ("layer1.2", "layer2.3", "layer3.5") and part in ("spatial", "skip")
    pads = (1, 1, 1, 1) if part == "spatial" else NO_PADS
    return 3 if part == "spatial" else 1, (2, 2) if is_strided else (1, 1), pads

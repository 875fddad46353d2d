"""torchvision's ResNets, ResNeXts and wide ResNets, and timm's ResNet-50s with a deep stem."""

from __future__ import annotations

from dataclasses import dataclass

from ..layers import Layer, ResNetSwitches
from .description import Chain, Description


@dataclass(frozen=True, slots=True)
class ResNet:
    """What sets one of them apart (torchvision/models/resnet.py; timm/models/resnet.py for the stems)."""

    blocks: tuple[int, int, int, int]
    has_bottlenecks: bool = True
    groups: int = 1
    group_width: int = 64
    """Channels of a group of a bottleneck's 3×3 in the first stage."""
    stem: tuple[int, int, int] | None = None
    """Widths of a deep stem's three 3×3 convolutions; None for one 7×7."""
    is_pooled: bool = False
    """Whether a projection averages 2×2 points where it has a stride, in place of skipping three of four."""
    width: int = 64
    """Channels of the stem and of the first stage's blocks."""


RESNETS = {
    "resnet18": ResNet((2, 2, 2, 2), has_bottlenecks=False),
    "resnet34": ResNet((3, 4, 6, 3), has_bottlenecks=False),
    "resnet50": ResNet((3, 4, 6, 3)),
    "resnet101": ResNet((3, 4, 23, 3)),
    "resnet152": ResNet((3, 8, 36, 3)),
    "resnext50_32x4d": ResNet((3, 4, 6, 3), groups=32, group_width=4),
    "resnext101_32x8d": ResNet((3, 4, 23, 3), groups=32, group_width=8),
    "resnext101_64x4d": ResNet((3, 4, 23, 3), groups=64, group_width=4),
    "wide_resnet50_2": ResNet((3, 4, 6, 3), group_width=128),
    "wide_resnet101_2": ResNet((3, 4, 23, 3), group_width=128),
    "resnet50c": ResNet((3, 4, 6, 3), stem=(32, 32, 64)),
    "resnet50d": ResNet((3, 4, 6, 3), stem=(32, 32, 64), is_pooled=True),
    "resnet50s": ResNet((3, 4, 6, 3), stem=(64, 64, 128)),
    "resnet50t": ResNet((3, 4, 6, 3), stem=(24, 32, 64), is_pooled=True),
}
# TensorFlow's SAME for a 7×7 of stride 2 on even sizes: two rows and columns before, three behind.
_SAME_STEM = (2, 2, 3, 3)


def describe_resnet(resnet: ResNet, classes: int, switches: ResNetSwitches) -> Description:
    """The network with one dense layer as its classifier.

    Of `switches`, `altered` and `head` are not looked at. Activations have names of their own, `act1…3` in a block,
    since a checkpoint may state each of them; torchvision has one module, `relu`, for all of a block's.
    """
    chain = Chain()
    _add_stem(chain, resnet, switches)
    channels = resnet.stem[2] if resnet.stem else resnet.width
    add_block = _add_bottleneck if resnet.has_bottlenecks else _add_basic_block
    for stage, count in enumerate(resnet.blocks, start=1):
        for number in range(count):
            stride = 2 if stage > 1 and number == 0 else 1
            planes = resnet.width << stage - 1
            channels = add_block(chain, f"layer{stage}.{number}", channels, planes, stride, resnet, switches)
    chain.layer(Layer("avgpool", "adaptive_average_pool", (1, 1)))
    chain.classifier("fc", channels, classes)
    return chain.description()


def _add_stem(chain: Chain, resnet: ResNet, switches: ResNetSwitches) -> None:
    epsilon = switches.epsilon
    if resnet.stem:
        first, second, width = resnet.stem
        chain.convolution("conv1.0", 3, first, 3, stride=2, padding=1)
        chain.batch_norm("conv1.1", first, epsilon)
        chain.layer(Layer("conv1.2", "relu"))
        chain.convolution("conv1.3", first, second, 3, padding=1)
        chain.batch_norm("conv1.4", second, epsilon)
        chain.layer(Layer("conv1.5", "relu"))
        chain.convolution("conv1.6", second, width, 3, padding=1)
    else:
        width = resnet.width
        if switches.stem == "same":
            chain.convolution("conv1", 3, width, 7, stride=2, zeros=_SAME_STEM)
        else:
            chain.convolution("conv1", 3, width, 7, stride=2, padding=3)
    chain.batch_norm("bn1", width, epsilon)
    chain.layer(Layer("relu", "relu"))
    # ceil: the window may hang over the end, which is SAME where the input is even.
    padding = (1, 1) if switches.pool == "symmetric" else (0, 0)
    chain.layer(Layer("maxpool", "max_pool", (3, 3), (2, 2), padding, (1, 1), switches.pool == "ceil"))


def _add_bottleneck(
    chain: Chain, name: str, inputs: int, planes: int, stride: int, resnet: ResNet, switches: ResNetSwitches
) -> int:
    """1×1, 3×3, 1×1 and the sum with the block's input. Returns its channels."""
    source, epsilon = chain.last, switches.epsilon
    width, outputs = planes * resnet.group_width // 64 * resnet.groups, 4 * planes
    first, second = (stride, 1) if switches.stride_in == "1x1" else (1, stride)
    chain.convolution(f"{name}.conv1", inputs, width, 1, stride=first)
    chain.batch_norm(f"{name}.bn1", width, epsilon)
    chain.layer(Layer(f"{name}.act1", "relu"))
    chain.convolution(f"{name}.conv2", width, width, 3, stride=second, padding=1, groups=resnet.groups)
    chain.batch_norm(f"{name}.bn2", width, epsilon)
    chain.layer(Layer(f"{name}.act2", "relu"))
    chain.convolution(f"{name}.conv3", width, outputs, 1)
    chain.batch_norm(f"{name}.bn3", outputs, epsilon)
    _add_sum(chain, name, source, inputs, outputs, stride, resnet, epsilon)
    chain.layer(Layer(f"{name}.act3", "relu"))
    return outputs


def _add_basic_block(
    chain: Chain, name: str, inputs: int, planes: int, stride: int, resnet: ResNet, switches: ResNetSwitches
) -> int:
    """Two 3×3 and the sum with the block's input. Returns its channels."""
    source, epsilon = chain.last, switches.epsilon
    chain.convolution(f"{name}.conv1", inputs, planes, 3, stride=stride, padding=1)
    chain.batch_norm(f"{name}.bn1", planes, epsilon)
    chain.layer(Layer(f"{name}.act1", "relu"))
    chain.convolution(f"{name}.conv2", planes, planes, 3, padding=1)
    chain.batch_norm(f"{name}.bn2", planes, epsilon)
    _add_sum(chain, name, source, inputs, planes, stride, resnet, epsilon)
    chain.layer(Layer(f"{name}.act2", "relu"))
    return planes


def _add_sum(
    chain: Chain, name: str, source: str, inputs: int, outputs: int, stride: int, resnet: ResNet, epsilon: float
) -> None:
    """The block's input, projected where a stage begins with another width, onto what the block has computed."""
    main = chain.last
    if stride != 1 or inputs != outputs:
        pooled = resnet.is_pooled
        if pooled:
            pool = Layer(f"{name}.downsample.0", "identity")
            if stride > 1:
                pool = Layer(
                    pool.name, "average_pool", (2, 2), (stride, stride), (0, 0), None, True, count_include_pad=False
                )
            chain.last = source
            chain.layer(pool)
            source, stride = chain.last, 1
        number = 1 if pooled else 0
        chain.convolution(f"{name}.downsample.{number}", inputs, outputs, 1, stride=stride, source=source)
        chain.batch_norm(f"{name}.downsample.{number + 1}", outputs, epsilon)
        source = chain.last
    chain.sum(f"{name}.sum", main, source)

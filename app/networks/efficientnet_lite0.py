"""EfficientNet-Lite0 as TensorFlow trained it, under timm's names (`tf_efficientnet_lite0`)."""

from __future__ import annotations

from ..layers import Layer
from .description import Chain, Description

_EPSILON = 1e-3  # TensorFlow's
_STEM, _HEAD = 32, 1280
# Of each stage: blocks, outputs, kernel, the first block's stride, expansion (timm/models/efficientnet.py).
_STAGES = (
    (1, 16, 3, 1, 1),
    (2, 24, 3, 2, 6),
    (2, 40, 5, 2, 6),
    (3, 80, 3, 2, 6),
    (3, 112, 5, 1, 6),
    (4, 192, 5, 2, 6),
    (1, 320, 3, 1, 6),
)


def describe_efficientnet_lite0(classes: int) -> Description:
    chain = Chain()
    chain.convolution("conv_stem", 3, _STEM, 3, stride=2, zeros="same")
    _normalise(chain, "bn1", _STEM, "act1")
    inputs = _STEM
    for stage, (blocks, outputs, kernel, first_stride, expansion) in enumerate(_STAGES):
        for number in range(blocks):
            stride = first_stride if number == 0 else 1
            _add_block(chain, f"blocks.{stage}.{number}", inputs, outputs, kernel, stride, expansion)
            inputs = outputs
    chain.convolution("conv_head", inputs, _HEAD, 1)
    _normalise(chain, "bn2", _HEAD, "act2")
    chain.layer(Layer("global_pool", "adaptive_average_pool", (1, 1)))
    chain.classifier("classifier", _HEAD, classes)
    return chain.description()


def _add_block(chain: Chain, name: str, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
    """A 1×1 that widens, where the stage has an expansion; a depthwise convolution; a 1×1 that narrows."""
    source, width = chain.last, inputs * expansion
    norms = iter(("bn1", "bn2", "bn3"))
    if expansion > 1:
        chain.convolution(f"{name}.conv_pw", inputs, width, 1)
        _normalise(chain, f"{name}.{next(norms)}", width, f"{name}.act_pw")
    chain.convolution(f"{name}.conv_dw", width, width, kernel, stride=stride, groups=width, zeros="same")
    _normalise(chain, f"{name}.{next(norms)}", width, f"{name}.act_dw")
    chain.convolution(f"{name}.conv_pwl" if expansion > 1 else f"{name}.conv_pw", width, outputs, 1)
    chain.batch_norm(f"{name}.{next(norms)}", outputs, _EPSILON)
    if stride == 1 and inputs == outputs:
        chain.sum(f"{name}.sum", chain.last, source)


def _normalise(chain: Chain, name: str, channels: int, activation: str) -> None:
    chain.batch_norm(name, channels, _EPSILON)
    chain.layer(Layer(activation, "relu6"))

"""ResNet-50 with the activation before the convolution (He et al., 2016), as Keras's ResNet50V2 has it.

Names, which `checkpoints.families` maps Keras's to: `stem`; `layer{1…4}.{block}.` with `preact, reduce, reduce_bn,
spatial, spatial_bn, expand` and, in a stage's first block, `shortcut`; `norm`; `fc`. The stem, `expand` and `shortcut`
have biases: they are followed by a sum or a pool, and by no normalisation that could take the bias up.
"""

from __future__ import annotations

from ..layers import Layer
from .description import Chain, Description

_EPSILON = 1.001e-5  # keras/applications/resnet.py
_STAGES = ((64, 3), (128, 4), (256, 6), (512, 3))


def describe_resnet50v2(classes: int) -> Description:
    chain = Chain()
    chain.convolution("stem", 3, 64, 7, stride=2, padding=3, bias=True)
    # Zeros around the pool and not minus infinity: no activation has cut off values below zero yet.
    chain.layer(Layer("pool", "max_pool", (3, 3), (2, 2), (0, 0), (1, 1)), zeros=(1, 1, 1, 1))
    inputs = 64
    for stage, (width, blocks) in enumerate(_STAGES, start=1):
        for number in range(blocks):
            # The stride is in a stage's last block; the last stage has none.
            stride = 2 if stage < len(_STAGES) and number == blocks - 1 else 1
            _add_block(chain, f"layer{stage}.{number}", inputs, width, stride)
            inputs = 4 * width
    chain.batch_norm("norm", inputs, _EPSILON)
    chain.layer(Layer("relu", "relu"))
    chain.layer(Layer("avgpool", "adaptive_average_pool", (1, 1)))
    chain.classifier("fc", inputs, classes)
    return chain.description()


def _add_block(chain: Chain, name: str, inputs: int, width: int, stride: int) -> None:
    """`x + expand(spatial(reduce(preact(x))))`; a stage's first block projects preact(x) in the place of x."""
    source, outputs = chain.last, 4 * width
    chain.batch_norm(f"{name}.preact", inputs, _EPSILON)
    chain.layer(Layer(f"{name}.preact_relu", "relu"))
    start = chain.last
    chain.convolution(f"{name}.reduce", inputs, width, 1)
    chain.batch_norm(f"{name}.reduce_bn", width, _EPSILON)
    chain.layer(Layer(f"{name}.reduce_relu", "relu"))
    chain.convolution(f"{name}.spatial", width, width, 3, stride=stride, padding=1)
    chain.batch_norm(f"{name}.spatial_bn", width, _EPSILON)
    chain.layer(Layer(f"{name}.spatial_relu", "relu"))
    chain.convolution(f"{name}.expand", width, outputs, 1, bias=True)
    main = chain.last
    if inputs != outputs:
        chain.convolution(f"{name}.shortcut", inputs, outputs, 1, bias=True, source=start)
        source = chain.last
    elif stride > 1:
        # Keras skips points with a 1×1 pool.
        chain.last = source
        chain.layer(Layer(f"{name}.skip", "max_pool", (1, 1), (stride, stride), (0, 0), (1, 1)))
        source = chain.last
    chain.sum(f"{name}.sum", source, main)

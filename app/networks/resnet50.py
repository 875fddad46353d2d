"""torchvision's ResNet-50 and what its keys and shapes do not tell: stride, stem, pool and epsilon."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..types import ResNetSwitches

if TYPE_CHECKING:
    import torch


def set_switches(network: torch.nn.Module, switches: ResNetSwitches) -> None:
    """Turn torchvision's network (stride in the 3×3, symmetric padding, epsilon 1e-5) into the variant of `switches`.

    The weights' names and shapes stay as they are.
    """
    import torch

    if switches.stride_in == "1x1":
        for stage in ("layer2", "layer3", "layer4"):
            block = network.get_submodule(f"{stage}.0")
            for name, stride in (("conv1", (2, 2)), ("conv2", (1, 1))):
                convolution = block.get_submodule(name)
                assert isinstance(convolution, torch.nn.Conv2d)
                convolution.stride = stride
    stem = network.get_submodule("conv1")
    assert isinstance(stem, torch.nn.Conv2d)
    if switches.stem == "same":
        network.add_module("conv1", _same_stem(stem))
    network.add_module("maxpool", _pool(switches))
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eps = switches.epsilon


def _same_stem(symmetric: torch.nn.Conv2d) -> torch.nn.Conv2d:
    """The 7×7 stem with TensorFlow's SAME padding: for even sizes two rows and columns before, three behind.

    (TensorFlow's rule: the output is ⌈n/2⌉, the padding what that needs, and its odd row goes behind.)
    """
    import torch

    class SameConv2d(torch.nn.Conv2d):
        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return super().forward(torch.nn.functional.pad(inputs, (2, 3, 2, 3)))

    return SameConv2d(
        symmetric.in_channels,
        symmetric.out_channels,
        symmetric.kernel_size,  # type: ignore[arg-type]
        stride=symmetric.stride,  # type: ignore[arg-type]
        bias=False,
        device=symmetric.weight.device,
    )


def _pool(switches: ResNetSwitches) -> torch.nn.MaxPool2d:
    """The 3×3 pool. ceil: the window may hang over the end, which is SAME where the input is even (112)."""
    import torch

    if switches.pool == "symmetric":
        return torch.nn.MaxPool2d(3, stride=2, padding=1)
    return torch.nn.MaxPool2d(3, stride=2, padding=0, ceil_mode=switches.pool == "ceil")

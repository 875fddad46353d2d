"""Networks by name: descriptions, realised as torch modules that hold weights and as ONNX graphs."""

from .build import build_network, count_classes, describe_fitted
from .described import RESNET50_VARIANTS, is_described
from .description import layers
from .onnx_file import OnnxFile
from .onnx_graph import LOGITS, OPSET, PIXELS, PLANES, write_graph
from .resnet import ResNet, describe_resnet

__all__ = [
    "LOGITS",
    "OPSET",
    "PIXELS",
    "PLANES",
    "RESNET50_VARIANTS",
    "OnnxFile",
    "ResNet",
    "build_network",
    "count_classes",
    "describe_fitted",
    "describe_resnet",
    "is_described",
    "layers",
    "write_graph",
]
